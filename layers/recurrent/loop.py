"""The loop over time: one step function applied to a sequence, compiled, differentiable, of any length.

Every backend has its best form. JAX scans. PyTorch, which runs eagerly, walks a Python list of steps made
by one `unstack`: indexing `x[t]` instead would add a gradient as large as the whole sequence at every
step. TensorFlow runs a `while_loop` whose trip count is known, so that XLA compiles its gradient too
(that of `ops.scan` it refuses), with sequence reads and writes that are each other's gradient.
"""

from collections.abc import Callable
from typing import Any

import keras
from keras import ops

Tensor = Any

_running: list[Callable] = []  # the steps that are being called, of loops within loops


def within() -> bool:
    """Whether a step is being called: on JAX and TensorFlow its tensors mean nothing outside of the loop."""
    return bool(_running)


def time_major(x: Tensor) -> Tensor:
    """Swaps batch and time: `(batch, time, ...)` to `(time, batch, ...)` and back."""
    return ops.transpose(x, (1, 0, *range(2, len(x.shape))))


def expand_to(mask: Tensor, x: Tensor) -> Tensor:
    """`mask` with trailing axes of size one, so that it broadcasts against `x`."""
    return ops.reshape(mask, ops.shape(mask) + (1,) * (len(x.shape) - len(mask.shape)))


def select(mask: Tensor, new: list[Tensor], old: list[Tensor]) -> list[Tensor]:
    """`new` where the mask is true, `old` elsewhere, tensor by tensor."""
    return [ops.where(expand_to(mask, n), n, o) for n, o in zip(new, old, strict=True)]


def cotangents(arguments: tuple, upstream: Any) -> list[Tensor]:
    """What `ops.custom_gradient` hands to the gradient function, as a flat list, on every backend."""
    return keras.tree.flatten(arguments if upstream is None else upstream)


def read(buffer: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """Row `index` of a time-major buffer, and the buffer itself to carry on.

    The gradient writes one row into the gradient that is carried backwards, where a plain `buffer[index]`
    adds a zero-filled tensor of the buffer's size. Right only if every row is read at most once.
    """

    @ops.custom_gradient
    def read_row(buffer: Tensor) -> tuple:
        def gradient(*arguments: Any, upstream: Any = None) -> Tensor:
            by_row, by_buffer = cotangents(arguments, upstream)
            return write(by_buffer, index, by_row)

        return (ops.take(buffer, index, axis=0), ops.copy(buffer)), gradient

    return read_row(buffer)


def write(buffer: Tensor, index: Tensor, row: Tensor) -> Tensor:
    """The buffer with `row` at `index`; right only if every row is written at most once, over a constant."""

    @ops.custom_gradient
    def write_row(buffer: Tensor, row: Tensor) -> tuple:
        def gradient(*arguments: Any, upstream: Any = None) -> tuple[Tensor, Tensor]:
            (by_output,) = cotangents(arguments, upstream)
            by_row, by_buffer = read(by_output, index)
            return by_buffer, by_row

        return ops.scatter_update(buffer, ops.reshape(index, (1, 1)), ops.expand_dims(row, 0)), gradient

    return write_row(buffer, row)


def scan(
    step: Callable, carry: list[Tensor], inputs: list[Tensor], extra: list[Tensor], reverse: bool = False
) -> tuple[list, list, list]:
    """`ops.scan` for a step that yields its carry and `extra` tensors, where nothing differentiates it.

    Args:
        step: `step(carry, inputs_at_t) -> (carry, extra_at_t)`, lists of tensors.
        carry: the initial carry.
        inputs: tensors of shape `(time, ...)`.
        extra: tensors of the shapes of `extra_at_t`; their values do not matter.
        reverse: whether to run from the last time step to the first.

    Returns:
        `(carry, carries, extras)`: the last carry, and both over all time steps.
    """
    count = len(carry)

    def whole(previous: list, x: list) -> tuple[list, list]:
        carry, extra = step(previous[:count], x)
        everything = [*carry, *extra]
        return everything, everything

    # TensorFlow's scan wants outputs that look like the carry, which is why `extra` rides in it.
    if inputs[0].shape[0] is not None:
        last, every = ops.scan(whole, [*carry, *extra], inputs, reverse=reverse)
    else:
        # Over several tensors of unknown length it fails; over the time steps' numbers it does not.
        def indexed(previous: list, t: Tensor) -> tuple[list, list]:
            return whole(previous, [ops.take(x, t, axis=0) for x in inputs])

        times = ops.arange(ops.shape(inputs[0])[0], dtype="int32")
        last, every = ops.scan(indexed, [*carry, *extra], times, reverse=reverse)
    return list(last[:count]), list(every[:count]), list(every[count:])


def unrolled(
    step: Callable, x: Tensor, states: list, output: Tensor, mask: Tensor | None, every: bool
) -> tuple[Tensor, Tensor | None, list]:
    """The loop as a Python loop; arguments as in `run`."""
    masks = [None] * x.shape[0] if mask is None else ops.unstack(mask)
    outputs = []
    for x_t, mask_t in zip(ops.unstack(x), masks, strict=True):
        output, states = masked_step(step, x_t, mask_t, states, output)
        if every:
            outputs.append(output)
    return output, ops.stack(outputs) if every else None, states


def masked_step(
    step: Callable, x: Tensor, mask: Tensor | None, states: list, output: Tensor
) -> tuple[Tensor, list]:
    """One step; where the mask is false the output and the states of the step before stay."""
    _running.append(step)
    try:
        new_output, new_states = step(x, states)
    finally:
        _running.pop()
    if mask is None:
        return new_output, new_states
    new_output, *new_states = select(mask, [new_output, *new_states], [output, *states])
    return new_output, new_states


def scanned(
    step: Callable, x: Tensor, states: list, output: Tensor, mask: Tensor | None, every: bool
) -> tuple[Tensor, Tensor | None, list]:
    """The loop as JAX's scan; arguments as in `run`."""

    def body(carry: tuple, inputs: tuple) -> tuple:
        new_output, new_states = masked_step(step, *inputs, *carry)
        return (new_states, new_output), new_output if every else None

    (states, output), outputs = ops.scan(body, (states, output), (x, mask))
    return output, outputs, states


def looped(
    step: Callable, x: Tensor, states: list, output: Tensor, mask: Tensor | None, every: bool
) -> tuple[Tensor, Tensor | None, list]:
    """The loop as TensorFlow's `while_loop`; arguments as in `run`."""
    steps = ops.shape(x)[0]
    outputs = ops.zeros((steps, *ops.shape(output)) if every else (0,), dtype=output.dtype)

    def body(t: Tensor, x: Tensor, output: Tensor, outputs: Tensor, *states: Tensor) -> tuple:
        x_t, x = read(x, t)
        mask_t = None if mask is None else ops.take(mask, t, axis=0)
        output, states = masked_step(step, x_t, mask_t, list(states), output)
        if every:
            outputs = write(outputs, t, output)
        return t + 1, x, output, outputs, *states

    start = ops.convert_to_tensor(0, dtype="int32")
    _, _, output, outputs, *states = ops.while_loop(
        lambda t, *_: t < steps, body, (start, x, output, outputs, *states), maximum_iterations=steps
    )
    return output, outputs if every else None, states


def run(
    step: Callable,
    x: Tensor,
    states: list[Tensor],
    output: Tensor,
    mask: Tensor | None = None,
    every: bool = True,
    unroll: bool = False,
) -> tuple[Tensor, Tensor | None, list[Tensor]]:
    """Applies a step to every row of a time-major sequence.

    Args:
        step: `step(x_t, states) -> (output, states)`; states are a list of tensors.
        x: `(time, batch, ...)`.
        states: the initial states.
        output: `(batch, ...)`, what stands for the output before the first unmasked step.
        mask: boolean `(time, batch)`; a false entry keeps the output and states of the step before.
        every: whether all outputs are wanted, or the last alone.
        unroll: whether to write the loop out step by step; needs a known length.

    Returns:
        `(last output, outputs (time, batch, ...) or None, last states)`.
    """
    backend = keras.backend.backend()
    if unroll or backend == "torch":
        return unrolled(step, x, states, output, mask, every)
    return (scanned if backend == "jax" else looped)(step, x, states, output, mask, every)
