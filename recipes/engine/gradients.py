"""Portable differentiation: one pure function, the same gradient on JAX, PyTorch and TensorFlow.

    apply = functional(model)                                # pure: variables in, variables out
    def loss(trainable, state, x, y):
        logits, state = apply(trainable, state, x, training=True)
        return cross_entropy(y, logits), state
    step = compiled(value_and_grad(loss, has_aux=True))
    (value, state), gradients = step(trainable, state, x, y)

Everything nests, so a gradient of a gradient is `value_and_grad` twice. This is the only file that
branches on the backend for the sake of differentiation.
"""

from collections.abc import Callable
from typing import Any

import keras


def functional(model: keras.Layer) -> Callable:
    """A model as a pure function of its variables.

    Args:
        model: any built Keras layer or model.

    Returns:
        `apply(trainable, non_trainable, *args, **kwargs) -> (outputs, non_trainable)`, where the two
        lists hold one tensor for each of `model.trainable_variables` and `model.non_trainable_variables`;
        `variables_of(model)` gives their present values. The model itself is left unchanged, but for
        running state (batch statistics, dropout seeds), which comes back as the second result.
    """

    def apply(trainable: list, non_trainable: list, *args: Any, **kwargs: Any) -> tuple[Any, list]:
        return model.stateless_call(trainable, non_trainable, *args, **kwargs)

    return apply


def variables_of(model: keras.Layer) -> tuple[list, list]:
    """The present values of a model's trainable and other variables, as `functional` takes them."""
    return (
        [keras.ops.stop_gradient(v.value) for v in model.trainable_variables],
        [keras.ops.stop_gradient(v.value) for v in model.non_trainable_variables],
    )


def value_and_grad(function: Callable, argnums: int = 0, has_aux: bool = False) -> Callable:
    """A function that returns `function`'s value and its gradient with respect to one argument.

    Args:
        function: maps tensors (or nested lists and dicts of them) to a scalar tensor, or, with
            `has_aux`, to `(scalar, aux)`.
        argnums: position of the argument to differentiate by; any nest of floating-point tensors.
        has_aux: whether `function` returns something beside the scalar.

    Returns:
        A function with the same arguments, returning `(value, gradients)` or `((value, aux), gradients)`.
        Gradients have the structure of the argument; what the value does not depend on has gradient zero.
    """
    backend = keras.backend.backend()
    if backend == "jax":
        import jax

        return jax.value_and_grad(function, argnums, has_aux=has_aux)
    if backend == "torch":
        import torch

        gradient = torch.func.grad_and_value(function, argnums, has_aux=has_aux)

        def swapped(*args: Any) -> tuple[Any, Any]:
            gradients, value = gradient(*args)
            return value, gradients

        return swapped

    import tensorflow as tf

    def taped(*args: Any) -> tuple[Any, Any]:
        source = keras.tree.map_structure(tf.identity, args[argnums])
        with tf.GradientTape() as tape:
            keras.tree.map_structure(tape.watch, source)
            result = function(*args[:argnums], source, *args[argnums + 1 :])
            value = result[0] if has_aux else result
        gradients = tape.gradient(value, keras.tree.flatten(source), unconnected_gradients="zero")
        return result, keras.tree.pack_sequence_as(source, gradients)

    return taped


def jacobian(function: Callable, argnums: int = 0) -> Callable:
    """A function that returns the Jacobian of `function`'s single output tensor by one argument.

    Args:
        function: maps tensors to one tensor of any shape.
        argnums: position of the argument; a nest of floating-point tensors.

    Returns:
        A function with the same arguments; its result has the structure of the argument, each leaf of
        shape `output.shape + leaf.shape`.
    """
    backend = keras.backend.backend()
    if backend == "jax":
        import jax

        return jax.jacrev(function, argnums)
    if backend == "torch":
        import torch

        return torch.func.jacrev(function, argnums)

    import tensorflow as tf

    def taped(*args: Any) -> Any:
        source = keras.tree.map_structure(tf.identity, args[argnums])
        with tf.GradientTape() as tape:
            keras.tree.map_structure(tape.watch, source)
            output = function(*args[:argnums], source, *args[argnums + 1 :])
        jacobians = tape.jacobian(output, keras.tree.flatten(source), unconnected_gradients="zero")
        return keras.tree.pack_sequence_as(source, jacobians)

    return taped


def compiled(function: Callable) -> Callable:
    """`function` compiled for repeated calls with tensors of the same shapes.

    `jax.jit` on JAX and `tf.function` on TensorFlow. PyTorch runs eagerly: `torch.compile` needs a C++
    compiler at run time, which a student's machine may not have.
    """
    backend = keras.backend.backend()
    if backend == "jax":
        import jax

        return jax.jit(function)
    if backend == "tensorflow":
        import tensorflow as tf

        return tf.function(function)
    return function
