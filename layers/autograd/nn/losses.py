"""Losses, one value an example; take `.mean()` for the batch.

The argument order is that of Keras: first the truth, then the prediction.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from layers.autograd import ops
from layers.autograd.tensor import Tensor, as_array, as_tensor

EPSILON = 1e-7  # probabilities are kept this far from 0, as Keras does


def mean_squared_error(y_true: Any, y_pred: Any) -> Tensor:
    """Mean of (y_pred - y_true)^2 over the last axis."""
    error = _difference("mean_squared_error", y_true, y_pred)
    return (error * error).mean(axis=-1)


def mean_absolute_error(y_true: Any, y_pred: Any) -> Tensor:
    """Mean of |y_pred - y_true| over the last axis."""
    return ops.absolute(_difference("mean_absolute_error", y_true, y_pred)).mean(axis=-1)


def huber(y_true: Any, y_pred: Any, delta: float = 1.0) -> Tensor:
    """e^2/2 for |e| <= delta, else delta |e| - delta^2/2: squared near zero, absolute for outliers."""
    error = _difference("huber", y_true, y_pred)
    size = ops.absolute(error)
    inside = 0.5 * (error * error)
    outside = delta * size - 0.5 * delta * delta
    return ops.where(size.data <= delta, inside, outside).mean(axis=-1)


def hinge(y_true: Any, y_pred: Any) -> Tensor:
    """Mean of max(1 - y_true y_pred, 0) over the last axis, truth -1 or 1 (0 is read as -1)."""
    y_pred = as_tensor(y_pred)
    truth = _like("hinge", y_true, y_pred)
    if np.isin(truth, (0, 1)).all():
        truth = 2 * truth - 1
    return ops.relu(1 - Tensor(truth) * y_pred).mean(axis=-1)


def binary_crossentropy(y_true: Any, y_pred: Any, from_logits: bool = False) -> Tensor:
    """Mean of -(t log p + (1 - t) log(1 - p)) over the last axis.

    From a logit z it is softplus(z) - t z, which no value of z overflows.
    """
    y_pred = as_tensor(y_pred)
    truth = Tensor(_like("binary_crossentropy", y_true, y_pred))
    if from_logits:
        return (ops.softplus(y_pred) - truth * y_pred).mean(axis=-1)
    p = _inner(y_pred)
    return -(truth * ops.log(p) + (1 - truth) * ops.log(1 - p)).mean(axis=-1)


def categorical_crossentropy(y_true: Any, y_pred: Any, from_logits: bool = False) -> Tensor:
    """-sum_k t_k log p_k over the last axis, the truth a distribution (N, classes)."""
    y_pred = as_tensor(y_pred)
    truth = Tensor(_like("categorical_crossentropy", y_true, y_pred))
    if from_logits:
        log_p = ops.log_softmax(y_pred)
    else:
        log_p = ops.log(_inner(y_pred / y_pred.sum(axis=-1, keepdims=True)))
    return -(truth * log_p).sum(axis=-1)


def sparse_categorical_crossentropy(y_true: Any, y_pred: Any, from_logits: bool = False) -> Tensor:
    """-log p of the true class, the truth integers (N,)."""
    y_pred, labels = as_tensor(y_pred), as_array(y_true)
    if labels.shape == (*y_pred.shape[:-1], 1):
        labels = labels[..., 0]
    if labels.shape != y_pred.shape[:-1]:
        raise ValueError(
            f"sparse_categorical_crossentropy: labels {labels.shape} for predictions {y_pred.shape}"
        )
    classes = np.arange(y_pred.shape[-1])
    return categorical_crossentropy(labels[..., None] == classes, y_pred, from_logits)


def _difference(loss: str, y_true: Any, y_pred: Any) -> Tensor:
    y_pred = as_tensor(y_pred)
    return y_pred - Tensor(_like(loss, y_true, y_pred))


def _like(loss: str, y_true: Any, y_pred: Tensor) -> np.ndarray:
    """The truth as an array of the prediction's type and shape."""
    truth = as_array(y_true)
    if truth.shape != y_pred.shape:
        raise ValueError(f"{loss}: truth of shape {truth.shape} for predictions of shape {y_pred.shape}")
    return truth.astype(y_pred.dtype)


def _inner(p: Tensor) -> Tensor:
    """Probabilities kept in [epsilon, 1 - epsilon], where the logarithm is finite."""
    return -ops.maximum(-ops.maximum(p, EPSILON), EPSILON - 1)
