"""Normalization: subtract a mean, divide by a standard deviation, scale by gamma and shift by beta.

The layers differ only in what the mean is taken over: the batch for every channel, the channels of every
example, or groups of channels together with all places of an image.
"""

from __future__ import annotations

from layers.autograd import ops
from layers.autograd.nn.module import Module
from layers.autograd.tensor import Tensor


class BatchNormalization(Module):
    """y = gamma (x - mean) / sqrt(variance + epsilon) + beta, moments over all axes but `axis`.

    In training the moments are those of the batch, and moving averages of them are kept, which serve at
    test time.

    Args:
        axis: the axis of the features.
        momentum: weight of the old value in the moving averages.
        epsilon: added to the variance.
        center: use beta.
        scale: use gamma.
        dtype: type of the weights.

    Call arguments:
        x: (N, ..., features).
        training: use and record the moments of the batch.

    Returns:
        The shape of x.

    Reference: Ioffe and Szegedy, "Batch Normalization", 2015.
    """

    def __init__(
        self,
        axis: int = -1,
        momentum: float = 0.99,
        epsilon: float = 1e-3,
        center: bool = True,
        scale: bool = True,
        dtype: str = "float32",
    ) -> None:
        super().__init__(dtype=dtype)
        self.axis, self.momentum, self.epsilon = axis, momentum, epsilon
        self.center, self.scale = center, scale
        self.gamma = self.beta = None

    def build(self, input_shape: tuple[int, ...]) -> None:
        """Make gamma, beta and the moving averages."""
        shape = (input_shape[self.axis],)
        if self.scale:
            self.gamma = self.add_weight("gamma", shape, "ones")
        if self.center:
            self.beta = self.add_weight("beta", shape, "zeros")
        self.moving_mean = self.add_weight("moving_mean", shape, "zeros", trainable=False)
        self.moving_variance = self.add_weight("moving_variance", shape, "ones", trainable=False)

    def call(self, x: Tensor, training: bool = False) -> Tensor:
        """The normalized x."""
        axes = tuple(i for i in range(x.ndim) if i != self.axis % x.ndim)
        shape = tuple(1 if i in axes else n for i, n in enumerate(x.shape))
        if training:
            mean = x.mean(axis=axes, keepdims=True)
            centered = x - mean
            variance = (centered * centered).mean(axis=axes, keepdims=True)
            for moving, value in ((self.moving_mean, mean), (self.moving_variance, variance)):
                kept = self.momentum * moving.data
                moving.assign(kept + (1 - self.momentum) * value.data.reshape(moving.shape))
        else:
            centered = x - self.moving_mean.reshape(shape)
            variance = self.moving_variance.reshape(shape)
        y = centered / ops.sqrt(variance + self.epsilon)
        y = y if self.gamma is None else y * self.gamma.reshape(shape)
        return y if self.beta is None else y + self.beta.reshape(shape)


class LayerNormalization(Module):
    """y = gamma (x - mean) / sqrt(variance + epsilon) + beta, moments over the last axis.

    Args:
        epsilon: added to the variance.
        center: use beta.
        scale: use gamma.
        dtype: type of the weights.

    Call arguments:
        x: (..., features).

    Returns:
        The shape of x.

    Reference: Ba et al., "Layer Normalization", 2016.
    """

    def __init__(
        self, epsilon: float = 1e-3, center: bool = True, scale: bool = True, dtype: str = "float32"
    ) -> None:
        super().__init__(dtype=dtype)
        self.epsilon, self.center, self.scale = epsilon, center, scale
        self.gamma = self.beta = None

    def build(self, input_shape: tuple[int, ...]) -> None:
        """Make gamma and beta."""
        if self.scale:
            self.gamma = self.add_weight("gamma", input_shape[-1:], "ones")
        if self.center:
            self.beta = self.add_weight("beta", input_shape[-1:], "zeros")

    def call(self, x: Tensor, training: bool = False) -> Tensor:
        """The normalized x."""
        y = _standardized(x, -1, self.epsilon)
        y = y if self.gamma is None else y * self.gamma
        return y if self.beta is None else y + self.beta


class GroupNormalization(Module):
    """Layer normalization over the places of an image and a group of its channels.

    Args:
        groups: number of groups the channels are split into.
        epsilon: added to the variance.
        center: use beta.
        scale: use gamma.
        dtype: type of the weights.

    Call arguments:
        x: (N, ..., channels).

    Returns:
        The shape of x.

    Reference: Wu and He, "Group Normalization", 2018.
    """

    def __init__(
        self,
        groups: int = 32,
        epsilon: float = 1e-3,
        center: bool = True,
        scale: bool = True,
        dtype: str = "float32",
    ) -> None:
        super().__init__(dtype=dtype)
        self.groups, self.epsilon, self.center, self.scale = groups, epsilon, center, scale
        self.gamma = self.beta = None

    def build(self, input_shape: tuple[int, ...]) -> None:
        """Make gamma and beta."""
        if input_shape[-1] % self.groups:
            raise ValueError(f"GroupNormalization: {self.groups} groups for input {input_shape}")
        if self.scale:
            self.gamma = self.add_weight("gamma", input_shape[-1:], "ones")
        if self.center:
            self.beta = self.add_weight("beta", input_shape[-1:], "zeros")

    def call(self, x: Tensor, training: bool = False) -> Tensor:
        """The normalized x."""
        grouped = x.reshape(
            x.shape[0], -1, self.groups, x.shape[-1] // self.groups
        )  # (N, places, groups, C/groups)
        y = _standardized(grouped, (1, 3), self.epsilon).reshape(x.shape)
        y = y if self.gamma is None else y * self.gamma
        return y if self.beta is None else y + self.beta


def _standardized(x: Tensor, axes: int | tuple[int, ...], epsilon: float) -> Tensor:
    """X with mean 0 and variance 1 over the axes."""
    centered = x - x.mean(axis=axes, keepdims=True)
    variance = (centered * centered).mean(axis=axes, keepdims=True)
    return centered / ops.sqrt(variance + epsilon)
