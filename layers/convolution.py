"""Convolutions: plain, causal, depthwise, separable, transposed, and WaveNet's gated block.

`keras.ops.conv`, `depthwise_conv` and `conv_transpose` are the primitives; the tests hold them against
explicit NumPy loops.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

import keras
from keras import ops

from . import windows
from .dense import Dense, LowRankAdaptation
from .initializers import twin
from .quantization import QuantizableParts
from .windows import window_count


def as_tuple(value: int | Iterable[int], length: int, name: str, allow_zero: bool = False) -> tuple:
    """`value` as `length` integers: repeated where it is one integer, checked where it is several.

    Args:
        value: an integer or `length` of them.
        length: how many are wanted.
        name: the argument's name, for the error.
        allow_zero: whether 0 is a valid entry.

    Returns:
        A tuple of `length` integers.

    Raises:
        ValueError: if the number of entries or one of them is wrong.
    """
    wrong = f"The `{name}` argument must be a tuple of {length} integers. Received {name}={value}"
    if isinstance(value, int):
        entries = (value,) * length
    elif isinstance(value, Iterable) and not isinstance(value, str):
        entries = tuple(value)
    else:
        raise ValueError(wrong)
    if len(entries) != length:
        raise ValueError(wrong)
    for entry in entries:
        try:
            int(entry)
        except (TypeError, ValueError):
            raise ValueError(f"{wrong}, including element {entry} of type {type(entry)}") from None
    refused = {entry for entry in entries if entry < 0 or (entry == 0 and not allow_zero)}
    if refused:
        bound = ">= 0" if allow_zero else "> 0"
        raise ValueError(f"{wrong}, including values {refused} that do not satisfy `value {bound}`")
    return entries


def as_data_format(value: str | None) -> str:
    """`channels_last` or `channels_first`; None stands for Keras' configured default."""
    if value is None:
        return keras.config.image_data_format()
    data_format = str(value).lower()
    if data_format not in ("channels_last", "channels_first"):
        raise ValueError(
            "The `data_format` argument must be one of {'channels_first', 'channels_last'}. "
            f"Received: data_format={value}"
        )
    return data_format


def over_image(operation: Callable, inputs: Any, *arguments: Any, data_format: str, **options: Any) -> Any:
    """`operation(inputs, *arguments)`, of `keras.ops`, without copies of the image on PyTorch.

    There Keras copies an image whose channels are last into channels-first order, and often back again. Given
    a channels-first view of the same memory it copies nothing: PyTorch's kernels take either order.

    Args:
        operation: `ops.conv` or another that slides a window.
        inputs: tensor of shape (batch, *spatial, channels), or (batch, channels, *spatial).
        arguments, options: the operation's own.
        data_format: where the channels are.

    Returns:
        What the operation returns, channels where the inputs' are.
    """
    if keras.backend.backend() != "torch" or data_format == "channels_first":
        return operation(inputs, *arguments, data_format=data_format, **options)
    view = ops.moveaxis(inputs, -1, 1)
    return ops.moveaxis(operation(view, *arguments, data_format="channels_first", **options), 1, -1)


def transposed_length(
    length: int | None, window: int, stride: int, padding: str, extra: int | None, dilation: int
) -> int | None:
    """Length of a transposed convolution's output, the inverse of `window_count`.

    `extra`, the output padding, chooses among the input lengths that a strided convolution maps to the
    same output; None takes the longest for `valid` and `stride * length` for `same`.
    """
    if length is None:
        return None
    reach = dilation * (window - 1) + 1
    if extra is None:
        return length * stride + (max(reach - stride, 0) if padding == "valid" else 0)
    return (length - 1) * stride + reach - 2 * (reach // 2 if padding == "same" else 0) + extra


class Convolution(keras.Layer):
    """What all convolutions share: window geometry, bias, activation and their description.

    Subclasses set `rank` and `options` (the prefixes of their `_initializer`, `_regularizer` and
    `_constraint` arguments), add their kernels in `build` and give `call`.
    """

    rank: int
    options: tuple = ("kernel", "bias")

    def __init__(
        self,
        kernel_size: int | tuple,
        strides: int | tuple,
        padding: str,
        data_format: str | None,
        dilation_rate: int | tuple,
        activation: Any,
        use_bias: bool,
        activity_regularizer: Any,
        option_values: dict,
        **kwargs: Any,
    ):
        super().__init__(activity_regularizer=activity_regularizer, **kwargs)
        self.kernel_size = as_tuple(kernel_size, self.rank, "kernel_size")
        self.strides = as_tuple(strides, self.rank, "strides")
        self.dilation_rate = as_tuple(dilation_rate, self.rank, "dilation_rate")
        self.padding = padding.lower()
        if self.padding not in self.paddings():
            raise ValueError(
                f"The `padding` argument must be one of {self.paddings()}. Received: padding={padding}"
            )
        self.data_format = as_data_format(data_format)
        self.activation = keras.activations.get(activation)
        self.use_bias = use_bias
        for option in self.options:
            for kind, module in self.kinds().items():
                key = f"{option}_{kind}"
                setattr(self, key, module.get(option_values.get(key)))
        self.input_spec = keras.InputSpec(min_ndim=self.rank + 2)

    @staticmethod
    def kinds() -> dict:
        """What may be given for each weight, with the Keras module that resolves it."""
        return {
            "initializer": keras.initializers,
            "regularizer": keras.regularizers,
            "constraint": keras.constraints,
        }

    def paddings(self) -> tuple:
        """The paddings that this layer knows."""
        return ("valid", "same")

    @property
    def channel_axis(self) -> int:
        """Where the channels are."""
        return -1 if self.data_format == "channels_last" else 1

    def fix_channels(self, input_shape: tuple) -> int:
        """Hold later inputs to this number of channels, and check that the output is not empty."""
        channels = input_shape[self.channel_axis]
        self.input_spec = keras.InputSpec(min_ndim=self.rank + 2, axes={self.channel_axis: channels})
        self.compute_output_shape(input_shape)
        return channels

    def add_kernel(self, name: str, shape: tuple, option: str) -> keras.Variable:
        """A weight with the initializer, regularizer and constraint given for `option`."""
        given = {kind: getattr(self, f"{option}_{kind}") for kind in self.kinds()}
        return self.add_weight(name=name, shape=shape, **{**given, "initializer": twin(given["initializer"])})

    def add_bias(self, filters: int) -> None:
        """The bias vector, where there is one."""
        self.bias = self.add_kernel("bias", (filters,), "bias") if self.use_bias else None

    def convolved_each(self, inputs: Any, kernel: Any) -> Any:
        """Each channel by itself, under a kernel (*kernel_size, channels, depth_multiplier)."""
        if self.by_products(inputs, "jax"):
            return windows.convolved_each(inputs, kernel, *self.slides())
        return over_image(
            ops.depthwise_conv,
            inputs,
            kernel,
            strides=self.strides,
            padding=self.padding,
            data_format=self.data_format,
            dilation_rate=self.dilation_rate,
        )

    def finish(self, outputs: Any) -> Any:
        """Add the bias and apply the activation; the shape stays."""
        if self.use_bias:
            bias = self.bias
            if self.data_format == "channels_first":
                bias = ops.reshape(bias, (1, -1) + (1,) * self.rank)
            outputs = ops.add(outputs, bias)
        return outputs if self.activation is None else self.activation(outputs)

    def spatial_axes(self) -> range:
        """The axes that the window moves along."""
        start = 1 if self.data_format == "channels_last" else 2
        return range(start, start + self.rank)

    def shape_with(self, input_shape: tuple, lengths: list, filters: int) -> tuple:
        """Shape of an output with these spatial lengths and channels."""
        if self.data_format == "channels_last":
            return (input_shape[0], *lengths, filters)
        return (input_shape[0], filters, *lengths)

    def slides(self) -> tuple:
        """How the window moves: strides, dilation and padding."""
        return self.strides, self.dilation_rate, self.padding

    def by_products(self, inputs: Any, *backends: str) -> bool:
        """Whether `layers.windows` is for this image, on one of these backends."""
        last = self.data_format == "channels_last"
        return last and None not in inputs.shape[1:] and windows.on_cpu(*backends)

    def convolved_shape(self, input_shape: tuple, filters: int) -> tuple:
        """Output shape of a strided, dilated convolution.

        Raises:
            ValueError: if the input is shorter than the window or has the wrong number of axes.
        """
        if len(input_shape) != self.rank + 2:
            raise ValueError(
                f"Kernel shape must have the same length as input: {self.rank + 2} axes. "
                f"Received input of shape {input_shape}."
            )
        lengths = [
            window_count(input_shape[axis], window, stride, self.padding, dilation)
            for axis, window, stride, dilation in zip(
                self.spatial_axes(), self.kernel_size, self.strides, self.dilation_rate, strict=True
            )
        ]
        if any(length is not None and length <= 0 for length in lengths):
            raise ValueError(
                f"Computed output size would be zero or negative. Received `inputs shape={input_shape}`, "
                f"`kernel_size={self.kernel_size}`, `dilation_rate={self.dilation_rate}`, "
                f"`strides={self.strides}`, `padding={self.padding}`."
            )
        return self.shape_with(input_shape, lengths, filters)

    def get_config(self) -> dict:
        """The arguments of the constructor."""
        config = super().get_config() | {
            "kernel_size": self.kernel_size,
            "strides": self.strides,
            "padding": self.padding,
            "data_format": self.data_format,
            "dilation_rate": self.dilation_rate,
            "activation": keras.activations.serialize(self.activation),
            "use_bias": self.use_bias,
            "activity_regularizer": keras.regularizers.serialize(self.activity_regularizer),
        }
        for option in self.options:
            for kind, module in self.kinds().items():
                key = f"{option}_{kind}"
                config[key] = module.serialize(getattr(self, key))
        return config


def check_filters(filters: int | None) -> None:
    """Refuse a number of filters that is not positive."""
    if filters is not None and filters <= 0:
        raise ValueError(
            "Invalid value for argument `filters`. Expected a strictly positive value. "
            f"Received filters={filters}."
        )


def check_depth_multiplier(depth_multiplier: int | None) -> None:
    """Refuse a number of outputs a channel that is not positive."""
    if depth_multiplier is not None and depth_multiplier <= 0:
        raise ValueError(
            "Invalid value for argument `depth_multiplier`. Expected a strictly positive value. "
            f"Received depth_multiplier={depth_multiplier}."
        )


def refuse_stride_with_dilation(strides: tuple, dilation_rate: tuple) -> None:
    """The two together are undefined on some backends."""
    if max(strides) > 1 and max(dilation_rate) > 1:
        raise ValueError(
            "`strides > 1` not supported in conjunction with `dilation_rate > 1`. "
            f"Received: strides={strides} and dilation_rate={dilation_rate}"
        )


class GroupedConvolution(LowRankAdaptation, Convolution):
    """Convolution of any rank, the common part of Conv1D and Conv2D.

        y[n, p, f] = activation(b[f] + sum_{k, c} W[k, c, f] x[n, stride p + dilation k - pad, c])

    With `groups` > 1, each output channel sees its own group of input channels only.
    """

    def __init__(
        self,
        filters: int,
        kernel_size: int | tuple,
        strides: int | tuple = 1,
        padding: str = "valid",
        data_format: str | None = None,
        dilation_rate: int | tuple = 1,
        groups: int = 1,
        activation: Any = None,
        use_bias: bool = True,
        kernel_initializer: Any = "glorot_uniform",
        bias_initializer: Any = "zeros",
        kernel_regularizer: Any = None,
        bias_regularizer: Any = None,
        activity_regularizer: Any = None,
        kernel_constraint: Any = None,
        bias_constraint: Any = None,
        lora_rank: int | None = None,
        lora_alpha: float | None = None,
        **kwargs: Any,
    ):
        super().__init__(
            kernel_size,
            strides,
            padding,
            data_format,
            dilation_rate,
            activation,
            use_bias,
            activity_regularizer,
            {
                "kernel_initializer": kernel_initializer,
                "bias_initializer": bias_initializer,
                "kernel_regularizer": kernel_regularizer,
                "bias_regularizer": bias_regularizer,
                "kernel_constraint": kernel_constraint,
                "bias_constraint": bias_constraint,
            },
            **kwargs,
        )
        check_filters(filters)
        refuse_stride_with_dilation(self.strides, self.dilation_rate)
        if groups <= 0:
            raise ValueError(f"The number of groups must be a positive integer. Received: groups={groups}.")
        if filters is not None and filters % groups != 0:
            raise ValueError(
                "The number of filters must be evenly divisible by the number of groups. "
                f"Received: groups={groups}, filters={filters}."
            )
        self.filters = filters
        self.groups = groups
        self.set_adaptation(lora_rank, lora_alpha)

    def build(self, input_shape: tuple) -> None:
        """Make the kernel, (*kernel_size, channels / groups, filters), and the bias, (filters,)."""
        channels = self.fix_channels(input_shape)
        if channels % self.groups != 0:
            raise ValueError(
                "The number of input channels must be evenly divisible by the number of groups. "
                f"Received groups={self.groups}, but the input has {channels} channels "
                f"(full input shape is {input_shape})."
            )
        self._kernel = self.add_kernel(
            "kernel", (*self.kernel_size, channels // self.groups, self.filters), "kernel"
        )
        self.add_bias(self.filters)
        self.adapt_if_asked()

    def call(self, inputs: Any) -> Any:
        """Apply the layer."""
        return self.finish(self.convolution_op(inputs, self.kernel))

    def convolution_op(self, inputs: Any, kernel: Any) -> Any:
        """The convolution without bias and activation; what a subclass may exchange."""
        padding = self.padding
        if padding == "causal":
            # Zeros on the left only: position t sees t, t - dilation, t - 2 dilation, ...
            widths = [[0, 0]] * (self.rank + 2)
            widths[self.spatial_axes()[0]] = [self.dilation_rate[0] * (self.kernel_size[0] - 1), 0]
            inputs, padding = ops.pad(inputs, widths), "valid"
        if self.groups > 1 and self.by_products(inputs, "jax", "tensorflow"):
            return windows.convolved_in_groups(
                inputs, kernel, self.strides, self.dilation_rate, padding, self.groups
            )
        if self.by_products(inputs, "jax") and self._outgrows(inputs):
            return windows.convolved(inputs, kernel, *self.slides())
        return over_image(
            ops.conv,
            inputs,
            kernel,
            strides=list(self.strides),
            padding=padding,
            data_format=self.data_format,
            dilation_rate=self.dilation_rate,
        )

    def _outgrows(self, inputs: Any) -> bool:
        """Whether the window is larger than the image."""
        return self.padding == "same" and any(
            dilation * (size - 1) >= length
            for length, size, dilation in zip(
                inputs.shape[1:-1], self.kernel_size, self.dilation_rate, strict=True
            )
        )

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        """Shape of the output, with `filters` channels."""
        return self.convolved_shape(input_shape, self.filters)

    def get_config(self) -> dict:
        """The arguments of the constructor."""
        config = super().get_config() | {"filters": self.filters, "groups": self.groups}
        return config | self.adaptation_config()


@keras.saving.register_keras_serializable(package="layers")
class Conv1D(GroupedConvolution):
    """Convolution over one axis, such as time; causal where asked.

        y[n, t, f] = activation(b[f] + sum_{k, c} W[k, c, f] x[n, stride t + dilation k - pad, c])

    Args:
        filters: number of output channels.
        kernel_size: width of the window.
        strides: step between two windows.
        padding: "valid" (none), "same" (both ends, so that length = ceil(length / stride)) or "causal"
            (left end only, so that no output sees a later input).
        data_format: "channels_last", "channels_first" or None, Keras' default.
        dilation_rate: step between two inputs of one window; not together with strides > 1.
        groups: number of channel groups that are convolved apart.
        activation: name, function or None.
        use_bias: whether to add b.
        kernel_initializer, bias_initializer, kernel_regularizer, bias_regularizer, activity_regularizer,
            kernel_constraint, bias_constraint, lora_rank, lora_alpha: as in `Dense`.

    Call arguments:
        inputs: tensor of shape (batch, steps, channels), or (batch, channels, steps).

    Returns:
        Tensor of shape (batch, new steps, filters), or (batch, filters, new steps).

    Raises:
        ValueError: for sizes that are not positive, filters or channels that `groups` does not divide,
            strides together with dilation, or an input shorter than the window.

    Reference:
        van den Oord et al., 2016, WaveNet, arXiv:1609.03499 (causal, dilated).
    """

    rank = 1

    def paddings(self) -> tuple:
        """The paddings that this layer knows."""
        return ("valid", "same", "causal")


@keras.saving.register_keras_serializable(package="layers")
class Conv2D(GroupedConvolution):
    """Convolution over two axes.

        y[n, i, j, f] = activation(b[f] + sum_{k, l, c} W[k, l, c, f] x[n, s i + d k - p, s j + d l - p, c])

    Args:
        filters: number of output channels.
        kernel_size: height and width of the window, or one integer for both.
        strides: steps between two windows.
        padding: "valid" (none) or "same" (both ends, so that size = ceil(size / stride)).
        data_format: "channels_last", "channels_first" or None, Keras' default.
        dilation_rate: steps between two inputs of one window; not together with strides > 1.
        groups: number of channel groups that are convolved apart.
        activation: name, function or None.
        use_bias: whether to add b.
        kernel_initializer, bias_initializer, kernel_regularizer, bias_regularizer, activity_regularizer,
            kernel_constraint, bias_constraint, lora_rank, lora_alpha: as in `Dense`.

    Call arguments:
        inputs: tensor of shape (batch, height, width, channels), or (batch, channels, height, width).

    Returns:
        Tensor of shape (batch, new height, new width, filters), or (batch, filters, ...).

    Raises:
        ValueError: for sizes that are not positive, filters or channels that `groups` does not divide,
            strides together with dilation, or an input smaller than the window.

    Reference:
        Dumoulin & Visin, 2016, A guide to convolution arithmetic for deep learning, arXiv:1603.07285.
    """

    rank = 2


@keras.saving.register_keras_serializable(package="layers")
class DepthwiseConv2D(Convolution):
    """Convolution of each channel by itself.

        y[n, i, j, c m + q] = activation(b[c m + q] + sum_{k, l} W[k, l, c, q] x[n, s i + d k - p, ..., c])

    with m = `depth_multiplier` outputs, q = 0 ... m - 1, for each channel c.

    Args:
        kernel_size: height and width of the window, or one integer for both.
        strides: steps between two windows; some backends want them equal.
        padding: "valid" or "same".
        depth_multiplier: number of outputs a channel.
        data_format: "channels_last", "channels_first" or None, Keras' default.
        dilation_rate: steps between two inputs of one window.
        activation: name, function or None.
        use_bias: whether to add b.
        depthwise_initializer, bias_initializer, depthwise_regularizer, bias_regularizer,
            activity_regularizer, depthwise_constraint, bias_constraint: as in `Dense`.

    Call arguments:
        inputs: tensor of shape (batch, height, width, channels), or (batch, channels, height, width).

    Returns:
        Tensor of shape (batch, new height, new width, depth_multiplier channels), or (batch, ..., ...).

    Reference:
        Howard et al., 2017, MobileNets, arXiv:1704.04861.
    """

    rank = 2
    options = ("depthwise", "bias")

    def __init__(
        self,
        kernel_size: int | tuple,
        strides: int | tuple = (1, 1),
        padding: str = "valid",
        depth_multiplier: int = 1,
        data_format: str | None = None,
        dilation_rate: int | tuple = (1, 1),
        activation: Any = None,
        use_bias: bool = True,
        depthwise_initializer: Any = "glorot_uniform",
        bias_initializer: Any = "zeros",
        depthwise_regularizer: Any = None,
        bias_regularizer: Any = None,
        activity_regularizer: Any = None,
        depthwise_constraint: Any = None,
        bias_constraint: Any = None,
        **kwargs: Any,
    ):
        super().__init__(
            kernel_size,
            strides,
            padding,
            data_format,
            dilation_rate,
            activation,
            use_bias,
            activity_regularizer,
            {
                "depthwise_initializer": depthwise_initializer,
                "bias_initializer": bias_initializer,
                "depthwise_regularizer": depthwise_regularizer,
                "bias_regularizer": bias_regularizer,
                "depthwise_constraint": depthwise_constraint,
                "bias_constraint": bias_constraint,
            },
            **kwargs,
        )
        check_depth_multiplier(depth_multiplier)
        self.depth_multiplier = depth_multiplier

    def build(self, input_shape: tuple) -> None:
        """Make the kernel, (*kernel_size, channels, depth_multiplier), and the bias."""
        channels = self.fix_channels(input_shape)
        self.kernel = self.add_kernel(
            "kernel", (*self.kernel_size, channels, self.depth_multiplier), "depthwise"
        )
        self.add_bias(channels * self.depth_multiplier)

    def call(self, inputs: Any) -> Any:
        """Apply the layer."""
        return self.finish(self.convolved_each(inputs, self.kernel))

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        """Shape of the output."""
        return self.convolved_shape(input_shape, self.depth_multiplier * input_shape[self.channel_axis])

    def get_config(self) -> dict:
        """The arguments of the constructor."""
        return super().get_config() | {"depth_multiplier": self.depth_multiplier}


@keras.saving.register_keras_serializable(package="layers")
class SeparableConv2D(Convolution):
    """A convolution of each channel by itself, then one of each pixel across channels.

        y = activation(b + conv1x1(depthwise(x)))

    It costs k^2 C + C F products a pixel instead of k^2 C F.

    Args:
        filters: number of output channels.
        kernel_size: height and width of the depthwise window, or one integer for both.
        strides: steps between two windows; some backends want them equal.
        padding: "valid" or "same".
        data_format: "channels_last", "channels_first" or None, Keras' default.
        dilation_rate: steps between two inputs of one window.
        depth_multiplier: number of depthwise outputs a channel.
        activation: name, function or None.
        use_bias: whether to add b.
        depthwise_initializer, pointwise_initializer, bias_initializer, depthwise_regularizer,
            pointwise_regularizer, bias_regularizer, activity_regularizer, depthwise_constraint,
            pointwise_constraint, bias_constraint: as in `Dense`.

    Call arguments:
        inputs: tensor of shape (batch, height, width, channels), or (batch, channels, height, width).

    Returns:
        Tensor of shape (batch, new height, new width, filters), or (batch, filters, ...).

    Reference:
        Chollet, 2016, Xception, arXiv:1610.02357.
    """

    rank = 2
    options = ("depthwise", "pointwise", "bias")

    def __init__(
        self,
        filters: int,
        kernel_size: int | tuple,
        strides: int | tuple = (1, 1),
        padding: str = "valid",
        data_format: str | None = None,
        dilation_rate: int | tuple = (1, 1),
        depth_multiplier: int = 1,
        activation: Any = None,
        use_bias: bool = True,
        depthwise_initializer: Any = "glorot_uniform",
        pointwise_initializer: Any = "glorot_uniform",
        bias_initializer: Any = "zeros",
        depthwise_regularizer: Any = None,
        pointwise_regularizer: Any = None,
        bias_regularizer: Any = None,
        activity_regularizer: Any = None,
        depthwise_constraint: Any = None,
        pointwise_constraint: Any = None,
        bias_constraint: Any = None,
        **kwargs: Any,
    ):
        super().__init__(
            kernel_size,
            strides,
            padding,
            data_format,
            dilation_rate,
            activation,
            use_bias,
            activity_regularizer,
            {
                "depthwise_initializer": depthwise_initializer,
                "pointwise_initializer": pointwise_initializer,
                "bias_initializer": bias_initializer,
                "depthwise_regularizer": depthwise_regularizer,
                "pointwise_regularizer": pointwise_regularizer,
                "bias_regularizer": bias_regularizer,
                "depthwise_constraint": depthwise_constraint,
                "pointwise_constraint": pointwise_constraint,
                "bias_constraint": bias_constraint,
            },
            **kwargs,
        )
        check_filters(filters)
        check_depth_multiplier(depth_multiplier)
        self.filters = filters
        self.depth_multiplier = depth_multiplier

    def build(self, input_shape: tuple) -> None:
        """Make both kernels and the bias."""
        channels = self.fix_channels(input_shape)
        self.depthwise_kernel = self.add_kernel(
            "depthwise_kernel", (*self.kernel_size, channels, self.depth_multiplier), "depthwise"
        )
        self.pointwise_kernel = self.add_kernel(
            "pointwise_kernel",
            (*(1,) * self.rank, channels * self.depth_multiplier, self.filters),
            "pointwise",
        )
        self.add_bias(self.filters)

    def call(self, inputs: Any) -> Any:
        """Apply the layer."""
        # (batch, new height, new width, depth_multiplier channels)
        each = self.convolved_each(inputs, self.depthwise_kernel)
        outputs = over_image(
            ops.conv, each, self.pointwise_kernel, padding="valid", data_format=self.data_format
        )
        return self.finish(outputs)

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        """Shape of the output, with `filters` channels."""
        return self.convolved_shape(input_shape, self.filters)

    def get_config(self) -> dict:
        """The arguments of the constructor."""
        return super().get_config() | {"filters": self.filters, "depth_multiplier": self.depth_multiplier}


@keras.saving.register_keras_serializable(package="layers")
class Conv2DTranspose(Convolution):
    """The transpose of a convolution's linear map: every input paints a window of the output.

        y[n, s i + d k - p, s j + d l - p, f] += sum_c W[k, l, f, c] x[n, i, j, c],  then bias and activation

    It undoes the shape of a convolution with the same arguments: decoders and generators.

    Args:
        filters: number of output channels.
        kernel_size: height and width of the window, or one integer for both.
        strides: steps between two windows of the output.
        padding: "valid" or "same" (size = stride size).
        output_padding: rows and columns added at the end, smaller than the strides; None chooses the
            longest output for "valid" and stride times the input for "same".
        data_format: "channels_last", "channels_first" or None, Keras' default.
        dilation_rate: steps within one window; not together with strides > 1.
        activation: name, function or None.
        use_bias: whether to add b.
        kernel_initializer, bias_initializer, kernel_regularizer, bias_regularizer, activity_regularizer,
            kernel_constraint, bias_constraint: as in `Dense`.

    Call arguments:
        inputs: tensor of shape (batch, height, width, channels), or (batch, channels, height, width).

    Returns:
        Tensor of shape (batch, new height, new width, filters), or (batch, filters, ...).

    Raises:
        ValueError: for sizes that are not positive, an output padding as large as its stride, or strides
            together with dilation.

    Reference:
        Dumoulin & Visin, 2016, A guide to convolution arithmetic for deep learning, arXiv:1603.07285.
    """

    rank = 2

    def __init__(
        self,
        filters: int,
        kernel_size: int | tuple,
        strides: int | tuple = (1, 1),
        padding: str = "valid",
        output_padding: int | tuple | None = None,
        data_format: str | None = None,
        dilation_rate: int | tuple = (1, 1),
        activation: Any = None,
        use_bias: bool = True,
        kernel_initializer: Any = "glorot_uniform",
        bias_initializer: Any = "zeros",
        kernel_regularizer: Any = None,
        bias_regularizer: Any = None,
        activity_regularizer: Any = None,
        kernel_constraint: Any = None,
        bias_constraint: Any = None,
        **kwargs: Any,
    ):
        super().__init__(
            kernel_size,
            strides,
            padding,
            data_format,
            dilation_rate,
            activation,
            use_bias,
            activity_regularizer,
            {
                "kernel_initializer": kernel_initializer,
                "bias_initializer": bias_initializer,
                "kernel_regularizer": kernel_regularizer,
                "bias_regularizer": bias_regularizer,
                "kernel_constraint": kernel_constraint,
                "bias_constraint": bias_constraint,
            },
            **kwargs,
        )
        check_filters(filters)
        refuse_stride_with_dilation(self.strides, self.dilation_rate)
        if output_padding is not None:
            output_padding = as_tuple(output_padding, self.rank, "output_padding", allow_zero=True)
            if any(extra >= stride for extra, stride in zip(output_padding, self.strides, strict=True)):
                raise ValueError(
                    "`output_padding` must be strictly less than `strides` for all dimensions. "
                    f"Received: output_padding={output_padding}, strides={self.strides}"
                )
        self.filters = filters
        self.output_padding = output_padding

    def build(self, input_shape: tuple) -> None:
        """Make the kernel, (*kernel_size, filters, channels), and the bias, (filters,)."""
        channels = self.fix_channels(input_shape)
        self.kernel = self.add_kernel("kernel", (*self.kernel_size, self.filters, channels), "kernel")
        self.add_bias(self.filters)

    def call(self, inputs: Any) -> Any:
        """Apply the layer."""
        if max(self.strides) > 1 and self.by_products(inputs, "jax"):
            lengths = self.compute_output_shape(inputs.shape)[1:-1]
            outputs = windows.transposed(inputs, self.kernel, self.strides, self._starts(), lengths)
            return self.finish(outputs)
        outputs = over_image(
            ops.conv_transpose,
            inputs,
            self.kernel,
            strides=list(self.strides),
            padding=self.padding,
            output_padding=self.output_padding,
            data_format=self.data_format,
            dilation_rate=self.dilation_rate,
        )
        return self.finish(outputs)

    def _starts(self) -> list[int]:
        """How much of what all windows write lies before the output, one an axis."""
        if self.padding == "valid":
            return [0] * self.rank
        extras = self.output_padding or (None,) * self.rank
        cut = [
            stride + size - 2 if extra is None else size + size % 2 - 2 + extra
            for size, stride, extra in zip(self.kernel_size, self.strides, extras, strict=True)
        ]
        return [max(size - 1 - math.ceil(c / 2), 0) for size, c in zip(self.kernel_size, cut, strict=True)]

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        """Shape of the output, with `filters` channels."""
        lengths = [
            transposed_length(input_shape[axis], window, stride, self.padding, extra, dilation)
            for axis, window, stride, extra, dilation in zip(
                self.spatial_axes(),
                self.kernel_size,
                self.strides,
                self.output_padding or (None,) * self.rank,
                self.dilation_rate,
                strict=True,
            )
        ]
        return self.shape_with(input_shape, lengths, self.filters)

    def get_config(self) -> dict:
        """The arguments of the constructor."""
        return super().get_config() | {"filters": self.filters, "output_padding": self.output_padding}


@keras.saving.register_keras_serializable(package="layers")
class WaveNetBlock(QuantizableParts, keras.Layer):
    """A gated causal convolution with a residual and a skip output.

        z = tanh(W_f * x + V_f h) sigmoid(W_g * x + V_g h),    residual = x + W_r z,    skip = W_s z

    `*` is a causal convolution with `dilation_rate`; W_r and W_s are 1x1. A stack with dilations 1, 2, 4, ...
    sees exponentially far back; the sum of all skips feeds the output. h is an optional condition, one
    vector a sequence, such as a speaker.

    Args:
        filters: number of channels of x, z and the residual output.
        kernel_size: width of the window.
        dilation_rate: step between two inputs of one window.
        skip_filters: number of channels of the skip output; None takes `filters`.
        kernel_initializer: how the convolutions start.

    Call arguments:
        inputs: tensor of shape (batch, steps, filters).
        condition: None, or a tensor of shape (batch, features).

    Returns:
        List of two tensors: residual (batch, steps, filters) and skip (batch, steps, skip_filters).

    Raises:
        ValueError: if the input does not have `filters` channels.

    Reference:
        van den Oord et al., 2016, WaveNet: a generative model for raw audio, arXiv:1609.03499.
    """

    def __init__(
        self,
        filters: int,
        kernel_size: int = 2,
        dilation_rate: int = 1,
        skip_filters: int | None = None,
        kernel_initializer: Any = "glorot_uniform",
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        check_filters(filters)
        self.filters = filters
        self.kernel_size = kernel_size
        self.dilation_rate = dilation_rate
        self.skip_filters = filters if skip_filters is None else skip_filters
        self.kernel_initializer = keras.initializers.get(kernel_initializer)

    def build(self, inputs_shape: tuple, condition_shape: tuple | None = None) -> None:
        """Make the convolutions; both gates are one convolution, as are residual and skip."""
        if inputs_shape[-1] != self.filters:
            raise ValueError(
                f"The residual needs inputs of {self.filters} channels. Received: shape {inputs_shape}."
            )
        shared = {"data_format": "channels_last", "dtype": self.dtype_policy}
        self.gates = Conv1D(
            2 * self.filters,
            self.kernel_size,
            padding="causal",
            dilation_rate=self.dilation_rate,
            kernel_initializer=self.kernel_initializer,
            **shared,
        )
        self.outputs = Conv1D(
            self.filters + self.skip_filters, 1, kernel_initializer=self.kernel_initializer, **shared
        )
        self.gates.build(inputs_shape)
        self.outputs.build(inputs_shape)
        self.projection = None
        if condition_shape is not None:
            self.projection = Dense(
                2 * self.filters,
                use_bias=False,
                kernel_initializer=self.kernel_initializer,
                dtype=self.dtype_policy,
            )
            self.projection.build(condition_shape)

    def call(self, inputs: Any, condition: Any = None) -> list:
        """Apply the block."""
        gates = self.gates(inputs)  # (batch, steps, 2 filters)
        if condition is not None:
            gates = gates + ops.expand_dims(self.projection(condition), 1)
        content, gate = ops.split(gates, 2, axis=-1)
        outputs = self.outputs(ops.tanh(content) * ops.sigmoid(gate))
        residual, skip = ops.split(outputs, [self.filters], axis=-1)
        return [inputs + residual, skip]

    def compute_output_shape(self, inputs_shape: tuple, condition_shape: tuple | None = None) -> list:
        """Shapes of the residual and the skip output."""
        return [tuple(inputs_shape), (*inputs_shape[:-1], self.skip_filters)]

    def get_config(self) -> dict:
        """The arguments of the constructor."""
        return super().get_config() | {
            "filters": self.filters,
            "kernel_size": self.kernel_size,
            "dilation_rate": self.dilation_rate,
            "skip_filters": self.skip_filters,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
        }
