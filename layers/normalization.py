"""Normalization: batch, layer, group and RMS.

Statistics and affine map are our own arithmetic in float32, written in operations that every backend
differentiates twice: TensorFlow's moments stop a gradient inside and give wrong second derivatives. Only
layer normalization over the last axes on PyTorch is left to `keras.ops`, for its kernel's speed.
"""

import math
import warnings
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

# Those without an offset: what they normalize has a use for a bias.
UNCENTERED = ("none", "rms")


def get(name: str, channels: int, momentum: float = 0.99, **kwargs: Any) -> keras.Layer:
    """A normalization over the last axis by its name.

    Args:
        name: "none", "batch", "layer", "group" or "rms"; "layer" and "rms" take every position by itself,
            "group" all positions of eight groups of channels, or of as many as divide both.
        channels: size of the last axis.
        momentum: of batch normalization.
        **kwargs: for the layer.

    Raises:
        ValueError: for an unknown name.
    """
    known = {
        "none": keras.layers.Identity,
        "batch": lambda **kwargs: BatchNormalization(momentum=momentum, **kwargs),
        "layer": LayerNormalization,
        "group": lambda **kwargs: GroupNormalization(math.gcd(8, channels), **kwargs),
        "rms": RMSNormalization,
    }
    if name not in known:
        raise ValueError(f"`normalization` must be one of {', '.join(known)}. Received: normalization={name}")
    return known[name](**kwargs)


def check_axis(axis: int | list, input_shape: tuple) -> None:
    """Refuse an axis that the input does not have.

    Raises:
        AxisError: a ValueError and an IndexError at once; of Keras, it is one here and the other there.
    """
    for one in [axis] if isinstance(axis, int) else axis:
        if not -len(input_shape) <= one < len(input_shape):
            raise np.exceptions.AxisError(
                f"Axis {one} is out of bounds for input shape {input_shape}. Received: axis={axis}"
            )


def count_of(inputs: Any, axes: list) -> Any:
    """How many entries a reduction over `axes` takes together."""
    return ops.cast(math.prod(ops.shape(inputs)[axis] for axis in axes), inputs.dtype)


def mean_square(inputs: Any, axes: list) -> Any:
    """The mean of x^2 over `axes`, which stay with length 1, in the form whose gradient is cheapest.

    On PyTorch the gradient of a square takes three passes over memory, that of a product two; the gradient of
    a mean is a tensor of the input's size, that of a sum a view of a small one.
    """
    squares = inputs * inputs if keras.backend.backend() == "torch" else ops.square(inputs)
    return ops.sum(squares, axis=axes, keepdims=True) / count_of(inputs, axes)


def moved_moments(
    inputs: Any, axes: list, pooled: Callable = lambda means: means
) -> tuple[Any, Any, Any, Any]:
    """The inputs moved near zero, and their statistics over `axes`, which stay with length 1.

    The mean of squares less the squared mean loses all its digits where the mean is large; the mean of
    squared deviations from the mean takes more passes over memory, most of all in its gradient. In between,
    with d = x - k for any constant k: variance = mean(d^2) - mean(d)^2. As the result does not depend on k,
    k needs no gradient; as (k - mean)^2 <= variance (1 - p) / p for the mean k of a part p of the entries,
    the subtraction costs six bits at the very worst where k is the mean of every 64th.

    Args:
        inputs: tensor of any shape.
        axes: what to reduce.
        pooled: a further mean, applied to means over `axes`, of which it keeps the shape.

    Returns:
        The tuple (d, k, mean of d, variance).
    """
    every = [slice(None)] * len(inputs.shape)
    every[axes[0]] = slice(None, None, 64)
    shift = pooled(ops.stop_gradient(ops.mean(inputs[tuple(every)], axis=axes, keepdims=True)))
    moved = inputs - shift
    mean = pooled(ops.sum(moved, axis=axes, keepdims=True) / count_of(inputs, axes))
    return moved, shift, mean, pooled(mean_square(moved, axes)) - ops.square(mean)


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


def normalized(inputs: Any, mean: Any, variance: Any, gamma: Any, beta: Any, epsilon: float) -> Any:
    """The map gamma (x - mean) / sqrt(variance + epsilon) + beta; None stands for gamma 1, beta 0."""
    factor = ops.rsqrt(variance + epsilon)
    if gamma is not None:
        factor = factor * gamma
    # Factor and offset are small: the large tensor is read twice only.
    offset = -mean * factor
    if beta is not None:
        offset = offset + beta
    outputs = inputs * factor
    outputs += offset  # in place on PyTorch, whose gradient of a product does not need its result
    return outputs


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

    def add_affine(self, shape: tuple, scale: bool, center: bool) -> None:
        """Make gamma and beta, where they are wanted; they stay float32 under mixed precision."""
        if scale:
            self.gamma = self.add_weight(
                name="gamma",
                shape=shape,
                initializer=self.gamma_initializer,
                regularizer=self.gamma_regularizer,
                constraint=self.gamma_constraint,
                autocast=False,
            )
        if center:
            self.beta = self.add_weight(
                name="beta",
                shape=shape,
                initializer=self.beta_initializer,
                regularizer=self.beta_regularizer,
                constraint=self.beta_constraint,
                autocast=False,
            )

    def affine(self, shape: list, dtype: str) -> tuple[Any, Any]:
        """Gamma and beta in this shape and dtype, None where they are not wanted."""
        gamma = ops.reshape(ops.cast(self.gamma, dtype), shape) if self.gamma is not None else None
        beta = ops.reshape(ops.cast(self.beta, dtype), shape) if self.beta is not None else None
        return gamma, beta

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


def in_keras_order(axis: int | list) -> list:
    """The axes as a built layer of Keras lists them, and its weights their sizes: negative ones first."""
    return [axis] if isinstance(axis, int) else sorted(axis)


def spanned(axis: list, sizes: tuple, rank: int) -> tuple[list, list]:
    """The axes counted from the front, and the shape that broadcasts weights over them against the input.

    Inputs may have another rank than those the layer was built for.
    """
    shape = [1] * rank
    for one, size in zip(axis, sizes, strict=True):
        shape[one] = size
    return sorted(one % rank for one in axis), shape


def checked_clipping(bounds: dict | None) -> dict:
    """Batch renormalization's bounds, an empty dict for none.

    Raises:
        ValueError: for unknown keys or bounds that exclude each other.
    """
    bounds = bounds or {}
    keys = ["rmax", "rmin", "dmax"]
    if set(bounds) - set(keys):
        raise ValueError(
            f"Received invalid keys for `renorm_clipping` argument: {bounds}. Supported values: {keys}."
        )
    rmax, rmin, dmax = (bounds.get(key) for key in keys)
    if rmax is not None and rmin is not None and rmax < rmin:
        raise ValueError(
            "rmax should be greater than rmin in the `renorm_clipping` argument. "
            f"Received: rmax={rmax}, rmin={rmin}."
        )
    if dmax is not None and dmax < 0:
        raise ValueError(
            f"dmax should be non-negative in the `renorm_clipping` argument. Received: dmax={dmax}."
        )
    return bounds


def follow(moving: keras.Variable, batch: Any, momentum: float) -> None:
    """One step of a running mean: moving = momentum moving + (1 - momentum) batch."""
    moving.assign(moving * momentum + ops.cast(batch, moving.dtype) * (1.0 - momentum))


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

    Batch renormalization (`renorm`) makes training see what inference will see: x is normalized with the
    batch's statistics, then moved by r = stddev / renorm_stddev and d = (mean - renorm_mean) / renorm_stddev,
    through which no gradient flows:  y = gamma (r (x - mean) / stddev + d) + beta.

    Args:
        axis: the channel axis, which keeps its own statistics.
        momentum: how much of the moving statistics a step keeps.
        epsilon: added to the variance.
        center, scale: whether there is a beta, a gamma.
        beta_initializer, gamma_initializer, moving_mean_initializer, moving_variance_initializer: how the
            weights start.
        beta_regularizer, gamma_regularizer, beta_constraint, gamma_constraint: as in `Dense`.
        renorm: whether to renormalize.
        renorm_clipping: bounds of the correction: a dict with any of "rmin", "rmax" and "dmax".
        renorm_momentum: how much of renorm_mean and renorm_stddev a step keeps.
        synchronized: statistics across devices; not available here.

    Call arguments:
        inputs: tensor of any rank, say (batch, height, width, channels).
        training: whether to use and learn the batch's statistics.
        mask: None, or booleans of the input's shape without its last axis: entries that count.

    Returns:
        Tensor of the input's shape.

    Raises:
        ValueError: if the mask has the wrong rank, the clipping unknown keys or contradictory bounds, or
            `synchronized` is set.

    Reference:
        Ioffe & Szegedy, 2015, Batch normalization, arXiv:1502.03167.
        Ioffe, 2017, Batch renormalization, arXiv:1702.03275.
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
        renorm: bool = False,
        renorm_clipping: dict | None = None,
        renorm_momentum: float = 0.99,
        synchronized: bool = False,
        **kwargs: Any,
    ):
        if synchronized:
            raise ValueError("synchronized=True is not supported: statistics are those of one device.")
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
        self.renorm = renorm
        self.renorm_clipping = checked_clipping(renorm_clipping) if renorm else renorm_clipping
        self.renorm_momentum = renorm_momentum
        self.synchronized = synchronized
        self.moving_mean = None
        self.moving_variance = None

    def build(self, input_shape: tuple) -> None:
        """Make gamma, beta and the moving statistics, one entry a channel."""
        check_axis(self.axis, input_shape)
        channels = input_shape[self.axis]
        self.add_affine((channels,), self.scale, self.center)
        self.moving_mean = self.add_statistic("moving_mean", channels, self.moving_mean_initializer)
        self.moving_variance = self.add_statistic(
            "moving_variance", channels, self.moving_variance_initializer
        )
        if self.renorm:
            # With renormalization the moving average is the deviation's, as in the paper.
            self.moving_stddev = self.add_statistic("moving_stddev", channels, self.initial_stddev)
            self.renorm_mean = self.add_statistic("renorm_mean", channels, self.moving_mean_initializer)
            self.renorm_stddev = self.add_statistic("renorm_stddev", channels, self.initial_stddev)
        self.input_spec = keras.InputSpec(ndim=len(input_shape), axes={self.axis: channels})

    def add_statistic(self, name: str, channels: int, initializer: Any) -> keras.Variable:
        """A running statistic: float32, one entry a channel, not trained."""
        return self.add_weight(
            name=name, shape=(channels,), initializer=initializer, trainable=False, autocast=False
        )

    def initial_stddev(self, shape: tuple, dtype: str | None = None) -> Any:
        """The root of the initial variance."""
        return ops.sqrt(self.moving_variance_initializer(shape, dtype=dtype))

    def renormalization(self, mean: Any, stddev: Any) -> tuple[Any, Any]:
        """The correction (r, d), clipped and without gradient."""
        reference = ops.reshape(ops.cast(self.renorm_stddev, mean.dtype), mean.shape)
        reference = ops.maximum(reference, self.epsilon**0.5)
        r = stddev / reference
        d = (mean - ops.reshape(ops.cast(self.renorm_mean, mean.dtype), mean.shape)) / reference
        bounds = self.renorm_clipping
        if bounds.get("rmin") is not None:
            r = ops.maximum(r, bounds["rmin"])
        if bounds.get("rmax") is not None:
            r = ops.minimum(r, bounds["rmax"])
        if bounds.get("dmax") is not None:
            d = ops.clip(d, -bounds["dmax"], bounds["dmax"])
        return ops.stop_gradient(r), ops.stop_gradient(d)

    def learn(self, mean: Any, variance: Any) -> None:
        """Move the running statistics towards the batch's."""
        mean, variance = ops.reshape(mean, (-1,)), ops.reshape(variance, (-1,))
        follow(self.moving_mean, mean, self.momentum)
        if not self.renorm:
            follow(self.moving_variance, variance, self.momentum)
            return
        stddev = ops.sqrt(variance + self.epsilon)
        follow(self.renorm_mean, mean, self.renorm_momentum)
        follow(self.renorm_stddev, stddev, self.renorm_momentum)
        follow(self.moving_stddev, stddev, self.momentum)
        # Rounding may take the difference below zero.
        self.moving_variance.assign(ops.relu(ops.square(self.moving_stddev) - self.epsilon))

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        """Apply the layer."""
        if mask is not None and len(mask.shape) != len(inputs.shape) - 1:
            raise ValueError(
                "The mask provided should be one dimension less than the inputs. "
                f"Received: mask.shape={mask.shape}, inputs.shape={inputs.shape}"
            )
        values = single_precision(inputs)
        if self.axis % len(inputs.shape) != len(inputs.shape) - 1:
            outputs = self.normalize(values, mask, self.axis, training)
        else:
            # Rows of channels: a mean down one axis is the fastest that every backend has.
            rows = ops.reshape(values, (-1, values.shape[-1]))  # (batch ..., channels)
            flat_mask = None if mask is None else ops.reshape(mask, (-1,))
            outputs = ops.reshape(self.normalize(rows, flat_mask, -1, training), ops.shape(values))
        return ops.cast(outputs, self.compute_dtype)

    def normalize(self, inputs: Any, mask: Any, axis: int, training: bool | None) -> Any:
        """The normalized inputs, whose channels are along `axis`; learns from them in training."""
        shape = [1] * len(inputs.shape)
        shape[axis] = -1
        gamma, beta = self.affine(shape, inputs.dtype)
        if training and self.trainable:
            reduced = [a for a in range(len(shape)) if shape[a] == 1]
            if mask is None:
                inputs, shift, mean, variance = moved_moments(inputs, reduced)
            else:
                shift, (mean, variance) = 0.0, masked_moments(inputs, mask, reduced)
            if self.renorm:
                r, d = self.renormalization(mean + shift, ops.sqrt(variance + self.epsilon))
                gamma, offset = (r, d) if gamma is None else (r * gamma, d * gamma)
                beta = offset if beta is None else offset + beta
            self.learn(mean + shift, variance)
        else:
            mean = ops.reshape(ops.cast(self.moving_mean, inputs.dtype), shape)
            variance = ops.reshape(ops.cast(self.moving_variance, inputs.dtype), shape)
        return normalized(inputs, mean, variance, gamma, beta, self.epsilon)

    def get_config(self) -> dict:
        """The arguments of the constructor."""
        return super().get_config() | {
            "momentum": self.momentum,
            "moving_mean_initializer": keras.initializers.serialize(self.moving_mean_initializer),
            "moving_variance_initializer": keras.initializers.serialize(self.moving_variance_initializer),
            "renorm": self.renorm,
            "renorm_clipping": self.renorm_clipping,
            "renorm_momentum": self.renorm_momentum,
            "synchronized": self.synchronized,
        }


@keras.saving.register_keras_serializable(package="layers")
class LayerNormalization(Normalization):
    """Normalizes each example by itself.

        y = gamma (x - mean) / sqrt(variance + epsilon) + beta

    with mean and variance over `axis`, which gamma and beta span. The mask passes through.

    Args:
        axis: an axis or several, normalized together.
        epsilon: added to the variance.
        center, scale: whether there is a beta, a gamma.
        beta_initializer, gamma_initializer, beta_regularizer, gamma_regularizer, beta_constraint,
            gamma_constraint: as in `Dense`.
        rms_scaling: deprecated, for old models: y = gamma x / sqrt(variance + epsilon), the input not centred
            and no beta. It is not `RMSNormalization`, whose mean square is not about the mean.

    Call arguments:
        inputs: tensor of any rank, say (batch, steps, features).

    Returns:
        Tensor of the input's shape.

    Raises:
        TypeError: if `axis` is neither an integer nor a list of integers.

    Reference:
        Ba et al., 2016, Layer normalization, arXiv:1607.06450.
    """

    def __init__(
        self,
        axis: int | list = -1,
        epsilon: float = 1e-3,
        center: bool = True,
        scale: bool = True,
        beta_initializer: Any = "zeros",
        gamma_initializer: Any = "ones",
        beta_regularizer: Any = None,
        gamma_regularizer: Any = None,
        beta_constraint: Any = None,
        gamma_constraint: Any = None,
        rms_scaling: bool = False,
        **kwargs: Any,
    ):
        if not isinstance(axis, (int, list, tuple)):
            raise TypeError(
                f"Expected an int or a list/tuple of ints for the argument 'axis', but received: {axis!r}"
            )
        if rms_scaling:
            warnings.warn(
                "`rms_scaling=True` is deprecated: it scales by the variance, not by the root mean square. "
                "Use `RMSNormalization`.",
                stacklevel=2,
            )
        super().__init__(
            axis if isinstance(axis, int) else list(axis),
            epsilon,
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
        self.rms_scaling = rms_scaling
        # Statistics are taken from the input as it comes, before any rounding to half precision.
        self.autocast = False

    def build(self, input_shape: tuple) -> None:
        """Make gamma and beta over the normalized axes."""
        check_axis(self.axis, input_shape)
        self.axis = in_keras_order(self.axis)
        self.sizes = tuple(input_shape[axis] for axis in self.axis)
        self.add_affine(self.sizes, self.scale or self.rms_scaling, self.center and not self.rms_scaling)

    def call(self, inputs: Any) -> Any:
        """Apply the layer."""
        inputs = single_precision(inputs)
        rank = len(inputs.shape)
        reduced, broadcast = spanned(self.axis, self.sizes, rank)
        trailing = [axis % rank for axis in self.axis] == [*range(rank - len(reduced), rank)]
        if keras.backend.backend() == "torch" and trailing and not self.rms_scaling:
            # One kernel, twice differentiable; the operations below one by one take six times as long.
            outputs = ops.layer_normalization(inputs, self.gamma, self.beta, reduced, self.epsilon)
            return ops.cast(outputs, self.compute_dtype)
        deviation = inputs - ops.mean(inputs, axis=reduced, keepdims=True)
        variance = mean_square(deviation, reduced)
        gamma, beta = self.affine(broadcast, inputs.dtype)
        outputs = (inputs if self.rms_scaling else deviation) * ops.rsqrt(variance + self.epsilon)
        if gamma is not None:
            outputs = outputs * gamma
        if beta is not None:
            outputs = outputs + beta
        return ops.cast(outputs, self.compute_dtype)

    def get_config(self) -> dict:
        """The arguments of the constructor."""
        return super().get_config() | {"rms_scaling": self.rms_scaling}


@keras.saving.register_keras_serializable(package="layers")
class GroupNormalization(Normalization):
    """Normalizes groups of channels of each example by themselves.

        y = gamma (x - mean) / sqrt(variance + epsilon) + beta

    with mean and variance over all positions and the channels of one group; gamma and beta have one entry a
    channel. It does not depend on the batch. The mask passes through.

    Args:
        groups: number of groups; -1 makes every channel its own (instance normalization).
        axis: the channel axis.
        epsilon: added to the variance.
        center, scale: whether there is a beta, a gamma.
        beta_initializer, gamma_initializer, beta_regularizer, gamma_regularizer, beta_constraint,
            gamma_constraint: as in `Dense`.

    Call arguments:
        inputs: tensor of shape (batch, ..., channels), or as `axis` says.

    Returns:
        Tensor of the input's shape.

    Raises:
        ValueError: if `groups` is not a positive divisor of the channels, or these are unknown.

    Reference:
        Wu & He, 2018, Group normalization, arXiv:1803.08494.
    """

    def __init__(
        self,
        groups: int = 32,
        axis: int = -1,
        epsilon: float = 1e-3,
        center: bool = True,
        scale: bool = True,
        beta_initializer: Any = "zeros",
        gamma_initializer: Any = "ones",
        beta_regularizer: Any = None,
        gamma_regularizer: Any = None,
        beta_constraint: Any = None,
        gamma_constraint: Any = None,
        **kwargs: Any,
    ):
        if not isinstance(groups, int) or (groups <= 0 and groups != -1):
            raise ValueError(
                "Received an invalid value for argument `groups`, expected a positive integer (or `-1` for "
                f"instance normalization). Received: groups={groups}"
            )
        super().__init__(
            axis,
            epsilon,
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
        self.autocast = False
        self.groups = groups

    def build(self, input_shape: tuple) -> None:
        """Make gamma and beta, one entry a channel."""
        check_axis(self.axis, input_shape)
        channels = input_shape[self.axis]
        if channels is None:
            raise ValueError(
                f"Axis {self.axis} of input tensor should have a defined dimension but the layer received "
                f"an input with shape {input_shape}."
            )
        if self.groups == -1:
            self.groups = channels
        if channels < self.groups:
            raise ValueError(
                f"Number of groups ({self.groups}) cannot be more than the number of channels ({channels})."
            )
        if channels % self.groups != 0:
            raise ValueError(
                f"Number of groups ({self.groups}) must be a multiple of the number of channels ({channels})."
            )
        self.input_spec = keras.InputSpec(ndim=len(input_shape), axes={self.axis: channels})
        self.add_affine((channels,), self.scale, self.center)

    def call(self, inputs: Any) -> Any:
        """Apply the layer."""
        values = ops.moveaxis(single_precision(inputs), self.axis, -1)
        shape = ops.shape(values)
        rows = ops.reshape(values, (shape[0], math.prod(shape[1:-1]), shape[-1]))  # (batch, rest, channels)
        # A mean down one axis first, as in batch normalization; the groups' are then means of small tensors.
        rows, _, mean, variance = moved_moments(rows, [1], self.pooled)
        gamma, beta = self.affine([shape[-1]], rows.dtype)
        outputs = ops.reshape(normalized(rows, mean, variance, gamma, beta, self.epsilon), shape)
        return ops.cast(ops.moveaxis(outputs, -1, self.axis), self.compute_dtype)

    def pooled(self, means: Any) -> Any:
        """For every channel the mean of its group's: (batch, 1, channels)."""
        grouped = ops.reshape(means, (-1, self.groups, means.shape[-1] // self.groups))
        pooled = ops.broadcast_to(ops.mean(grouped, axis=-1, keepdims=True), ops.shape(grouped))
        return ops.reshape(pooled, ops.shape(means))

    def get_config(self) -> dict:
        """The arguments of the constructor."""
        return super().get_config() | {"groups": self.groups}


@keras.saving.register_keras_serializable(package="layers")
class RMSNormalization(keras.Layer):
    """Divides each example by its root mean square.

        y = scale x / sqrt(mean(x^2) + epsilon)

    with the mean over `axis`, which `scale` spans: layer normalization without the mean and beta.
    As Keras', it hands no mask on, and warns of one; set `supports_masking` to change that.

    Args:
        axis: an axis or several, normalized together.
        epsilon: added to the mean square.

    Call arguments:
        inputs: tensor of any rank, say (batch, steps, features).

    Returns:
        Tensor of the input's shape.

    Reference:
        Zhang & Sennrich, 2019, Root mean square layer normalization, arXiv:1910.07467.
    """

    def __init__(self, axis: int | list = -1, epsilon: float = 1e-6, **kwargs: Any):
        super().__init__(**kwargs)
        self.axis = axis
        self.epsilon = epsilon

    def build(self, input_shape: tuple) -> None:
        """Make the scale over the normalized axes."""
        check_axis(self.axis, input_shape)
        self.axis = in_keras_order(self.axis)
        self.sizes = tuple(input_shape[axis] for axis in self.axis)
        self.scale = self.add_weight(name="scale", shape=self.sizes, initializer="ones")

    def call(self, x: Any) -> Any:
        """Apply the layer."""
        values = single_precision(x)
        reduced, broadcast = spanned(self.axis, self.sizes, len(x.shape))
        factor = ops.rsqrt(mean_square(values, reduced) + self.epsilon)
        scale = ops.reshape(ops.cast(self.scale, values.dtype), broadcast)
        return ops.cast(values * factor * scale, self.compute_dtype)

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        """The input's shape."""
        check_axis(self.axis, input_shape)
        return input_shape

    def get_config(self) -> dict:
        """The arguments of the constructor."""
        return super().get_config() | {"axis": self.axis, "epsilon": self.epsilon}
