"""Residual blocks.

Images are channels-last throughout. Every block is a layer, so that a network is a list of blocks.
"""

from typing import Any

import keras
from keras import ops

from .convolution import Conv2D
from .normalization import BatchNormalization


def subsampled_and_padded(inputs: Any, stride: int, filters: int) -> Any:
    """A shortcut without weights: every `stride`-th pixel, zeros for the channels that are new.

    Args:
        inputs: tensor of shape (batch, height, width, channels).
        stride: step between the pixels that stay.
        filters: number of channels afterwards, at least as many as before.

    Returns:
        Tensor of shape (batch, ceil(height / stride), ceil(width / stride), filters).
    """
    if stride > 1:
        inputs = inputs[:, ::stride, ::stride, :]
    new = filters - inputs.shape[-1]
    return ops.pad(inputs, [[0, 0], [0, 0], [0, 0], [0, new]]) if new else inputs


class ResidualBlock(keras.Layer):
    """A branch of layers beside a shortcut; subclasses give the branch and how the two meet."""

    expansion = 1

    def __init__(
        self,
        filters: int,
        strides: int = 1,
        activation: Any = "relu",
        kernel_initializer: Any = "he_normal",
        shortcut: str = "identity",
        kernel_regularizer: Any = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        if shortcut not in ("identity", "projection", "none"):
            raise ValueError(
                f"`shortcut` must be 'identity', 'projection' or 'none'. Received: shortcut={shortcut}"
            )
        self.filters = filters
        self.strides = strides
        self.activation = keras.activations.get(activation)
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.shortcut = shortcut
        self.kernel_regularizer = keras.regularizers.get(kernel_regularizer)

    @property
    def width(self) -> int:
        """Number of output channels."""
        return self.expansion * self.filters

    def convolution(self, filters: int, kernel_size: int, strides: int = 1) -> Conv2D:
        """A convolution without bias, which the normalization after or before it makes superfluous."""
        return Conv2D(
            filters,
            kernel_size,
            strides=strides,
            padding="same",
            data_format="channels_last",
            use_bias=False,
            # Each convolution draws its own start: one initializer object with a seed draws one.
            kernel_initializer=clone(self.kernel_initializer),
            kernel_regularizer=self.kernel_regularizer,
            dtype=self.dtype_policy,
        )

    def normalization(self) -> BatchNormalization:
        """A batch normalization over the channels."""
        return BatchNormalization(dtype=self.dtype_policy)

    def make_branch(self) -> list:
        """The layers of the branch, in order."""
        raise NotImplementedError

    def make_projection(self) -> list:
        """The layers of a shortcut that changes the shape."""
        return [self.convolution(self.width, 1, self.strides), self.normalization()]

    def build(self, input_shape: tuple) -> None:
        """Make branch and shortcut for inputs of this shape.

        Raises:
            ValueError: if an identity shortcut would have to drop channels.
        """
        channels = input_shape[-1]
        changes = self.strides != 1 or channels != self.width
        if self.shortcut == "identity" and channels > self.width:
            raise ValueError(
                f"An identity shortcut cannot take {channels} channels to {self.width}; "
                "use shortcut='projection'."
            )
        self.branch = build_chain(self.make_branch(), input_shape)
        projects = self.shortcut == "projection" and changes
        self.projection = build_chain(self.make_projection(), input_shape) if projects else []

    def bypass(self, inputs: Any) -> Any:
        """The shortcut's value."""
        if self.projection:
            return run_chain(self.projection, inputs)
        return subsampled_and_padded(inputs, self.strides, self.width)

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        """(batch, ceil(height / strides), ceil(width / strides), channels)."""
        batch, height, width, _ = input_shape
        height, width = (None if size is None else -(-size // self.strides) for size in (height, width))
        return (batch, height, width, self.width)

    def get_config(self) -> dict:
        """The arguments of the constructor."""
        return super().get_config() | {
            "filters": self.filters,
            "strides": self.strides,
            "activation": keras.activations.serialize(self.activation),
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "shortcut": self.shortcut,
            "kernel_regularizer": keras.regularizers.serialize(self.kernel_regularizer),
        }


def clone(initializer: Any) -> Any:
    """A second initializer of the same kind, with a seed of its own where none was given."""
    if isinstance(initializer, keras.initializers.Initializer):
        return type(initializer).from_config(initializer.get_config())
    return initializer


def build_chain(chain: list, input_shape: tuple) -> list:
    """Build layers and functions that follow each other; only layers have a shape to follow."""
    for step in chain:
        if isinstance(step, keras.Layer):
            step.build(input_shape)
            input_shape = step.compute_output_shape(input_shape)
    return chain


def run_chain(chain: list, inputs: Any) -> Any:
    """Apply layers and functions that follow each other; Keras hands `training` down to each layer."""
    for step in chain:
        inputs = step(inputs)
    return inputs


class PostActivationBlock(ResidualBlock):
    """Blocks that add the shortcut and then apply the activation."""

    def call(self, inputs: Any) -> Any:
        """Apply the block."""
        outputs = run_chain(self.branch, inputs)  # (batch, height', width', channels)
        if self.shortcut != "none":
            outputs = outputs + self.bypass(inputs)
        return self.activation(outputs)


@keras.saving.register_keras_serializable(package="layers")
class BasicBlock(PostActivationBlock):
    """Two 3x3 convolutions beside a shortcut.

        y = activation(shortcut(x) + BN(conv3x3(activation(BN(conv3x3(x))))))

    Args:
        filters: number of output channels.
        strides: stride of the first convolution and of the shortcut.
        activation: name or function.
        kernel_initializer: how the convolutions start.
        shortcut: where the shape changes, "identity" keeps every `strides`-th pixel and adds zero channels
            (the paper's option A), "projection" is a 1x1 convolution with normalization (option B); "none"
            leaves the shortcut out everywhere, which makes the plain network of the paper's comparison.
        kernel_regularizer: penalty on the convolutions.

    Call arguments:
        inputs: tensor of shape (batch, height, width, channels).
        training: whether batch normalization uses the batch's statistics.

    Returns:
        Tensor of shape (batch, ceil(height / strides), ceil(width / strides), filters).

    Raises:
        ValueError: for an unknown shortcut, or an identity that would have to drop channels.

    Reference:
        He et al., 2015, Deep residual learning for image recognition, arXiv:1512.03385.
    """

    def make_branch(self) -> list:
        """The layers of the branch, in order."""
        return [
            self.convolution(self.filters, 3, self.strides),
            self.normalization(),
            self.activation,
            self.convolution(self.filters, 3),
            self.normalization(),
        ]


@keras.saving.register_keras_serializable(package="layers")
class Bottleneck(PostActivationBlock):
    """A 3x3 convolution between two 1x1 convolutions that narrow and widen, beside a shortcut.

        y = activation(shortcut(x) + BN(conv1x1(activation(BN(conv3x3(activation(BN(conv1x1(x)))))))))

    The stride is on the 3x3 convolution ("ResNet v1.5"): on the first 1x1, as in the paper, it would skip
    three of four pixels unseen.

    Args:
        filters: number of channels within; the output has 4 times as many.
        strides, activation, kernel_initializer, shortcut, kernel_regularizer: as in `BasicBlock`.

    Call arguments:
        inputs: tensor of shape (batch, height, width, channels).
        training: whether batch normalization uses the batch's statistics.

    Returns:
        Tensor of shape (batch, ceil(height / strides), ceil(width / strides), 4 filters).

    Raises:
        ValueError: for an unknown shortcut, or an identity that would have to drop channels.

    Reference:
        He et al., 2015, Deep residual learning for image recognition, arXiv:1512.03385.
    """

    expansion = 4

    def make_branch(self) -> list:
        """The layers of the branch, in order."""
        return [
            self.convolution(self.filters, 1),
            self.normalization(),
            self.activation,
            self.convolution(self.filters, 3, self.strides),
            self.normalization(),
            self.activation,
            self.convolution(self.width, 1),
            self.normalization(),
        ]
