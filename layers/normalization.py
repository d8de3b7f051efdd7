"""Normalization: batch, layer, group and RMS.

Statistics and affine map are our own arithmetic in float32, written in operations that every backend
differentiates twice: TensorFlow's moments stop a gradient inside and give wrong second derivatives.
"""

from typing import Any

import keras
from keras import ops


def check_axis(axis: int | list, input_shape: tuple) -> None:
    """Refuse an axis that the input does not have."""
    for one in [axis] if isinstance(axis, int) else axis:
        if not -len(input_shape) <= one < len(input_shape):
            raise ValueError(
                f"Axis {one} is out of bounds for input shape {input_shape}. Received: axis={axis}"
            )


def moments(inputs: Any, axes: list) -> tuple[Any, Any]:
    """Mean and variance over `axes`, which stay with length 1.

    The variance is the mean squared deviation: the mean of squares less the squared mean loses all its
    digits where the mean is large.
    """
    mean = ops.mean(inputs, axis=axes, keepdims=True)
    return mean, ops.mean(ops.square(inputs - mean), axis=axes, keepdims=True)


def masked_moments(inputs: Any, mask: Any, axes: list) -> tuple[Any, Any]:
    """Mean and variance over `axes` of the entries whose mask is True; the axes stay with length 1.

    Args:
        inputs: tensor of shape (batch, ..., channels).
        mask: booleans of shape (batch, ...).
        axes: what to reduce.
    """
    mask = ops.broadcast_to(ops.expand_dims(ops.cast(mask, "bool"), -1), ops.shape(inputs))
    count = ops.sum(ops.cast(mask, inputs.dtype), axis=axes, keepdims=True) + keras.config.epsilon()
    # where, not a product: a masked entry may hold NaN.
    mean = ops.sum(ops.where(mask, inputs, 0), axis=axes, keepdims=True) / count
    deviation = ops.where(mask, inputs - mean, 0)
    return mean, ops.sum(ops.square(deviation), axis=axes, keepdims=True) / count


class Normalization(keras.Layer):
    """What batch, layer and group normalization share: gamma, beta and their description."""

    def __init__(
        self,
        axis: Any,
        epsilon: float,
        center: bool,
        scale: bool,
        beta_initializer: Any,
        gamma_initializer: Any,
        beta_regularizer: Any,
        gamma_regularizer: Any,
        beta_constraint: Any,
        gamma_constraint: Any,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.axis = axis
        self.epsilon = epsilon
        self.center = center
        self.scale = scale
        self.beta_initializer = keras.initializers.get(beta_initializer)
        self.gamma_initializer = keras.initializers.get(gamma_initializer)
        self.beta_regularizer = keras.regularizers.get(beta_regularizer)
        self.gamma_regularizer = keras.regularizers.get(gamma_regularizer)
        self.beta_constraint = keras.constraints.get(beta_constraint)
        self.gamma_constraint = keras.constraints.get(gamma_constraint)
        self.supports_masking = True
        self.gamma = None
        self.beta = None

    def add_affine(self, shape: tuple) -> None:
        """Make gamma and beta, where they are wanted; they stay float32 under mixed precision."""
        if self.scale:
            self.gamma = self.add_weight(
                name="gamma",
                shape=shape,
                initializer=self.gamma_initializer,
                regularizer=self.gamma_regularizer,
                constraint=self.gamma_constraint,
                autocast=False,
            )
        if self.center:
            self.beta = self.add_weight(
                name="beta",
                shape=shape,
                initializer=self.beta_initializer,
                regularizer=self.beta_regularizer,
                constraint=self.beta_constraint,
                autocast=False,
            )

    def normalize(self, inputs: Any, mean: Any, variance: Any, shape: list) -> Any:
        """Gamma (x - mean) / sqrt(variance + epsilon) + beta, with gamma and beta in this shape."""
        factor = ops.rsqrt(variance + self.epsilon)
        if self.scale:
            factor = factor * ops.reshape(ops.cast(self.gamma, inputs.dtype), shape)
        # Factor and offset are small: the large tensor is read twice only.
        offset = -mean * factor
        if self.center:
            offset = offset + ops.reshape(ops.cast(self.beta, inputs.dtype), shape)
        return inputs * factor + offset

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        """The input's shape."""
        check_axis(self.axis, input_shape)
        return input_shape

    def get_config(self) -> dict:
        """The arguments of the constructor."""
        return super().get_config() | {
            "axis": self.axis,
            "epsilon": self.epsilon,
            "center": self.center,
            "scale": self.scale,
            "beta_initializer": keras.initializers.serialize(self.beta_initializer),
            "gamma_initializer": keras.initializers.serialize(self.gamma_initializer),
            "beta_regularizer": keras.regularizers.serialize(self.beta_regularizer),
            "gamma_regularizer": keras.regularizers.serialize(self.gamma_regularizer),
            "beta_constraint": keras.constraints.serialize(self.beta_constraint),
            "gamma_constraint": keras.constraints.serialize(self.gamma_constraint),
        }


def single_precision(inputs: Any) -> Any:
    """At least float32: statistics of half-precision inputs overflow."""
    return ops.cast(inputs, keras.backend.result_type(inputs.dtype, "float32"))


@keras.saving.register_keras_serializable(package="layers")
class BatchNormalization(Normalization):
    """Normalizes each channel over the batch.

        y = gamma (x - mean) / sqrt(variance + epsilon) + beta

    In training, mean and variance are the batch's, over all axes but `axis`, and the moving ones follow:
    moving = momentum moving + (1 - momentum) batch. At inference, and where `trainable` is False, the moving
    ones are used. The mask passes through.

    Args:
        axis: the channel axis, which keeps its own statistics.
        momentum: how much of the moving statistics a step keeps.
        epsilon: added to the variance.
        center, scale: whether there is a beta, a gamma.
        beta_initializer, gamma_initializer, moving_mean_initializer, moving_variance_initializer: how the
            weights start.
        beta_regularizer, gamma_regularizer, beta_constraint, gamma_constraint: as in `Dense`.

    Call arguments:
        inputs: tensor of any rank, say (batch, height, width, channels).
        training: whether to use and learn the batch's statistics.
        mask: None, or booleans of the input's shape without its last axis: entries that count.

    Returns:
        Tensor of the input's shape.

    Raises:
        ValueError: if the mask has the wrong rank.

    Reference:
        Ioffe & Szegedy, 2015, Batch normalization, arXiv:1502.03167.
    """

    def __init__(
        self,
        axis: int = -1,
        momentum: float = 0.99,
        epsilon: float = 1e-3,
        center: bool = True,
        scale: bool = True,
        beta_initializer: Any = "zeros",
        gamma_initializer: Any = "ones",
        moving_mean_initializer: Any = "zeros",
        moving_variance_initializer: Any = "ones",
        beta_regularizer: Any = None,
        gamma_regularizer: Any = None,
        beta_constraint: Any = None,
        gamma_constraint: Any = None,
        **kwargs: Any,
    ):
        super().__init__(
            int(axis),
            float(epsilon),
            center,
            scale,
            beta_initializer,
            gamma_initializer,
            beta_regularizer,
            gamma_regularizer,
            beta_constraint,
            gamma_constraint,
            **kwargs,
        )
        self.momentum = float(momentum)
        self.moving_mean_initializer = keras.initializers.get(moving_mean_initializer)
        self.moving_variance_initializer = keras.initializers.get(moving_variance_initializer)

    def build(self, input_shape: tuple) -> None:
        """Make gamma, beta and the moving statistics, one entry a channel."""
        check_axis(self.axis, input_shape)
        channels = input_shape[self.axis]
        self.add_affine((channels,))
        self.moving_mean = self.add_weight(
            name="moving_mean",
            shape=(channels,),
            initializer=self.moving_mean_initializer,
            trainable=False,
            autocast=False,
        )
        self.moving_variance = self.add_weight(
            name="moving_variance",
            shape=(channels,),
            initializer=self.moving_variance_initializer,
            trainable=False,
            autocast=False,
        )
        self.input_spec = keras.InputSpec(ndim=len(input_shape), axes={self.axis: channels})
        self.reduced = [a for a in range(len(input_shape)) if a != self.axis % len(input_shape)]

    def batch_moments(self, inputs: Any, mask: Any) -> tuple[Any, Any]:
        """The batch's mean and variance, of length 1 along all axes but the channels'."""
        if mask is None:
            return moments(inputs, self.reduced)
        return masked_moments(inputs, mask, self.reduced)

    def follow(self, moving: keras.Variable, batch: Any) -> None:
        """Move a moving statistic towards the batch's."""
        batch = ops.cast(ops.reshape(batch, (-1,)), moving.dtype)
        moving.assign(moving * self.momentum + batch * (1.0 - self.momentum))

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        """Apply the layer."""
        if mask is not None and len(mask.shape) != len(inputs.shape) - 1:
            raise ValueError(
                "The mask provided should be one dimension less than the inputs. "
                f"Received: mask.shape={mask.shape}, inputs.shape={inputs.shape}"
            )
        inputs = single_precision(inputs)
        shape = [1] * len(inputs.shape)
        shape[self.axis] = -1
        if training and self.trainable:
            mean, variance = self.batch_moments(inputs, mask)
            self.follow(self.moving_mean, mean)
            self.follow(self.moving_variance, variance)
        else:
            mean = ops.reshape(ops.cast(self.moving_mean, inputs.dtype), shape)
            variance = ops.reshape(ops.cast(self.moving_variance, inputs.dtype), shape)
        return ops.cast(self.normalize(inputs, mean, variance, shape), self.compute_dtype)

    def get_config(self) -> dict:
        """The arguments of the constructor."""
        return super().get_config() | {
            "momentum": self.momentum,
            "moving_mean_initializer": keras.initializers.serialize(self.moving_mean_initializer),
            "moving_variance_initializer": keras.initializers.serialize(self.moving_variance_initializer),
        }
