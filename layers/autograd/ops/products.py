"""The matrix product."""

from __future__ import annotations

from typing import Any

import numpy as np

from layers.autograd.ops.shapes import unbroadcast
from layers.autograd.tensor import Tensor, as_tensor, record


def matmul(a: Any, b: Any) -> Tensor:
    """C = A B over the last two axes, leading axes broadcast; dA = dC B^T and dB = A^T dC.

    From C_ik = sum_j A_ij B_jk: dL/dA_ij = sum_k dL/dC_ik B_jk, and dL/dB_jk = sum_i A_ij dL/dC_ik.

    Args:
        a: (..., m, n), or (n,) for a row.
        b: (..., n, k), or (n,) for a column.

    Returns:
        (..., m, k), without the axis of an operand that was a vector.
    """
    a, b = as_tensor(a), as_tensor(b)
    if a.ndim == 0 or b.ndim == 0 or a.shape[-1] != b.shape[max(b.ndim - 2, 0)]:
        raise ValueError(f"matmul: shapes {a.shape} and {b.shape} do not multiply")
    if a.ndim == 1:
        product = matmul(a.reshape(1, -1), b)
        return product.reshape(product.shape[:-2] + product.shape[-1:] if b.ndim > 1 else ())
    if b.ndim == 1:
        product = matmul(a, b.reshape(-1, 1))
        return product.reshape(product.shape[:-1])
    if a.ndim > 2 and b.ndim == 2:
        # One large product instead of many small ones, and the sum over the leading axes in dB comes with it.
        rows = matmul(a.reshape(-1, a.shape[-1]), b)
        return rows.reshape(*a.shape[:-1], b.shape[-1])
    try:
        data = np.matmul(a.data, b.data)
    except ValueError:
        raise ValueError(f"matmul: leading axes of {a.shape} and {b.shape} do not broadcast") from None
    return record(
        "matmul",
        data,
        (a, lambda g, _: unbroadcast(matmul(g, _swap(b)), a.shape)),
        (b, lambda g, _: unbroadcast(matmul(_swap(a), g), b.shape)),
    )


def _swap(x: Tensor) -> Tensor:
    """The last two axes exchanged."""
    return x.transpose(*range(x.ndim - 2), x.ndim - 1, x.ndim - 2)
