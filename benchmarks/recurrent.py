"""Training step and peak memory of our recurrent layers against Keras' built-in ones.

    python -m benchmarks.recurrent                              # one table a backend
    python -m benchmarks.recurrent --backends torch --native --no-memory
    python -m benchmarks.recurrent --backends tensorflow --xla

How a step is measured: see `benchmarks.interleaved`. The layers read 64 features and have 256 units, at two
shapes: many sequences of 100 steps, and few of 400. `--native` adds the same step of a layer written in the
backend's own terms: PyTorch's fused layers, and on JAX one `jax.lax.scan` over jax.numpy, differentiated by
JAX. Figures and what was tried and not kept: `results/layers/recurrent.md`.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from benchmarks.interleaved import main
from benchmarks.layer_step import LayerStep

UNITS = 256
SHAPES = ((64, 100, 64), (16, 400, 64))
NAMES = ("LSTM", "GRU", "SimpleRNN")


def make(name: str, every: bool, module: Any) -> Any:
    """The layer of that name from `layers` or `keras.layers`."""
    return getattr(module, name)(UNITS, return_sequences=every)


def native(name: str, every: bool) -> Any:
    """The layer in the backend's own terms, as a Keras layer; None where there is none."""
    import keras

    if keras.backend.backend() == "torch":
        return native_torch(name, every)
    return native_jax(name, every) if keras.backend.backend() == "jax" else None


def native_torch(name: str, every: bool) -> Any:
    """PyTorch's fused layer."""
    import keras
    import torch

    class Outputs(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            kind = getattr(torch.nn, {"SimpleRNN": "RNN"}.get(name, name))
            self.layer = kind(SHAPES[0][-1], UNITS, batch_first=True)

        def forward(self, x: Any) -> Any:
            outputs = self.layer(x)[0]
            return outputs if every else outputs[:, -1]

    return keras.layers.TorchModuleWrapper(Outputs())


def native_jax(name: str, every: bool) -> Any:
    """Keras' variables, stepped through by `jax.lax.scan`."""
    import jax
    import jax.numpy as jnp
    import keras

    def simple(h: Any, x: Any, kernel: Any, recurrent: Any, bias: Any) -> tuple:
        return (jnp.tanh(x @ kernel + h[0] @ recurrent + bias),)

    def lstm(state: Any, x: Any, kernel: Any, recurrent: Any, bias: Any) -> tuple:
        i, f, g, o = jnp.split(x @ kernel + state[0] @ recurrent + bias, 4, axis=1)
        c = jax.nn.sigmoid(f) * state[1] + jax.nn.sigmoid(i) * jnp.tanh(g)
        return jax.nn.sigmoid(o) * jnp.tanh(c), c

    def gru(state: Any, x: Any, kernel: Any, recurrent: Any, bias: Any) -> tuple:
        x_z, x_r, x_h = jnp.split(x @ kernel + bias[0], 3, axis=1)
        h_z, h_r, h_h = jnp.split(state[0] @ recurrent + bias[1], 3, axis=1)
        z = jax.nn.sigmoid(x_z + h_z)
        return (z * state[0] + (1 - z) * jnp.tanh(x_h + jax.nn.sigmoid(x_r + h_r) * h_h),)

    step = {"SimpleRNN": simple, "LSTM": lstm, "GRU": gru}[name]

    class Scanned(getattr(keras.layers, name)):
        def call(self, sequences: Any, initial_state: Any = None, mask: Any = None) -> Any:
            weights = [variable.value for variable in self.cell.trainable_variables]

            def body(state: tuple, x: Any) -> tuple:
                state = step(state, x, *weights)
                return state, state[0] if every else None

            zeros = jnp.zeros((sequences.shape[0], UNITS), sequences.dtype)
            last, outputs = jax.lax.scan(
                body, (zeros,) * (2 if name == "LSTM" else 1), jnp.swapaxes(sequences, 0, 1)
            )
            return jnp.swapaxes(outputs, 0, 1) if every else last[0]

    return Scanned(UNITS, return_sequences=every)


def case(name: str, shape: tuple, every: bool) -> LayerStep:
    """One line of the table."""
    maker: Callable[[Any], Any] = partial(make, name, every)
    return LayerStep(maker, shape, native=partial(native, name, every))


CASES = {
    f"{name} {shape}{', all outputs' if every else ''}": case(name, shape, every)
    for every in (False, True)
    for shape in SHAPES
    for name in NAMES
}

if __name__ == "__main__":
    main(__spec__.name)
