"""Operations on single elements, with broadcasting as in NumPy.

The last line of each function is its derivative: y = f(x) gives the pullback g -> g f'(x), written with
tensor operations so that it can be differentiated again.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from layers.autograd.ops.shapes import unbroadcast
from layers.autograd.tensor import Tensor, as_array, as_tensor, record

_erf = np.frompyfunc(math.erf, 1, 1)  # NumPy has no error function of its own


def add(a: Any, b: Any) -> Tensor:
    """`a + b`."""
    a, b = _operands("add", a, b)
    return record(
        "add",
        a.data + b.data,
        (a, lambda g, _: unbroadcast(g, a.shape)),
        (b, lambda g, _: unbroadcast(g, b.shape)),
    )


def subtract(a: Any, b: Any) -> Tensor:
    """`a - b`."""
    a, b = _operands("subtract", a, b)
    return record(
        "subtract",
        a.data - b.data,
        (a, lambda g, _: unbroadcast(g, a.shape)),
        (b, lambda g, _: unbroadcast(-g, b.shape)),
    )


def multiply(a: Any, b: Any) -> Tensor:
    """`a b`."""
    a, b = _operands("multiply", a, b)
    return record(
        "multiply",
        a.data * b.data,
        (a, lambda g, _: unbroadcast(g * b, a.shape)),
        (b, lambda g, _: unbroadcast(g * a, b.shape)),
    )


def divide(a: Any, b: Any) -> Tensor:
    """`a / b`."""
    a, b = _operands("divide", a, b)
    return record(
        "divide",
        a.data / b.data,
        (a, lambda g, _: unbroadcast(g / b, a.shape)),
        (b, lambda g, y: unbroadcast(-g * y / b, b.shape)),
    )


def power(a: Any, b: Any) -> Tensor:
    """`a ** b`. A tensor as exponent needs a positive base, since its derivative holds log(a)."""
    a, b = _operands("power", a, b)
    return record(
        "power",
        a.data**b.data,
        (a, lambda g, _: unbroadcast(g * b * a ** (b - 1), a.shape)),
        (b, lambda g, y: unbroadcast(g * y * log(a), b.shape)),
    )


def negative(x: Any) -> Tensor:
    """-x."""
    x = as_tensor(x)
    return record("negative", -x.data, (x, lambda g, _: -g))


def exp(x: Any) -> Tensor:
    """e^x, its own derivative."""
    x = as_tensor(x)
    return record("exp", np.exp(x.data), (x, lambda g, y: g * y))


def log(x: Any) -> Tensor:
    """Natural logarithm; derivative 1/x."""
    x = as_tensor(x)
    return record("log", np.log(x.data), (x, lambda g, _: g / x))


def sqrt(x: Any) -> Tensor:
    """Square root y; derivative 1/(2y)."""
    x = as_tensor(x)
    return record("sqrt", np.sqrt(x.data), (x, lambda g, y: 0.5 * g / y))


def sin(x: Any) -> Tensor:
    """Sine; derivative cos(x)."""
    x = as_tensor(x)
    return record("sin", np.sin(x.data), (x, lambda g, _: g * cos(x)))


def cos(x: Any) -> Tensor:
    """Cosine; derivative -sin(x)."""
    x = as_tensor(x)
    return record("cos", np.cos(x.data), (x, lambda g, _: -g * sin(x)))


def tanh(x: Any) -> Tensor:
    """Hyperbolic tangent y; derivative 1 - y^2."""
    x = as_tensor(x)
    return record("tanh", np.tanh(x.data), (x, lambda g, y: g * (1 - y * y)))


def sigmoid(x: Any) -> Tensor:
    """Logistic function y = 1/(1 + e^-x); derivative y (1 - y)."""
    x = as_tensor(x)
    # (1 + tanh(x/2))/2 is the same function and overflows nowhere.
    return record("sigmoid", 0.5 + 0.5 * np.tanh(0.5 * x.data), (x, lambda g, y: g * (y * (1 - y))))


def relu(x: Any) -> Tensor:
    """max(x, 0); derivative 1 for x > 0, else 0 (also at 0)."""
    x = as_tensor(x)
    return record("relu", np.maximum(x.data, 0), (x, lambda g, y: g * Tensor(y.data > 0)))


def softplus(x: Any) -> Tensor:
    """log(1 + e^x) without overflow; derivative sigmoid(x)."""
    x = as_tensor(x)
    data = np.maximum(x.data, 0) + np.log1p(np.exp(-np.abs(x.data)))
    return record("softplus", data, (x, lambda g, _: g * sigmoid(x)))


def gelu(x: Any, approximate: bool = False) -> Tensor:
    """`x Phi(x)`, with Phi the normal distribution function; derivative Phi(x) + x phi(x).

    Args:
        x: a tensor.
        approximate: replace Phi(x) by (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))/2, which is much faster here.

    Reference: Hendrycks and Gimpel, "Gaussian Error Linear Units", 2016.
    """
    x = as_tensor(x)
    if approximate:
        return 0.5 * x * (1 + tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * (x * x * x))))
    return x * _normal_distribution(x)


def absolute(x: Any) -> Tensor:
    """|x|; derivative the sign of x (0 at 0)."""
    x = as_tensor(x)
    return record("absolute", np.abs(x.data), (x, lambda g, _: g * Tensor(np.sign(x.data))))


def maximum(a: Any, b: Any) -> Tensor:
    """The larger of two; where they are equal each gets half of the gradient."""
    a, b = _operands("maximum", a, b)

    def share(mine: Tensor, other: Tensor) -> Tensor:
        equal = (mine.data == other.data).astype(mine.dtype)
        return Tensor((mine.data > other.data) + 0.5 * equal)

    return record(
        "maximum",
        np.maximum(a.data, b.data),
        (a, lambda g, _: unbroadcast(g * share(a, b), a.shape)),
        (b, lambda g, _: unbroadcast(g * share(b, a), b.shape)),
    )


def where(condition: Any, a: Any, b: Any) -> Tensor:
    """`a` where the condition holds, else b; the gradient goes to the one that was taken."""
    mask = as_array(condition).astype(bool)
    a, b = _operands("where", a, b)
    try:
        np.broadcast_shapes(mask.shape, a.shape, b.shape)
    except ValueError:
        raise ValueError(f"where: shapes {mask.shape}, {a.shape} and {b.shape} do not broadcast") from None
    return record(
        "where",
        np.where(mask, a.data, b.data),
        (a, lambda g, _: unbroadcast(g * Tensor(mask), a.shape)),
        (b, lambda g, _: unbroadcast(g * Tensor(~mask), b.shape)),
    )


def cast(x: Any, dtype: Any) -> Tensor:
    """`x` with elements of another floating-point type; the gradient is cast back."""
    x = as_tensor(x)
    return record("cast", x.data.astype(dtype), (x, lambda g, _: cast(g, x.dtype)))


def _normal_distribution(x: Tensor) -> Tensor:
    """Phi(x) = (1 + erf(x/sqrt 2))/2; derivative the density exp(-x^2/2)/sqrt(2 pi)."""
    data = np.asarray(0.5 * (1 + _erf(x.data / math.sqrt(2))), x.dtype)
    return record(
        "normal_distribution", data, (x, lambda g, _: g * exp(-0.5 * (x * x)) * (1 / math.sqrt(2 * math.pi)))
    )


def _operands(operation: str, a: Any, b: Any) -> tuple[Tensor, Tensor]:
    """Both operands as tensors of shapes that broadcast."""
    a = as_tensor(a, like=b if isinstance(b, Tensor) else None)
    b = as_tensor(b, like=a)
    if a.shape != b.shape:
        try:
            np.broadcast_shapes(a.shape, b.shape)
        except ValueError:
            raise ValueError(f"{operation}: shapes {a.shape} and {b.shape} do not broadcast") from None
    return a, b
