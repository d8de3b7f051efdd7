"""Signals through a deep stack of dense layers, forward and backward, in NumPy: what initial weights decide.

forward    z_l = h_{l-1} W_l,  h_l = f(z_l)
backward   d_{l-1} = (d_l * f'(z_l)) W_l^T,  d_L drawn from a standard normal
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from keras import ops

import layers


@dataclass(frozen=True)
class Signals:
    """What each layer sees, one number a layer from the first to the last.

    Args:
        before: variance of z, before the activation.
        after: mean square of h, after it.
        gradient: root mean square of the gradient by h_{l-1}, what arrives below layer l.
        flat: share of z where |f'| is below `FLAT`: a bounded activation is saturated there, relu is off.
        dead: share of units whose f' is below `FLAT` for every example: nothing can teach them.
    """

    before: np.ndarray
    after: np.ndarray
    gradient: np.ndarray
    flat: np.ndarray
    dead: np.ndarray


FLAT = 0.05


def propagate(x: np.ndarray, kernels: Sequence[np.ndarray], activation: str, seed: int = 0) -> Signals:
    """Send examples up through the layers and a random gradient back down.

    Args:
        x: (examples, inputs).
        kernels: matrices (inputs, outputs), from the first layer to the last.
        activation: its name in `layers.activations`.
        seed: of the gradient at the top.
    """
    function, derivative = layers.activations.get(activation), layers.activations.derivative(activation)
    h, slopes, before, after, flat, dead = x, [], [], [], [], []
    for kernel in kernels:
        z = h @ kernel
        h = ops.convert_to_numpy(function(ops.convert_to_tensor(z)))
        slope = ops.convert_to_numpy(derivative(ops.convert_to_tensor(z)))
        slopes.append(slope)
        before.append(z.var())
        after.append(np.square(h).mean())
        flat.append(np.mean(np.abs(slope) < FLAT))
        dead.append(np.mean((np.abs(slope) < FLAT).all(axis=0)))
    d = np.random.default_rng((seed, 17)).standard_normal(h.shape).astype(h.dtype)
    gradient = []
    for slope, kernel in zip(reversed(slopes), reversed(kernels), strict=True):
        d = (d * slope) @ kernel.T
        gradient.append(np.sqrt(np.square(d, dtype=np.float64).mean()))
    return Signals(*map(np.array, (before, after, gradient[::-1], flat, dead)))
