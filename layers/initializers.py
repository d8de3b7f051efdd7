"""Initial weights: uniform, normal, variance scaling (Glorot, He, LeCun), orthogonal, data-dependent LSUV.

The classes are drop-in for those of the same name in `keras.initializers`: the same arguments and config,
and, for the same seed, the same values. Random numbers are drawn in one row and then shaped, which changes
none of them: of a draw in the shape of a small convolution's kernel JAX makes a program without loops, and
compiles it for seconds.
"""

import math
import random
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

# The standard deviation of a standard normal cut at two standard deviations.
_TRUNCATED_STDDEV = 0.87962566103423978
_MODES = ("fan_in", "fan_out", "fan_avg")
_DISTRIBUTIONS = ("truncated_normal", "untruncated_normal", "uniform")


def fans(
    shape: Sequence[int], input_axes: Sequence[int] | None = None, output_axes: Sequence[int] | None = None
) -> tuple[int, int]:
    """Return (fan_in, fan_out): how many inputs feed one output of a kernel, and the reverse.

    Args:
        shape: the kernel's shape; dense (inputs, outputs), convolution (*window, inputs, outputs).
        input_axes: the axes that count as inputs, for kernels laid out otherwise.
        output_axes: the axes that count as outputs; both or neither are given.
    """
    shape = tuple(shape)
    if input_axes is not None and output_axes is not None:
        return math.prod(shape[a] for a in input_axes), math.prod(shape[a] for a in output_axes)
    if len(shape) < 2:
        size = math.prod(shape)
        return size, size
    window = math.prod(shape[:-2])
    return shape[-2] * window, shape[-1] * window


def twin(identifier: Any) -> Any:
    """The initializer of this module that gives the values of one of Keras', and shares its seed.

    Layers make their weights with it and keep what they were given, as their config has to name.

    Args:
        identifier: what `keras.initializers.get` takes.

    Returns:
        The twin; the initializer itself where it is not one of Keras' that draws random numbers.
    """
    initializer = keras.initializers.get(identifier)
    name = type(initializer).__name__
    if type(initializer) is not getattr(keras.initializers, name, None):
        return initializer
    ours = globals().get(name)
    if not (isinstance(ours, type) and issubclass(ours, _SeededInitializer)):
        return initializer
    return ours(**{**initializer.get_config(), "seed": initializer.seed})


class _SeededInitializer(keras.initializers.Initializer):
    """An initializer with a seed: a number gives the same values at every call, a SeedGenerator new ones."""

    def __init__(self, seed: int | keras.random.SeedGenerator | None = None) -> None:
        self._given_seed = seed
        if seed is None:
            # Python's generator, as in Keras: `keras.utils.set_random_seed` then decides these values too.
            seed = random.randint(1, int(1e9))
        elif isinstance(seed, dict):
            seed = keras.saving.deserialize_keras_object(seed)
        elif not isinstance(seed, (int, keras.random.SeedGenerator)):
            raise ValueError(
                "`seed` argument should be an instance of `keras.random.SeedGenerator()` or an integer. "
                f"Received: seed={seed}"
            )
        self.seed = seed

    def draw(self, distribution: Callable, shape: Sequence[int], *numbers: float, dtype: str | None) -> Any:
        """Return random numbers of a shape, drawn in one row: `distribution` is one of `keras.random`."""
        row = distribution((math.prod(shape),), *numbers, dtype=dtype, seed=self.seed)
        return ops.reshape(row, shape)

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {"seed": keras.saving.serialize_keras_object(self._given_seed)}


@keras.saving.register_keras_serializable(package="layers")
class RandomUniform(_SeededInitializer):
    """Uniform on [minval, maxval].

    Args:
        minval, maxval: the bounds.
        seed: an integer, a `keras.random.SeedGenerator`, or None.
    """

    def __init__(
        self,
        minval: float = -0.05,
        maxval: float = 0.05,
        seed: int | keras.random.SeedGenerator | None = None,
    ) -> None:
        super().__init__(seed=seed)
        self.minval = minval
        self.maxval = maxval

    def __call__(self, shape: Sequence[int], dtype: str | None = None) -> Any:
        """Return a tensor of this shape and dtype."""
        return self.draw(keras.random.uniform, shape, self.minval, self.maxval, dtype=dtype)

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {**super().get_config(), "minval": self.minval, "maxval": self.maxval}


@keras.saving.register_keras_serializable(package="layers")
class RandomNormal(_SeededInitializer):
    """Normal of mean `mean` and standard deviation `stddev`.

    Args:
        mean, stddev: of the distribution.
        seed: an integer, a `keras.random.SeedGenerator`, or None.
    """

    _DISTRIBUTION = staticmethod(keras.random.normal)

    def __init__(
        self,
        mean: float = 0.0,
        stddev: float = 0.05,
        seed: int | keras.random.SeedGenerator | None = None,
    ) -> None:
        super().__init__(seed=seed)
        self.mean = mean
        self.stddev = stddev

    def __call__(self, shape: Sequence[int], dtype: str | None = None) -> Any:
        """Return a tensor of this shape and dtype."""
        return self.draw(self._DISTRIBUTION, shape, self.mean, self.stddev, dtype=dtype)

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {**super().get_config(), "mean": self.mean, "stddev": self.stddev}


@keras.saving.register_keras_serializable(package="layers")
class TruncatedNormal(RandomNormal):
    """Normal of mean `mean` and standard deviation `stddev`, cut at two standard deviations.

    Args:
        mean, stddev: of the distribution before the cut.
        seed: an integer, a `keras.random.SeedGenerator`, or None.
    """

    _DISTRIBUTION = staticmethod(keras.random.truncated_normal)


@keras.saving.register_keras_serializable(package="layers")
class VarianceScaling(_SeededInitializer):
    """Random weights of variance scale / n, n the number of inputs, of outputs, or their mean.

    Args:
        scale: positive factor of the variance.
        mode: "fan_in", "fan_out" or "fan_avg": what n is.
        distribution: "truncated_normal" (cut at two standard deviations, variance as promised after the cut),
            "untruncated_normal" or "uniform" on [-limit, limit], limit = sqrt(3 scale / n).
        seed: an integer, a `keras.random.SeedGenerator`, or None.
        input_axes: axes that count as inputs (see `fans`).
        output_axes: axes that count as outputs.

    Raises:
        ValueError: for a scale that is not positive, and for unknown modes and distributions.
    """

    def __init__(
        self,
        scale: float = 1.0,
        mode: str = "fan_in",
        distribution: str = "truncated_normal",
        seed: int | keras.random.SeedGenerator | None = None,
        input_axes: Sequence[int] | None = None,
        output_axes: Sequence[int] | None = None,
    ) -> None:
        super().__init__(seed=seed)
        if scale <= 0.0:
            raise ValueError(f"Argument `scale` must be positive float. Received: scale={scale}")
        if mode not in _MODES:
            raise ValueError(f"Invalid `mode` argument: {mode}. Please use one of {_MODES}")
        distribution = distribution.lower()
        if distribution == "normal":
            distribution = "truncated_normal"
        if distribution not in _DISTRIBUTIONS:
            raise ValueError(
                f"Invalid `distribution` argument: {distribution}. Please use one of {_DISTRIBUTIONS}"
            )
        self.scale = scale
        self.mode = mode
        self.distribution = distribution
        self.input_axes = input_axes
        self.output_axes = output_axes

    def __call__(self, shape: Sequence[int], dtype: str | None = None) -> Any:
        """Return a tensor of this shape and dtype."""
        fan_in, fan_out = fans(shape, self.input_axes, self.output_axes)
        n = {"fan_in": fan_in, "fan_out": fan_out, "fan_avg": (fan_in + fan_out) / 2.0}[self.mode]
        variance = self.scale / max(1.0, n)
        if self.distribution == "uniform":
            limit = math.sqrt(3.0 * variance)
            return self.draw(keras.random.uniform, shape, -limit, limit, dtype=dtype)
        if self.distribution == "untruncated_normal":
            return self.draw(keras.random.normal, shape, 0.0, math.sqrt(variance), dtype=dtype)
        stddev = math.sqrt(variance) / _TRUNCATED_STDDEV
        return self.draw(keras.random.truncated_normal, shape, 0.0, stddev, dtype=dtype)

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {
            **super().get_config(),
            "scale": self.scale,
            "mode": self.mode,
            "distribution": self.distribution,
            "input_axes": self.input_axes,
            "output_axes": self.output_axes,
        }


class _NamedScaling(VarianceScaling):
    """A variance scaling whose scale, mode and distribution are fixed by its name."""

    _SETTING: tuple[float, str, str]

    def __init__(
        self,
        seed: int | keras.random.SeedGenerator | None = None,
        input_axes: Sequence[int] | None = None,
        output_axes: Sequence[int] | None = None,
    ) -> None:
        super().__init__(*self._SETTING, seed=seed, input_axes=input_axes, output_axes=output_axes)

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        config = super().get_config()
        return {key: config[key] for key in ("seed", "input_axes", "output_axes")}


@keras.saving.register_keras_serializable(package="layers")
class GlorotUniform(_NamedScaling):
    """Uniform on [-limit, limit], limit = sqrt(6 / (fan_in + fan_out)).

    Reference:
        Glorot & Bengio 2010, "Understanding the difficulty of training deep feedforward neural networks".
    """

    _SETTING = (1.0, "fan_avg", "uniform")


@keras.saving.register_keras_serializable(package="layers")
class GlorotNormal(_NamedScaling):
    """Truncated normal of standard deviation sqrt(2 / (fan_in + fan_out)) (Glorot & Bengio 2010)."""

    _SETTING = (1.0, "fan_avg", "truncated_normal")


@keras.saving.register_keras_serializable(package="layers")
class HeUniform(_NamedScaling):
    """Uniform on [-limit, limit], limit = sqrt(6 / fan_in): keeps the variance through relu.

    Reference:
        He et al. 2015, "Delving deep into rectifiers".
    """

    _SETTING = (2.0, "fan_in", "uniform")


@keras.saving.register_keras_serializable(package="layers")
class HeNormal(_NamedScaling):
    """Truncated normal of standard deviation sqrt(2 / fan_in), the one relu asks for (He et al. 2015)."""

    _SETTING = (2.0, "fan_in", "truncated_normal")


@keras.saving.register_keras_serializable(package="layers")
class LecunUniform(_NamedScaling):
    """Uniform on [-limit, limit], limit = sqrt(3 / fan_in): keeps the variance of linear units.

    Reference:
        LeCun et al. 1998, "Efficient BackProp".
    """

    _SETTING = (1.0, "fan_in", "uniform")


@keras.saving.register_keras_serializable(package="layers")
class LecunNormal(_NamedScaling):
    """Truncated normal of standard deviation sqrt(1 / fan_in), the one selu asks for (LeCun et al. 1998)."""

    _SETTING = (1.0, "fan_in", "truncated_normal")


@keras.saving.register_keras_serializable(package="layers")
class Orthogonal(_SeededInitializer):
    """gain * Q with orthonormal columns (or rows, where there are fewer rows than columns).

    Q is the orthogonal factor of a Gaussian matrix, its signs fixed so that it is uniform (Haar) on the
    orthogonal matrices. A kernel of more than two axes is the matrix (product of the others, last).

    Args:
        gain: factor of the matrix.
        seed: an integer, a `keras.random.SeedGenerator`, or None.

    Raises:
        ValueError: for shapes of fewer than two axes, when called.

    Reference:
        Saxe et al. 2014, "Exact solutions to the nonlinear dynamics of learning in deep linear networks".
    """

    def __init__(self, gain: float = 1.0, seed: int | keras.random.SeedGenerator | None = None) -> None:
        super().__init__(seed=seed)
        self.gain = gain

    def __call__(self, shape: Sequence[int], dtype: str | None = None) -> Any:
        """Return a tensor of this shape and dtype."""
        if len(shape) < 2:
            raise ValueError(
                "The tensor to initialize must be at least two-dimensional. "
                f"Received: shape={shape} of rank {len(shape)}."
            )
        rows, columns = math.prod(shape[:-1]), shape[-1]
        tall = (max(rows, columns), min(rows, columns))
        q, r = ops.qr(self.draw(keras.random.normal, tall, dtype=dtype))
        q = q * ops.sign(ops.diag(r))
        if rows < columns:
            q = ops.transpose(q)
        return self.gain * ops.reshape(q, shape)

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {**super().get_config(), "gain": self.gain}


def lsuv(
    model: keras.Model,
    data: Any,
    tolerance: float = 0.05,
    max_iterations: int = 10,
    seed: int | None = None,
) -> dict[str, float]:
    """Layer-sequential unit variance: scale each layer's kernel until its output on the data has variance 1.

    In the order in which the layers run on `data`: the kernel becomes orthonormal, then, up to
    `max_iterations` times, W <- W / std(output), until |std - 1| <= tolerance; only then does the next layer
    see its input. Variance is measured over all elements of the layer's output, before the activation (a
    layer's own `activation` is set aside for the measurement). Layers are those with a `kernel` of two axes
    or more, wherever they are nested in the model.

    Args:
        model: a built Keras model; its kernels are changed in place.
        data: one representative batch, as the model takes it.
        tolerance: how far from 1 the standard deviation may stay.
        max_iterations: rescalings per layer; linear layers without a bias need one.
        seed: seed of the orthonormal kernels, or None to keep the present kernels and only rescale them.

    Returns:
        The standard deviation reached, by the layer's path, in the order of the layers.

    Raises:
        ValueError: if no layer of the model has a kernel, or a layer's output is constant on the data.

    Reference:
        Mishkin & Matas 2015, "All you need is a good init".
    """
    order = _layers_in_order(model, data)
    if not order:
        raise ValueError(f"LSUV scales kernels, and no layer that {model.name!r} runs on the data has one.")
    reached = {}
    for index, layer in enumerate(order):
        if seed is not None:
            layer.kernel.assign(Orthogonal(seed=seed + index)(layer.kernel.shape, dtype=layer.kernel.dtype))
        std = _output_std(model, layer, data)
        for _ in range(max_iterations):
            if abs(std - 1.0) <= tolerance:
                break
            if not np.isfinite(std) or std == 0.0:
                raise ValueError(
                    f"The output of layer {layer.path!r} has standard deviation {std} on the data."
                )
            layer.kernel.assign(ops.convert_to_tensor(layer.kernel) / std)
            std = _output_std(model, layer, data)
        reached[layer.path] = std
    return reached


class _Observed:
    """Within the block, the calls of these layers are reported: `report(layer, output before activation)`."""

    def __init__(self, layers: Sequence[keras.layers.Layer], report: Any) -> None:
        self._layers = layers
        self._report = report

    def __enter__(self) -> None:
        for layer in self._layers:
            layer.call = self._watched(layer)

    def __exit__(self, *exception: object) -> None:
        for layer in self._layers:
            # The instance's attribute hid the class's method; without it the method is back.
            object.__delattr__(layer, "call")

    def _watched(self, layer: keras.layers.Layer) -> Any:
        original = layer.call

        def call(*args: Any, **kwargs: Any) -> Any:
            activation = getattr(layer, "activation", None)
            if activation is None:
                output = original(*args, **kwargs)
                self._report(layer, output)
                return output
            layer.activation = keras.activations.linear
            try:
                output = original(*args, **kwargs)
            finally:
                layer.activation = activation
            self._report(layer, output)
            return activation(output)

        return call


def _layers_in_order(model: keras.Model, data: Any) -> list[keras.layers.Layer]:
    """Return the layers with a kernel in the order of their first call on the data."""
    candidates = [
        layer
        for layer in model._flatten_layers(include_self=True)
        if getattr(layer, "kernel", None) is not None and len(layer.kernel.shape) > 1
    ]
    order: list[keras.layers.Layer] = []

    def note(layer: keras.layers.Layer, output: Any) -> None:
        if layer not in order:
            order.append(layer)

    with _Observed(candidates, note):
        model(data, training=False)
    return order


def _output_std(model: keras.Model, layer: keras.layers.Layer, data: Any) -> float:
    """Return the standard deviation of the layer's output over all elements and calls, before activation."""
    outputs: list[np.ndarray] = []

    def keep(_: keras.layers.Layer, output: Any) -> None:
        outputs.append(ops.convert_to_numpy(output).ravel())

    with _Observed([layer], keep):
        model(data, training=False)
    return float(np.std(np.concatenate(outputs).astype("float64")))
