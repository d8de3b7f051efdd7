"""Convolution (windows inside the image, step 1) and max-pooling of images (N, H, W, C)."""

from __future__ import annotations

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

Kept = tuple[np.ndarray, np.ndarray]


def conv2d_forward(x: np.ndarray, kernel: np.ndarray, bias: np.ndarray) -> tuple[np.ndarray, Kept]:
    """y[n,p,q,o] = sum_{i,j,c} x[n,p+i,q+j,c] W[i,j,c,o] + b[o] for W (h, w, C, filters)."""
    return _correlate(x, kernel) + bias, (x, kernel)


def conv2d_backward(dy: np.ndarray, kept: Kept) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(dx, dW, db): dW correlates x with dy, dx correlates the padded dy with the turned kernel.

        dW[i,j,c,o] = sum_{n,p,q} dy[n,p,q,o] x[n,p+i,q+j,c]
        db[o]       = sum_{n,p,q} dy[n,p,q,o]
        dx[n,a,b,c] = sum_{i,j,o} dy[n,a-i,b-j,o] W[i,j,c,o]

    The first two read off the definition. For dx: x[n,a,b,c] enters y[n,p,q,o] for every (p, q) with
    p + i = a and q + j = b, so p = a - i. With i' = h-1-i this is sum dy[n, a-(h-1)+i', ...] W[h-1-i', ...]:
    dy with a border of h-1 zeros, correlated with the kernel turned by 180 degrees and its two channel axes
    exchanged.
    """
    x, kernel = kept
    h, w = kernel.shape[:2]
    windows = sliding_window_view(x, dy.shape[1:3], axis=(1, 2))  # (N, h, w, C, H', W')
    dkernel = np.einsum("nijcpq,npqo->ijco", windows, dy, optimize=True)
    border = np.pad(dy, ((0, 0), (h - 1, h - 1), (w - 1, w - 1), (0, 0)))
    turned = kernel[::-1, ::-1].transpose(0, 1, 3, 2)  # (h, w, filters, C)
    return _correlate(border, turned), dkernel, dy.sum(axis=(0, 1, 2))


def max_pool2d_forward(x: np.ndarray, size: int = 2) -> tuple[np.ndarray, tuple[np.ndarray, tuple, int]]:
    """The largest element of every size x size tile; an incomplete tile at the edge is cut off."""
    n, height, width, channels = x.shape
    rows, columns = height // size, width // size
    tiles = x[:, : rows * size, : columns * size].reshape(n, rows, size, columns, size, channels)
    tiles = tiles.transpose(0, 1, 3, 5, 2, 4).reshape(n, rows, columns, channels, size * size)
    winner = tiles.argmax(axis=-1)  # (N, rows, columns, C)
    return np.take_along_axis(tiles, winner[..., None], -1)[..., 0], (winner, x.shape, size)


def max_pool2d_backward(dy: np.ndarray, kept: tuple[np.ndarray, tuple, int]) -> np.ndarray:
    """`dx = dy` at the place of the maximum, 0 elsewhere.

    y = x_k with k the place of the largest element. A small change of x does not change k, so dy/dx_k = 1 and
    dy/dx_j = 0 for the others. At a tie the function has no derivative; the first place is taken.
    """
    winner, shape, size = kept
    n, rows, columns, channels = dy.shape
    tiles = np.zeros((*dy.shape, size * size), dy.dtype)
    np.put_along_axis(tiles, winner[..., None], dy[..., None], -1)
    tiles = tiles.reshape(n, rows, columns, channels, size, size).transpose(0, 1, 4, 2, 5, 3)
    dx = np.zeros(shape, dy.dtype)
    dx[:, : rows * size, : columns * size] = tiles.reshape(n, rows * size, columns * size, channels)
    return dx


def _correlate(x: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    windows = sliding_window_view(x, kernel.shape[:2], axis=(1, 2))  # (N, H', W', C, h, w)
    return np.tensordot(windows, kernel, axes=((4, 5, 3), (0, 1, 2)))
