"""Noise and penalties: dropout and its kin, stochastic depth, Gaussian noise, L1/L2.

Every rate is a scalar variable, so `layer.rate = 0.3` between two steps takes effect without compiling
again. Keras' layers of the same name have no such weight, and files and `set_weights` written for them must
keep working: the variable therefore stands beside the random seeds, in `layer.variables` (which compiled
steps read afresh), not in `layer.weights`; the config saves it.
"""

import math
from typing import Any

import keras
import numpy as np
from keras import ops

from .convolution import as_data_format


class Setting:
    """A number kept in a variable, beside the Python number it was set from."""

    def __init__(self, name: str, value: float):
        self.variable = keras.Variable(
            lambda shape, dtype=None: ops.full(shape, value, dtype=dtype),
            shape=(),
            dtype="float32",
            trainable=False,
            autocast=False,
            name=name,
        )
        self.given = value

    def assign(self, value: float) -> None:
        """Set the number."""
        self.variable.assign(value)
        self.given = value

    def number(self) -> float:
        """The number as given, or as a restored checkpoint left it in the variable."""
        stored = float(ops.convert_to_numpy(self.variable))
        return self.given if np.float32(self.given) == np.float32(stored) else stored


class Adjustable:
    """Class attribute for the number of an `AdjustableLayer`: `rate = Adjustable()`."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, layer: Any, owner: type | None = None) -> Any:
        return self if layer is None else layer._setting.number()

    def __set__(self, layer: Any, value: float) -> None:
        if not 0 <= value <= 1:
            raise ValueError(
                f"Invalid value received for argument `{self.name}`. Expected a float value between 0 and 1. "
                f"Received: {self.name}={value}"
            )
        if hasattr(layer, "_setting"):
            layer._setting.assign(value)
        else:
            # A plain object: Keras would list a variable, even one in a list or dict, among the weights.
            layer._setting = Setting(self.name, value)


class AdjustableLayer(keras.Layer):
    """A random layer of unchanged shape with one number that can change between steps."""

    def __init__(self, seed: int | None, **kwargs: Any):
        super().__init__(**kwargs)
        self.seed = seed
        # Made even where the number is 0: it may be raised later, in a step that is compiled already.
        self.seed_generator = keras.random.SeedGenerator(seed)
        self.supports_masking = True

    @property
    def variables(self) -> list:
        """All state: the seed and the number, beside the weights."""
        return [*super().variables, self.setting]

    @property
    def setting(self) -> keras.Variable:
        """The variable that holds the number."""
        return self._setting.variable

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        """The input's shape."""
        return input_shape

    def get_config(self) -> dict:
        """The arguments of the constructor."""
        return super().get_config() | {"seed": self.seed}


def checked_noise_shape(noise_shape: Any) -> tuple | None:
    """`noise_shape` as a tuple of positive integers and Nones, or None.

    Raises:
        ValueError: if it is not one.
    """
    if noise_shape is None:
        return None
    if isinstance(noise_shape, str) or not hasattr(noise_shape, "__iter__"):
        raise ValueError(
            "Invalid value received for argument `noise_shape`. Expected a tuple or list of integers. "
            f"Received: noise_shape={noise_shape}"
        )
    noise_shape = tuple(noise_shape)
    for index, size in enumerate(noise_shape):
        if size is not None and (not isinstance(size, int) or size <= 0):
            raise ValueError(
                "Invalid value received for argument `noise_shape`. Expected all dimensions to be positive "
                f"integers or None. Received at index {index}: {size} (type: {type(size).__name__})"
            )
    return noise_shape


@keras.saving.register_keras_serializable(package="layers")
class Dropout(AdjustableLayer):
    """Drops inputs at random in training, and scales up what is left.

        y = x m / (1 - rate),    m ~ Bernoulli(1 - rate), one draw for each entry of `noise_shape`

    The expectation of y is x, so nothing is done at inference.

    Args:
        rate: probability of dropping, between 0 and 1; `layer.rate = 0.3` changes it at any time.
        noise_shape: shape of m, broadcast against the input; None (also as an entry) takes the input's.
        seed: integer, or None for a random one.

    Call arguments:
        inputs: tensor of any shape.
        training: whether to drop.

    Returns:
        Tensor of the input's shape.

    Raises:
        ValueError: if `rate` is outside [0, 1] or `noise_shape` is no shape.

    Reference:
        Srivastava et al., 2014, Dropout: a simple way to prevent neural networks from overfitting.
    """

    rate = Adjustable()

    def __init__(self, rate: float, noise_shape: Any = None, seed: int | None = None, **kwargs: Any):
        super().__init__(seed, **kwargs)
        self.rate = rate
        self.noise_shape = checked_noise_shape(noise_shape)
        self._build_at_init()

    def mask_shape(self, inputs: Any) -> tuple:
        """Shape of m for these inputs."""
        shape = ops.shape(inputs)
        if self.noise_shape is None:
            return shape
        return tuple(shape[axis] if size is None else size for axis, size in enumerate(self.noise_shape))

    def drop(self, inputs: Any) -> Any:
        """One random draw, whatever the mode."""
        keep = 1.0 - ops.convert_to_tensor(self._setting.variable)
        # The bound matters at rate 1 only, where nothing is kept: 0 times it, not 0 times infinity.
        scale = 1.0 / ops.maximum(keep, 1e-7)
        draw = keras.random.uniform(self.mask_shape(inputs), dtype="float32", seed=self.seed_generator)
        # One product forward and one backward: the scale is in the mask.
        return inputs * ops.cast(ops.where(draw < keep, scale, 0.0), inputs.dtype)

    def call(self, inputs: Any, training: bool = False) -> Any:
        """Apply the layer."""
        return self.drop(inputs) if training else inputs

    def get_config(self) -> dict:
        """The arguments of the constructor."""
        return super().get_config() | {"rate": self.rate, "noise_shape": self.noise_shape}


@keras.saving.register_keras_serializable(package="layers")
class MCDropout(Dropout):
    """Dropout that stays on at inference, so that repeated predictions sample from a posterior.

        p(y | x) ~ 1/T sum_t f(x; weights with mask m_t),    m_t ~ Bernoulli(1 - rate)

    Args:
        rate, noise_shape, seed: as in `Dropout`.

    Call arguments:
        inputs: tensor of any shape.

    Returns:
        Tensor of the input's shape, dropped with or without `training`.

    Reference:
        Gal & Ghahramani, 2016, Dropout as a Bayesian approximation, arXiv:1506.02142.
    """

    def call(self, inputs: Any) -> Any:
        """Apply the layer."""
        return self.drop(inputs)


class SpatialDropout(Dropout):
    """Dropout of whole channels; subclasses set `rank`."""

    rank: int

    def __init__(
        self,
        rate: float,
        data_format: str | None = "channels_last",
        seed: int | None = None,
        name: str | None = None,
        dtype: Any = None,
    ):
        super().__init__(rate, seed=seed, name=name, dtype=dtype)
        self.data_format = as_data_format(data_format)
        self.input_spec = keras.InputSpec(ndim=self.rank + 2)

    def mask_shape(self, inputs: Any) -> tuple:
        """Shape of m: one entry for each example and channel."""
        shape = ops.shape(inputs)
        if self.data_format == "channels_last":
            return (shape[0], *(1,) * self.rank, shape[-1])
        return (shape[0], shape[1], *(1,) * self.rank)

    def get_config(self) -> dict:
        """The arguments of the constructor, which takes no others."""
        config = super().get_config()
        return {key: config[key] for key in ("name", "dtype", "rate", "seed")}


@keras.saving.register_keras_serializable(package="layers")
class SpatialDropout1D(SpatialDropout):
    """Drops whole channels of a sequence.

        y[n, t, c] = x[n, t, c] m[n, c] / (1 - rate),    m ~ Bernoulli(1 - rate)

    Neighbouring steps are correlated: dropping single entries would hide little.

    Args:
        rate: probability of dropping, between 0 and 1; `layer.rate = 0.3` changes it at any time.
        seed: integer, or None for a random one.
        name, dtype: as in every layer.

    Call arguments:
        inputs: tensor of shape (batch, steps, channels).
        training: whether to drop.

    Returns:
        Tensor of the input's shape.

    Reference:
        Tompson et al., 2014, Efficient object localization using convolutional networks, arXiv:1411.4280.
    """

    rank = 1

    def __init__(
        self,
        rate: float,
        seed: int | None = None,
        name: str | None = None,
        dtype: Any = None,
    ):
        super().__init__(rate, seed=seed, name=name, dtype=dtype)


@keras.saving.register_keras_serializable(package="layers")
class SpatialDropout2D(SpatialDropout):
    """Drops whole channels of an image.

        y[n, i, j, c] = x[n, i, j, c] m[n, c] / (1 - rate),    m ~ Bernoulli(1 - rate)

    Args:
        rate: probability of dropping, between 0 and 1; `layer.rate = 0.3` changes it at any time.
        data_format: "channels_last", "channels_first" or None, Keras' default.
        seed: integer, or None for a random one.
        name, dtype: as in every layer.

    Call arguments:
        inputs: tensor of shape (batch, height, width, channels), or (batch, channels, height, width).
        training: whether to drop.

    Returns:
        Tensor of the input's shape.

    Reference:
        Tompson et al., 2014, Efficient object localization using convolutional networks, arXiv:1411.4280.
    """

    rank = 2

    def __init__(
        self,
        rate: float,
        data_format: str | None = None,
        seed: int | None = None,
        name: str | None = None,
        dtype: Any = None,
    ):
        super().__init__(rate, data_format, seed, name, dtype)

    def get_config(self) -> dict:
        """The arguments of the constructor."""
        return super().get_config() | {"data_format": self.data_format}


@keras.saving.register_keras_serializable(package="layers")
class StochasticDepth(Dropout):
    """Drops a residual branch for whole examples in training.

        y[n] = x[n] m[n] / (1 - rate),    m[n] ~ Bernoulli(1 - rate)

    Put at the end of a branch, before it is added to the shortcut: a dropped example takes the shortcut
    alone. Scaling in training stands for the paper's scaling at inference.

    Args:
        rate: probability of dropping, between 0 and 1; `layer.rate = 0.3` changes it at any time.
        seed: integer, or None for a random one.

    Call arguments:
        inputs: tensor of shape (batch, ...).
        training: whether to drop.

    Returns:
        Tensor of the input's shape.

    Reference:
        Huang et al., 2016, Deep networks with stochastic depth, arXiv:1603.09382.
    """

    def __init__(self, rate: float, seed: int | None = None, **kwargs: Any):
        super().__init__(rate, seed=seed, **kwargs)

    def mask_shape(self, inputs: Any) -> tuple:
        """Shape of m: one entry for each example."""
        return (ops.shape(inputs)[0], *(1,) * (len(inputs.shape) - 1))

    def get_config(self) -> dict:
        """The arguments of the constructor."""
        config = super().get_config()
        del config["noise_shape"]
        return config


@keras.saving.register_keras_serializable(package="layers")
class GaussianNoise(AdjustableLayer):
    """Adds Gaussian noise in training.

        y = x + stddev e,    e ~ N(0, 1)

    Args:
        stddev: standard deviation, between 0 and 1; `layer.stddev = 0.3` changes it at any time.
        seed: integer, or None for a random one.

    Call arguments:
        inputs: tensor of any shape.
        training: whether to add noise.

    Returns:
        Tensor of the input's shape.

    Raises:
        ValueError: if `stddev` is outside [0, 1].
    """

    stddev = Adjustable()

    def __init__(self, stddev: float, seed: int | None = None, **kwargs: Any):
        super().__init__(seed, **kwargs)
        self.stddev = stddev
        self._build_at_init()

    def call(self, inputs: Any, training: bool = False) -> Any:
        """Apply the layer."""
        if not training:
            return inputs
        noise = keras.random.normal(ops.shape(inputs), dtype=inputs.dtype, seed=self.seed_generator)
        noise *= ops.cast(self._setting.variable, inputs.dtype)  # in place on PyTorch
        return inputs + noise

    def get_config(self) -> dict:
        """The arguments of the constructor."""
        return super().get_config() | {"stddev": self.stddev}


def checked_factor(value: float, name: str) -> float:
    """A finite factor >= 0 as a float.

    Raises:
        ValueError: if it is not one.
    """
    if not isinstance(value, (float, int)) or not math.isfinite(value) or value < 0:
        raise ValueError(
            f"Invalid value for argument {name}: expected a non-negative float. Received: {name}={value}"
        )
    return float(value)


@keras.saving.register_keras_serializable(package="layers")
class L1(keras.regularizers.Regularizer):
    """Penalty that makes weights sparse.

        R(w) = l1 sum_i |w_i|

    Args:
        l1: factor >= 0.

    Call arguments:
        x: tensor of any shape.

    Returns:
        Scalar of x's dtype.

    Reference:
        Tibshirani, 1996, Regression shrinkage and selection via the lasso.
    """

    def __init__(self, l1: float = 0.01):
        self.l1 = checked_factor(0.01 if l1 is None else l1, "l1")

    def __call__(self, x: Any) -> Any:
        """The penalty of x."""
        return ops.cast(self.l1, x.dtype) * ops.sum(ops.absolute(x))

    def get_config(self) -> dict:
        """The arguments of the constructor."""
        return {"l1": self.l1}


@keras.saving.register_keras_serializable(package="layers")
class L2(keras.regularizers.Regularizer):
    """Penalty that keeps weights small.

        R(w) = l2 sum_i w_i^2

    No half, as in Keras: the gradient is 2 l2 w.

    Args:
        l2: factor >= 0.

    Call arguments:
        x: tensor of any shape.

    Returns:
        Scalar of x's dtype.
    """

    def __init__(self, l2: float = 0.01):
        self.l2 = checked_factor(0.01 if l2 is None else l2, "l2")

    def __call__(self, x: Any) -> Any:
        """The penalty of x."""
        return ops.cast(self.l2, x.dtype) * ops.sum(ops.square(x))

    def get_config(self) -> dict:
        """The arguments of the constructor."""
        return {"l2": self.l2}


@keras.saving.register_keras_serializable(package="layers")
class L1L2(keras.regularizers.Regularizer):
    """Both penalties.

        R(w) = l1 sum_i |w_i| + l2 sum_i w_i^2

    Args:
        l1: factor >= 0 of the absolute values.
        l2: factor >= 0 of the squares.

    Call arguments:
        x: tensor of any shape.

    Returns:
        Scalar of x's dtype.
    """

    def __init__(self, l1: float = 0.0, l2: float = 0.0):
        self.l1 = checked_factor(0.0 if l1 is None else l1, "l1")
        self.l2 = checked_factor(0.0 if l2 is None else l2, "l2")

    def __call__(self, x: Any) -> Any:
        """The penalty of x."""
        absolute = ops.cast(self.l1, x.dtype) * ops.sum(ops.absolute(x))
        return absolute + ops.cast(self.l2, x.dtype) * ops.sum(ops.square(x))

    def get_config(self) -> dict:
        """The arguments of the constructor."""
        return {"l1": self.l1, "l2": self.l2}


@keras.saving.register_keras_serializable(package="layers")
class ElasticNet(L1L2):
    """The L1 and L2 penalties as one strength and a mixing ratio.

        R(w) = factor (ratio sum_i |w_i| + (1 - ratio) / 2 sum_i w_i^2)

    Args:
        factor: strength of the whole, >= 0.
        ratio: share of the L1 penalty, between 0 and 1.

    Call arguments:
        x: tensor of any shape.

    Returns:
        Scalar of x's dtype.

    Reference:
        Zou & Hastie, 2005, Regularization and variable selection via the elastic net; in the
        parametrisation of Friedman et al., 2010 (glmnet).
    """

    def __init__(self, factor: float = 0.01, ratio: float = 0.5):
        self.factor = checked_factor(factor, "factor")
        self.ratio = checked_factor(ratio, "ratio")
        if self.ratio > 1:
            raise ValueError(f"`ratio` must be between 0 and 1. Received: ratio={ratio}")
        super().__init__(factor * ratio, factor * (1 - ratio) / 2)

    def get_config(self) -> dict:
        """The arguments of the constructor."""
        return {"factor": self.factor, "ratio": self.ratio}
