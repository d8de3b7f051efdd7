"""ReLU and GELU: a function of each element alone has a diagonal Jacobian, so dx = dy f'(x)."""

from __future__ import annotations

import math

import numpy as np

_erf = np.frompyfunc(math.erf, 1, 1)


def relu_forward(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """max(x, 0)."""
    y = np.maximum(x, 0)
    return y, y


def relu_backward(dy: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """`dx = dy` where y > 0, else 0: the slope is 1 or 0 (0 chosen at the kink)."""
    return dy * (kept > 0)


def gelu_forward(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`x Phi(x)`, Phi the distribution function of the standard normal."""
    return x * _distribution(x), x


def gelu_backward(dy: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """`dx = dy (Phi(x) + x phi(x))`.

    By the product rule d/dx [x Phi(x)] = Phi(x) + x Phi'(x), and Phi' is the normal density
    phi(x) = exp(-x^2/2) / sqrt(2 pi), since Phi(x) = (1 + erf(x / sqrt 2)) / 2 and
    erf'(u) = 2 exp(-u^2) / sqrt(pi).
    """
    x = kept
    density = np.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)
    return dy * (_distribution(x) + x * density)


def _distribution(x: np.ndarray) -> np.ndarray:
    return np.asarray(0.5 * (1 + _erf(x / math.sqrt(2))), x.dtype)
