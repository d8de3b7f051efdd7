"""One optimizer step on 10 million parameters: ours against Keras' optimizer of the same name.

    python -m benchmarks.optimizers [--backends jax torch tensorflow] [--threads 1] [--rounds 9] [--xla]

How a step is measured: see `benchmarks.interleaved`. It is compiled as `model.fit` compiles it on a CPU: XLA
on JAX (buffers donated), `tf.function` on TensorFlow (with XLA only by `--xla`), eager without gradients on
torch. The parameters are those of a small convolutional network with wide dense layers: 4 kernels of
3x3x128x128 and 9 of 1024x1024, each with a bias and two vectors of a normalization, 10.1 million in 52
variables. Figures and what was tried and not kept: `results/layers/optimizers.md`.
"""

from collections.abc import Callable
from functools import partial

from benchmarks.interleaved import main


def shapes() -> list[tuple[int, ...]]:
    kernels = [(3, 3, 128, 128)] * 4 + [(1024, 1024)] * 9
    return [shape for kernel in kernels for shape in (kernel, *[kernel[-1:]] * 3)]


def stepper(name: str, settings: dict, who: str, xla: bool) -> Callable[[], None] | None:
    """Return a function that does one step of a fresh optimizer and waits for its end."""
    if who == "native":
        return None
    import keras
    import numpy as np

    from layers import optimizers

    rng = np.random.default_rng(0)
    values = [rng.standard_normal(shape).astype("float32") for shape in shapes()]
    variables = [keras.Variable(value) for value in values]
    gradients = [keras.ops.convert_to_tensor(0.01 * value) for value in values]
    library = optimizers if who == "ours" else keras.optimizers
    optimizer = getattr(library, name)(learning_rate=1e-4, **settings)
    optimizer.build(variables)
    if keras.config.backend() == "tensorflow":
        return _tensorflow_step(optimizer, variables, gradients, xla)
    return (_jax_step if keras.config.backend() == "jax" else _torch_step)(optimizer, variables, gradients)


def _jax_step(optimizer: object, variables: list, gradients: list) -> Callable[[], None]:
    import functools

    import jax

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def compiled(weights: list, state: list, slopes: list) -> tuple:
        return optimizer.stateless_apply(state, slopes, weights)

    values = [[v.value for v in variables], [v.value for v in optimizer.variables]]

    def step() -> None:
        values[:] = compiled(*values, gradients)
        jax.block_until_ready(values)

    return step


def _torch_step(optimizer: object, variables: list, gradients: list) -> Callable[[], None]:
    import torch

    def step() -> None:
        with torch.no_grad():
            optimizer.apply(gradients, variables)
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    return step


def _tensorflow_step(optimizer: object, variables: list, gradients: list, xla: bool) -> Callable[[], None]:
    import tensorflow as tf

    @tf.function(jit_compile=xla)
    def compiled() -> None:
        optimizer.apply(gradients, variables)

    def step() -> None:
        compiled()
        optimizer.iterations.numpy()

    return step


CASES = {
    "SGD step": partial(stepper, "SGD", {}),
    "momentum step": partial(stepper, "SGD", {"momentum": 0.9}),
    "Nesterov step": partial(stepper, "SGD", {"momentum": 0.9, "nesterov": True}),
    **{
        f"{name} step": partial(stepper, name, {})
        for name in ("Adagrad", "RMSprop", "Adam", "AdamW", "Nadam", "Lion")
    },
}

if __name__ == "__main__":
    main(__spec__.name)
