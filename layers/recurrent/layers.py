"""The layers: a cell run over a whole sequence."""

import inspect
from typing import Any

import keras
from keras import ops

from layers.recurrent import bptt, loop
from layers.recurrent.cells import (
    GatedCell,
    GRUCell,
    LSTMCell,
    PeepholeLSTMCell,
    RecurrentCell,
    SimpleRNNCell,
    StackedRNNCells,
    call_cell,
    initial_state,
    output_size,
    passed_on,
    projected,
)

Tensor = Any

# The cells' own classes: a subclass may have changed the equations, so that it runs step by step as it says.
RULED = (SimpleRNNCell, LSTMCell, PeepholeLSTMCell, GRUCell)


def forwarded(name: str) -> property:
    """A read-only attribute of a layer that is an attribute of its cell."""
    return property(lambda layer: getattr(layer.cell, name), doc=f"The cell's `{name}`.")


def zeros_before_first(mask: Tensor, outputs: Tensor) -> Tensor:
    """Sets to zero what precedes the first unmasked step: `mask` is `(time, batch)`."""
    seen = ops.cumsum(ops.cast(mask, "int32"), axis=0) > 0
    return ops.where(loop.expand_to(seen, outputs), outputs, ops.zeros_like(outputs))


@keras.saving.register_keras_serializable(package="layers")
class RNN(keras.layers.Layer):
    """Runs a cell over a sequence: `y_t, s_t = cell(x_t, s_{t-1})`.

    Args:
        cell: an object with `call(inputs, states) -> (output, states)` and `state_size` (an integer, or a
            list of one a state); optionally `output_size` and `get_initial_state(batch_size)`. A list of
            cells is stacked.
        return_sequences: whether to return all outputs, or the last alone.
        return_state: whether to return the last states too.
        go_backwards: whether to run from the last step to the first; all outputs come in that order.
        stateful: whether a batch starts from the states that the batch before ended with; needs a fixed
            batch size. The states are part of `variables`, not of `weights`.
        unroll: whether to write the loop out step by step; needs a known length.
        zero_output_for_mask: whether masked steps give zeros, instead of the output before them.

    Call arguments:
        sequences: `(batch, time, ...)`.
        initial_state: list of states, `(batch, size)` each; zeros by default.
        mask: boolean `(batch, time)`; a false step keeps the states. Before the first true step the output
            is zero.
        training: passed to the cell.

    Returns:
        `(batch, units)`, or `(batch, time, units)` with `return_sequences`; with `return_state` a tuple of
        that and the last states.

    Raises:
        ValueError: if the cell lacks `call` or `state_size`; if unrolled over an unknown length; if
            stateful and the batch size is unknown or changes.
    """

    def __init__(
        self,
        cell: Any,
        return_sequences: bool = False,
        return_state: bool = False,
        go_backwards: bool = False,
        stateful: bool = False,
        unroll: bool = False,
        zero_output_for_mask: bool = False,
        **kwargs: Any,
    ) -> None:
        if isinstance(cell, (list, tuple)):
            cell = StackedRNNCells(cell)
        if "call" not in dir(cell):
            raise ValueError(f"Argument `cell` should have a `call` method. Received: cell={cell}")
        if "state_size" not in dir(cell):
            raise ValueError(
                "The RNN cell should have a `state_size` attribute (single integer or list of integers, "
                f"one integer per RNN state). Received: cell={cell}"
            )
        super().__init__(**kwargs)
        self.zero_output_for_mask = zero_output_for_mask
        self.cell = cell
        self.return_sequences = return_sequences
        self.return_state = return_state
        self.go_backwards = go_backwards
        self.stateful = stateful
        self.unroll = unroll
        self.supports_masking = True
        self.input_spec = None
        self._expected_batch_size = None
        self._keep_states(None)
        state_size = cell.state_size
        if state_size is None:
            raise ValueError("state_size must be specified as property on the RNN cell.")
        if not isinstance(state_size, (list, tuple, int)):
            raise ValueError(
                "state_size must be an integer, or a list/tuple of integers (one for each state tensor)."
            )
        self.single_state = isinstance(state_size, int)
        self.state_size = [state_size] if self.single_state else list(state_size)

    def _keep_states(self, states: list | None) -> None:
        # Past Keras' tracking, which would make weights of them and save them with the model.
        object.__setattr__(self, "states", states)

    @property
    def variables(self) -> list:
        """The layer's variables and, if it is stateful, its states: a compiled step must carry them on."""
        return [*super().variables, *keras.tree.flatten(self.states or [])]

    def compute_output_shape(self, sequences_shape: tuple, initial_state_shape: Any = None) -> Any:
        """The shape of the output or, with `return_state`, a tuple of it and the states' shapes."""
        batch, length = sequences_shape[0], sequences_shape[1]
        size = output_size(self.cell)
        if not isinstance(size, int):
            raise ValueError("output_size must be an integer.")
        output = (batch, length, size) if self.return_sequences else (batch, size)
        if not self.return_state:
            return output
        states = [
            (batch, size) if isinstance(size, int) else [(batch, s) for s in size] for size in self.state_size
        ]
        return output, *states

    def compute_mask(self, _: Any, mask: Any) -> Any:
        """The input's mask goes on with all outputs; the last output and the states have none."""
        mask = keras.tree.flatten(mask)[0]
        output_mask = mask if self.return_sequences else None
        return [output_mask, *(None for _ in self.state_size)] if self.return_state else output_mask

    def build(self, sequences_shape: tuple, initial_state_shape: Any = None) -> None:
        """Builds the cell and, if the layer is stateful, the state variables."""
        if isinstance(self.cell, keras.layers.Layer) and not self.cell.built:
            self.cell.build((sequences_shape[0], *sequences_shape[2:]))
            self.cell.built = True
        if not self.stateful:
            return
        if self.states is not None:
            self.reset_state()
            return
        if sequences_shape[0] is None:
            raise ValueError(
                "When using `stateful=True` in a RNN, the batch size must be static. "
                f"Found dynamic batch size: sequence.shape={sequences_shape}"
            )
        self._expected_batch_size = sequences_shape[0]
        with keras.name_scope(self.name):
            self._keep_states(
                keras.tree.map_structure(
                    lambda value: keras.Variable(
                        value, trainable=False, dtype=self.variable_dtype, name="rnn_state"
                    ),
                    self.get_initial_state(sequences_shape[0]),
                )
            )

    def get_initial_state(self, batch_size: Any) -> list:
        """The cell's initial states, in a list."""
        if not getattr(self.cell, "get_initial_state", None):
            dtype = getattr(self.cell, "compute_dtype", self.compute_dtype)
            return [ops.zeros((batch_size, size), dtype=dtype) for size in self.state_size]
        state = initial_state(self.cell, batch_size, self.compute_dtype)
        return list(state) if keras.tree.is_nested(state) else [state]

    def reset_states(self) -> None:
        """The same as `reset_state`."""
        self.reset_state()

    def reset_state(self) -> None:
        """Sets the states of a stateful layer to zero."""
        for state in keras.tree.flatten(self.states or []):
            state.assign(ops.zeros_like(state.value))

    def call(
        self, sequences: Tensor, initial_state: Any = None, mask: Any = None, training: bool = False
    ) -> Any:
        """Runs the cell over the sequence; see the class."""
        if self.unroll and sequences.shape[1] is None:
            raise ValueError(
                "Cannot unroll a RNN if the time dimension is undefined. \n"
                "- If using a Sequential model, specify the time dimension by passing an `Input()` as your "
                "first layer.\n- If using the functional API, specify the time dimension by passing a "
                "`shape` or `batch_shape` argument to your `Input()`."
            )
        expected, received = self._expected_batch_size, sequences.shape[0]
        if self.stateful and None not in (expected, received) and expected != received:
            raise ValueError(
                "If an RNN is stateful, the batch size of the input sequences must be the same as the batch "
                f"size of the initial state. \n- Expected batch size: {expected}\n"
                f"- Received batch size: {received}"
            )
        if initial_state is None:
            initial_state = self.states if self.stateful else self.get_initial_state(ops.shape(sequences)[0])
        initial_state = list(initial_state) if keras.tree.is_nested(initial_state) else [initial_state]
        dtype = getattr(self.cell, "compute_dtype", self.compute_dtype)
        initial_state = keras.tree.map_structure(
            lambda x: ops.convert_to_tensor(x, dtype=dtype), initial_state
        )
        if self.stateful:
            # A copy, because the variables are assigned to below, which PyTorch does in place.
            initial_state = keras.tree.map_structure(ops.copy, initial_state)
        # Masks are drawn here, outside the loop: inside it they could not outlive one step.
        self._draw_dropout_masks(self.cell, sequences[:, 0], initial_state)
        last_output, outputs, states = self.inner_loop(sequences, initial_state, mask, training)
        self._forget_dropout_masks(self.cell)

        states = keras.tree.map_structure(lambda x: ops.cast(x, self.compute_dtype), states)
        if self.stateful:
            for variable, value in zip(
                keras.tree.flatten(self.states), keras.tree.flatten(states), strict=True
            ):
                variable.assign(value)
        output = ops.cast(outputs if self.return_sequences else last_output, self.compute_dtype)
        return (output, *states) if self.return_state else output

    def inner_loop(
        self, sequences: Tensor, initial_state: list, mask: Tensor | None, training: bool = False
    ) -> tuple[Tensor, Tensor | None, list]:
        """The loop over time.

        Args:
            sequences: `(batch, time, ...)`.
            initial_state: list of states.
            mask: boolean `(batch, time)` or None.
            training: passed to the cell.

        Returns:
            `(last output, outputs (batch, time, ...) or None without return_sequences, last states)`.
        """
        if keras.tree.is_nested(mask):
            mask = mask[0]
        x = loop.time_major(sequences)  # (T, B, ...)
        if mask is not None:
            mask = ops.transpose(ops.cast(mask, "bool"))  # (T, B)
        if self.go_backwards:
            x = ops.flip(x, axis=0)
            mask = None if mask is None else ops.flip(mask, axis=0)

        rule = self._rule(training)
        if rule is not None:
            last_output, outputs, states = self._by_rule(rule, x, initial_state, mask, training)
        else:
            last_output, outputs, states = self._step_by_step(x, initial_state, mask, training)
        if mask is not None and self.zero_output_for_mask:
            last_output = ops.where(loop.expand_to(mask[-1], last_output), last_output, 0)
            if outputs is not None:
                outputs = ops.where(loop.expand_to(mask, outputs), outputs, 0)
        return last_output, None if outputs is None else loop.time_major(outputs), states

    def _rule(self, training: bool) -> bptt.Rule | None:
        """The derivative by hand, where it holds and pays: PyTorch's eager loop differentiates itself."""
        cell = self.cell
        if keras.backend.backend() == "torch" or self.unroll or type(cell) not in RULED:
            return None
        dropped = cell.recurrent_dropout or (cell.dropout and cell.gates > 1 and cell.implementation == 1)
        return None if training and dropped else cell.rule()

    def _by_rule(
        self, rule: bptt.Rule, x: Tensor, states: list, mask: Tensor | None, training: bool
    ) -> tuple[Tensor, Tensor | None, list]:
        x = ops.cast(x, self.cell.compute_dtype)
        dropped, _ = self.cell.dropout_masks(x[0], states, training)
        if dropped is not None:
            x = x * dropped
        outputs, states = bptt.run(rule, x, states, self.cell.tensors(), mask, self.return_sequences)
        last_output = states[0]
        if mask is not None:
            last_output = zeros_before_first(mask, outputs if self.return_sequences else last_output[None])[
                -1
            ]
            outputs = zeros_before_first(mask, outputs) if self.return_sequences else None
        return last_output, outputs, states

    def _step_by_step(
        self, x: Tensor, initial_state: list, mask: Tensor | None, training: bool
    ) -> tuple[Tensor, Tensor | None, list]:
        cell = self.cell
        size = output_size(cell)
        dtype = getattr(cell, "compute_dtype", self.compute_dtype)
        first_output = ops.zeros((ops.shape(x)[1], size), dtype=dtype)

        if isinstance(cell, RecurrentCell) and type(cell).call in (RecurrentCell.call, SimpleRNNCell.call):
            x = ops.cast(x, dtype)
            weights = cell.weights_of_step()
            masks = cell.dropout_masks(x[0], initial_state, training)
            if keras.backend.backend() == "torch" and type(cell) in RULED and masks[0] is None:
                x, weights = projected(x, weights)  # the others make one program of a step

            def step(x: Tensor, states: list) -> tuple[Tensor, list]:
                return cell.step(x, states, weights, *masks)
        else:

            def step(x: Tensor, states: list) -> tuple[Tensor, list]:
                structured = keras.tree.pack_sequence_as(initial_state, states)
                output, new = call_cell(cell, x, structured, training)
                return output, keras.tree.flatten(new)

        states = keras.tree.flatten(initial_state)
        if keras.backend.backend() == "jax" and isinstance(cell, keras.layers.Layer) and not self.unroll:
            # What a cell assigns inside the scan (a dropout layer's seed) must not leave it.
            with keras.StatelessScope([(v, v.value) for v in cell.variables]):
                results = loop.run(step, x, states, first_output, mask, self.return_sequences)
        else:
            results = loop.run(step, x, states, first_output, mask, self.return_sequences, self.unroll)
        last_output, outputs, states = results
        return last_output, outputs, keras.tree.pack_sequence_as(initial_state, states)

    def _draw_dropout_masks(self, cell: Any, inputs: Tensor, state: Any) -> None:
        if hasattr(cell, "get_dropout_mask"):
            cell.get_dropout_mask(inputs)
            cell.get_recurrent_dropout_mask(state[0] if isinstance(state, (list, tuple)) else state)
        if isinstance(cell, (StackedRNNCells, keras.layers.StackedRNNCells)):
            for one, its_state in zip(cell.cells, state, strict=False):
                self._draw_dropout_masks(one, inputs, its_state)
                its_state = list(its_state) if keras.tree.is_nested(its_state) else [its_state]
                inputs, _ = call_cell(one, inputs, its_state, training=False)

    def _forget_dropout_masks(self, cell: Any) -> None:
        if hasattr(cell, "reset_dropout_mask"):
            cell.reset_dropout_mask()
            cell.reset_recurrent_dropout_mask()
        for one in getattr(cell, "cells", ()):
            self._forget_dropout_masks(one)

    def get_config(self) -> dict:
        """Keras' keys."""
        return {
            **super().get_config(),
            "return_sequences": self.return_sequences,
            "return_state": self.return_state,
            "go_backwards": self.go_backwards,
            "stateful": self.stateful,
            "unroll": self.unroll,
            "zero_output_for_mask": self.zero_output_for_mask,
            "cell": keras.saving.serialize_keras_object(self.cell),
        }

    @classmethod
    def from_config(cls, config: dict, custom_objects: dict | None = None) -> "RNN":
        """The layer described by `get_config`."""
        config = dict(config)
        cell = keras.saving.deserialize_keras_object(config.pop("cell"), custom_objects=custom_objects)
        return cls(cell, **config)


class RNNOfOneCell(RNN):
    """What the layers with a cell of their own share: they make it, and show its attributes as theirs."""

    def __init__(self, make_cell: type, cell_name: str, arguments: dict) -> None:
        # What the cell's signature names is the cell's, and so is what both it and its layer take.
        names = set(inspect.signature(make_cell).parameters) - {"kwargs"}
        names |= {"dtype", "trainable"} | ({"implementation"} if issubclass(make_cell, GatedCell) else set())
        own = {name: value for name, value in arguments.items() if name in names}
        rest = {name: value for name, value in arguments.items() if name not in names}
        both = {name: arguments[name] for name in ("dtype", "trainable") if name in arguments}
        super().__init__(make_cell(**own, name=cell_name), **rest, **both)
        self.input_spec = keras.layers.InputSpec(ndim=3)

    units = forwarded("units")
    activation = forwarded("activation")
    use_bias = forwarded("use_bias")
    kernel_initializer = forwarded("kernel_initializer")
    recurrent_initializer = forwarded("recurrent_initializer")
    bias_initializer = forwarded("bias_initializer")
    kernel_regularizer = forwarded("kernel_regularizer")
    recurrent_regularizer = forwarded("recurrent_regularizer")
    bias_regularizer = forwarded("bias_regularizer")
    kernel_constraint = forwarded("kernel_constraint")
    recurrent_constraint = forwarded("recurrent_constraint")
    bias_constraint = forwarded("bias_constraint")
    dropout = forwarded("dropout")
    recurrent_dropout = forwarded("recurrent_dropout")

    def get_config(self) -> dict:
        """Keras' keys: the cell's stand among the layer's."""
        config = super().get_config()
        del config["cell"]
        inherited = keras.layers.Layer.get_config(self.cell)
        cell = {name: value for name, value in self.cell.get_config().items() if name not in inherited}
        regularizer = keras.regularizers.serialize(self.activity_regularizer)
        return {**config, **cell, "activity_regularizer": regularizer}

    @classmethod
    def from_config(cls, config: dict, custom_objects: dict | None = None) -> "RNNOfOneCell":
        """The layer described by `get_config`."""
        return cls(**config)


class GatedRNN(RNNOfOneCell):
    """What LSTM and GRU share beyond that: gates, and Keras' argument for choosing a cuDNN kernel."""

    def __init__(self, make_cell: type, cell_name: str, arguments: dict) -> None:
        use_cudnn = arguments.pop("use_cudnn")
        if use_cudnn not in ("auto", True, False):
            raise ValueError(
                "Invalid valid received for argument `use_cudnn`. Expected one of {'auto', True, False}. "
                f"Received: use_cudnn={use_cudnn}"
            )
        super().__init__(make_cell, cell_name, arguments)
        self.use_cudnn = use_cudnn

    recurrent_activation = forwarded("recurrent_activation")

    def inner_loop(
        self, sequences: Tensor, initial_state: list, mask: Tensor | None, training: bool = False
    ) -> tuple[Tensor, Tensor | None, list]:
        """The loop over time; there is no cuDNN kernel to insist on."""
        if self.use_cudnn is True:
            raise ValueError(
                "use_cudnn=True was specified, but cuDNN is not supported for this layer configuration with "
                "this backend. Pass use_cudnn='auto' to fallback to a non-cuDNN implementation."
            )
        return super().inner_loop(sequences, initial_state, mask, training)


@keras.saving.register_keras_serializable(package="layers")
class SimpleRNN(RNNOfOneCell):
    """A fully connected recurrent layer: `SimpleRNNCell` over a sequence.

        h_t = activation(x_t K + h_{t-1} R + b)

    Args:
        units: size of the state and of the output.
        activity_regularizer: of the layer's output.
        return_sequences, return_state, go_backwards, stateful, unroll, zero_output_for_mask: see `RNN`.

    All other arguments are those of `SimpleRNNCell`. The call arguments, the masking and what returns are
    those of `RNN`, with sequences of shape `(batch, time, features)` and the state `h`.

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
        activity_regularizer: Any = None,
        kernel_constraint: Any = None,
        recurrent_constraint: Any = None,
        bias_constraint: Any = None,
        dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        return_sequences: bool = False,
        return_state: bool = False,
        go_backwards: bool = False,
        stateful: bool = False,
        unroll: bool = False,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(SimpleRNNCell, "simple_rnn_cell", passed_on(locals()))
        self.input_spec = [keras.layers.InputSpec(ndim=3)]


@keras.saving.register_keras_serializable(package="layers")
class LSTM(GatedRNN):
    """Long short-term memory: `LSTMCell`, with its equations, over a sequence.

    Args:
        units: size of the state and of the output.
        activity_regularizer: of the layer's output.
        return_sequences, return_state, go_backwards, stateful, unroll, zero_output_for_mask: see `RNN`.
        use_cudnn: accepted for the sake of Keras' signature: "auto" and False are the same here, where no
            cuDNN kernel is called, and True is refused on the first call.

    All other arguments are those of `LSTMCell`. The call arguments, the masking and what returns are
    those of `RNN`, with sequences of shape `(batch, time, features)` and the states `h, c`.

    Reference: Hochreiter and Schmidhuber, Long short-term memory, 1997.
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
        activity_regularizer: Any = None,
        kernel_constraint: Any = None,
        recurrent_constraint: Any = None,
        bias_constraint: Any = None,
        dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        seed: int | None = None,
        return_sequences: bool = False,
        return_state: bool = False,
        go_backwards: bool = False,
        stateful: bool = False,
        unroll: bool = False,
        use_cudnn: Any = "auto",
        **kwargs: Any,
    ) -> None:
        super().__init__(LSTMCell, "lstm_cell", passed_on(locals()))

    unit_forget_bias = forwarded("unit_forget_bias")


@keras.saving.register_keras_serializable(package="layers")
class PeepholeLSTM(GatedRNN):
    """An LSTM whose gates see the cell: `PeepholeLSTMCell`, with its equations, over a sequence.

    Args:
        units: size of the state and of the output.
        activity_regularizer: of the layer's output.
        return_sequences, return_state, go_backwards, stateful, unroll, zero_output_for_mask: see `RNN`.
        use_cudnn: accepted for the sake of Keras' signature: "auto" and False are the same here, where no
            cuDNN kernel is called, and True is refused on the first call.

    All other arguments are those of `PeepholeLSTMCell`. The call arguments, the masking and what returns are
    those of `RNN`, with sequences of shape `(batch, time, features)` and the states `h, c`.

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
        activity_regularizer: Any = None,
        kernel_constraint: Any = None,
        recurrent_constraint: Any = None,
        bias_constraint: Any = None,
        dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        seed: int | None = None,
        return_sequences: bool = False,
        return_state: bool = False,
        go_backwards: bool = False,
        stateful: bool = False,
        unroll: bool = False,
        use_cudnn: Any = "auto",
        peephole_initializer: Any = "glorot_uniform",
        peephole_regularizer: Any = None,
        peephole_constraint: Any = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(PeepholeLSTMCell, "peephole_lstm_cell", passed_on(locals()))

    unit_forget_bias = forwarded("unit_forget_bias")
    peephole_initializer = forwarded("peephole_initializer")
    peephole_regularizer = forwarded("peephole_regularizer")
    peephole_constraint = forwarded("peephole_constraint")


@keras.saving.register_keras_serializable(package="layers")
class GRU(GatedRNN):
    """Gated recurrent units: `GRUCell`, with its equations, over a sequence.

    Args:
        units: size of the state and of the output.
        activity_regularizer: of the layer's output.
        return_sequences, return_state, go_backwards, stateful, unroll, zero_output_for_mask: see `RNN`.
        use_cudnn: accepted for the sake of Keras' signature: "auto" and False are the same here, where no
            cuDNN kernel is called, and True is refused on the first call.

    All other arguments are those of `GRUCell`. The call arguments, the masking and what returns are
    those of `RNN`, with sequences of shape `(batch, time, features)` and the state `h`.

    Reference: Cho et al., Learning phrase representations using RNN encoder-decoder, 2014.
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
        kernel_regularizer: Any = None,
        recurrent_regularizer: Any = None,
        bias_regularizer: Any = None,
        activity_regularizer: Any = None,
        kernel_constraint: Any = None,
        recurrent_constraint: Any = None,
        bias_constraint: Any = None,
        dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        seed: int | None = None,
        return_sequences: bool = False,
        return_state: bool = False,
        go_backwards: bool = False,
        stateful: bool = False,
        unroll: bool = False,
        reset_after: bool = True,
        use_cudnn: Any = "auto",
        **kwargs: Any,
    ) -> None:
        super().__init__(GRUCell, "gru_cell", passed_on(locals()))

    reset_after = forwarded("reset_after")
