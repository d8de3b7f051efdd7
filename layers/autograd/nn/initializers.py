"""Initial weights: functions of a shape and a random generator.

Fans follow Keras: a dense kernel (inputs, units) has fan-in `inputs`; a convolution kernel (h, w, C,
filters) has fan-in h w C and fan-out h w filters.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from layers.autograd.tensor import Tensor, no_grad

if TYPE_CHECKING:
    from layers.autograd.nn.module import Module

Shape = tuple[int, ...]


def zeros(shape: Shape, rng: np.random.Generator) -> np.ndarray:
    """All zero."""
    return np.zeros(shape)


def ones(shape: Shape, rng: np.random.Generator) -> np.ndarray:
    """All one."""
    return np.ones(shape)


def glorot_uniform(shape: Shape, rng: np.random.Generator) -> np.ndarray:
    """Xavier: uniform in +-sqrt(6 / (fan_in + fan_out)).

    The variance 2 / (fan_in + fan_out) is the compromise between keeping the variance of activations (1 /
    fan_in) and that of gradients (1 / fan_out). Reference: Glorot and Bengio, 2010.
    """
    limit = math.sqrt(6 / sum(_fans(shape)))
    return rng.uniform(-limit, limit, shape)


def glorot_normal(shape: Shape, rng: np.random.Generator) -> np.ndarray:
    """Xavier: truncated normal of variance 2 / (fan_in + fan_out)."""
    return _truncated_normal(shape, 2 / sum(_fans(shape)), rng)


def he_uniform(shape: Shape, rng: np.random.Generator) -> np.ndarray:
    """He: uniform of variance 2 / fan_in."""
    limit = math.sqrt(6 / _fans(shape)[0])
    return rng.uniform(-limit, limit, shape)


def he_normal(shape: Shape, rng: np.random.Generator) -> np.ndarray:
    """He: truncated normal of variance 2 / fan_in; ReLU halves the second moment, the 2 restores it.

    Reference: He et al., "Delving Deep into Rectifiers", 2015.
    """
    return _truncated_normal(shape, 2 / _fans(shape)[0], rng)


def orthogonal(shape: Shape, rng: np.random.Generator) -> np.ndarray:
    """Orthonormal rows or columns, whichever are fewer: Q of a Gaussian matrix, uniform over rotations.

    Reference: Saxe et al., "Exact solutions to the nonlinear dynamics of learning", 2014.
    """
    rows, columns = math.prod(shape[:-1]), shape[-1]
    q, r = np.linalg.qr(rng.normal(size=(max(rows, columns), min(rows, columns))))
    q = q * np.sign(np.diag(r))  # without this the QR routine's choice of signs would bias Q
    return (q.T if rows < columns else q).reshape(shape)


def random_uniform(shape: Shape, rng: np.random.Generator) -> np.ndarray:
    """Uniform in +-0.05, the default of embeddings."""
    return rng.uniform(-0.05, 0.05, shape)


INITIALIZERS = {
    function.__name__: function
    for function in (
        zeros,
        ones,
        glorot_uniform,
        glorot_normal,
        he_uniform,
        he_normal,
        orthogonal,
        random_uniform,
    )
}


def get(name: Any) -> Callable[[Shape, np.random.Generator], np.ndarray]:
    """The initializer of that name, or the function itself."""
    if callable(name):
        return name
    if name not in INITIALIZERS:
        raise ValueError(f"initializer {name!r} is unknown; there are {', '.join(INITIALIZERS)}")
    return INITIALIZERS[name]


def lsuv(model: Module, batch: Any, tolerance: float = 0.02, rounds: int = 10) -> None:
    """Layer-sequential unit variance: rescale each kernel until its layer's output has variance 1 on real
    data.

    From the first layer to the last: make the kernel orthonormal, then divide it by the standard deviation
    of the layer's own output (before its activation) on the batch, until that is 1 within the tolerance.

    Args:
        model: a `Sequential`; its layers with a "kernel" are rescaled in place.
        batch: inputs to measure on, some hundred examples.
        tolerance: allowed |variance - 1|.
        rounds: most rescalings of one layer.

    Reference: Mishkin and Matas, "All you need is a good init", 2016.
    """
    with no_grad():
        model(batch)  # builds the weights
        x = Tensor(np.asarray(batch))
        for layer in model.layers:
            kernel = getattr(layer, "kernel", None)
            if kernel is not None:
                kernel.assign(orthogonal(kernel.shape, layer.rng))
                for _ in range(rounds):
                    variance = layer.preactivation(x).data.var()
                    if abs(variance - 1) < tolerance:
                        break
                    kernel.assign(kernel.data / math.sqrt(variance))
            x = layer(x)


def _fans(shape: Shape) -> tuple[int, int]:
    if len(shape) < 2:
        return (shape[0], shape[0]) if shape else (1, 1)
    window = math.prod(shape[:-2])
    return window * shape[-2], window * shape[-1]


def _truncated_normal(shape: Shape, variance: float, rng: np.random.Generator) -> np.ndarray:
    """Normal values with those beyond two standard deviations drawn again, widened to the asked variance."""
    values = rng.normal(size=shape)
    while (outside := np.abs(values) > 2).any():
        values[outside] = rng.normal(size=int(outside.sum()))
    return values * math.sqrt(variance) / 0.87962566103423978  # the deviation that is left after truncation
