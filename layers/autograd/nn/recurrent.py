"""Recurrent layers: one step applied along the time axis, the state handed on.

Gradients through time need no code here: the steps are recorded like any other operations. The backward pass
derived by hand is in `by_hand.recurrent`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from layers.autograd import ops
from layers.autograd.nn.module import Module, activation
from layers.autograd.tensor import Tensor, as_array, as_tensor


class _Recurrent(Module):
    """The loop over time that the three layers share; they differ in `gates`, `states` and `step`."""

    gates = 1
    states = 1

    def __init__(
        self,
        units: int,
        activation: Any = "tanh",
        use_bias: bool = True,
        return_sequences: bool = False,
        return_state: bool = False,
        rng: np.random.Generator | int | None = None,
        dtype: str = "float32",
    ) -> None:
        super().__init__(rng, dtype)
        self.units, self.activation, self.use_bias = units, activation, use_bias
        self.return_sequences, self.return_state = return_sequences, return_state
        self.kernel = self.recurrent_kernel = self.bias = None

    def build(self, input_shape: tuple[int, ...]) -> None:
        """Make the kernel of the input, the kernel of the state, and the bias."""
        width = self.gates * self.units
        self.kernel = self.add_weight("kernel", (input_shape[-1], width), "glorot_uniform")
        self.recurrent_kernel = self.add_weight("recurrent_kernel", (self.units, width), "orthogonal")
        if self.use_bias:
            self.bias = self.make_bias()

    def make_bias(self) -> Any:
        """The bias, one number a gate and unit."""
        return self.add_weight("bias", (self.gates * self.units,), "zeros")

    def step(self, x: Tensor, states: list[Tensor]) -> list[Tensor]:
        """The next states from an input (N, features) and the states (N, units); the first is the output."""
        raise NotImplementedError(f"{type(self).__name__} does not define step")

    def call(
        self,
        x: Tensor,
        mask: Any = None,
        initial_state: Any = None,
        training: bool = False,
    ) -> Any:
        """Run along time.

        Args:
            x: (N, T, features).
            mask: Boolean (N, T); a step that is False leaves the state as it was.
            initial_state: tensor or list of tensors (N, units); zeros by default.
            training: accepted for uniformity.
        """
        if x.ndim != 3 or x.shape[2] != self.kernel.shape[0]:
            raise ValueError(
                f"{type(self).__name__}: expected (N, T, {self.kernel.shape[0]}), got shape {x.shape}"
            )
        if initial_state is None:
            states = [Tensor(np.zeros((x.shape[0], self.units), self.dtype)) for _ in range(self.states)]
        else:
            given = initial_state if isinstance(initial_state, (list, tuple)) else [initial_state]
            states = [as_tensor(s) for s in given]
        valid = None if mask is None else as_array(mask).astype(bool)
        outputs = []
        for t in range(x.shape[1]):
            after = self.step(x[:, t], states)
            if valid is not None:
                column = valid[:, t, None]
                after = [ops.where(column, new, old) for new, old in zip(after, states, strict=True)]
            states = after
            outputs.append(states[0])
        result = ops.stack(outputs, axis=1) if self.return_sequences else outputs[-1]
        return [result, *states] if self.return_state else result


class SimpleRNN(_Recurrent):
    """h_t = tanh(x_t W + h_{t-1} U + b).

    Args:
        units: length of the state.
        activation: name or function.
        use_bias: add b.
        return_sequences: return all states instead of the last.
        return_state: return the last state as well.
        rng: random generator or seed.
        dtype: type of the weights.

    Call arguments:
        x: (N, T, features).
        mask: Boolean (N, T), False for padding.
        initial_state: (N, units).

    Returns:
        (N, units), or (N, T, units) with `return_sequences`.

    Reference: Elman, "Finding Structure in Time", 1990.
    """

    def step(self, x: Tensor, states: list[Tensor]) -> list[Tensor]:
        """One step of the equation."""
        z = x @ self.kernel + states[0] @ self.recurrent_kernel
        return [activation(self.activation)(z if self.bias is None else z + self.bias)]


class LSTM(_Recurrent):
    """Long short-term memory, four gates in the order i, f, c, o of Keras.

    i, f, o = sigmoid(x W + h U + b);  g = tanh(x W_c + h U_c + b_c);
    c_t = f c_{t-1} + i g;  h_t = o tanh(c_t).

    Args:
        units: length of the state.
        activation: of g and of c_t.
        use_bias: add b; the forget gate's starts at 1, so that the memory starts by keeping.
        return_sequences: return all h instead of the last.
        return_state: return the last h and c as well.
        rng: random generator or seed.
        dtype: type of the weights.

    Call arguments:
        x: (N, T, features).
        mask: Boolean (N, T), False for padding.
        initial_state: [h, c], each (N, units).

    Returns:
        (N, units), or (N, T, units) with `return_sequences`.

    Reference: Hochreiter and Schmidhuber, 1997; Gers et al., 2000, for the forget gate.
    """

    gates = 4
    states = 2

    def make_bias(self) -> Any:
        """Zeros, and ones for the forget gate."""
        bias = super().make_bias()
        bias.data[self.units : 2 * self.units] = 1
        return bias

    def step(self, x: Tensor, states: list[Tensor]) -> list[Tensor]:
        """One step of the equations."""
        h, c = states
        z = x @ self.kernel + h @ self.recurrent_kernel  # (N, 4 units)
        z = z if self.bias is None else z + self.bias
        i, f, g, o = (z[:, k * self.units : (k + 1) * self.units] for k in range(4))
        function = activation(self.activation)
        c = ops.sigmoid(f) * c + ops.sigmoid(i) * function(g)
        return [ops.sigmoid(o) * function(c), c]


class GRU(_Recurrent):
    """Gated recurrent unit, gates in the order z, r, h of Keras, the reset gate after the product (as cuDNN).

    z, r = sigmoid(x W + b + h U + d);  g = tanh(x W_h + b_h + r (h U_h + d_h));  h_t = z h_{t-1} + (1 - z) g.

    Args:
        units: length of the state.
        activation: of g.
        use_bias: add b and d, the two rows of the bias (2, 3 units).
        return_sequences: return all states instead of the last.
        return_state: return the last state as well.
        rng: random generator or seed.
        dtype: type of the weights.

    Call arguments:
        x: (N, T, features).
        mask: Boolean (N, T), False for padding.
        initial_state: (N, units).

    Returns:
        (N, units), or (N, T, units) with `return_sequences`.

    Reference: Cho et al., 2014.
    """

    gates = 3

    def make_bias(self) -> Any:
        """One row for the input and one for the state."""
        return self.add_weight("bias", (2, 3 * self.units), "zeros")

    def step(self, x: Tensor, states: list[Tensor]) -> list[Tensor]:
        """One step of the equations."""
        h = states[0]
        from_input, from_state = x @ self.kernel, h @ self.recurrent_kernel  # (N, 3 units) each
        if self.bias is not None:
            from_input, from_state = from_input + self.bias[0], from_state + self.bias[1]
        u = self.units
        gates = ops.sigmoid(from_input[:, : 2 * u] + from_state[:, : 2 * u])
        z, r = gates[:, :u], gates[:, u:]
        g = activation(self.activation)(from_input[:, 2 * u :] + r * from_state[:, 2 * u :])
        return [z * h + (1 - z) * g]
