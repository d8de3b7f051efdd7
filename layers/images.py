"""Preparing images inside a model: standardization and moving pixels into channels."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops


@keras.saving.register_keras_serializable(package="layers")
class ImageStandardization(keras.Layer):
    """Give every colour channel mean 0 and standard deviation 1 over the training set.

        y = (x - mean) / std

    Part of the model rather than of the pipeline: batches stay bytes, and a stored model takes raw images.

    Args:
        mean: one number a channel, in the units of the input.
        std: one positive number a channel.

    Call arguments:
        inputs: tensor of shape (batch, height, width, channels), integers or floats.

    Returns:
        Floating-point tensor of the same shape.

    Raises:
        ValueError: a standard deviation is not positive, or the channels do not fit.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float], **kwargs: Any) -> None:
        # Standardized before any cast to a low precision: 255 has no neighbour in bfloat16.
        super().__init__(autocast=False, **kwargs)
        self.mean = tuple(float(value) for value in mean)
        self.std = tuple(float(value) for value in std)
        if len(self.mean) != len(self.std) or min(self.std) <= 0:
            raise ValueError(f"mean and std must be as long as each other and std positive: {mean}, {std}")

    def build(self, input_shape: tuple) -> None:
        """Check the channels."""
        if input_shape[-1] != len(self.mean):
            raise ValueError(f"{len(self.mean)} channels were described, the inputs have {input_shape[-1]}")

    def call(self, inputs: Any) -> Any:
        """Standardize."""
        _, height, width, channels = inputs.shape
        # One row of pixels as one long axis: PyTorch vectorizes over the last axis, which 3 channels starve.
        rows = ops.reshape(ops.cast(inputs, "float32"), (-1, height, width * channels))
        mean, scale = np.tile(self.mean, width), np.tile(1 / np.asarray(self.std), width)
        rows = (rows - ops.cast(mean, "float32")) * ops.cast(scale, "float32")
        return ops.cast(ops.reshape(rows, (-1, height, width, channels)), self.compute_dtype)

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        """The input's."""
        return tuple(input_shape)

    def get_config(self) -> dict:
        """Constructor arguments."""
        return {**super().get_config(), "mean": self.mean, "std": self.std}


@keras.saving.register_keras_serializable(package="layers")
class SpaceToDepth(keras.Layer):
    """Turn every block of pixels into one pixel with all their channels.

        y[b, i, j, (p, q, c)] = x[b, i s + p, j s + q, c],    s = block_size

    A convolution after it sees the same pixels with 1/s^2 of the positions to compute: the cheapest
    first layer there is.

    Args:
        block_size: s, the side of a block.

    Call arguments:
        inputs: tensor of shape (batch, height, width, channels); s divides height and width.

    Returns:
        Tensor of shape (batch, height / s, width / s, s^2 channels).

    Raises:
        ValueError: s does not divide height or width.

    Reference:
        Shi et al., 2016 (arXiv:1609.05158), whose "periodic shuffling" it inverts.
    """

    def __init__(self, block_size: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.block_size = block_size

    def call(self, inputs: Any) -> Any:
        """Rearrange."""
        s = self.block_size
        _, height, width, channels = self.compute_output_shape(inputs.shape)
        blocks = ops.reshape(inputs, (-1, height, s, width, s, channels // s**2))
        blocks = ops.transpose(blocks, (0, 1, 3, 2, 4, 5))  # (batch, height/s, width/s, s, s, channels)
        return ops.reshape(blocks, (-1, height, width, channels))

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        """(batch, height / s, width / s, s^2 channels)."""
        batch, height, width, channels = input_shape
        s = self.block_size
        if height % s or width % s:
            raise ValueError(f"blocks of {s}x{s} pixels do not divide an image of {height}x{width}")
        return (batch, height // s, width // s, channels * s**2)

    def get_config(self) -> dict:
        """Constructor arguments."""
        return {**super().get_config(), "block_size": self.block_size}
