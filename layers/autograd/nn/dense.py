"""Dense, embedding, dropout, and the layers without weights around them."""

from __future__ import annotations

from typing import Any

import numpy as np

from layers.autograd.nn.module import Module, activation
from layers.autograd.tensor import Tensor


class Dense(Module):
    """y = activation(x W + b).

    Args:
        units: length of the output.
        activation: name or function.
        use_bias: add b.
        kernel_initializer: of W (inputs, units).
        bias_initializer: of b (units,).
        rng: random generator or seed.
        dtype: type of the weights.

    Call arguments:
        x: (..., inputs).

    Returns:
        (..., units).
    """

    def __init__(
        self,
        units: int,
        activation: Any = None,
        use_bias: bool = True,
        kernel_initializer: Any = "glorot_uniform",
        bias_initializer: Any = "zeros",
        rng: np.random.Generator | int | None = None,
        dtype: str = "float32",
    ) -> None:
        super().__init__(rng, dtype)
        self.units, self.activation, self.use_bias = units, activation, use_bias
        self.kernel_initializer, self.bias_initializer = kernel_initializer, bias_initializer
        self.kernel = self.bias = None

    def build(self, input_shape: tuple[int, ...]) -> None:
        """Make W and b."""
        self.kernel = self.add_weight("kernel", (input_shape[-1], self.units), self.kernel_initializer)
        if self.use_bias:
            self.bias = self.add_weight("bias", (self.units,), self.bias_initializer)

    def preactivation(self, x: Tensor) -> Tensor:
        """X W + b."""
        if x.shape[-1] != self.kernel.shape[0]:
            raise ValueError(f"Dense: input {x.shape} for a kernel of shape {self.kernel.shape}")
        y = x @ self.kernel  # (..., units)
        return y if self.bias is None else y + self.bias

    def call(self, x: Tensor, training: bool = False) -> Tensor:
        """The activation of x W + b."""
        return activation(self.activation)(self.preactivation(x))


class Embedding(Module):
    """The row of a table for every integer.

    Args:
        input_dim: number of rows.
        output_dim: length of a row.
        embeddings_initializer: of the table (input_dim, output_dim).
        rng: random generator or seed.
        dtype: type of the table.

    Call arguments:
        x: integers (...) in 0 <= x < input_dim.

    Returns:
        (..., output_dim).
    """

    def __init__(
        self,
        input_dim: int,
        output_dim: int,
        embeddings_initializer: Any = "random_uniform",
        rng: np.random.Generator | int | None = None,
        dtype: str = "float32",
    ) -> None:
        super().__init__(rng, dtype)
        self.input_dim, self.output_dim = input_dim, output_dim
        self.embeddings_initializer = embeddings_initializer
        self.embeddings = None

    def build(self, input_shape: tuple[int, ...]) -> None:
        """Make the table."""
        self.embeddings = self.add_weight(
            "embeddings", (self.input_dim, self.output_dim), self.embeddings_initializer
        )

    def call(self, x: Tensor, training: bool = False) -> Tensor:
        """The rows."""
        if x.dtype.kind not in "iu":
            raise TypeError(f"Embedding: expected integers, got {x.dtype} of shape {x.shape}")
        if x.size and (x.data.min() < 0 or x.data.max() >= self.input_dim):
            raise IndexError(f"Embedding: values {x.data.min()}..{x.data.max()} for {self.input_dim} rows")
        return self.embeddings[x]


class Dropout(Module):
    """In training every element is zero with probability `rate`, the others are divided by 1 - rate.

    The division keeps the expectation, so that nothing is left to do at test time.

    Args:
        rate: probability of zero, in [0, 1).
        rng: random generator or seed.

    Reference: Srivastava et al., "Dropout", 2014.
    """

    def __init__(self, rate: float, rng: np.random.Generator | int | None = None) -> None:
        super().__init__(rng)
        if not 0 <= rate < 1:
            raise ValueError(f"Dropout: rate must lie in [0, 1), got {rate}")
        self.rate = rate

    def call(self, x: Tensor, training: bool = False) -> Tensor:
        """X with elements dropped in training, x itself otherwise."""
        if not training or self.rate == 0:
            return x
        keep = self.rng.random(x.shape, np.float32) >= self.rate
        return x * Tensor((keep / (1 - self.rate)).astype(x.dtype))


class Flatten(Module):
    """(N, ...) to (N, product of the rest)."""

    def call(self, x: Tensor, training: bool = False) -> Tensor:
        """X as a matrix of one row an example."""
        return x.reshape(x.shape[0], -1)


class Activation(Module):
    """An activation function as a layer.

    Args:
        activation: name or function.
    """

    def __init__(self, activation: Any) -> None:
        super().__init__()
        self.activation = activation

    def call(self, x: Tensor, training: bool = False) -> Tensor:
        """The function of x."""
        return activation(self.activation)(x)
