"""Looking inside a training run: what happens in every layer, every now and then.

For any Keras model, unchanged: one more forward and backward pass on the batch of the step, in training mode,
whose results are thrown away. For each layer:

    grad_norm/LAYER          norm of the loss' gradient by the layer's weights, and grad_norm/global
    weight_norm/LAYER        norm of its weights
    update_ratio/LAYER       norm of the last update divided by the norm of the weights
    activation_mean/LAYER    mean of its output, and activation_std/LAYER
    saturation/LAYER         share of outputs where a bounded activation is within 5 % of its bounds
    dead/LAYER               share of units that are 0 on the whole batch, after an activation that can be

All of them are metrics, and each kind is a heatmap over training (layer x step).
"""

from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
from keras import ops

from layers.recurrent import loop
from recipes import engine
from recipes.engine import gradients
from recipes.engine.data.batches import Batches
from recipes.engine.tracking import Run

BOUNDS = {"tanh": (-1.0, 1.0), "sigmoid": (0.0, 1.0), "softsign": (-1.0, 1.0), "hard_sigmoid": (0.0, 1.0)}
CAN_DIE = ("relu", "relu6", "hard_silu", "hard_swish")
NEAR = 0.025  # of the distance between the bounds, on either side
KINDS = {
    "grad_norm": "norm of the gradient",
    "weight_norm": "norm of the weights",
    "update_ratio": "update / weights",
    "activation_mean": "mean activation",
    "activation_std": "standard deviation of activations",
    "saturation": "share of saturated activations",
    "dead": "share of dead units",
}
LOGARITHMIC = ("grad_norm", "weight_norm", "update_ratio", "activation_std")


class Probe:
    """Looks every `every` optimizer steps, and draws what it saw at the end.

    Args:
        model: compiled and built: its loss is what is differentiated.
        run: where metrics and heatmaps go.
        batches: the training data.
        every: optimizer steps between looks.
    """

    def __init__(self, model: keras.Model, run: Run, batches: Batches, every: int) -> None:
        self.model = model
        self.run = run
        self.batches = batches
        self.every = every * batches.accumulate
        self.before: list[np.ndarray] = []
        self.look = looking(model)

    def after_step(self, done: int) -> None:
        """Remember the weights before the step that is looked at; then look. `done`: batches so far."""
        if (done + self.batches.accumulate) % self.every == 0:
            self.before = _arrays(self.model)
        elif done % self.every == 0:
            values = self.look(*self.batches[done - 1])
            if self.before:
                values |= _update_ratios(self.model, self.before)
            self.run.metrics(values, done // self.batches.accumulate)

    def finish(self) -> None:
        """Draw the heatmaps."""
        draw(self.run)


def looking(model: keras.Model) -> Callable[[np.ndarray, np.ndarray], dict[str, float]]:
    """A function that measures a compiled model on a batch and leaves it as it was.

    Args:
        model: compiled and built.

    Returns:
        `look(x, y)`: metrics by name.
    """
    layers_ = list(weighted(model))
    watched = [layer for layer in model._flatten_layers() if _is_inner(layer, model)]

    def step(x: Any, y: Any) -> tuple[dict, list]:
        def loss() -> tuple[Any, dict]:
            # Their values go in, but what becomes of them (batch statistics, seeds) stays here.
            scope = keras.StatelessScope([(v, v.value) for v in variables], collect_losses=True)
            with scope, outputs_of(watched) as seen:
                value = model.compute_loss(x=x, y=y, y_pred=model(x, training=True))
            return value, {id(layer): seen[id(layer)] for layer in watched if id(layer) in seen}

        (_, seen), slopes = gradients.by_variables(loss, model.trainable_variables, has_aux=True)
        summary = {
            layer.name: _activation_summary(layer, seen[id(layer)]) for layer in watched if id(layer) in seen
        }
        return summary, [ops.sum(ops.square(ops.cast(slope, "float32"))) for slope in slopes]

    variables = model.variables
    step = gradients.compiled_step(step, variables)
    places = {id(variable): index for index, variable in enumerate(model.trainable_variables)}

    def look(x: np.ndarray, y: np.ndarray) -> dict[str, float]:
        summary, squares = step(x, y)
        squares = [float(square) for square in squares]
        values = {}
        values["grad_norm/global"] = sum(squares) ** 0.5
        for layer in layers_:
            own = [squares[places[id(variable)]] for variable in layer.trainable_variables]
            values[f"grad_norm/{layer.name}"] = sum(own) ** 0.5
            values[f"weight_norm/{layer.name}"] = _norm(
                [ops.convert_to_numpy(variable) for variable in layer.trainable_variables]
            )
        for name, numbers in summary.items():
            values |= {f"{kind}/{name}": float(number) for kind, number in numbers.items()}
        return values

    return look


def weighted(model: keras.Model) -> Iterator[keras.Layer]:
    """The layers that hold trainable weights themselves, not only through layers within them."""
    for layer in model._flatten_layers():
        if layer._trainable_variables and layer.trainable:
            yield layer


class outputs_of:
    """Within, the outputs of layers are kept as they are called: a dict from a layer's `id`."""

    def __init__(self, layers_: list[keras.Layer]) -> None:
        self.layers = layers_
        self.calls: list[Callable | None] = []

    def __enter__(self) -> dict[int, Any]:
        seen = {}
        # What is seen is kept: a layer that is to compute its inside twice (`gradients.recompute`) does not.
        self.calls = [layer.__dict__.pop("call", None) for layer in self.layers]
        for layer in self.layers:
            layer.__dict__["call"] = self._keeping(layer.call, seen, id(layer))
        return seen

    def __exit__(self, *error: object) -> None:
        for layer, call in zip(self.layers, self.calls, strict=True):
            del layer.__dict__["call"]
            if call is not None:
                layer.__dict__["call"] = call

    @staticmethod
    def _keeping(call: Callable, seen: dict[int, Any], key: int) -> Callable:
        def kept(*arguments: Any, **named: Any) -> Any:
            outputs = call(*arguments, **named)
            if not loop.within():  # a layer that is only called in a loop over time has no activations here
                seen[key] = outputs
            return outputs

        return kept


def draw(run: Run) -> None:
    """Store the heatmaps of what a run's probes recorded."""
    for kind, title in KINDS.items():
        names = [name for name in run.history if name.startswith(f"{kind}/") and name != "grad_norm/global"]
        if not names:
            continue
        steps = sorted({step for name in names for step, _ in run.history[name]})
        table = np.full((len(names), len(steps)), np.nan)
        for row, name in enumerate(names):
            for step, value in run.history[name]:
                table[row, steps.index(step)] = value
        labels = [name.split("/", 1)[1] for name in names]
        run.figure(
            f"probe_{kind}",
            engine.figures.heatmap(table, labels, steps, title, logarithmic=kind in LOGARITHMIC),
        )


def _is_inner(layer: keras.Layer, model: keras.Model) -> bool:
    """Whether a layer computes something: models within models and inputs only pass on."""
    return layer is not model and not isinstance(layer, (keras.layers.InputLayer, keras.Model))


def _activation_summary(layer: keras.Layer, outputs: Any) -> dict[str, Any]:
    leaves = [leaf for leaf in keras.tree.flatten(outputs) if leaf is not None]
    values = ops.cast(leaves[0], "float32")
    mean = ops.mean(values)
    summary = {
        "activation_mean": mean,
        "activation_std": ops.sqrt(ops.mean(ops.square(values - mean))),
    }
    name = getattr(getattr(layer, "activation", None), "__name__", "")
    if name in BOUNDS:
        low, high = BOUNDS[name]
        margin = NEAR * (high - low)
        near = ops.logical_or(values < low + margin, values > high - margin)
        summary["saturation"] = ops.mean(ops.cast(near, "float32"))
    if name in CAN_DIE:
        # A unit is a channel: what is shared by all examples and positions.
        units = ops.reshape(values, (-1, values.shape[-1]))
        silent = ops.equal(ops.sum(ops.abs(units), axis=0), 0)
        summary["dead"] = ops.mean(ops.cast(silent, "float32"))
    return summary


def _arrays(model: keras.Model) -> list[np.ndarray]:
    return [np.array(ops.convert_to_numpy(variable)) for variable in model.trainable_variables]


def _update_ratios(model: keras.Model, before: list[np.ndarray]) -> dict[str, float]:
    moved = {
        id(variable): (ops.convert_to_numpy(variable) - old, old)
        for variable, old in zip(model.trainable_variables, before, strict=True)
    }
    values = {}
    for layer in weighted(model):
        updates, weights = zip(*(moved[id(variable)] for variable in layer.trainable_variables), strict=True)
        norm = _norm(weights)
        if norm > 0:
            values[f"update_ratio/{layer.name}"] = _norm(updates) / norm
    return values


def _norm(arrays: Any) -> float:
    return float(sum(float(np.sum(np.square(array, dtype="float64"))) for array in arrays) ** 0.5)
