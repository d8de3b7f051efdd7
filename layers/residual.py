"""Blocks of convolutional networks: residual, dense, inception, inverted residual, squeeze-and-excitation.

Images are channels-last throughout. Every block is a layer, so that a network is a list of blocks.
"""

from typing import Any

import keras
from keras import ops

from . import normalization as normalizations
from .convolution import Conv2D, DepthwiseConv2D
from .dense import Dense
from .normalization import BatchNormalization
from .pooling import AveragePooling2D, MaxPooling2D
from .quantization import QuantizableParts
from .regularization import Dropout, StochasticDepth


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


def strided_shape(input_shape: tuple, strides: int, filters: int) -> tuple:
    """Shape of (batch, height, width, channels) after a "same" window with this stride."""
    batch, *sizes, _ = input_shape
    return (batch, *(None if size is None else -(-size // strides) for size in sizes), filters)


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


def run_chain(chain: list, inputs: Any, training: bool | None) -> Any:
    """Apply layers and functions that follow each other; only layers are told whether this is training."""
    for step in chain:
        inputs = step(inputs, training=training) if isinstance(step, keras.Layer) else step(inputs)
    return inputs


class ConvolutionalBlock(keras.Layer):
    """What all blocks share: an activation, and convolutions that start and are penalized alike."""

    def __init__(
        self,
        activation: Any = "relu",
        kernel_initializer: Any = "he_normal",
        kernel_regularizer: Any = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.activation = keras.activations.get(activation)
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.kernel_regularizer = keras.regularizers.get(kernel_regularizer)

    def convolution(self, filters: int, kernel_size: int, strides: int = 1, use_bias: bool = False) -> Conv2D:
        """A convolution that keeps the size but for its stride; normalization makes a bias superfluous."""
        return Conv2D(
            filters,
            kernel_size,
            strides=strides,
            padding="same",
            data_format="channels_last",
            use_bias=use_bias,
            # Each convolution draws its own start: one initializer object with a seed draws one.
            kernel_initializer=clone(self.kernel_initializer),
            kernel_regularizer=self.kernel_regularizer,
            dtype=self.dtype_policy,
        )

    def normalization(self) -> BatchNormalization:
        """A batch normalization over the channels."""
        return BatchNormalization(dtype=self.dtype_policy)

    def get_config(self) -> dict:
        """The arguments of the constructor."""
        return super().get_config() | {
            "activation": keras.activations.serialize(self.activation),
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "kernel_regularizer": keras.regularizers.serialize(self.kernel_regularizer),
        }


class ResidualBlock(ConvolutionalBlock):
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
        drop_rate: float | None = None,
        **kwargs: Any,
    ):
        super().__init__(activation, kernel_initializer, kernel_regularizer, **kwargs)
        if shortcut not in ("identity", "projection", "none"):
            raise ValueError(
                f"`shortcut` must be 'identity', 'projection' or 'none'. Received: shortcut={shortcut}"
            )
        self.filters = filters
        self.strides = strides
        self.shortcut = shortcut
        self.drop = None if drop_rate is None else StochasticDepth(drop_rate, dtype=self.dtype_policy)

    @property
    def width(self) -> int:
        """Number of output channels."""
        return self.expansion * self.filters

    def make_branch(self) -> list:
        """The layers of the branch, in order; given by the subclass."""
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

    def add_shortcut(self, outputs: Any, inputs: Any, projected: Any, training: bool | None) -> Any:
        """The branch's outputs and the shortcut's.

        Args:
            outputs: the branch's outputs, (batch, height', width', channels).
            inputs: the block's inputs, which an identity shortcut takes.
            projected: what a projection takes.
            training: whether branches are dropped and a projection uses the batch's statistics.
        """
        if self.shortcut == "none":
            return outputs
        if self.drop is not None:
            outputs = self.drop(outputs, training=training)
        if self.projection:
            return outputs + run_chain(self.projection, projected, training)
        return outputs + subsampled_and_padded(inputs, self.strides, self.width)

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        """(batch, ceil(height / strides), ceil(width / strides), channels)."""
        return strided_shape(input_shape, self.strides, self.width)

    def get_config(self) -> dict:
        """The arguments of the constructor."""
        return super().get_config() | {
            "filters": self.filters,
            "strides": self.strides,
            "shortcut": self.shortcut,
            "drop_rate": None if self.drop is None else self.drop.rate,
        }


class PostActivationBlock(ResidualBlock):
    """Blocks that add the shortcut and then apply the activation; every convolution is normalized."""

    def __init__(self, *args: Any, normalization: str = "batch", **kwargs: Any):
        super().__init__(*args, **kwargs)
        normalizations.get(normalization, self.filters)  # an unknown one is told now
        self.normalized_by = normalization

    def convolution(self, filters: int, kernel_size: int, strides: int = 1) -> Conv2D:
        """A convolution, with a bias where the normalization has no offset."""
        use_bias = self.normalized_by in normalizations.UNCENTERED
        return super().convolution(filters, kernel_size, strides, use_bias)

    def normalization(self) -> keras.Layer:
        """A normalization of what a convolution gave."""
        return normalizations.get(self.normalized_by, self.filters, dtype=self.dtype_policy)

    def get_config(self) -> dict:
        """The arguments of the constructor."""
        return super().get_config() | {"normalization": self.normalized_by}

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Apply the block."""
        outputs = run_chain(self.branch, inputs, training)  # (batch, height', width', channels)
        return self.activation(self.add_shortcut(outputs, inputs, inputs, training))


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
        drop_rate: probability of leaving the branch out (stochastic depth), adjustable as
            `block.drop.rate`; None makes a block that cannot.
        normalization: "batch"; or "layer", "group", "rms" or "none", which do not look at other images
            (`layers.normalization.get`). Where there is no offset, convolutions have biases.

    Call arguments:
        inputs: tensor of shape (batch, height, width, channels).
        training: whether batch normalization uses the batch's statistics, and branches are dropped.

    Returns:
        Tensor of shape (batch, ceil(height / strides), ceil(width / strides), filters).

    Raises:
        ValueError: for an unknown shortcut or normalization, or an identity that would have to drop channels.

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
        strides, activation, kernel_initializer, shortcut, kernel_regularizer, drop_rate, normalization: as in
            `BasicBlock`.

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


@keras.saving.register_keras_serializable(package="layers")
class PreActivationBlock(ResidualBlock):
    """Two 3x3 convolutions, each after its normalization and activation, beside a clean shortcut.

        y = shortcut(x) + conv3x3(activation(BN(conv3x3(activation(BN(x))))))

    Nothing follows the sum: a signal passes any number of blocks unchanged. A projection takes the
    activated input, as the first convolution does; the network ends with a normalization and an activation.

    Args:
        filters, strides, activation, kernel_initializer, shortcut, kernel_regularizer, drop_rate: as in
            `BasicBlock`.

    Call arguments:
        inputs: tensor of shape (batch, height, width, channels).
        training: whether batch normalization uses the batch's statistics, and branches are dropped.

    Returns:
        Tensor of shape (batch, ceil(height / strides), ceil(width / strides), filters).

    Raises:
        ValueError: for an unknown shortcut, or an identity that would have to drop channels.

    Reference:
        He et al., 2016, Identity mappings in deep residual networks, arXiv:1603.05027.
        Huang et al., 2016, Deep networks with stochastic depth, arXiv:1603.09382.
    """

    def make_branch(self) -> list:
        """The layers of the branch, in order."""
        return [
            self.normalization(),
            self.activation,
            self.convolution(self.filters, 3, self.strides),
            self.normalization(),
            self.activation,
            self.convolution(self.filters, 3),
        ]

    def make_projection(self) -> list:
        """A convolution alone: what it takes is normalized already."""
        return [self.convolution(self.width, 1, self.strides)]

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Apply the block."""
        activated = run_chain(self.branch[:2], inputs, training)
        return self.add_shortcut(run_chain(self.branch[2:], activated, training), inputs, activated, training)


@keras.saving.register_keras_serializable(package="layers")
class DenseBlock(ConvolutionalBlock):
    """Convolutions that each see the outputs of all before them.

        x_l = concat(x_{l-1}, h_l(x_{l-1})),    h_l = conv3x3(act(BN(conv1x1(act(BN(.))))))

    Args:
        depth: number of convolutions h_l.
        growth_rate: channels that each adds.
        bottleneck: width of the 1x1 convolution in growth rates; 0 leaves it out.
        dropout_rate: of each h_l's output, adjustable on `block.dropouts`; None leaves dropout out.
        activation: name or function.
        kernel_initializer: how the convolutions start.
        kernel_regularizer: penalty on the convolutions.

    Call arguments:
        inputs: tensor of shape (batch, height, width, channels).
        training: whether batch normalization uses the batch's statistics, and outputs are dropped.

    Returns:
        Tensor of shape (batch, height, width, channels + depth growth_rate).

    Reference:
        Huang et al., 2016, Densely connected convolutional networks, arXiv:1608.06993.
    """

    def __init__(
        self,
        depth: int,
        growth_rate: int,
        bottleneck: int = 4,
        dropout_rate: float | None = None,
        activation: Any = "relu",
        kernel_initializer: Any = "he_normal",
        kernel_regularizer: Any = None,
        **kwargs: Any,
    ):
        super().__init__(activation, kernel_initializer, kernel_regularizer, **kwargs)
        self.depth = depth
        self.growth_rate = growth_rate
        self.bottleneck = bottleneck
        drops = 0 if dropout_rate is None else depth
        self.dropouts = [Dropout(dropout_rate, dtype=self.dtype_policy) for _ in range(drops)]

    def make_step(self) -> list:
        """The layers of one h_l."""
        step = [self.normalization(), self.activation]
        if self.bottleneck:
            step += [self.convolution(self.bottleneck * self.growth_rate, 1)]
            step += [self.normalization(), self.activation]
        return [*step, self.convolution(self.growth_rate, 3)]

    def build(self, input_shape: tuple) -> None:
        """Make all steps; each takes `growth_rate` channels more than the one before."""
        *image, channels = input_shape
        self.steps = [
            build_chain(self.make_step(), (*image, channels + number * self.growth_rate))
            for number in range(self.depth)
        ]

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Apply the block."""
        features = inputs
        for number, step in enumerate(self.steps):
            new = run_chain([*step, *self.dropouts[number : number + 1]], features, training)
            features = ops.concatenate([features, new], axis=-1)
        return features

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        """The input's shape with the new channels."""
        return (*input_shape[:-1], input_shape[-1] + self.depth * self.growth_rate)

    def get_config(self) -> dict:
        """The arguments of the constructor."""
        return super().get_config() | {
            "depth": self.depth,
            "growth_rate": self.growth_rate,
            "bottleneck": self.bottleneck,
            "dropout_rate": self.dropouts[0].rate if self.dropouts else None,
        }


@keras.saving.register_keras_serializable(package="layers")
class TransitionBlock(ConvolutionalBlock):
    """Halves the image and thins out the channels between two dense blocks.

        y = averagepool2x2(conv1x1(activation(BN(x))))

    Args:
        compression: share of the channels that stay, rounded down.
        activation: name or function.
        kernel_initializer: how the convolution starts.
        kernel_regularizer: penalty on the convolution.

    Call arguments:
        inputs: tensor of shape (batch, height, width, channels).
        training: whether batch normalization uses the batch's statistics.

    Returns:
        Tensor of shape (batch, height // 2, width // 2, floor(compression channels)).

    Reference:
        Huang et al., 2016, Densely connected convolutional networks, arXiv:1608.06993.
    """

    def __init__(
        self,
        compression: float = 0.5,
        activation: Any = "relu",
        kernel_initializer: Any = "he_normal",
        kernel_regularizer: Any = None,
        **kwargs: Any,
    ):
        super().__init__(activation, kernel_initializer, kernel_regularizer, **kwargs)
        if not 0 < compression <= 1:
            raise ValueError(f"`compression` must be in (0, 1]. Received: compression={compression}")
        self.compression = compression

    def build(self, input_shape: tuple) -> None:
        """Make the layers."""
        chain = [
            self.normalization(),
            self.activation,
            self.convolution(int(self.compression * input_shape[-1]), 1),
            AveragePooling2D(2, data_format="channels_last", dtype=self.dtype_policy),
        ]
        self.chain = build_chain(chain, input_shape)

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Apply the block."""
        return run_chain(self.chain, inputs, training)

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        """Half the image, fewer channels."""
        batch, *sizes, channels = input_shape
        sizes = (None if size is None else size // 2 for size in sizes)
        return (batch, *sizes, int(self.compression * channels))

    def get_config(self) -> dict:
        """The arguments of the constructor."""
        return super().get_config() | {"compression": self.compression}


@keras.saving.register_keras_serializable(package="layers")
class InceptionModule(ConvolutionalBlock):
    """Windows of several sizes side by side, their outputs joined along the channels.

        y = concat(c1(x), c3(c1(x)), c5(c1(x)), c1(maxpool3x3(x))),    ck = activation(convkxk(.))

    The 1x1 convolutions before the larger windows keep these affordable.

    Args:
        filters_1: channels of the 1x1 path.
        reduce_3, filters_3: channels before and after the 3x3 convolution.
        reduce_5, filters_5: channels before and after the 5x5 convolution.
        filters_pool: channels of the path behind the pooling.
        batch_normalization: whether each convolution is normalized (Ioffe & Szegedy, 2015).
        activation: name or function.
        kernel_initializer: how the convolutions start.
        kernel_regularizer: penalty on the convolutions.

    Call arguments:
        inputs: tensor of shape (batch, height, width, channels).
        training: whether batch normalization uses the batch's statistics.

    Returns:
        Tensor of shape (batch, height, width, filters_1 + filters_3 + filters_5 + filters_pool).

    Reference:
        Szegedy et al., 2014, Going deeper with convolutions, arXiv:1409.4842.
    """

    def __init__(
        self,
        filters_1: int,
        reduce_3: int,
        filters_3: int,
        reduce_5: int,
        filters_5: int,
        filters_pool: int,
        batch_normalization: bool = False,
        activation: Any = "relu",
        kernel_initializer: Any = "he_normal",
        kernel_regularizer: Any = None,
        **kwargs: Any,
    ):
        super().__init__(activation, kernel_initializer, kernel_regularizer, **kwargs)
        self.filters_1 = filters_1
        self.reduce_3 = reduce_3
        self.filters_3 = filters_3
        self.reduce_5 = reduce_5
        self.filters_5 = filters_5
        self.filters_pool = filters_pool
        self.batch_normalization = batch_normalization

    def make_step(self, filters: int, kernel_size: int) -> list:
        """One convolution with its normalization, if any, and activation."""
        normalization = [self.normalization()] if self.batch_normalization else []
        convolution = self.convolution(filters, kernel_size, use_bias=not self.batch_normalization)
        return [convolution, *normalization, self.activation]

    def build(self, input_shape: tuple) -> None:
        """Make the four paths."""
        pooling = MaxPooling2D(3, 1, "same", data_format="channels_last", dtype=self.dtype_policy)
        paths = [
            self.make_step(self.filters_1, 1),
            [*self.make_step(self.reduce_3, 1), *self.make_step(self.filters_3, 3)],
            [*self.make_step(self.reduce_5, 1), *self.make_step(self.filters_5, 5)],
            [pooling, *self.make_step(self.filters_pool, 1)],
        ]
        self.paths = [build_chain(path, input_shape) for path in paths]

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Apply the module."""
        return ops.concatenate([run_chain(path, inputs, training) for path in self.paths], axis=-1)

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        """The input's shape with all paths' channels."""
        channels = self.filters_1 + self.filters_3 + self.filters_5 + self.filters_pool
        return (*input_shape[:-1], channels)

    def get_config(self) -> dict:
        """The arguments of the constructor."""
        return super().get_config() | {
            "filters_1": self.filters_1,
            "reduce_3": self.reduce_3,
            "filters_3": self.filters_3,
            "reduce_5": self.reduce_5,
            "filters_5": self.filters_5,
            "filters_pool": self.filters_pool,
            "batch_normalization": self.batch_normalization,
        }


@keras.saving.register_keras_serializable(package="layers")
class SqueezeExcite(QuantizableParts, keras.Layer):
    """Weighs each channel by what the whole image holds.

        y[n, i, j, c] = x[n, i, j, c] s[n, c],    s = gate(W_2 activation(W_1 mean_{ij} x + b_1) + b_2)

    Args:
        ratio: width of W_1 as a share of the channels; at least one unit.
        activation: name or function.
        gate: name or function, with values between 0 and 1.
        kernel_initializer: how W_1 and W_2 start.

    Call arguments:
        inputs: tensor of shape (batch, height, width, channels).

    Returns:
        Tensor of the input's shape.

    Reference:
        Hu et al., 2017, Squeeze-and-excitation networks, arXiv:1709.01507.
    """

    def __init__(
        self,
        ratio: float = 1 / 16,
        activation: Any = "relu",
        gate: Any = "sigmoid",
        kernel_initializer: Any = "he_normal",
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        if ratio <= 0:
            raise ValueError(f"`ratio` must be positive. Received: ratio={ratio}")
        self.ratio = ratio
        self.activation = keras.activations.get(activation)
        self.gate = keras.activations.get(gate)
        self.kernel_initializer = keras.initializers.get(kernel_initializer)

    def build(self, input_shape: tuple) -> None:
        """Make both projections."""
        batch, *_, channels = input_shape
        units = max(1, int(self.ratio * channels))
        self.squeeze = self.make_projection(units, self.activation)
        self.excite = self.make_projection(channels, self.gate)
        self.squeeze.build((batch, channels))
        self.excite.build((batch, units))

    def make_projection(self, units: int, activation: Any) -> Dense:
        """A dense layer that starts by itself."""
        return Dense(
            units,
            activation,
            kernel_initializer=clone(self.kernel_initializer),
            dtype=self.dtype_policy,
        )

    def call(self, inputs: Any) -> Any:
        """Apply the layer."""
        scale = self.excite(self.squeeze(ops.mean(inputs, axis=(1, 2))))  # (batch, channels)
        return inputs * ops.expand_dims(scale, (1, 2))

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        """The input's shape."""
        return input_shape

    def get_config(self) -> dict:
        """The arguments of the constructor."""
        return super().get_config() | {
            "ratio": self.ratio,
            "activation": keras.activations.serialize(self.activation),
            "gate": keras.activations.serialize(self.gate),
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
        }


@keras.saving.register_keras_serializable(package="layers")
class InvertedResidual(QuantizableParts, ConvolutionalBlock):
    """Widen, convolve each channel, weigh the channels, narrow; beside a shortcut where shapes agree.

        y = [x +] BN(conv1x1(SE(act(BN(depthwise(act(BN(conv1x1(x))))))))

    "Inverted": the shortcut joins the narrow ends. The last convolution has no activation, which would lose
    information in few channels.

    Args:
        filters: number of output channels.
        strides: stride of the depthwise convolution; any but 1 means no shortcut.
        expansion: width within, in input channels; 1 leaves the first convolution out.
        kernel_size: window of the depthwise convolution.
        squeeze_ratio: width of the squeeze-and-excitation in input channels; None leaves it out.
        drop_rate: probability of leaving the branch out (stochastic depth), adjustable as
            `block.drop.rate`; None makes a block that cannot.
        activation: name or function.
        kernel_initializer: how the convolutions start.
        kernel_regularizer: penalty on the 1x1 convolutions; depthwise kernels are few and left free.

    Call arguments:
        inputs: tensor of shape (batch, height, width, channels).
        training: whether batch normalization uses the batch's statistics, and branches are dropped.

    Returns:
        Tensor of shape (batch, ceil(height / strides), ceil(width / strides), filters).

    Reference:
        Sandler et al., 2018, MobileNetV2: inverted residuals and linear bottlenecks, arXiv:1801.04381.
    """

    def __init__(
        self,
        filters: int,
        strides: int = 1,
        expansion: int = 6,
        kernel_size: int = 3,
        squeeze_ratio: float | None = None,
        drop_rate: float | None = None,
        activation: Any = "relu6",
        kernel_initializer: Any = "he_normal",
        kernel_regularizer: Any = None,
        **kwargs: Any,
    ):
        super().__init__(activation, kernel_initializer, kernel_regularizer, **kwargs)
        self.filters = filters
        self.strides = strides
        self.expansion = expansion
        self.kernel_size = kernel_size
        self.squeeze_ratio = squeeze_ratio
        self.drop = None if drop_rate is None else StochasticDepth(drop_rate, dtype=self.dtype_policy)

    def make_branch(self, channels: int) -> list:
        """The layers of the branch, in order, for this many input channels."""
        branch = []
        if self.expansion != 1:
            branch += [self.convolution(self.expansion * channels, 1), self.normalization(), self.activation]
        each = DepthwiseConv2D(
            self.kernel_size,
            strides=self.strides,
            padding="same",
            data_format="channels_last",
            use_bias=False,
            depthwise_initializer=clone(self.kernel_initializer),
            dtype=self.dtype_policy,
        )
        branch += [each, self.normalization(), self.activation]
        if self.squeeze_ratio is not None:
            # The ratio is of the block's input, not of the widened image.
            ratio = self.squeeze_ratio / self.expansion
            branch += [SqueezeExcite(ratio, self.activation, dtype=self.dtype_policy)]
        return [*branch, self.convolution(self.filters, 1), self.normalization()]

    def build(self, input_shape: tuple) -> None:
        """Make the branch."""
        self.branch = build_chain(self.make_branch(input_shape[-1]), input_shape)
        self.joins = self.strides == 1 and input_shape[-1] == self.filters

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Apply the block."""
        outputs = run_chain(self.branch, inputs, training)  # (batch, height', width', filters)
        if not self.joins:
            return outputs
        return inputs + (outputs if self.drop is None else self.drop(outputs, training=training))

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        """(batch, ceil(height / strides), ceil(width / strides), filters)."""
        return strided_shape(input_shape, self.strides, self.filters)

    def get_config(self) -> dict:
        """The arguments of the constructor."""
        return super().get_config() | {
            "filters": self.filters,
            "strides": self.strides,
            "expansion": self.expansion,
            "kernel_size": self.kernel_size,
            "squeeze_ratio": self.squeeze_ratio,
            "drop_rate": None if self.drop is None else self.drop.rate,
        }


@keras.saving.register_keras_serializable(package="layers")
class MBConv(InvertedResidual):
    """EfficientNet's inverted residual: swish, and a squeeze-and-excitation to a quarter of the input.

        y = [x +] BN(conv1x1(SE(swish(BN(depthwise(swish(BN(conv1x1(x))))))))

    Args:
        filters, strides, expansion, kernel_size, squeeze_ratio, drop_rate, activation, kernel_initializer,
            kernel_regularizer: as in `InvertedResidual`, with other defaults.

    Call arguments:
        inputs: tensor of shape (batch, height, width, channels).
        training: whether batch normalization uses the batch's statistics, and branches are dropped.

    Returns:
        Tensor of shape (batch, ceil(height / strides), ceil(width / strides), filters).

    Reference:
        Tan & Le, 2019, EfficientNet, arXiv:1905.11946.
    """

    def __init__(
        self,
        filters: int,
        strides: int = 1,
        expansion: int = 6,
        kernel_size: int = 3,
        squeeze_ratio: float | None = 0.25,
        drop_rate: float | None = None,
        activation: Any = "swish",
        kernel_initializer: Any = "he_normal",
        kernel_regularizer: Any = None,
        **kwargs: Any,
    ):
        super().__init__(
            filters,
            strides,
            expansion,
            kernel_size,
            squeeze_ratio,
            drop_rate,
            activation,
            kernel_initializer,
            kernel_regularizer,
            **kwargs,
        )
