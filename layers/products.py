"""Products with a matrix, by the fastest code that the backend has for them."""

from collections.abc import Callable
from typing import Any

import keras
from keras import ops


def matmul(x: Any, matrix: Any, otherwise: Callable = ops.matmul) -> Any:
    """The matrix product.

        y = x W

    That of `ops.matmul`, but for rounding: on PyTorch large products go by oneDNN where that is faster.

    Args:
        x: tensor of shape (..., inputs).
        matrix: W, tensor or variable of shape (inputs, outputs).
        otherwise: what multiplies where the backend's own product is as fast as any.

    Returns:
        Tensor of shape (..., outputs).
    """
    if keras.backend.backend() == "torch":
        from . import onednn  # loads PyTorch

        if onednn.pays(x):
            return onednn.matmul(x, ops.convert_to_tensor(matrix), otherwise)
    return otherwise(x, matrix)
