"""The cells: what one recurrent layer does in one time step."""

import functools
import inspect
import operator
from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from layers.initializers import twin
from layers.products import matmul
from layers.recurrent import bptt

Tensor = Any


def passed_on(arguments: dict) -> dict:
    """The arguments of an `__init__`, taken from its `locals()`, ready for the parent's.

    Keras' signatures of recurrent objects have up to twenty-five entries; this way each stands once.
    """
    own = {name: value for name, value in arguments.items() if name not in ("self", "__class__", "kwargs")}
    return {**own, **arguments["kwargs"]}


def gated_matmul(x: Tensor, kernel: Tensor, masks: Any) -> Tensor:
    """`x @ kernel` with dropout masks on `x`: none, one, or one for each gate of the kernel.

    By the operator, as a loop comes here twice a step: on PyTorch, `ops.matmul` looks at its operands for
    ten times as long as the operator takes to begin.

    Args:
        x: `(batch, features)`.
        kernel: `(features, gates * units)`.
        masks: None, a tensor like `x`, or a list of them, one a gate.

    Returns:
        `(batch, gates * units)`.
    """
    if not isinstance(masks, list):
        return matmul(x if masks is None else x * masks, kernel, otherwise=operator.matmul)
    columns = ops.split(kernel, len(masks), axis=1)
    return ops.concatenate([x * mask @ column for mask, column in zip(masks, columns, strict=True)], axis=1)


def affine(x: Tensor, kernel: Tensor, bias: Tensor | None, masks: Any) -> Tensor:
    """`gated_matmul` plus a bias; without a kernel the inputs have been through both: see `projected`."""
    return x if kernel is None else gated_matmul(x, kernel, masks) + bias


def projected(x: Tensor, weights: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """The inputs' side of every step in one product.

    The bias is the last row of its kernel: an addition would go through all steps' memory once more.

    Args:
        x: `(time, batch, features)`.
        weights: of the step.

    Returns:
        `x K + b`, `(time, batch, gates * units)`, and the weights of a step that begins there.
    """
    kernel, recurrent_kernel, bias, *others = weights
    ones = ops.ones((*ops.shape(x)[:-1], 1), dtype=x.dtype)
    kernel = ops.concatenate([kernel, ops.expand_dims(bias, 0)], axis=0)
    return matmul(ops.concatenate([x, ones], axis=-1), kernel), [None, recurrent_kernel, None, *others]


def output_size(cell: Any) -> int:
    """A cell's `output_size`, or the size of its first state where it does not say."""
    size = getattr(cell, "output_size", None)
    if size is not None:
        return size
    return cell.state_size[0] if isinstance(cell.state_size, (list, tuple)) else cell.state_size


def initial_state(cell: Any, batch_size: Any, dtype: str) -> Any:
    """What a cell's `get_initial_state` gives, or zeros where it has none."""
    if getattr(cell, "get_initial_state", None):
        return cell.get_initial_state(batch_size=batch_size)
    if isinstance(cell.state_size, int):
        return ops.zeros((batch_size, cell.state_size), dtype=dtype)
    return [ops.zeros((batch_size, size), dtype=dtype) for size in cell.state_size]


@functools.cache
def parameters(function: Callable) -> frozenset[str]:
    """The names of a function's parameters."""
    return frozenset(inspect.signature(function).parameters)


def takes_training(cell: Any) -> bool:
    """Whether a cell is a layer whose `call` has a `training` argument."""
    return isinstance(cell, keras.layers.Layer) and "training" in parameters(type(cell).call)


def call_cell(cell: Any, inputs: Tensor, states: list, training: bool, **kwargs: Any) -> tuple[Tensor, Any]:
    """Calls a cell, a layer or any object with a `call`, with `training` where it takes it."""
    if takes_training(cell):
        kwargs["training"] = training
    return (cell if callable(cell) else cell.call)(inputs, states, **kwargs)


class RecurrentCell(keras.layers.Layer):
    """What the four cells share: arguments, the two kernels and the bias, and dropout masks.

    A subclass gives `gates` (columns of the kernels, in units), `step`, and `rule`, its derivative by hand.
    """

    gates = 1

    def __init__(
        self,
        units: int,
        activation: Any,
        use_bias: bool,
        kernel_initializer: Any,
        recurrent_initializer: Any,
        bias_initializer: Any,
        kernel_regularizer: Any,
        recurrent_regularizer: Any,
        bias_regularizer: Any,
        kernel_constraint: Any,
        recurrent_constraint: Any,
        bias_constraint: Any,
        dropout: float,
        recurrent_dropout: float,
        seed: int | None,
        **kwargs: Any,
    ) -> None:
        if units <= 0:
            raise ValueError(
                f"Received an invalid value for argument `units`, expected a positive integer, got {units}."
            )
        super().__init__(**kwargs)
        self.units = units
        self.activation = keras.activations.get(activation)
        self.use_bias = use_bias
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.recurrent_initializer = keras.initializers.get(recurrent_initializer)
        self.bias_initializer = keras.initializers.get(bias_initializer)
        self.kernel_regularizer = keras.regularizers.get(kernel_regularizer)
        self.recurrent_regularizer = keras.regularizers.get(recurrent_regularizer)
        self.bias_regularizer = keras.regularizers.get(bias_regularizer)
        self.kernel_constraint = keras.constraints.get(kernel_constraint)
        self.recurrent_constraint = keras.constraints.get(recurrent_constraint)
        self.bias_constraint = keras.constraints.get(bias_constraint)
        self.dropout = min(1.0, max(0.0, dropout))
        self.recurrent_dropout = min(1.0, max(0.0, recurrent_dropout))
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)
        self.state_size = units
        self.output_size = units
        self._dropout_mask = None
        self._recurrent_dropout_mask = None

    def build(self, input_shape: tuple) -> None:
        """Makes `kernel`, `recurrent_kernel` and `bias` for inputs of shape `(batch, features)`."""
        columns = self.gates * self.units
        self.kernel = self.add_weight(
            shape=(input_shape[-1], columns),
            name="kernel",
            initializer=twin(self.kernel_initializer),
            regularizer=self.kernel_regularizer,
            constraint=self.kernel_constraint,
        )
        self.recurrent_kernel = self.add_weight(
            shape=(self.units, columns),
            name="recurrent_kernel",
            initializer=twin(self.recurrent_initializer),
            regularizer=self.recurrent_regularizer,
            constraint=self.recurrent_constraint,
        )
        self.bias = None
        if self.use_bias:
            self.bias = self.add_weight(
                shape=self._bias_shape(),
                name="bias",
                initializer=self._initial_bias(),
                regularizer=self.bias_regularizer,
                constraint=self.bias_constraint,
            )

    def _bias_shape(self) -> tuple:
        return (self.gates * self.units,)

    def _initial_bias(self) -> Any:
        return self.bias_initializer

    def tensors(self) -> list[Tensor]:
        """The weights as tensors of the compute dtype, a bias of zeros where there is none.

        A loop takes them once; reading a variable at every step would cast it at every step.
        """
        bias = ops.zeros(self._bias_shape()) if self.bias is None else self.bias
        return [
            ops.cast(ops.convert_to_tensor(weight), self.compute_dtype)
            for weight in (self.kernel, self.recurrent_kernel, bias)
        ]

    def weights_of_step(self) -> list[Tensor]:
        """`tensors` as a step takes them: both kernels, a bias `(gates * units,)`, and what the cell adds."""
        return self.tensors()

    def rule(self) -> bptt.Rule | None:
        """Backpropagation through time by hand, where the activations are those the rule knows."""
        return None

    def standard_activations(self) -> bool:
        """Whether the activation is tanh."""
        return self.activation is keras.activations.tanh

    def step(
        self,
        inputs: Tensor,
        states: list[Tensor],
        weights: list[Tensor],
        dropped: Any,
        recurrent_dropped: Any,
    ) -> tuple[Tensor, list[Tensor]]:
        """One time step as a pure function.

        Args:
            inputs: `(batch, features)`.
            states: the previous states, `(batch, units)` each.
            weights: what `weights_of_step` returns, or `projected`.
            dropped: the inputs' dropout masks as `gated_matmul` takes them.
            recurrent_dropped: those of the recurrent state.

        Returns:
            `(output (batch, units), [new states])`.
        """
        raise NotImplementedError

    def call(self, inputs: Tensor, states: Any, training: bool = False) -> tuple[Tensor, Any]:
        """One time step; a state that comes bare, not in a list, returns bare."""
        nested = keras.tree.is_nested(states)
        previous = list(states) if nested else [states]
        inputs = ops.cast(inputs, self.compute_dtype)  # integers too
        masks = self.dropout_masks(inputs, previous, training)
        output, new = self.step(inputs, previous, self.weights_of_step(), *masks)
        return output, new if nested else new[0]

    def get_initial_state(self, batch_size: int | None = None) -> list[Tensor]:
        """Zeros of shape `(batch_size, units)` for each state."""
        sizes = self.state_size if isinstance(self.state_size, list) else [self.state_size]
        return [ops.zeros((batch_size, size), dtype=self.compute_dtype) for size in sizes]

    def dropout_masks(self, inputs: Tensor, states: list[Tensor], training: bool) -> tuple:
        """The masks of inputs and recurrent state in use, None where nothing is dropped."""
        return (
            self.get_dropout_mask(inputs) if training and 0 < self.dropout < 1 else None,
            self.get_recurrent_dropout_mask(states[0])
            if training and 0 < self.recurrent_dropout < 1
            else None,
        )

    def _draw_masks(self, like: Tensor, rate: float) -> Any:
        return keras.random.dropout(ops.ones_like(like), rate, seed=self.seed_generator)

    def get_dropout_mask(self, step_input: Tensor) -> Any:
        """The inputs' masks, drawn once and kept, so that all time steps share them, until reset."""
        if self._dropout_mask is None and self.dropout > 0:
            self._dropout_mask = self._draw_masks(step_input, self.dropout)
        return self._dropout_mask

    def get_recurrent_dropout_mask(self, step_input: Tensor) -> Any:
        """The recurrent state's masks, drawn once and kept until reset."""
        if self._recurrent_dropout_mask is None and self.recurrent_dropout > 0:
            self._recurrent_dropout_mask = self._draw_masks(step_input, self.recurrent_dropout)
        return self._recurrent_dropout_mask

    def reset_dropout_mask(self) -> None:
        """Forgets the inputs' masks; a layer does so after every sequence."""
        self._dropout_mask = None

    def reset_recurrent_dropout_mask(self) -> None:
        """Forgets the recurrent state's masks."""
        self._recurrent_dropout_mask = None

    def get_config(self) -> dict:
        """Keras' keys."""
        return {
            **super().get_config(),
            "units": self.units,
            "activation": keras.activations.serialize(self.activation),
            "use_bias": self.use_bias,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "recurrent_initializer": keras.initializers.serialize(self.recurrent_initializer),
            "bias_initializer": keras.initializers.serialize(self.bias_initializer),
            "kernel_regularizer": keras.regularizers.serialize(self.kernel_regularizer),
            "recurrent_regularizer": keras.regularizers.serialize(self.recurrent_regularizer),
            "bias_regularizer": keras.regularizers.serialize(self.bias_regularizer),
            "kernel_constraint": keras.constraints.serialize(self.kernel_constraint),
            "recurrent_constraint": keras.constraints.serialize(self.recurrent_constraint),
            "bias_constraint": keras.constraints.serialize(self.bias_constraint),
            "dropout": self.dropout,
            "recurrent_dropout": self.recurrent_dropout,
            "seed": self.seed,
        }


@keras.saving.register_keras_serializable(package="layers")
class SimpleRNNCell(RecurrentCell):
    """One step of a fully connected recurrent network: `h = activation(x K + h' R + b)`.

    Args:
        units: size of the state.
        activation: a function or its name; None is the identity.
        use_bias: whether there is a `b`.
        kernel_initializer, recurrent_initializer, bias_initializer: of `K`, `R`, `b`; likewise the
            regularizers and constraints.
        dropout: fraction of the inputs to drop, the same ones at every time step.
        recurrent_dropout: fraction of `h'` to drop, likewise.
        seed: of the dropout masks.

    Call arguments:
        inputs: `(batch, features)`.
        states: `[h']`, or `h'` alone: `(batch, units)`.
        training: whether dropout is active.

    Returns:
        `(h, [h])`.

    Reference: Elman, Finding structure in time, 1990.
    """

    def __init__(
        self,
        units: int,
        activation: Any = "tanh",
        use_bias: bool = True,
        kernel_initializer: Any = "glorot_uniform",
        recurrent_initializer: Any = "orthogonal",
        bias_initializer: Any = "zeros",
        kernel_regularizer: Any = None,
        recurrent_regularizer: Any = None,
        bias_regularizer: Any = None,
        kernel_constraint: Any = None,
        recurrent_constraint: Any = None,
        bias_constraint: Any = None,
        dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**passed_on(locals()))

    def call(self, sequence: Tensor, states: Any, training: bool = False) -> tuple[Tensor, Any]:
        """One time step; Keras calls this cell's input `sequence`."""
        return super().call(sequence, states, training)

    def rule(self) -> bptt.Rule | None:
        """The derivative by hand, if the activation is tanh."""
        return bptt.SIMPLE if self.standard_activations() else None

    def step(
        self,
        inputs: Tensor,
        states: list[Tensor],
        weights: list[Tensor],
        dropped: Any,
        recurrent_dropped: Any,
    ) -> tuple[Tensor, list[Tensor]]:
        """See `RecurrentCell.step`."""
        kernel, recurrent_kernel, bias = weights
        h = affine(inputs, kernel, bias, dropped)
        h = self.activation(h + gated_matmul(states[0], recurrent_kernel, recurrent_dropped))  # (B, U)
        return h, [h]


class GatedCell(RecurrentCell):
    """What cells with gates add: the gates' activation, and whether each gate drops units by itself."""

    def __init__(self, *, recurrent_activation: Any, implementation: int = 2, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.recurrent_activation = keras.activations.get(recurrent_activation)
        # Implementation 1 drops inputs (and states) anew for every gate, 2 once for all gates.
        self.implementation = 1 if self.recurrent_dropout else implementation

    def standard_activations(self) -> bool:
        """Whether the activations are tanh and, for the gates, sigmoid."""
        return super().standard_activations() and self.recurrent_activation is keras.activations.sigmoid

    def _draw_masks(self, like: Tensor, rate: float) -> Any:
        if self.implementation != 1:
            return super()._draw_masks(like, rate)
        return [super(GatedCell, self)._draw_masks(like, rate) for _ in range(self.gates)]

    def get_config(self) -> dict:
        """Keras' keys."""
        activation = keras.activations.serialize(self.recurrent_activation)
        return {**super().get_config(), "recurrent_activation": activation}


@keras.saving.register_keras_serializable(package="layers")
class LSTMCell(GatedCell):
    """One step of long short-term memory.

        i = s(x K_i + h' R_i + b_i)      f = s(x K_f + h' R_f + b_f)      o = s(x K_o + h' R_o + b_o)
        c = f c' + i tanh(x K_c + h' R_c + b_c)                           h = o tanh(c)

    with `s` the recurrent activation; kernels hold the gates in the order i, f, c, o.

    Args:
        units: size of the two states.
        activation: of the candidate and the output, `tanh` above.
        recurrent_activation: of the gates, `s` above.
        use_bias: whether there are biases.
        kernel_initializer, recurrent_initializer, bias_initializer: of `K`, `R`, `b`; likewise the
            regularizers and constraints.
        unit_forget_bias: whether `b_f` starts at one (Jozefowicz et al., 2015).
        dropout: fraction of the inputs to drop, the same ones at every time step.
        recurrent_dropout: fraction of `h'` to drop, likewise.
        seed: of the dropout masks.
        implementation: keyword only; 1 drops other units for every gate, 2 (the default without
            recurrent dropout) the same for all.

    Call arguments:
        inputs: `(batch, features)`.
        states: `[h', c']`, each `(batch, units)`.
        training: whether dropout is active.

    Returns:
        `(h, [h, c])`.

    Reference: Hochreiter and Schmidhuber, Long short-term memory, 1997.
    """

    gates = 4

    def __init__(
        self,
        units: int,
        activation: Any = "tanh",
        recurrent_activation: Any = "sigmoid",
        use_bias: bool = True,
        kernel_initializer: Any = "glorot_uniform",
        recurrent_initializer: Any = "orthogonal",
        bias_initializer: Any = "zeros",
        unit_forget_bias: bool = True,
        kernel_regularizer: Any = None,
        recurrent_regularizer: Any = None,
        bias_regularizer: Any = None,
        kernel_constraint: Any = None,
        recurrent_constraint: Any = None,
        bias_constraint: Any = None,
        dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        arguments = passed_on(locals())
        unit_forget_bias = arguments.pop("unit_forget_bias")
        super().__init__(**arguments)
        self.unit_forget_bias = unit_forget_bias
        self.state_size = [units, units]

    def _initial_bias(self) -> Any:
        if not self.unit_forget_bias:
            return self.bias_initializer

        def forget_nothing(shape: tuple, *args: Any, **kwargs: Any) -> Tensor:
            first, rest = (self.units,), (2 * self.units,)
            ones = keras.initializers.get("ones")
            return ops.concatenate(
                [
                    self.bias_initializer(first, *args, **kwargs),
                    ones(first, *args, **kwargs),
                    self.bias_initializer(rest, *args, **kwargs),
                ]
            )

        return forget_nothing

    def rule(self) -> bptt.Rule | None:
        """The derivative by hand, if the activations are tanh and sigmoid."""
        return bptt.LSTM if self.standard_activations() else None

    def step(
        self,
        inputs: Tensor,
        states: list[Tensor],
        weights: list[Tensor],
        dropped: Any,
        recurrent_dropped: Any,
    ) -> tuple[Tensor, list[Tensor]]:
        """See `RecurrentCell.step`."""
        kernel, recurrent_kernel, bias, *peephole = weights
        h, c = states[0], states[1]
        z = affine(inputs, kernel, bias, dropped) + gated_matmul(h, recurrent_kernel, recurrent_dropped)
        z_i, z_f, z_c, z_o = ops.split(z, 4, axis=1)  # (B, U) each
        if peephole:
            z_i, z_f = z_i + c * peephole[0][0], z_f + c * peephole[0][1]
        i, f = self.recurrent_activation(z_i), self.recurrent_activation(z_f)
        c = f * c + i * self.activation(z_c)
        o = self.recurrent_activation(z_o + c * peephole[0][2] if peephole else z_o)
        h = o * self.activation(c)
        return h, [h, c]

    def get_config(self) -> dict:
        """Keras' keys."""
        return {**super().get_config(), "unit_forget_bias": self.unit_forget_bias}


@keras.saving.register_keras_serializable(package="layers")
class PeepholeLSTMCell(LSTMCell):
    """One step of an LSTM whose gates also see the cell, through weights of one number a unit.

        i = s(x K_i + h' R_i + p_i c' + b_i)          f = s(x K_f + h' R_f + p_f c' + b_f)
        c = f c' + i tanh(x K_c + h' R_c + b_c)       o = s(x K_o + h' R_o + p_o c + b_o)      h = o tanh(c)

    Args:
        peephole_initializer, peephole_regularizer, peephole_constraint: keyword only; of
            `peephole_kernel`, shape `(3, units)`, rows `p_i`, `p_f`, `p_o`: the last weight.

    All other arguments, the call arguments and what returns are those of `LSTMCell`.

    Reference: Gers, Schraudolph and Schmidhuber, Learning precise timing with LSTM recurrent networks, 2002.
    """

    def __init__(
        self,
        units: int,
        activation: Any = "tanh",
        recurrent_activation: Any = "sigmoid",
        use_bias: bool = True,
        kernel_initializer: Any = "glorot_uniform",
        recurrent_initializer: Any = "orthogonal",
        bias_initializer: Any = "zeros",
        unit_forget_bias: bool = True,
        kernel_regularizer: Any = None,
        recurrent_regularizer: Any = None,
        bias_regularizer: Any = None,
        kernel_constraint: Any = None,
        recurrent_constraint: Any = None,
        bias_constraint: Any = None,
        dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        seed: int | None = None,
        peephole_initializer: Any = "glorot_uniform",
        peephole_regularizer: Any = None,
        peephole_constraint: Any = None,
        **kwargs: Any,
    ) -> None:
        arguments = passed_on(locals())
        for name in ("peephole_initializer", "peephole_regularizer", "peephole_constraint"):
            del arguments[name]
        super().__init__(**arguments)
        self.peephole_initializer = keras.initializers.get(peephole_initializer)
        self.peephole_regularizer = keras.regularizers.get(peephole_regularizer)
        self.peephole_constraint = keras.constraints.get(peephole_constraint)

    def build(self, input_shape: tuple) -> None:
        """Makes the LSTM's weights and `peephole_kernel`."""
        super().build(input_shape)
        self.peephole_kernel = self.add_weight(
            shape=(3, self.units),
            name="peephole_kernel",
            initializer=twin(self.peephole_initializer),
            regularizer=self.peephole_regularizer,
            constraint=self.peephole_constraint,
        )

    def tensors(self) -> list[Tensor]:
        """The LSTM's weights and the peepholes."""
        peephole = ops.cast(ops.convert_to_tensor(self.peephole_kernel), self.compute_dtype)
        return [*super().tensors(), peephole]

    def rule(self) -> bptt.Rule | None:
        """The derivative by hand, if the activations are tanh and sigmoid."""
        return bptt.PEEPHOLE if self.standard_activations() else None

    def get_config(self) -> dict:
        """The LSTM's keys and those of the peepholes."""
        return {
            **super().get_config(),
            "peephole_initializer": keras.initializers.serialize(self.peephole_initializer),
            "peephole_regularizer": keras.regularizers.serialize(self.peephole_regularizer),
            "peephole_constraint": keras.constraints.serialize(self.peephole_constraint),
        }


@keras.saving.register_keras_serializable(package="layers")
class GRUCell(GatedCell):
    """One step of a gated recurrent unit.

        z = s(x K_z + h' R_z + b_z)                  r = s(x K_r + h' R_r + b_r)
        g = tanh(x K_h + b_h + r (h' R_h + b'_h))    with `reset_after`
        g = tanh(x K_h + b_h + (r h') R_h)           without
        h = z h' + (1 - z) g

    with `s` the recurrent activation; kernels hold the gates in the order z, r, h.

    Args:
        units: size of the state.
        activation: of the candidate, `tanh` above.
        recurrent_activation: of the gates, `s` above.
        use_bias: whether there are biases: `(2, 3 units)`, the input's and the recurrent side's, with
            `reset_after`; `(3 units,)` without.
        kernel_initializer, recurrent_initializer, bias_initializer: of `K`, `R`, `b`; likewise the
            regularizers and constraints.
        dropout: fraction of the inputs to drop, the same ones at every time step.
        recurrent_dropout: fraction of `h'` to drop, likewise.
        reset_after: whether the reset gate acts after the product (cuDNN's form), or before (the paper's).
        seed: of the dropout masks.
        implementation: keyword only; 1 drops other units for every gate, 2 (the default without
            recurrent dropout) the same for all.

    Call arguments:
        inputs: `(batch, features)`.
        states: `[h']`, or `h'` alone: `(batch, units)`.
        training: whether dropout is active.

    Returns:
        `(h, [h])`.

    Reference: Cho et al., Learning phrase representations using RNN encoder-decoder, 2014.
    """

    gates = 3

    def __init__(
        self,
        units: int,
        activation: Any = "tanh",
        recurrent_activation: Any = "sigmoid",
        use_bias: bool = True,
        kernel_initializer: Any = "glorot_uniform",
        recurrent_initializer: Any = "orthogonal",
        bias_initializer: Any = "zeros",
        kernel_regularizer: Any = None,
        recurrent_regularizer: Any = None,
        bias_regularizer: Any = None,
        kernel_constraint: Any = None,
        recurrent_constraint: Any = None,
        bias_constraint: Any = None,
        dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        reset_after: bool = True,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        arguments = passed_on(locals())
        reset_after = arguments.pop("reset_after")
        super().__init__(**arguments)
        self.reset_after = reset_after

    def _bias_shape(self) -> tuple:
        return (2, 3 * self.units) if self.reset_after else (3 * self.units,)

    def weights_of_step(self) -> list[Tensor]:
        """Both kernels, a bias `(3 * units,)`; if the reset gate comes after, a bias inside of it `(units,)`.

        For the two gates the biases of inputs and state are one: their sum.
        """
        kernel, recurrent_kernel, bias = self.tensors()
        if not self.reset_after:
            return [kernel, recurrent_kernel, bias]
        of_inputs, (of_gates, of_candidate) = bias[0], ops.split(bias[1], [2 * self.units])
        nothing = ops.zeros_like(of_candidate)
        bias = of_inputs + ops.concatenate([of_gates, nothing])
        return [kernel, recurrent_kernel, bias, of_candidate]

    def rule(self) -> bptt.Rule | None:
        """The derivative by hand, if the reset gate comes after and the activations are tanh and sigmoid."""
        return bptt.GRU if self.reset_after and self.standard_activations() else None

    def step(
        self,
        inputs: Tensor,
        states: list[Tensor],
        weights: list[Tensor],
        dropped: Any,
        recurrent_dropped: Any,
    ) -> tuple[Tensor, list[Tensor]]:
        """See `RecurrentCell.step`."""
        kernel, recurrent_kernel, bias, *candidate_bias = weights
        h = states[0]
        x_z, x_r, x_h = ops.split(affine(inputs, kernel, bias, dropped), 3, axis=1)  # (B, U) each
        if self.reset_after:
            inner = gated_matmul(h, recurrent_kernel, recurrent_dropped)  # (B, 3 U)
            h_z, h_r, h_h = ops.split(inner, 3, axis=1)
            z, r = self.recurrent_activation(x_z + h_z), self.recurrent_activation(x_r + h_r)
            g = self.activation(x_h + r * (h_h + candidate_bias[0]))
        else:
            by_gate = isinstance(recurrent_dropped, list)
            gate_kernel, candidate_kernel = ops.split(recurrent_kernel, [2 * self.units], axis=1)
            inner = gated_matmul(h, gate_kernel, recurrent_dropped[:2] if by_gate else None)  # (B, 2 U)
            h_z, h_r = ops.split(inner, 2, axis=1)
            z, r = self.recurrent_activation(x_z + h_z), self.recurrent_activation(x_r + h_r)
            kept = recurrent_dropped[2] if by_gate else None
            g = self.activation(x_h + gated_matmul(r * h, candidate_kernel, kept))
        h = g + z * (h - g)
        return h, [h]

    def get_config(self) -> dict:
        """Keras' keys."""
        return {**super().get_config(), "reset_after": self.reset_after}


@keras.saving.register_keras_serializable(package="layers")
class StackedRNNCells(keras.layers.Layer):
    """Several cells, each fed by the one before it, as one cell.

    Args:
        cells: a list of cells.

    Call arguments:
        inputs: `(batch, features)`.
        states: one entry a cell: its states, in a list if it has several.
        training: passed to the cells that take it.

    Returns:
        `(output of the last cell, new states)`.

    Raises:
        ValueError: if a cell has no `call` or no `state_size`.
    """

    def __init__(self, cells: list, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for cell in cells:
            if "call" not in dir(cell):
                raise ValueError(
                    f"All cells must have a `call` method. Received cell without a `call` method: {cell}"
                )
            if "state_size" not in dir(cell):
                raise ValueError(
                    "All cells must have a `state_size` attribute. "
                    f"Received cell without a `state_size`: {cell}"
                )
        self.cells = cells

    @property
    def state_size(self) -> list:
        """The cells' state sizes."""
        return [cell.state_size for cell in self.cells]

    @property
    def output_size(self) -> int:
        """The last cell's."""
        return output_size(self.cells[-1])

    def get_initial_state(self, batch_size: int | None = None) -> list:
        """One entry a cell: what its own `get_initial_state` gives, else zeros."""
        return [initial_state(cell, batch_size, self.compute_dtype) for cell in self.cells]

    def build(self, input_shape: tuple) -> None:
        """Builds each cell on the size of the output before it."""
        for cell in self.cells:
            if isinstance(cell, keras.layers.Layer) and not cell.built:
                cell.build(input_shape)
                cell.built = True
            input_shape = (keras.tree.flatten(input_shape)[0], output_size(cell))

    def call(self, inputs: Tensor, states: Any, training: bool = False, **kwargs: Any) -> tuple[Tensor, Any]:
        """One time step of every cell."""
        new_states = []
        for cell, previous in zip(self.cells, states, strict=False):
            nested = keras.tree.is_nested(previous)
            inputs, new = call_cell(
                cell, inputs, list(previous) if nested else [previous], training, **kwargs
            )
            new_states.append(new[0] if len(new) == 1 and not nested else new)
        return inputs, new_states[0] if len(new_states) == 1 else new_states

    def get_config(self) -> dict:
        """Keras' keys."""
        cells = [keras.saving.serialize_keras_object(cell) for cell in self.cells]
        return {**super().get_config(), "cells": cells}

    @classmethod
    def from_config(cls, config: dict, custom_objects: dict | None = None) -> "StackedRNNCells":
        """The stack described by `get_config`."""
        config = dict(config)
        cells = [
            keras.saving.deserialize_keras_object(cell, custom_objects=custom_objects)
            for cell in config.pop("cells")
        ]
        return cls(cells, **config)
