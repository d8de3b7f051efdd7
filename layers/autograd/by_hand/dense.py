"""Y = X W + b."""

from __future__ import annotations

import numpy as np


def dense_forward(
    x: np.ndarray, kernel: np.ndarray, bias: np.ndarray
) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
    """Y = X W + b for X (N, inputs), W (inputs, units), b (units,)."""
    return x @ kernel + bias, (x, kernel)


def dense_backward(dy: np.ndarray, kept: tuple[np.ndarray, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(dX, dW, db) = (dY W^T, X^T dY, sum_n dY_n).

    In coordinates Y_nk = sum_j X_nj W_jk + b_k, so

        dX_nj = sum_k dY_nk dY_nk/dX_nj = sum_k dY_nk W_jk     = (dY W^T)_nj
        dW_jk = sum_n dY_nk dY_nk/dW_jk = sum_n X_nj dY_nk     = (X^T dY)_jk
        db_k  = sum_n dY_nk.

    Every weight is used by all examples of the batch: hence the sums over n.
    """
    x, kernel = kept
    return dy @ kernel.T, x.T @ dy, dy.sum(axis=0)
