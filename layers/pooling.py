"""Pooling: the maximum or mean of a window, or of the whole image."""

import itertools
from typing import Any

import keras
from keras import ops

from .convolution import as_data_format, as_tuple, over_image, window_count


class WindowPooling(keras.Layer):
    """One number for every window of every channel; subclasses set `rank`, `pool_mode` and `reduce`."""

    rank: int
    pool_mode: str

    def __init__(
        self,
        pool_size: int | tuple,
        strides: int | tuple | None = None,
        padding: str = "valid",
        data_format: str | None = None,
        name: str | None = None,
        **kwargs: Any,
    ):
        super().__init__(name=name, **kwargs)
        self.pool_size = as_tuple(pool_size, self.rank, "pool_size")
        self.strides = as_tuple(pool_size if strides is None else strides, self.rank, "strides")
        self.padding = padding.lower()
        if self.padding not in ("valid", "same"):
            raise ValueError(
                f"Argument `padding` must be either 'valid' or 'same'. Received: padding={padding}"
            )
        self.data_format = as_data_format(data_format)
        self.input_spec = keras.InputSpec(ndim=self.rank + 2)
        self._build_at_init()

    def reduce(self, inputs: Any, **window: Any) -> Any:
        """One number a window; given by the subclass."""
        raise NotImplementedError

    def call(self, inputs: Any) -> Any:
        """Apply the layer."""
        return self.reduce(
            inputs,
            pool_size=self.pool_size,
            strides=self.strides,
            padding=self.padding,
            data_format=self.data_format,
        )

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        """The input's shape with one entry a window along the spatial axes."""
        start = 1 if self.data_format == "channels_last" else 2
        shape = list(input_shape)
        for axis, window, stride in zip(
            range(start, start + self.rank), self.pool_size, self.strides, strict=True
        ):
            shape[axis] = window_count(input_shape[axis], window, stride, self.padding)
            if shape[axis] is not None and shape[axis] <= 0:
                raise ValueError(
                    "Computed output size would be zero or negative. Received: "
                    f"`inputs.shape={input_shape}`, `pool_size={self.pool_size}`, "
                    f"`strides={self.strides}`, `padding={self.padding}`."
                )
        return tuple(shape)

    def get_config(self) -> dict:
        """The arguments of the constructor."""
        return super().get_config() | {
            "pool_size": self.pool_size,
            "padding": self.padding,
            "strides": self.strides,
            "data_format": self.data_format,
        }


class MaxPooling(WindowPooling):
    """The largest value of each window; padding never wins. Of Keras' two, this one has a default size."""

    pool_mode = "max"

    def __init__(
        self,
        pool_size: int | tuple = 2,
        strides: int | tuple | None = None,
        padding: str = "valid",
        data_format: str | None = None,
        name: str | None = None,
        **kwargs: Any,
    ):
        super().__init__(pool_size, strides, padding, data_format, name, **kwargs)

    def reduce(self, inputs: Any, **window: Any) -> Any:
        """The largest value of each window."""
        if keras.backend.backend() == "jax" and self.tiles(inputs.shape):
            return self.maximum_of_slices(inputs)
        return over_image(ops.max_pool, inputs, **window)

    def tiles(self, shape: tuple) -> bool:
        """Whether the windows cover an image of this shape exactly, without overlap."""
        start = 1 if self.data_format == "channels_last" else 2
        sizes = shape[start : start + self.rank]
        return self.strides == self.pool_size and not any(
            size is None or size % window for size, window in zip(sizes, self.pool_size, strict=True)
        )

    def maximum_of_slices(self, inputs: Any) -> Any:
        """The maximum over strided slices, one for each place in the window.

        On CPU, XLA's gradient of a window maximum is a scatter that takes 20 times as long. That of slices is
        twice as fast where the comparisons are made again (`remat`) instead of kept in memory.
        """
        before = (slice(None),) * (1 if self.data_format == "channels_last" else 2)

        def largest(inputs: Any) -> Any:
            most = None
            for place in itertools.product(*(range(window) for window in self.pool_size)):
                steps = tuple(slice(k, None, window) for k, window in zip(place, self.pool_size, strict=True))
                part = inputs[before + steps]
                # Not a number wins, as in the window maximum; of equal values the first.
                most = part if most is None else ops.where((most >= part) | ops.isnan(most), most, part)
            return most

        return keras.remat(largest)(inputs)


class AveragePooling(WindowPooling):
    """The mean of each window; padding is not counted."""

    pool_mode = "average"

    def reduce(self, inputs: Any, **window: Any) -> Any:
        """The mean of each window."""
        return over_image(ops.average_pool, inputs, **window)


@keras.saving.register_keras_serializable(package="layers")
class MaxPooling1D(MaxPooling):
    """Largest value of each window along one axis.

        y[n, t, c] = max_{0 <= k < pool} x[n, stride t + k - pad, c]

    Args:
        pool_size: width of the window.
        strides: step between two windows; None takes `pool_size`.
        padding: "valid" (none) or "same" (length = ceil(length / stride)); padding never wins.
        data_format: "channels_last", "channels_first" or None, Keras' default.
        name: the layer's name.

    Call arguments:
        inputs: tensor of shape (batch, steps, channels), or (batch, channels, steps).

    Returns:
        Tensor of shape (batch, new steps, channels), or (batch, channels, new steps).
    """

    rank = 1


@keras.saving.register_keras_serializable(package="layers")
class MaxPooling2D(MaxPooling):
    """Largest value of each window of an image.

        y[n, i, j, c] = max_{k, l} x[n, stride i + k - pad, stride j + l - pad, c]

    Args:
        pool_size: height and width of the window, or one integer for both.
        strides: steps between two windows; None takes `pool_size`.
        padding: "valid" (none) or "same" (size = ceil(size / stride)); padding never wins.
        data_format: "channels_last", "channels_first" or None, Keras' default.
        name: the layer's name.

    Call arguments:
        inputs: tensor of shape (batch, height, width, channels), or (batch, channels, height, width).

    Returns:
        Tensor of the same rank, with one entry a window.
    """

    rank = 2


@keras.saving.register_keras_serializable(package="layers")
class AveragePooling1D(AveragePooling):
    """Mean of each window along one axis.

        y[n, t, c] = mean_{0 <= k < pool} x[n, stride t + k - pad, c]

    Args:
        pool_size: width of the window.
        strides: step between two windows; None takes `pool_size`.
        padding: "valid" (none) or "same" (length = ceil(length / stride)); padding is not counted.
        data_format: "channels_last", "channels_first" or None, Keras' default.
        name: the layer's name.

    Call arguments:
        inputs: tensor of shape (batch, steps, channels), or (batch, channels, steps).

    Returns:
        Tensor of shape (batch, new steps, channels), or (batch, channels, new steps).
    """

    rank = 1


@keras.saving.register_keras_serializable(package="layers")
class AveragePooling2D(AveragePooling):
    """Mean of each window of an image.

        y[n, i, j, c] = mean_{k, l} x[n, stride i + k - pad, stride j + l - pad, c]

    Args:
        pool_size: height and width of the window, or one integer for both.
        strides: steps between two windows; None takes `pool_size`.
        padding: "valid" (none) or "same" (size = ceil(size / stride)); padding is not counted.
        data_format: "channels_last", "channels_first" or None, Keras' default.
        name: the layer's name.

    Call arguments:
        inputs: tensor of shape (batch, height, width, channels), or (batch, channels, height, width).

    Returns:
        Tensor of the same rank, with one entry a window.
    """

    rank = 2


class GlobalPooling(keras.Layer):
    """One number for every channel; subclasses set `rank` and `call`."""

    rank: int

    def __init__(self, data_format: str | None = None, keepdims: bool = False, **kwargs: Any):
        super().__init__(**kwargs)
        self.data_format = as_data_format(data_format)
        self.keepdims = keepdims
        self.input_spec = keras.InputSpec(ndim=self.rank + 2)
        self._build_at_init()

    @property
    def spatial_axes(self) -> tuple:
        """The axes that are reduced."""
        start = 1 if self.data_format == "channels_last" else 2
        return tuple(range(start, start + self.rank))

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        """(batch, channels), with ones in between where `keepdims` is set."""
        if self.keepdims:
            return tuple(1 if axis in self.spatial_axes else size for axis, size in enumerate(input_shape))
        return tuple(size for axis, size in enumerate(input_shape) if axis not in self.spatial_axes)

    def get_config(self) -> dict:
        """The arguments of the constructor."""
        return super().get_config() | {"data_format": self.data_format, "keepdims": self.keepdims}


class GlobalMaxPooling(GlobalPooling):
    """The largest value of each channel."""

    def call(self, inputs: Any) -> Any:
        """Apply the layer."""
        return ops.max(inputs, axis=self.spatial_axes, keepdims=self.keepdims)


@keras.saving.register_keras_serializable(package="layers")
class GlobalAveragePooling1D(GlobalPooling):
    """Mean over time, of the unmasked steps where there is a mask.

        y[n, c] = sum_t m[n, t] x[n, t, c] / sum_t m[n, t]

    Args:
        data_format: "channels_last", "channels_first" or None, Keras' default.
        keepdims: whether the time axis stays, with length 1.

    Call arguments:
        inputs: tensor of shape (batch, steps, channels), or (batch, channels, steps).
        mask: None, or booleans of shape (batch, steps): False steps do not count.

    Returns:
        Tensor of shape (batch, channels), without a mask.

    Reference:
        Lin et al., 2013, Network in network, arXiv:1312.4400.
    """

    rank = 1

    def __init__(self, data_format: str | None = None, keepdims: bool = False, **kwargs: Any):
        super().__init__(data_format, keepdims, **kwargs)
        self.supports_masking = True

    def call(self, inputs: Any, mask: Any = None) -> Any:
        """Apply the layer."""
        (steps,) = self.spatial_axes
        if mask is None:
            return ops.mean(inputs, axis=steps, keepdims=self.keepdims)
        mask = ops.expand_dims(ops.cast(mask, "bool"), 2 if steps == 1 else 1)
        # where, not a product: a masked step may hold NaN.
        total = ops.sum(ops.where(mask, inputs, 0), axis=steps, keepdims=self.keepdims)
        return total / ops.sum(ops.cast(mask, inputs.dtype), axis=steps, keepdims=self.keepdims)

    def compute_mask(self, inputs: Any, mask: Any = None) -> None:
        """The output has no time axis left to mask."""
        return None


@keras.saving.register_keras_serializable(package="layers")
class GlobalAveragePooling2D(GlobalPooling):
    """Mean of each channel of an image.

        y[n, c] = mean_{i, j} x[n, i, j, c]

    Args:
        data_format: "channels_last", "channels_first" or None, Keras' default.
        keepdims: whether height and width stay, with length 1.

    Call arguments:
        inputs: tensor of shape (batch, height, width, channels), or (batch, channels, height, width).

    Returns:
        Tensor of shape (batch, channels).

    Reference:
        Lin et al., 2013, Network in network, arXiv:1312.4400.
    """

    rank = 2

    def call(self, inputs: Any) -> Any:
        """Apply the layer."""
        return ops.mean(inputs, axis=self.spatial_axes, keepdims=self.keepdims)


@keras.saving.register_keras_serializable(package="layers")
class GlobalMaxPooling1D(GlobalMaxPooling):
    """Largest value of each channel over time.

        y[n, c] = max_t x[n, t, c]

    Args:
        data_format: "channels_last", "channels_first" or None, Keras' default.
        keepdims: whether the time axis stays, with length 1.

    Call arguments:
        inputs: tensor of shape (batch, steps, channels), or (batch, channels, steps).

    Returns:
        Tensor of shape (batch, channels).
    """

    rank = 1


@keras.saving.register_keras_serializable(package="layers")
class GlobalMaxPooling2D(GlobalMaxPooling):
    """Largest value of each channel of an image.

        y[n, c] = max_{i, j} x[n, i, j, c]

    Args:
        data_format: "channels_last", "channels_first" or None, Keras' default.
        keepdims: whether height and width stay, with length 1.

    Call arguments:
        inputs: tensor of shape (batch, height, width, channels), or (batch, channels, height, width).

    Returns:
        Tensor of shape (batch, channels).
    """

    rank = 2
