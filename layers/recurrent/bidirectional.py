"""A sequence read in both directions."""

import copy
from typing import Any

import keras
from keras import ops

from layers.recurrent.cells import parameters

Tensor = Any

MERGE_MODES = ("sum", "mul", "ave", "concat", None)


def renamed(layer: keras.layers.Layer, prefix: str, **changes: Any) -> keras.layers.Layer:
    """A fresh layer from another's configuration, named after it, with some entries changed."""
    described = keras.saving.serialize_keras_object(layer)
    described["config"].update(changes, name=prefix + layer.name.removeprefix(prefix))
    return keras.saving.deserialize_keras_object(described)


@keras.saving.register_keras_serializable(package="layers")
class Bidirectional(keras.layers.Layer):
    """Runs one recurrent layer forwards and another backwards over a sequence, and merges their outputs.

    Args:
        layer: a recurrent layer, or any with `go_backwards`, `return_sequences`, `return_state`, `stateful`
            and `input_spec`. Fresh copies of it are made, without its weights.
        merge_mode: "concat", "sum", "mul", "ave" (the mean), or None: both outputs, unmerged.
        weights: accepted for the sake of Keras' signature: initial weights, forward then backward.
        backward_layer: the layer for the way back; by default a copy of `layer` with `go_backwards` set.

    Call arguments:
        sequences: `(batch, time, features)`.
        initial_state: the forward layer's states, then the backward layer's.
        mask: boolean `(batch, time)`. With `return_sequences` masked steps give zeros.
        training: passed on.

    Returns:
        The merged output, `(batch, [time,] units)`, twice as wide with "concat"; two outputs with None; and
        with `return_state` the states of both layers. Both outputs are in the order of the input.

    Raises:
        ValueError: if a layer is no layer, the merge mode is unknown, or the two layers do not match.

    Reference: Schuster and Paliwal, Bidirectional recurrent neural networks, 1997.
    """

    def __init__(
        self,
        layer: keras.layers.Layer,
        merge_mode: str | None = "concat",
        weights: list | None = None,
        backward_layer: keras.layers.Layer | None = None,
        **kwargs: Any,
    ) -> None:
        if not isinstance(layer, keras.layers.Layer):
            raise ValueError(
                "Please initialize `Bidirectional` layer with a `keras.layers.Layer` instance. "
                f"Received: {layer}"
            )
        if backward_layer is not None and not isinstance(backward_layer, keras.layers.Layer):
            raise ValueError(
                f"`backward_layer` need to be a `keras.layers.Layer` instance. Received: {backward_layer}"
            )
        if merge_mode not in MERGE_MODES:
            raise ValueError(
                f"Invalid merge mode. Received: {merge_mode}. Merge mode should be one of "
                '{"sum", "mul", "ave", "concat", None}'
            )
        super().__init__(**kwargs)
        self.forward_layer = renamed(layer, "forward_")
        self.backward_layer = backward_layer or renamed(layer, "backward_", go_backwards=True)
        self._check_match()
        for one in (self.forward_layer, self.backward_layer):
            if hasattr(layer, "use_cudnn"):
                one.use_cudnn = layer.use_cudnn
            if getattr(one, "zero_output_for_mask", None) is not None:
                one.zero_output_for_mask = one.return_sequences
        self.merge_mode = merge_mode
        if weights:
            half = len(weights) // 2
            self.forward_layer.initial_weights = weights[:half]
            self.backward_layer.initial_weights = weights[half:]
        self.stateful = layer.stateful
        self.return_sequences = layer.return_sequences
        self.return_state = layer.return_state
        self.supports_masking = True
        self.input_spec = layer.input_spec

    def _check_match(self) -> None:
        forward, backward = self.forward_layer, self.backward_layer
        if forward.go_backwards == backward.go_backwards:
            raise ValueError(
                "Forward layer and backward layer should have different `go_backwards` value. Received: "
                f"forward_layer.go_backwards {forward.go_backwards}, "
                f"backward_layer.go_backwards={backward.go_backwards}"
            )
        for name in ("stateful", "return_sequences", "return_state"):
            ahead, back = getattr(forward, name), getattr(backward, name)
            if ahead != back:
                raise ValueError(
                    "Forward layer and backward layer are expected to have the same value for attribute "
                    f'"{name}", got "{ahead}" for forward layer and "{back}" for backward layer'
                )

    def build(self, sequences_shape: tuple, initial_state_shape: Any = None) -> None:
        """Builds both layers."""
        for layer in (self.forward_layer, self.backward_layer):
            if not layer.built:
                layer.build(sequences_shape)

    def compute_output_shape(self, sequences_shape: tuple, initial_state_shape: Any = None) -> Any:
        """The merged output's shape, or a tuple of the outputs' and the states' shapes."""
        shape = self.forward_layer.compute_output_shape(sequences_shape)
        shape, states = (shape[0], tuple(shape[1:])) if self.return_state else (shape, ())
        if self.merge_mode is None:
            return shape, shape, *states, *states
        if self.merge_mode == "concat":
            shape = (*shape[:-1], 2 * shape[-1])
        return (shape, *states, *states) if self.return_state else tuple(shape)

    def call(
        self, sequences: Tensor, initial_state: Any = None, mask: Any = None, training: bool | None = None
    ) -> Any:
        """Runs both layers and merges; see the class."""
        forward_state = backward_state = None
        if initial_state is not None:
            half = len(initial_state) // 2
            forward_state, backward_state = initial_state[:half], initial_state[half:]
        accepted = parameters(type(self.forward_layer).call)
        passed = {"mask": mask, "training": training}
        passed = {name: value for name, value in passed.items() if name in accepted}
        results = [
            layer(sequences, initial_state=state, **passed)
            for layer, state in (
                (self.forward_layer, forward_state),
                (self.backward_layer, backward_state),
            )
        ]
        states = ()
        if self.return_state:
            states = (*results[0][1:], *results[1][1:])
            results = [result[0] for result in results]
        ahead, back = (ops.cast(result, self.compute_dtype) for result in results)  # (B, [T,] U)
        if self.return_sequences:
            back = ops.flip(back, axis=1)
        if self.merge_mode is None:
            return ahead, back, *states
        if self.merge_mode == "concat":
            merged = ops.concatenate([ahead, back], axis=-1)
        elif self.merge_mode == "mul":
            merged = ahead * back
        else:
            merged = ahead + back if self.merge_mode == "sum" else (ahead + back) / 2
        return (merged, *states) if self.return_state else merged

    def compute_mask(self, _: Any, mask: Any) -> Any:
        """The input's mask goes on with all outputs; last outputs and states have none."""
        if isinstance(mask, list):
            mask = mask[0]
        mask = mask if self.return_sequences else None
        outputs = (mask,) if self.merge_mode else (mask, mask)
        if self.return_state:
            return outputs + (None,) * (2 * len(self.forward_layer.state_size))
        return outputs if len(outputs) > 1 else mask

    def reset_states(self) -> None:
        """The same as `reset_state`."""
        self.reset_state()

    def reset_state(self) -> None:
        """Sets the states of both layers to zero.

        Raises:
            AttributeError: if the layer is not stateful.
        """
        if not self.stateful:
            raise AttributeError("Layer must be stateful.")
        self.forward_layer.reset_state()
        self.backward_layer.reset_state()

    @property
    def states(self) -> tuple | None:
        """The state variables of both layers, forward first; None if there are none."""
        if self.forward_layer.states and self.backward_layer.states:
            return (*self.forward_layer.states, *self.backward_layer.states)
        return None

    def get_config(self) -> dict:
        """Keras' keys."""
        return {
            **super().get_config(),
            "merge_mode": self.merge_mode,
            "layer": keras.saving.serialize_keras_object(self.forward_layer),
            "backward_layer": keras.saving.serialize_keras_object(self.backward_layer),
        }

    @classmethod
    def from_config(cls, config: dict, custom_objects: dict | None = None) -> "Bidirectional":
        """The layer described by `get_config`."""
        config = copy.deepcopy(config)
        for name in ("layer", "backward_layer"):
            if config.get(name) is not None:
                config[name] = keras.saving.deserialize_keras_object(
                    config[name], custom_objects=custom_objects
                )
        return cls(**config)
