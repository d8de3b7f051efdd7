"""Batch and layer normalization: one derivation, along the batch or along the features."""

from __future__ import annotations

import numpy as np

Kept = tuple[np.ndarray, np.ndarray, np.ndarray]


def batch_norm_forward(
    x: np.ndarray, gamma: np.ndarray, beta: np.ndarray, epsilon: float = 1e-3
) -> tuple[np.ndarray, Kept]:
    """`y = gamma (x - mean) / sqrt(variance + epsilon) + beta` for x (N, features), moments over batch."""
    return _forward(x, gamma, beta, epsilon, axis=0)


def batch_norm_backward(dy: np.ndarray, kept: Kept) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(dx, dgamma, dbeta), with s = sqrt(variance + epsilon) and u = (x - mean) / s:

        dgamma = sum_n dy u,   dbeta = sum_n dy,
        dx     = (du - mean(du) - u mean(du u)) / s   with du = dy gamma and means over the N examples.

    Fix a feature. u_n depends on every x_m, through itself, through the mean and through s:

        d mean / dx_m = 1/N
        d s / dx_m    = (1/2s) d variance / dx_m = (1/2s) (2/N) (x_m - mean) = u_m / N
                        (the mean's own dependence on x_m drops out, because sum_n (x_n - mean) = 0)
        du_n / dx_m   = ([n = m] - 1/N) / s - (x_n - mean)/s^2 u_m/N = ([n = m] - 1/N - u_n u_m / N) / s

    and dx_m = sum_n du_n (du_n/dx_m) is the line above. It removes from du its mean and its component along
    u: the two directions in which moving x does not change u.
    """
    return _backward(dy, kept, axis=0)


def layer_norm_forward(
    x: np.ndarray, gamma: np.ndarray, beta: np.ndarray, epsilon: float = 1e-3
) -> tuple[np.ndarray, Kept]:
    """`y = gamma (x - mean) / sqrt(variance + epsilon) + beta` for x (N, features), moments over features."""
    return _forward(x, gamma, beta, epsilon, axis=1)


def layer_norm_backward(dy: np.ndarray, kept: Kept) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(dx, dgamma, dbeta): dx = (du - mean(du) - u mean(du u)) / s, du = dy gamma, means over the features.

    The derivation of `batch_norm_backward` with the sum over the features of one example in place of the sum
    over the examples. Only gamma and beta still belong to a feature, so their gradients still sum over the
    examples.
    """
    return _backward(dy, kept, axis=1)


def _forward(
    x: np.ndarray, gamma: np.ndarray, beta: np.ndarray, epsilon: float, axis: int
) -> tuple[np.ndarray, Kept]:
    centered = x - x.mean(axis=axis, keepdims=True)
    s = np.sqrt((centered * centered).mean(axis=axis, keepdims=True) + epsilon)
    u = centered / s
    return gamma * u + beta, (u, s, gamma)


def _backward(dy: np.ndarray, kept: Kept, axis: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    u, s, gamma = kept
    du = dy * gamma
    dx = (du - du.mean(axis=axis, keepdims=True) - u * (du * u).mean(axis=axis, keepdims=True)) / s
    return dx, (dy * u).sum(axis=0), dy.sum(axis=0)
