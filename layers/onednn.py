"""Matrix products on PyTorch by oneDNN, for processors on which PyTorch's own are slow.

PyTorch multiplies by MKL, Intel's library, which has no AVX-512 code for AMD's processors; oneDNN, which
comes with PyTorch for convolutions, has. There a large product takes half the time. This is the one module
of `layers` that names a backend's framework: Keras has no operation for it.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

# Below so many multiplications the autograd function costs more than it saves; with a narrower matrix, or
# fewer rows, so do oneDNN's blocks (`python -m benchmarks.products`).
SMALLEST_PRODUCT = 3 * 2**20
NARROWEST_MATRIX = 48
FEWEST_ROWS = 8


@functools.cache
def is_faster() -> bool:
    """Whether this processor is AMD's, with AVX-512, and PyTorch has oneDNN."""
    processors = Path("/proc/cpuinfo")
    return (
        torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
        and processors.exists()
        and "AuthenticAMD" in processors.read_text()
    )


def pays(x: Any) -> bool:
    """Whether products of this operand may go by oneDNN.

    Not those that are only described or traced, as compilers have their own, nor any whose precision PyTorch
    chooses.
    """
    return (
        type(x) in (torch.Tensor, torch.nn.Parameter)
        and x.dtype == torch.float32
        and x.device.type == "cpu"
        and is_faster()
        and not torch.compiler.is_compiling()
        and not torch.is_autocast_enabled("cpu")
    )


def matmul(x: torch.Tensor, matrix: torch.Tensor, otherwise: Callable) -> torch.Tensor:
    """The matrix product, by oneDNN if it is large.

    Args:
        x: tensor of shape (..., inputs), for which `pays` holds.
        matrix: tensor of shape (inputs, outputs).
        otherwise: multiplies what is small, or not of `x`'s dtype.

    Returns:
        Tensor of shape (..., outputs).
    """
    if matrix.ndim != 2 or matrix.dtype != x.dtype or x.ndim < 2 or x.shape[-1] != len(matrix):
        return otherwise(x, matrix)
    inputs, outputs = matrix.shape
    narrow = min(inputs, outputs) < NARROWEST_MATRIX or x.numel() < FEWEST_ROWS * inputs
    if narrow or x.numel() * outputs < SMALLEST_PRODUCT:
        return otherwise(x, matrix)
    return product(x.reshape(-1, inputs), matrix).reshape(*x.shape[:-1], outputs)


def product(x: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """`x W` for matrices, differentiable as often as wanted.

    By MKL under `torch.func`, where an autograd function costs more than the product.
    """
    if torch._C._are_functorch_transforms_active():
        return x @ matrix
    return Product.apply(x, matrix) if torch.is_grad_enabled() else multiply(x, matrix)


def multiply(x: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """`x W` for matrices, without a derivative."""
    if not (matrix.is_contiguous() or matrix.T.is_contiguous()):
        matrix = matrix.contiguous()  # oneDNN takes any strides, a thousand times slower
    return torch.ops.mkldnn._linear_pointwise.default(x, matrix.T, None, "none", [], "")


class Product(torch.autograd.Function):
    """`multiply`, whose derivatives are products again: `dx = dy W^T` and `dW = x^T dy`."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
        """The product."""
        ctx.save_for_backward(x, matrix)
        ctx.save_for_forward(x, matrix)
        return multiply(x, matrix)

    @staticmethod
    def backward(ctx: Any, by_output: torch.Tensor) -> tuple:
        """The gradients by both operands, where they are asked for."""
        x, matrix = ctx.saved_tensors
        by_x, by_matrix = ctx.needs_input_grad
        return (
            product(by_output, matrix.T) if by_x else None,
            product(x.T, by_output) if by_matrix else None,
        )

    @staticmethod
    def jvp(ctx: Any, x_tangent: torch.Tensor | None, matrix_tangent: torch.Tensor | None) -> torch.Tensor:
        """The derivative along a direction, of which an operand that does not move has none."""
        x, matrix = ctx.saved_tensors
        along_x = 0 if x_tangent is None else product(x_tangent, matrix)
        return along_x if matrix_tangent is None else along_x + product(x, matrix_tangent)
