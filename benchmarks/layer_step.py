"""The training step of a layer, ours, Keras' or the backend's own, as a case for `benchmarks.interleaved`.

A step is the forward and the backward pass, by the weights and by floating-point inputs, compiled as
`model.fit` compiles it on a CPU: `jax.jit` on JAX, `tf.function` on TensorFlow, eager autograd on PyTorch.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class LayerStep:
    """One line of the table; called, it makes one side's step.

    Attributes:
        make: makes the layer from a module, `layers` or `keras.layers`.
        shape: shape of the input; several shapes where the layer takes several inputs.
        options: further arguments of the call.
        integers: None for normal inputs, or the bound of random integer ones.
        native: makes the same layer in the backend's own terms, or None where there is none.
    """

    make: Callable[[Any], Any]
    shape: tuple
    options: dict = field(default_factory=dict)
    integers: int | None = None
    native: Callable[[], Any] | None = None

    def __call__(self, who: str, xla: bool) -> Callable[[], Any] | None:
        """A function that does one step of one side's layer; None where there is no such layer."""
        import keras

        import layers

        if who == "native":
            layer = self.native() if self.native else None
        else:
            layer = self.make(layers if who == "ours" else keras.layers)
        return None if layer is None else training_step(layer, self, xla)


def random_inputs(case: LayerStep) -> list:
    """NumPy inputs, the same in every process."""
    import numpy as np

    rng = np.random.default_rng(0)
    shapes = case.shape if isinstance(case.shape[0], tuple) else (case.shape,)
    if case.integers is not None:
        return [rng.integers(0, case.integers, size=shape).astype("int32") for shape in shapes]
    return [rng.normal(size=shape).astype("float32") for shape in shapes]


def cotangents_of(outputs: Any) -> list:
    """Fixed output gradients of the outputs' shapes; PyTorch and XLA cannot simplify them away."""
    import keras
    import numpy as np

    rng = np.random.default_rng(1)
    return [
        keras.ops.cast(
            keras.ops.convert_to_tensor(rng.normal(size=tuple(x.shape)).astype("float32")), x.dtype
        )
        for x in keras.tree.flatten(outputs)
    ]


def training_step(layer: Any, case: LayerStep, xla: bool) -> Callable[[], Any]:
    """A function that runs one step and returns when its gradients are there.

    `xla` concerns TensorFlow alone. On a CPU, PyTorch and TensorFlow return no sooner by themselves.
    """
    import keras

    inputs = [keras.ops.convert_to_tensor(x) for x in random_inputs(case)]
    cotangents = cotangents_of(layer(*inputs, **case.options))
    by_inputs = case.integers is None
    backend = keras.backend.backend()
    if backend == "jax":
        import jax

        @jax.jit
        def step(trainable: list, state: list, inputs: list) -> tuple:
            def outputs_of(trainable: list, inputs: list) -> tuple:
                outputs, new = layer.stateless_call(trainable, state, *inputs, **case.options)
                return keras.tree.flatten(outputs), new

            if by_inputs:
                _, pull, new = jax.vjp(outputs_of, trainable, inputs, has_aux=True)
            else:
                _, pull, new = jax.vjp(lambda t: outputs_of(t, inputs), trainable, has_aux=True)
            return pull(cotangents), new

        values = [[v.value for v in vs] for vs in (layer.trainable_variables, layer.non_trainable_variables)]
        return lambda: jax.block_until_ready(step(*values, inputs))
    if backend == "torch":
        import torch

        # As recipes do (`recipes.engine.backend.flush_denormals`), and XLA and TensorFlow by themselves.
        torch.set_flush_denormal(True)
        sources = [v.value for v in layer.trainable_variables]
        if by_inputs:
            inputs = [x.requires_grad_() for x in inputs]
            sources += inputs

        def step() -> tuple:
            outputs = keras.tree.flatten(layer(*inputs, **case.options))
            return torch.autograd.grad(outputs, sources, cotangents)

        return step

    import tensorflow as tf

    @tf.function(jit_compile=xla)
    def step(inputs: list) -> list:
        with tf.GradientTape() as tape:
            if by_inputs:
                tape.watch(inputs)
            outputs = keras.tree.flatten(layer(*inputs, **case.options))
        sources = [v.value for v in layer.trainable_variables] + (inputs if by_inputs else [])
        return tape.gradient(outputs, sources, cotangents)

    return lambda: step(inputs)
