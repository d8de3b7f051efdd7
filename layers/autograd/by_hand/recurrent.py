"""One step of an RNN, an LSTM and a GRU, forward and back.

Backpropagation through time calls the backward from the last step to the first, adding up the
weights' gradients:

    dh = 0
    for t = T-1 ... 0:   dx_t, dh, ... = step_backward(dh + dL/dh_t, kept_t)
"""

from __future__ import annotations

import numpy as np

Kept = tuple[np.ndarray, ...]


def rnn_step_forward(
    x: np.ndarray, h: np.ndarray, kernel: np.ndarray, recurrent: np.ndarray, bias: np.ndarray
) -> tuple[np.ndarray, Kept]:
    """`h' = tanh(x W + h U + b)` for x (N, features), h (N, units)."""
    after = np.tanh(x @ kernel + h @ recurrent + bias)
    return after, (x, h, kernel, recurrent, after)


def rnn_step_backward(dafter: np.ndarray, kept: Kept) -> tuple[np.ndarray, ...]:
    """(dx, dh, dW, dU, db).

    With z = x W + h U + b, h' = tanh z has the slope 1 - h'^2, so dz = dh' (1 - h'^2). Everything else is a
    dense layer: dx = dz W^T, dh = dz U^T, dW = x^T dz, dU = h^T dz, db = sum_n dz.

    Through T steps dh is multiplied T times by diag(1 - h'^2) U^T: its norm shrinks or grows like a power
    of the largest singular value of that product, which is the vanishing or exploding gradient.
    """
    x, h, kernel, recurrent, after = kept
    dz = dafter * (1 - after * after)
    return dz @ kernel.T, dz @ recurrent.T, x.T @ dz, h.T @ dz, dz.sum(axis=0)


def lstm_step_forward(
    x: np.ndarray, h: np.ndarray, c: np.ndarray, kernel: np.ndarray, recurrent: np.ndarray, bias: np.ndarray
) -> tuple[np.ndarray, np.ndarray, Kept]:
    """`c' = f c + i g`, `h' = o tanh(c')`, gates i, f, g, o from x W + h U + b; returns (h', c', kept)."""
    z = x @ kernel + h @ recurrent + bias  # (N, 4 units)
    zi, zf, zg, zo = np.split(z, 4, axis=1)
    i, f, g, o = _sigmoid(zi), _sigmoid(zf), np.tanh(zg), _sigmoid(zo)
    after = f * c + i * g
    squashed = np.tanh(after)
    return o * squashed, after, (x, h, c, kernel, recurrent, i, f, g, o, squashed)


def lstm_step_backward(dh_after: np.ndarray, dc_after: np.ndarray, kept: Kept) -> tuple[np.ndarray, ...]:
    """(dx, dh, dc, dW, dU, db).

    c' reaches the loss on two ways, as the next state (dc_after) and through h' = o tanh(c'):

        dc' = dc_after + dh' o (1 - tanh(c')^2),     do = dh' tanh(c').

    From c' = f c + i g:  df = dc' c,  di = dc' g,  dg = dc' i,  dc = dc' f.
    Through the squashing, sigmoid' = s (1 - s) and tanh' = 1 - s^2:

        dz = [di i (1 - i),  df f (1 - f),  dg (1 - g^2),  do o (1 - o)]

    and the rest is a dense layer. Along c alone the gradient is only multiplied by f, with no weight matrix
    and no squashing in between: as long as the forget gate stays near 1 it neither vanishes nor explodes.
    """
    x, h, c, kernel, recurrent, i, f, g, o, squashed = kept
    dc = dc_after + dh_after * o * (1 - squashed * squashed)
    dz = np.concatenate(
        [
            dc * g * i * (1 - i),
            dc * c * f * (1 - f),
            dc * i * (1 - g * g),
            dh_after * squashed * o * (1 - o),
        ],
        axis=1,
    )
    return dz @ kernel.T, dz @ recurrent.T, dc * f, x.T @ dz, h.T @ dz, dz.sum(axis=0)


def gru_step_forward(
    x: np.ndarray, h: np.ndarray, kernel: np.ndarray, recurrent: np.ndarray, bias: np.ndarray
) -> tuple[np.ndarray, Kept]:
    """`h' = z h + (1 - z) g` with `g = tanh(a_h + r s_h)`; a = x W + b[0] and s = h U + b[1] hold z, r, h."""
    a, s = x @ kernel + bias[0], h @ recurrent + bias[1]  # (N, 3 units) each
    (az, ar, ah), (sz, sr, sh) = np.split(a, 3, axis=1), np.split(s, 3, axis=1)
    z, r = _sigmoid(az + sz), _sigmoid(ar + sr)
    g = np.tanh(ah + r * sh)
    return z * h + (1 - z) * g, (x, h, kernel, recurrent, z, r, g, sh)


def gru_step_backward(dafter: np.ndarray, kept: Kept) -> tuple[np.ndarray, ...]:
    """(dx, dh, dW, dU, db).

    From h' = z h + (1 - z) g:  dg = dh' (1 - z),  dz = dh' (h - g),  and directly dh = dh' z.
    From g = tanh(u), u = a_h + r s_h:  du = dg (1 - g^2),  da_h = du,  dr = du s_h,  ds_h = du r.
    The gates see the sum a + s, so both get dz z (1 - z) and dr r (1 - r). Then a and s are dense layers, of
    x and of h; h has a second gradient ds U^T.
    """
    x, h, kernel, recurrent, z, r, g, sh = kept
    du = dafter * (1 - z) * (1 - g * g)
    gates = [dafter * (h - g) * z * (1 - z), du * sh * r * (1 - r)]
    da, ds = np.concatenate([*gates, du], axis=1), np.concatenate([*gates, du * r], axis=1)
    dh = dafter * z + ds @ recurrent.T
    return da @ kernel.T, dh, x.T @ da, h.T @ ds, np.stack([da.sum(axis=0), ds.sum(axis=0)])


def _sigmoid(z: np.ndarray) -> np.ndarray:
    return 0.5 + 0.5 * np.tanh(0.5 * z)
