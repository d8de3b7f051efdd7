"""Softmax and cross-entropy as one function: together they are stable and the gradient is a difference."""

from __future__ import annotations

import numpy as np


def softmax_crossentropy_forward(
    logits: np.ndarray, labels: np.ndarray
) -> tuple[float, tuple[np.ndarray, np.ndarray]]:
    """L = mean_n (log sum_k e^z_nk - z_n,label) for logits z (N, classes) and integer labels (N,)."""
    shifted = logits - logits.max(axis=1, keepdims=True)  # cancels in the difference, prevents overflow
    log_sum = np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    log_p = shifted - log_sum
    loss = -log_p[np.arange(len(labels)), labels].mean()
    return float(loss), (np.exp(log_p), labels)


def softmax_crossentropy_backward(kept: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """`dz = (p - onehot(label)) / N`.

    For one example L = log sum_k e^z_k - z_y, hence

        dL/dz_j = e^z_j / sum_k e^z_k - [j = y] = p_j - [j = y]

    and the mean over the batch divides by N. The Jacobian of the softmax, p_i ([i = j] - p_j), never
    appears: the logarithm of the cross-entropy cancels it. What is left is the error of the prediction.
    """
    p, labels = kept
    dz = p.copy()
    dz[np.arange(len(labels)), labels] -= 1
    return dz / np.asarray(len(labels), p.dtype)
