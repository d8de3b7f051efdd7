"""Backpropagation through time by hand, for the cells with the standard activations.

Automatic differentiation of the loop adds to the gradient of every weight at every step. The rules here
only carry the states' gradients backwards and keep that of the pre-activations; the weights' gradients
are then one matrix product each over the whole sequence:

    dK = sum_t x_t^T dz_t        dR = sum_t h_{t-1}^T dz_t        db = sum_t dz_t

One rule is three functions of plain tensors (B batch, T time, F features, U units):

    forward(x (B, F), states, weights) -> (new states, saved [(B, S), ...])
    backward(by new states, saved, states, new states, weights) -> (by states, dz [(B, S'), ...])
    by_weights(x (T, B, F), states (T, B, U), new states, dz [(T, B, S'), ...], weights) -> (dx, by weights)

What is used apart is kept apart: to join it and to split it again costs a pass over the whole sequence.

Only reverse-mode derivatives pass through (of any order, as the rules are ordinary arithmetic).

Reference: Werbos, Backpropagation through time: what it does and how to do it, 1990.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from keras import ops

from layers.recurrent.loop import cotangents, scan, select

Tensor = Any


class Rule(NamedTuple):
    """One cell's step, its derivative, and the gradients by its weights once the loop is over."""

    forward: Callable
    backward: Callable
    by_weights: Callable
    saved: tuple[int, ...]  # widths of `saved`, in units
    pre_activations: tuple[int, ...]  # widths of `dz`, in units


def outer(left: Tensor, right: Tensor) -> Tensor:
    """The sum over time and batch of outer products: `(T, B, M), (T, B, N) -> (M, N)`."""
    left = ops.reshape(left, (-1, left.shape[-1]))  # (T B, M)
    right = ops.reshape(right, (-1, right.shape[-1]))  # (T B, N)
    return ops.matmul(ops.transpose(left), right)


def total(x: Tensor) -> Tensor:
    """The sum over time and batch: `(T, B, N) -> (N,)`."""
    return ops.sum(x, axis=(0, 1))


def simple_forward(x: Tensor, states: list, weights: list) -> tuple[list, list]:
    """`h = tanh(x K + h' R + b)`."""
    kernel, recurrent, bias = weights
    h = ops.tanh(ops.matmul(x, kernel) + ops.matmul(states[0], recurrent) + bias)
    return [h], []


def simple_backward(by_new: list, saved: list, old: list, new: list, weights: list) -> tuple[list, list]:
    """`dz = dh (1 - h^2)`."""
    dz = by_new[0] * (1 - new[0] * new[0])
    return [ops.matmul(dz, ops.transpose(weights[1]))], [dz]


def simple_by_weights(x: Tensor, old: list, new: list, dz: list, weights: list) -> tuple[Tensor, list]:
    """The sums at the head of this module; also those of the LSTM without peepholes."""
    (dz,) = dz
    return ops.matmul(dz, ops.transpose(weights[0])), [outer(x, dz), outer(old[0], dz), total(dz)]


def lstm_forward(x: Tensor, states: list, weights: list) -> tuple[list, list]:
    """The equations of `LSTMCell`, of `PeepholeLSTMCell` given a fourth weight; saves the gates."""
    kernel, recurrent, bias, *peephole = weights
    h, c = states[0], states[1]
    z = ops.matmul(x, kernel) + ops.matmul(h, recurrent) + bias  # (B, 4 U)
    z_i, z_f, z_g, z_o = ops.split(z, 4, axis=1)
    if peephole:
        z_i, z_f = z_i + c * peephole[0][0], z_f + c * peephole[0][1]
    i, f, g = ops.sigmoid(z_i), ops.sigmoid(z_f), ops.tanh(z_g)
    c = f * c + i * g
    o = ops.sigmoid(z_o + c * peephole[0][2] if peephole else z_o)
    return [o * ops.tanh(c), c], [i, f, g, o]


def lstm_backward(by_new: list, saved: list, old: list, new: list, weights: list) -> tuple[list, list]:
    """The chain rule from `h = o tanh(c)` back to the four pre-activations."""
    dh, dc = by_new
    i, f, g, o = saved
    tanh_c = ops.tanh(new[1])
    peephole = weights[3:]
    dz_o = dh * tanh_c * o * (1 - o)
    dc = dc + dh * o * (1 - tanh_c * tanh_c)
    if peephole:
        dc = dc + dz_o * peephole[0][2]
    dz_i = dc * g * i * (1 - i)
    dz_f = dc * old[1] * f * (1 - f)
    dz = ops.concatenate([dz_i, dz_f, dc * i * (1 - g * g), dz_o], axis=1)  # (B, 4 U)
    dc = dc * f
    if peephole:
        dc = dc + dz_i * peephole[0][0] + dz_f * peephole[0][1]
    return [ops.matmul(dz, ops.transpose(weights[1])), dc], [dz]


def peephole_by_weights(x: Tensor, old: list, new: list, dz: list, weights: list) -> tuple[Tensor, list]:
    """The input and forget gates look at the cell before the step, the output gate at the one after."""
    dx, by_weights = simple_by_weights(x, old, new, dz, weights)
    dz_i, dz_f, _, dz_o = ops.split(dz[0], 4, axis=2)
    return dx, [*by_weights, ops.stack([total(dz_i * old[1]), total(dz_f * old[1]), total(dz_o * new[1])])]


def gru_forward(x: Tensor, states: list, weights: list) -> tuple[list, list]:
    """The equations of `GRUCell` with `reset_after`; saves gates, candidate and product."""
    kernel, recurrent, bias = weights
    x_z, x_r, x_h = ops.split(ops.matmul(x, kernel) + bias[0], 3, axis=1)
    h_z, h_r, h_h = ops.split(ops.matmul(states[0], recurrent) + bias[1], 3, axis=1)
    z, r = ops.sigmoid(x_z + h_z), ops.sigmoid(x_r + h_r)
    g = ops.tanh(x_h + r * h_h)
    return [z * states[0] + (1 - z) * g], [z, r, g, h_h]


def gru_backward(by_new: list, saved: list, old: list, new: list, weights: list) -> tuple[list, list]:
    """`dz` is the recurrent side's, z, r and candidate, and the candidate's input side, 1 / r times that."""
    (dh,) = by_new
    z, r, g, h_h = saved
    dz_g = dh * (1 - z) * (1 - g * g)
    dz_z = dh * (old[0] - g) * z * (1 - z)
    dz_r = dz_g * h_h * r * (1 - r)
    recurrent_side = ops.concatenate([dz_z, dz_r, dz_g * r], axis=1)  # (B, 3 U)
    dh = dh * z + ops.matmul(recurrent_side, ops.transpose(weights[1]))
    return [dh], [recurrent_side, dz_g]


def gru_by_weights(x: Tensor, old: list, new: list, dz: list, weights: list) -> tuple[Tensor, list]:
    """The input's and the recurrent kernel see different candidates' gradients."""
    recurrent_side, dz_g = dz
    input_side = ops.concatenate([recurrent_side[..., : 2 * dz_g.shape[-1]], dz_g], axis=2)  # (T, B, 3 U)
    by_bias = ops.stack([total(input_side), total(recurrent_side)])
    return (
        ops.matmul(input_side, ops.transpose(weights[0])),
        [outer(x, input_side), outer(old[0], recurrent_side), by_bias],
    )


SIMPLE = Rule(simple_forward, simple_backward, simple_by_weights, (), (1,))
LSTM = Rule(lstm_forward, lstm_backward, simple_by_weights, (1, 1, 1, 1), (4,))
PEEPHOLE = Rule(lstm_forward, lstm_backward, peephole_by_weights, (1, 1, 1, 1), (4,))
GRU = Rule(gru_forward, gru_backward, gru_by_weights, (1, 1, 1, 1), (3, 1))


def run(
    rule: Rule,
    x: Tensor,
    states: list[Tensor],
    weights: list[Tensor],
    mask: Tensor | None = None,
    every: bool = True,
) -> tuple[Tensor | None, list[Tensor]]:
    """Runs a rule over a time-major sequence, with the rule's own derivative as its gradient.

    Args:
        rule: the cell.
        x: `(T, B, F)`.
        states: initial states, `(B, U)` each.
        weights: in the rule's order.
        mask: boolean `(T, B)`; a false entry keeps the states.
        every: whether the first state is wanted at every step.

    Returns:
        `(first state at every step (T, B, U) or None, last states)`.
    """
    batch, units = ops.shape(x)[1], states[0].shape[-1]
    masks = [] if mask is None else [mask]

    def blank(widths: tuple[int, ...]) -> list[Tensor]:
        return [ops.zeros((batch, width * units), dtype=x.dtype) for width in widths]

    @ops.custom_gradient
    def through_time(*arguments: Tensor) -> tuple:
        x, *rest = arguments
        initial, weights = rest[: len(states)], rest[len(states) :]

        def forward_step(states: list, inputs: list) -> tuple[list, list]:
            new, saved = rule.forward(inputs[0], states, weights)
            return (select(inputs[1], new, states) if masks else new), saved

        last, new, saved = scan(forward_step, initial, [x, *masks], blank(rule.saved))

        def gradient(*arguments: Any, upstream: Any = None) -> tuple:
            by_every, by_last = [], cotangents(arguments, upstream)
            if every:
                by_every, by_last = by_last[:1], by_last[1:]
            old = [
                ops.concatenate([ops.expand_dims(first, 0), later[:-1]])
                for first, later in zip(initial, new, strict=True)
            ]

            def backward_step(by_new: list, inputs: list) -> tuple[list, list]:
                saved, inputs = inputs[: len(rule.saved)], inputs[len(rule.saved) :]
                old, inputs = inputs[: len(states)], inputs[len(states) :]
                new, inputs = inputs[: len(states)], inputs[len(states) :]
                if every:
                    by_new = [by_new[0] + inputs[0], *by_new[1:]]
                if not masks:
                    return rule.backward(by_new, saved, old, new, weights)
                kept = inputs[-1]
                zeros = [ops.zeros_like(d) for d in by_new]
                by_old, dz = rule.backward(select(kept, by_new, zeros), saved, old, new, weights)
                passed = select(kept, zeros, by_new)
                return [d + p for d, p in zip(by_old, passed, strict=True)], dz

            by_initial, _, dz = scan(
                backward_step,
                by_last,
                [*saved, *old, *new, *by_every, *masks],
                blank(rule.pre_activations),
                reverse=True,
            )
            by_x, by_weights = rule.by_weights(x, old, new, dz, weights)
            return (by_x, *by_initial, *by_weights)

        return ((new[0], *last) if every else tuple(last)), gradient

    results = list(through_time(x, *states, *weights))
    return (results[0], results[1:]) if every else (None, results)
