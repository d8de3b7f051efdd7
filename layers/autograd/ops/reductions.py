"""Sums, means and maxima over axes, and the softmax family."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from layers.autograd.ops import shapes
from layers.autograd.ops.elementwise import exp
from layers.autograd.tensor import Tensor, as_tensor, record

Axis = int | tuple[int, ...] | None


def sum(x: Any, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """Sum over the axes. Gradient: repeated to every summand."""
    x = as_tensor(x)
    kept = _kept_shape("sum", x, axis)
    return record(
        "sum",
        x.data.sum(axis=axis, keepdims=keepdims),
        (x, lambda g, _: shapes.broadcast_to(g.reshape(kept), x.shape)),
    )


def mean(x: Any, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """Mean over the axes: the sum divided by the number of elements."""
    x = as_tensor(x)
    kept = _kept_shape("mean", x, axis)
    if x.size == 0:
        raise ValueError(f"mean: shape {x.shape} has no elements")
    return sum(x, axis, keepdims) * (math.prod(kept) / x.size)


def max(x: Any, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """Maximum over the axes. Gradient: to the largest element; several equal ones share it evenly."""
    x = as_tensor(x)
    kept = _kept_shape("max", x, axis)
    if x.size == 0:
        raise ValueError(f"max: shape {x.shape} has no elements")

    def pullback(g: Tensor, y: Tensor) -> Tensor:
        largest = x.data == y.data.reshape(kept)
        share = largest / largest.sum(axis=axis, keepdims=True)
        return g.reshape(kept) * Tensor(share.astype(x.dtype))

    return record("max", x.data.max(axis=axis, keepdims=keepdims), (x, pullback))


def softmax(x: Any, axis: int = -1) -> Tensor:
    """y_i = e^x_i / sum_j e^x_j; from dy_i/dx_j = y_i (delta_ij - y_j) the pullback y (g - sum_i g_i y_i)."""
    x = as_tensor(x)
    shifted = np.exp(x.data - x.data.max(axis=axis, keepdims=True))  # the shift cancels and prevents overflow
    data = shifted / shifted.sum(axis=axis, keepdims=True)
    return record("softmax", data, (x, lambda g, y: y * (g - sum(g * y, axis, keepdims=True))))


def log_softmax(x: Any, axis: int = -1) -> Tensor:
    """y_i = x_i - log sum_j e^x_j; pullback g - softmax(x) sum_i g_i."""
    x = as_tensor(x)
    shifted = x.data - x.data.max(axis=axis, keepdims=True)
    data = shifted - np.log(np.exp(shifted).sum(axis=axis, keepdims=True))
    return record("log_softmax", data, (x, lambda g, y: g - exp(y) * sum(g, axis, keepdims=True)))


def _kept_shape(operation: str, x: Tensor, axis: Axis) -> tuple[int, ...]:
    """The shape of x with the reduced axes of length one."""
    axes = range(x.ndim) if axis is None else (axis,) if isinstance(axis, int) else axis
    if any(not -x.ndim <= a < x.ndim for a in axes):
        raise ValueError(f"{operation}: axis {axis} is not an axis of shape {x.shape}")
    reduced = {a % x.ndim for a in axes}
    return tuple(1 if i in reduced else n for i, n in enumerate(x.shape))
