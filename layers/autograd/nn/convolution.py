"""Convolution and pooling layers on images (batch, height, width, channels)."""

from __future__ import annotations

from typing import Any

import numpy as np

from layers.autograd import ops
from layers.autograd.nn.module import Module, activation
from layers.autograd.tensor import Tensor

Pair = int | tuple[int, int]


class Conv2D(Module):
    """y[n,p,q,o] = activation(sum_{i,j,c} x[n, p s + i d, q s + j d, c] W[i,j,c,o] + b[o]).

    Args:
        filters: number of output channels.
        kernel_size: height and width of a window.
        strides: step s between windows.
        padding: "valid" or "same".
        dilation_rate: distance d between the elements of a window.
        activation: name or function.
        use_bias: add b.
        kernel_initializer: of W (h, w, C, filters).
        bias_initializer: of b (filters,).
        rng: random generator or seed.
        dtype: type of the weights.

    Call arguments:
        x: images (N, H, W, C).

    Returns:
        (N, H', W', filters).
    """

    def __init__(
        self,
        filters: int,
        kernel_size: Pair,
        strides: Pair = 1,
        padding: str = "valid",
        dilation_rate: Pair = 1,
        activation: Any = None,
        use_bias: bool = True,
        kernel_initializer: Any = "glorot_uniform",
        bias_initializer: Any = "zeros",
        rng: np.random.Generator | int | None = None,
        dtype: str = "float32",
    ) -> None:
        super().__init__(rng, dtype)
        self.filters, self.strides, self.padding, self.dilation_rate = (
            filters,
            strides,
            padding,
            dilation_rate,
        )
        self.kernel_size = (kernel_size,) * 2 if isinstance(kernel_size, int) else tuple(kernel_size)
        self.activation, self.use_bias = activation, use_bias
        self.kernel_initializer, self.bias_initializer = kernel_initializer, bias_initializer
        self.kernel = self.bias = None

    def build(self, input_shape: tuple[int, ...]) -> None:
        """Make W and b."""
        shape = (*self.kernel_size, input_shape[-1], self.filters)
        self.kernel = self.add_weight("kernel", shape, self.kernel_initializer)
        if self.use_bias:
            self.bias = self.add_weight("bias", (self.filters,), self.bias_initializer)

    def preactivation(self, x: Tensor) -> Tensor:
        """The convolution plus b."""
        y = ops.conv2d(x, self.kernel, self.strides, self.padding, self.dilation_rate)  # (N, H', W', filters)
        return y if self.bias is None else y + self.bias

    def call(self, x: Tensor, training: bool = False) -> Tensor:
        """The activation of the convolution plus b."""
        return activation(self.activation)(self.preactivation(x))


class _Pooling2D(Module):
    def __init__(self, pool_size: Pair = 2, strides: Pair | None = None, padding: str = "valid") -> None:
        super().__init__()
        self.pool_size, self.strides, self.padding = pool_size, strides, padding


class MaxPooling2D(_Pooling2D):
    """The largest element of every window, for each channel.

    Args:
        pool_size: height and width of a window.
        strides: step between windows (default: the window).
        padding: "valid" or "same".

    Call arguments:
        x: (N, H, W, C).

    Returns:
        (N, H', W', C).
    """

    def call(self, x: Tensor, training: bool = False) -> Tensor:
        """The maxima."""
        return ops.max_pool2d(x, self.pool_size, self.strides, self.padding)


class AveragePooling2D(_Pooling2D):
    """The mean of every window, for each channel.

    Args:
        pool_size: height and width of a window.
        strides: step between windows (default: the window).
        padding: "valid" or "same".

    Call arguments:
        x: (N, H, W, C).

    Returns:
        (N, H', W', C).
    """

    def call(self, x: Tensor, training: bool = False) -> Tensor:
        """The means."""
        return ops.avg_pool2d(x, self.pool_size, self.strides, self.padding)
