"""Portable differentiation: one pure function, the same gradient on JAX, PyTorch and TensorFlow.

    apply = functional(model)                                # pure: variables in, variables out
    def loss(trainable, state, x, y):
        logits, state = apply(trainable, state, x, training=True)
        return cross_entropy(y, logits), state
    step = compiled(value_and_grad(loss, has_aux=True))
    (value, state), gradients = step(trainable, state, x, y)

Everything nests: a gradient of a gradient is `value_and_grad` twice. `recompute(layer)` trades time for
memory in either (gradient checkpointing), as `keras.remat` does for a function without side effects.

The same for code that changes Keras variables as it goes, optimizers included, on all three backends:

    def step(x, y):
        def loss():
            return cross_entropy(y, model(x, training=True))
        value, slopes = by_variables(loss, model.trainable_variables)
        update(optimizer, slopes)
        return {"loss": value}
    step = compiled_step(step, [*model.variables, *optimizer.variables])

This is the only file that branches on the backend for the sake of differentiation.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np


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


_differentiated: list[Callable] = []  # the functions that are being called for a derivative


def within() -> bool:
    """Whether a function given to `value_and_grad` or `jacobian` is being called: its tensors end with it."""
    return bool(_differentiated)


def _marked(function: Callable) -> Callable:
    """The same function, known to `within`."""

    @functools.wraps(function)
    def marked(*args: Any) -> Any:
        _differentiated.append(function)
        try:
            return function(*args)
        finally:
            _differentiated.pop()

    return marked


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
    function, backend = _marked(function), keras.backend.backend()
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
    function, backend = _marked(function), keras.backend.backend()
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
    """`function` compiled for repeated calls with tensors of the same shapes, or few different ones.

    `jax.jit` on JAX and `tf.function` on TensorFlow. PyTorch runs eagerly: `torch.compile` needs a C++
    compiler at run time, which a student's machine may not have.
    """
    backend = keras.backend.backend()
    if backend == "jax":
        import jax

        return jax.jit(function)
    if backend == "tensorflow":
        import tensorflow as tf

        return tf.function(function, autograph=False)
    return function


def recompute(layer: keras.Layer) -> None:
    """Have a layer compute its inside once more for the backward pass, instead of keeping it till then.

    Gradient checkpointing: of the layer only inputs and outputs are kept. Dropout draws the same numbers both
    times, and running statistics move once.

    Args:
        layer: built; takes one tensor and `training`. In inference nothing changes.

    Reference:
        Chen, Xu, Zhang and Guestrin, 2016, Training deep nets with sublinear memory cost, arXiv:1604.06174.
    """
    plain, again = layer.call, False

    @functools.wraps(plain)
    def call(inputs: Any, *arguments: Any, training: bool | None = None, **named: Any) -> Any:
        if again or not training:
            return plain(inputs, *arguments, training=training, **named)
        # Copies: PyTorch changes variables where they are, and the second time must find what the first did.
        state = [(variable, keras.ops.copy(variable.value)) for variable in layer.non_trainable_variables]

        def inside(weights: list, inputs: Any) -> tuple[Any, list]:
            nonlocal again
            again = True
            try:
                own = zip(layer.trainable_variables, weights, strict=True)
                with keras.StatelessScope([*own, *state]) as scope:
                    outputs = layer(inputs, training=True)
            finally:
                again = False
            return outputs, [scope.get_current_value(variable) for variable, _ in state]

        weights = [variable.value for variable in layer.trainable_variables]
        outputs, values = keras.remat(inside)(weights, inputs)
        for (variable, _), value in zip(state, values, strict=True):
            variable.assign(value)
        return outputs

    layer.__dict__["call"] = call


def recompute_blocks(model: keras.Model) -> None:
    """`recompute` every layer of a model that has layers within."""
    for layer in model.layers:
        if any(layer._flatten_layers(include_self=False)):
            recompute(layer)


# The JAX step that is being traced: its scope, and the variables it knows.
_traced: list[tuple[keras.StatelessScope, list]] = []


def compiled_step(function: Callable, variables: Sequence[keras.Variable]) -> Callable:
    """A training step written as plain code that changes Keras variables, compiled for repeated calls.

    What `model.fit` cannot say is said this way: several optimizers and groups of variables, gradient
    penalties, losses over several models.

    Args:
        function: takes arrays, changes some of `variables`, returns a nest of tensors. Within it gradients
            are taken by `by_variables`.
        variables: every variable that `function` reads or changes, those of built optimizers included.

    Returns:
        A function of the same arguments and results: `tf.function` on TensorFlow; on JAX `jax.jit` of the
        function from all variables' values to their new ones; on PyTorch the function itself.
    """
    step, own = program(function, variables), _distinct(variables)
    return lambda *arguments: step(own, *arguments)


def program(function: Callable, variables: Sequence[keras.Variable]) -> Callable:
    """A compiled step that also works on other variables than those it was written with.

    Args:
        function: as for `compiled_step`.
        variables: as for `compiled_step`.

    Returns:
        `step(variables, *arguments)`: the step, done with and to these variables: the function's own, or
        others of the same shapes and in the same order, so that a network built anew needs no new program.
        Arguments may be NumPy arrays.
    """
    own = _distinct(variables)
    if keras.backend.backend() == "jax":
        import jax

        # The old values give up their memory to the new ones.
        jitted = jax.jit(_pure(function, own), donate_argnums=0)

        def step(variables: Sequence[keras.Variable], *arguments: Any) -> Any:
            result, values = jitted([variable.value for variable in variables], *arguments)
            for variable, value in zip(variables, values, strict=True):
                variable.assign(value)
            return result

        return step

    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        # As `model.fit` does: XLA for accelerators only. It also draws other random numbers.
        accelerated = any(device.device_type != "CPU" for device in tf.config.list_physical_devices())
        # What runs on the other backends has no Python control flow over tensors to be rewritten.
        function = tf.function(function, autograph=False, jit_compile=accelerated)

    def step(variables: Sequence[keras.Variable], *arguments: Any) -> Any:
        arguments = keras.tree.map_structure(keras.ops.convert_to_tensor, arguments)
        with _standing_for(variables, own), _no_gradients():
            return function(*arguments)

    return step


def program_for_many(function: Callable, variables: Sequence[keras.Variable]) -> Callable:
    """A compiled row of steps that is done with several networks at once.

    On JAX one program does all steps of all networks, in a loop over the steps of one step for all networks
    side by side. On TensorFlow the loop over the steps is compiled, and networks take turns; on PyTorch both
    are loops in Python.

    Args:
        function: as for `compiled_step`; its arguments are arrays, its result a dict of numbers.
        variables: as for `compiled_step`.

    Returns:
        `steps(members, *arguments)`: `members` are the variables of each network; arguments are NumPy arrays
        with axes (network, step) before those of the function's own arguments. It returns the function's
        results for each network, arrays with the axis (step,).
    """
    backend = keras.backend.backend()
    if backend == "jax":
        return _jax_for_many(function, variables)
    if backend == "tensorflow":
        return _tensorflow_for_many(function, variables)
    return _in_turn(program(function, variables))


def _in_turn(step: Callable) -> Callable:
    """All steps of one network after the other, each a call."""

    def steps(members: Sequence[Sequence[keras.Variable]], *arguments: np.ndarray) -> list[dict]:
        results = []
        for variables, *rows in zip(members, *arguments, strict=True):
            row = [step(variables, *parts) for parts in zip(*rows, strict=True)]
            results.append({name: np.array([float(values[name]) for values in row]) for name in row[0]})
        return results

    return steps


def _tensorflow_for_many(function: Callable, variables: Sequence[keras.Variable]) -> Callable:
    import tensorflow as tf

    step = tf.function(function, autograph=False)

    def row(*arguments: Any) -> dict:
        results = step.get_concrete_function(*(argument[0] for argument in arguments)).structured_outputs
        signature = {name: tf.TensorSpec(value.shape, value.dtype) for name, value in results.items()}
        # The steps change variables: one must end before the next begins.
        return tf.map_fn(
            lambda parts: step(*parts), arguments, fn_output_signature=signature, parallel_iterations=1
        )

    one = program(row, variables)

    def steps(members: Sequence[Sequence[keras.Variable]], *arguments: np.ndarray) -> list[dict]:
        results = (one(*member) for member in zip(members, *arguments, strict=True))
        return [{name: np.asarray(values) for name, values in result.items()} for result in results]

    return steps


def _jax_for_many(function: Callable, variables: Sequence[keras.Variable]) -> Callable:
    import jax

    own = _distinct(variables)
    pure = _pure(function, own)
    in_turn = _in_turn(program(function, own))

    def row(values: list, arguments: tuple) -> tuple[Any, list]:
        def step(values: list, arguments: tuple) -> tuple[list, Any]:
            result, values = pure(values, *arguments)
            return values, result

        values, results = jax.lax.scan(step, values, arguments)
        return results, values

    # One network at a time comes out: a program that takes every weight of every network apart is compiled
    # for longer than the training itself. They go in by NumPy, which compiles nothing.
    @jax.jit
    def taken(stacked: list, place: int) -> list:
        return [rows[place] for rows in stacked]

    together = jax.jit(jax.vmap(row), donate_argnums=0)

    convolves: bool | None = None
    places = 0

    def steps(members: Sequence[Sequence[keras.Variable]], *arguments: np.ndarray) -> list[dict]:
        nonlocal convolves, places
        if convolves is None:
            first = jax.make_jaxpr(pure)([v.value for v in own], *(rows[0, 0] for rows in arguments))
            convolves = "conv_general_dilated" in str(first)
        # XLA's convolutions in loops are ten times slower on CPUs.
        if convolves and jax.default_backend() == "cpu":
            return in_turn(members, *arguments)
        # Fewer networks would be another program: the first one is done more than once.
        places = max(places, len(members))
        filled = [*range(len(members)), *[0] * (places - len(members))]
        weights = [[np.asarray(variable.value) for variable in variables] for variables in members]
        stacked = [np.stack([weights[member][place] for member in filled]) for place in range(len(own))]
        results, stacked = together(stacked, tuple(rows[filled] for rows in arguments))
        for place, variables in enumerate(members):
            for variable, value in zip(variables, taken(stacked, place), strict=True):
                variable.assign(value)
        results = {name: np.asarray(values) for name, values in results.items()}
        return [{name: values[place] for name, values in results.items()} for place in range(len(members))]

    return steps


def _no_gradients() -> contextlib.AbstractContextManager:
    """On PyTorch: nothing is kept for gradients within, but by `by_variables`."""
    if keras.backend.backend() == "torch":
        import torch

        return torch.no_grad()
    return contextlib.nullcontext()


@contextlib.contextmanager
def _standing_for(variables: Sequence[keras.Variable], own: Sequence[keras.Variable]) -> Iterator[None]:
    """Within, what is done with and to `own` variables is done with and to these others."""
    pairs = [pair for pair in zip(own, variables, strict=True) if pair[0] is not pair[1]]
    if keras.backend.backend() == "torch":
        for mine, given in pairs:
            mine._value, given._value = given._value, mine._value
        try:
            yield
        finally:
            for mine, given in pairs:
                mine._value, given._value = given._value, mine._value
        return
    if not pairs:
        yield
        return
    # A compiled function of TensorFlow is bound to its variables, which may be those of a run under way.
    bound, others = zip(*((mine._value, given._value) for mine, given in pairs), strict=True)
    enter, leave = _tensorflow_exchange()
    kept = enter(bound, others)
    yield
    leave(bound, others, kept)


@functools.cache
def _tensorflow_exchange() -> tuple[Callable, Callable]:
    """To give variables the values of others, and these what became of them; a call instead of hundreds."""
    import tensorflow as tf

    @tf.function(autograph=False)
    def enter(bound: Sequence, others: Sequence) -> list:
        kept = [variable.read_value() for variable in bound]
        for variable, other in zip(bound, others, strict=True):
            variable.assign(other)
        return kept

    @tf.function(autograph=False)
    def leave(bound: Sequence, others: Sequence, kept: Sequence) -> None:
        for variable, other, value in zip(bound, others, kept, strict=True):
            other.assign(variable)
            variable.assign(value)

    return enter, leave


def _distinct(variables: Sequence[keras.Variable]) -> list[keras.Variable]:
    return list({id(variable): variable for variable in variables}.values())


def _pure(function: Callable, variables: list) -> Callable:
    """For JAX: a function that changes variables as one from all their values to the new ones."""

    def pure(values: list, *arguments: Any) -> tuple[Any, list]:
        mapping = list(zip(variables, values, strict=True))
        with keras.StatelessScope(state_mapping=mapping, collect_losses=True) as scope:
            _traced.append((scope, variables))
            try:
                result = function(*arguments)
            finally:
                _traced.pop()
        return result, [scope.get_current_value(variable) for variable in variables]

    return pure


def update(optimizer: keras.optimizers.Optimizer, slopes: Sequence) -> None:
    """Update the variables that an optimizer was built with, by their gradients, within a `compiled_step`.

    `optimizer.apply`, but for JAX, where conditions inside an optimizer (loss scaling) cannot assign.
    """
    backend = keras.backend.backend()
    if backend == "tensorflow":
        optimizer.apply(slopes)
        return
    if backend == "torch":
        import torch

        with torch.no_grad():  # it may be used outside a program, too
            optimizer.apply(slopes)
        return
    weights, state = optimizer._trainable_variables, optimizer.variables
    new_weights, new_state = optimizer.stateless_apply(
        [variable.value for variable in state], list(slopes), [variable.value for variable in weights]
    )
    for variable, value in zip([*weights, *state], [*new_weights, *new_state], strict=True):
        variable.assign(value)


def by_variables(function: Callable, variables: Sequence[keras.Variable], has_aux: bool = False) -> tuple:
    """A function's value and its gradient by Keras variables, within a `compiled_step`.

    Args:
        function: of no arguments; computes a scalar tensor from variables, or with `has_aux`
            `(scalar, aux)`. It may change other variables (batch statistics, dropout seeds).
        variables: what to differentiate by.
        has_aux: whether `function` returns something beside the scalar.

    Returns:
        `(value, gradients)` or `((value, aux), gradients)`: one gradient a variable, zero where the value
        does not depend on it.

    Raises:
        RuntimeError: on JAX, outside a `compiled_step`, where changes of variables would be lost.
    """
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape(watch_accessed_variables=False) as tape:
            sources = [variable.value for variable in variables]
            tape.watch(sources)
            result = function()
        slopes = tape.gradient(result[0] if has_aux else result, sources, unconnected_gradients="zero")
        return result, slopes
    if backend == "torch":
        import torch

        with torch.enable_grad():
            result = function()
        sources = [variable.value for variable in variables]
        slopes = torch.autograd.grad(result[0] if has_aux else result, sources, allow_unused=True)
        slopes = [
            torch.zeros_like(source) if slope is None else slope
            for source, slope in zip(sources, slopes, strict=True)
        ]
        return keras.tree.map_structure(lambda tensor: tensor.detach(), result), slopes

    import jax

    if not _traced:
        raise RuntimeError("on JAX `by_variables` works within a function given to `compiled_step`")
    outer, known = _traced[-1]
    chosen = {id(variable) for variable in variables}
    others = [variable for variable in known if id(variable) not in chosen]

    def pure(values: list) -> tuple[Any, tuple]:
        mapping = [
            *zip(variables, values, strict=True),
            *((variable, outer.get_current_value(variable)) for variable in others),
        ]
        with keras.StatelessScope(state_mapping=mapping, collect_losses=True) as inner:
            _traced.append((inner, known))
            try:
                result = function()
            finally:
                _traced.pop()
        changed = [inner.get_current_value(variable) for variable in others]
        return (result[0] if has_aux else result), (result, changed)

    values = [outer.get_current_value(variable) for variable in variables]
    (_, (result, changed)), slopes = jax.value_and_grad(pure, has_aux=True)(values)
    for variable, value in zip(others, changed, strict=True):
        outer.add_update((variable, value))
    return result, slopes
