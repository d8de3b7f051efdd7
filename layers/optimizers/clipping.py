"""Gradient clipping: by value, by the norm of each gradient, by the norm of all of them together."""

from collections.abc import Sequence
from typing import Any

from keras import ops


def clip_by_value(gradient: Any, limit: float) -> Any:
    """Return the gradient with every element in [-limit, limit]."""
    return ops.clip(ops.convert_to_tensor(gradient), -limit, limit)


def clip_by_norm(gradient: Any, limit: float) -> Any:
    """Return g * limit / max(||g||, limit): the direction stays, the length is at most the limit.

    Args:
        gradient: a tensor of any shape; its Euclidean norm counts.
        limit: the largest length.

    Returns:
        Tensor of the gradient's shape.

    Reference:
        Pascanu et al. 2013, "On the difficulty of training recurrent neural networks".
    """
    gradient = ops.convert_to_tensor(gradient)
    return gradient * (limit / ops.maximum(global_norm([gradient]), limit))


def global_norm(gradients: Sequence) -> Any:
    """Return the Euclidean norm of all gradients as one vector; None among them counts as zero."""
    squares = [ops.sum(ops.square(ops.convert_to_tensor(g))) for g in gradients if g is not None]
    return ops.sqrt(sum(squares[1:], start=squares[0]))


def clip_by_global_norm(gradients: Sequence, limit: float) -> list:
    """Return every gradient times limit / max(norm, limit), norm the global one (Pascanu et al. 2013).

    Args:
        gradients: tensors of any shapes, or None.
        limit: the largest global norm.

    Returns:
        List of the same length; if the norm is not finite, all of it is NaN, so that nobody misses it.
    """
    norm = global_norm(gradients)
    scale = limit / ops.maximum(norm, limit) + (norm - norm)
    return [ops.convert_to_tensor(g) * scale if g is not None else None for g in gradients]
