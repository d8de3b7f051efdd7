"""Two-dimensional convolution and pooling on images (batch, height, width, channels).

A convolution is one matrix product: `unfold` lays all windows of the image beside each other, one column a
window, and the kernel is the matrix in front. `unfold` is linear and `fold` is its transpose, so each is
the other's gradient, to any order.

Memory: results have the shape NHWC but lie in memory channel by channel (NumPy keeps such an order through
all elementwise operations). Copies then run along image rows instead of along a handful of channels,
several times faster for narrow layers.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from layers.autograd.ops.shapes import pad
from layers.autograd.tensor import Tensor, as_tensor, record

Pair = int | tuple[int, int]


def conv2d(x: Any, kernel: Any, strides: Pair = 1, padding: str = "valid", dilation_rate: Pair = 1) -> Tensor:
    """y[n,p,q,o] = sum_{i,j,c} x[n, p s + i d, q s + j d, c] kernel[i,j,c,o] (a cross-correlation).

    Args:
        x: images (N, H, W, C).
        kernel: (height, width, C, filters).
        strides: the step s between windows.
        padding: "valid" (windows inside the image) or "same" (zeros around it, output of ceil(H/s)).
        dilation_rate: the distance d between the elements of a window.

    Returns:
        (N, H', W', filters).
    """
    x, kernel = as_tensor(x), as_tensor(kernel)
    if x.ndim != 4 or kernel.ndim != 4 or x.shape[3] != kernel.shape[2]:
        raise ValueError(
            f"conv2d: images {x.shape} and kernel {kernel.shape}; "
            "expected (N, H, W, C) and (h, w, C, filters)"
        )
    size, filters = kernel.shape[:2], kernel.shape[3]
    strides, dilation = _pair(strides), _pair(dilation_rate)
    x = pad(x, _padding("conv2d", x.shape, size, strides, dilation, padding))
    columns = unfold(x, size, strides, dilation)  # (h, w, C, N, H', W')
    n, height, width = columns.shape[3:]
    matrix = kernel.reshape(-1, filters).T  # (filters, h w C)
    product = matrix @ columns.reshape(matrix.shape[1], -1)  # (filters, N H' W')
    return product.reshape(filters, n, height, width).transpose(1, 2, 3, 0)


def unfold(x: Any, size: Pair, strides: Pair = 1, dilation_rate: Pair = 1) -> Tensor:
    """All windows of the images: y[i,j,c,n,p,q] = x[n, p s + i d, q s + j d, c]. Gradient: `fold`.

    Args:
        x: (N, H, W, C).
        size: (h, w) of a window.
        strides: the step between windows.
        dilation_rate: the distance between the elements of a window.

    Returns:
        (h, w, C, N, H', W').
    """
    x = as_tensor(x)
    size, strides, dilation = _pair(size), _pair(strides), _pair(dilation_rate)
    height, width = _windows("unfold", x.shape, size, strides, dilation)
    n, _, _, channels = x.shape
    data = np.empty((*size, channels, n, height, width), x.dtype)
    images = x.data.transpose(3, 0, 1, 2)  # (C, N, H, W)
    for i, j, places in _offsets(size, strides, dilation, (height, width)):
        data[i, j] = images[places]
    return record("unfold", data, (x, lambda g, _: fold(g, x.shape, strides, dilation)))


def fold(columns: Any, shape: tuple[int, ...], strides: Pair = 1, dilation_rate: Pair = 1) -> Tensor:
    """The transpose of `unfold`: every window added to its place in images of `shape`. Gradient: `unfold`.

    Args:
        columns: (h, w, C, N, H', W').
        shape: (N, H, W, C) of the result.
        strides: the step between windows.
        dilation_rate: the distance between the elements of a window.
    """
    columns = as_tensor(columns)
    strides, dilation = _pair(strides), _pair(dilation_rate)
    size, windows = columns.shape[:2], columns.shape[4:]
    n, height, width, channels = shape
    images = np.zeros((channels, n, height, width), columns.dtype)
    for i, j, places in _offsets(size, strides, dilation, windows):
        images[places] += columns.data[i, j]
    data = images.transpose(1, 2, 3, 0)  # (N, H, W, C)
    return record("fold", data, (columns, lambda g, _: unfold(g, size, strides, dilation)))


def max_pool2d(x: Any, pool_size: Pair = 2, strides: Pair | None = None, padding: str = "valid") -> Tensor:
    """The largest element of every window. Gradient: to that element (the first of several equal ones).

    Args:
        x: (N, H, W, C).
        pool_size: (h, w) of a window.
        strides: the step between windows (default: the window).
        padding: "valid" or "same"; padded places never win.

    Returns:
        (N, H', W', C).
    """
    x = as_tensor(x)
    size = _pair(pool_size)
    strides = size if strides is None else _pair(strides)
    widths = _padding("max_pool2d", x.shape, size, strides, (1, 1), padding)
    x = pad(x, widths, value=-np.inf)
    windows = _windows("max_pool2d", x.shape, size, strides, (1, 1))
    images = x.data.transpose(3, 0, 1, 2)
    largest: np.ndarray | None = None
    for _, _, places in _offsets(size, strides, (1, 1), windows):
        candidate = images[places]
        largest = candidate if largest is None else np.maximum(largest, candidate)
    return _chosen(x, _Choice(images, largest, size, strides, windows), largest.transpose(1, 2, 3, 0))


def avg_pool2d(x: Any, pool_size: Pair = 2, strides: Pair | None = None, padding: str = "valid") -> Tensor:
    """The mean of every window; with padding "same" over those of its elements that lie in the image.

    Args:
        x: (N, H, W, C).
        pool_size: (h, w) of a window.
        strides: the step between windows (default: the window).
        padding: "valid" or "same".

    Returns:
        (N, H', W', C).
    """
    x = as_tensor(x)
    size = _pair(pool_size)
    strides = size if strides is None else _pair(strides)
    widths = _padding("avg_pool2d", x.shape, size, strides, (1, 1), padding)
    inside = np.pad(np.ones((1, *x.shape[1:3], 1), x.dtype), widths)
    count = unfold(inside, size, strides).sum(axis=(0, 1))  # (1, 1, H', W')
    total = unfold(pad(x, widths), size, strides).sum(axis=(0, 1))  # (C, N, H', W')
    return (total / count).transpose(1, 2, 3, 0)


class _Choice:
    """Which element of every window was chosen: one Boolean array for each place in the window.

    They are made when first asked for: evaluation never asks, and training asks once.
    """

    def __init__(
        self,
        images: np.ndarray,
        largest: np.ndarray,
        size: tuple[int, int],
        strides: tuple[int, int],
        windows: tuple[int, int],
    ) -> None:
        self.images, self.largest = images, largest
        self.size, self.strides, self.windows = size, strides, windows
        self._masks: list[np.ndarray] | None = None

    def __iter__(self) -> Iterator[tuple[tuple, np.ndarray]]:
        """Pairs (places in the images, mask over the windows)."""
        places = [p for _, _, p in _offsets(self.size, self.strides, (1, 1), self.windows)]
        if self._masks is None:
            self._masks, free = [], np.ones(self.largest.shape, bool)
            for place in places:
                mask = (self.images[place] == self.largest) & free
                free &= ~mask
                self._masks.append(mask)
            self.images = self.largest = None  # the masks are all that is needed from here on
        return zip(places, self._masks, strict=True)


def _chosen(x: Tensor, choice: _Choice, data: np.ndarray) -> Tensor:
    """The chosen elements of the images x; linear in x, its transpose is `_spread`."""
    return record("max_pool2d", data, (x, lambda g, _: _spread(g, choice, x.shape)))


def _spread(g: Tensor, choice: _Choice, shape: tuple[int, ...]) -> Tensor:
    """Every element of g added to the place of the images its maximum came from."""
    n, height, width, channels = shape
    images = np.zeros((channels, n, height, width), g.dtype)
    values = g.data.transpose(3, 0, 1, 2)
    for places, mask in choice:
        images[places] += values * mask

    def pullback(again: Tensor, _: Tensor) -> Tensor:
        source = again.data.transpose(3, 0, 1, 2)
        picked = np.zeros(values.shape, again.dtype)
        for places, mask in choice:
            picked += source[places] * mask
        return _chosen(again, choice, picked.transpose(1, 2, 3, 0))

    return record("max_unpool2d", images.transpose(1, 2, 3, 0), (g, pullback))


def _offsets(
    size: tuple[int, int], strides: tuple[int, int], dilation: tuple[int, int], windows: tuple[int, int]
) -> Iterator[tuple[int, int, tuple]]:
    """For each element (i, j) of a window the places it takes in images (C, N, H, W), over all windows."""
    for i in range(size[0]):
        for j in range(size[1]):
            top, left = i * dilation[0], j * dilation[1]
            rows = slice(top, top + (windows[0] - 1) * strides[0] + 1, strides[0])
            columns = slice(left, left + (windows[1] - 1) * strides[1] + 1, strides[1])
            yield i, j, (slice(None), slice(None), rows, columns)


def _windows(
    operation: str, shape: tuple, size: tuple[int, int], strides: tuple[int, int], dilation: tuple[int, int]
) -> tuple[int, int]:
    """The number of windows along height and width."""
    if len(shape) != 4:
        raise ValueError(f"{operation}: expected images (N, H, W, C), got shape {shape}")
    counts = tuple(
        (n - (k - 1) * d - 1) // s + 1 for n, k, s, d in zip(shape[1:3], size, strides, dilation, strict=True)
    )
    if min(counts) < 1:
        raise ValueError(f"{operation}: no window of size {size} (dilation {dilation}) fits images {shape}")
    return counts


def _padding(
    operation: str,
    shape: tuple[int, ...],
    size: tuple[int, int],
    strides: tuple[int, int],
    dilation: tuple[int, int],
    padding: str,
) -> list[tuple[int, int]]:
    """(before, after) for each axis of the images; "same" puts the odd one after, as TensorFlow does."""
    if len(shape) != 4:
        raise ValueError(f"{operation}: expected images (N, H, W, C), got shape {shape}")
    if padding == "valid":
        return [(0, 0)] * 4
    if padding != "same":
        raise ValueError(f'{operation}: padding is "valid" or "same", got {padding!r}')
    widths = [(0, 0)]
    for n, k, s, d in zip(shape[1:3], size, strides, dilation, strict=True):
        total = max((-(-n // s) - 1) * s + (k - 1) * d + 1 - n, 0)
        widths.append((total // 2, total - total // 2))
    return [*widths, (0, 0)]


def _pair(value: Pair) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value)
