"""Looking inside a training run: what happens in every layer, every now and then.

For any Keras model, unchanged: one more forward and backward pass on the batch of the step, in training mode,
whose results are thrown away. For each layer:

    grad_norm/LAYER          norm of the loss' gradient by the layer's weights, and grad_norm/global
    weight_norm/LAYER        norm of its weights
    update_ratio/LAYER       norm of the last update divided by the norm of the weights
    activation_mean/LAYER    mean of its output, and activation_std/LAYER
    saturation/LAYER         share of outputs where a bounded activation is within 5 % of its bounds
    dead/LAYER               share of units that are 0 on the whole batch, after an activation that can be

All of them are metrics, and each kind is a heatmap over training (layer x step). Where several networks are
trained, LAYER is `NETWORK/LAYER`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
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
        looks: what is done to see, by what goes before a layer's name in the metrics: `{"": Look(model)}`, or
            `{"generator/": ..., "discriminator/": ...}` for `grad_norm/generator/LAYER`.
        run: where metrics and heatmaps go.
        batches: the training data.
        every: optimizer steps between looks.
        given: what the looks are called on, by the number of a batch; default: the batch.
    """

    def __init__(
        self,
        looks: Mapping[str, "Look"],
        run: Run,
        batches: Batches,
        every: int,
        given: Callable[[int], Sequence[Any]] | None = None,
    ) -> None:
        self.looks = looks
        self.run = run
        self.parts = batches.accumulate
        self.every = every * self.parts
        self.given = given or batches.__getitem__

    def after_step(self, done: int) -> None:
        """Look, or remember the weights before the step that is looked at. `done`: batches so far."""
        if done % self.every == 0:
            given = self.given(done - 1)
            for place, look in self.looks.items():
                values = {name.replace("/", f"/{place}", 1): value for name, value in look(*given).items()}
                self.run.metrics(values, done // self.parts)
        if (done + self.parts) % self.every == 0:
            for look in self.looks.values():
                look.remember()

    def finish(self) -> None:
        """Draw the heatmaps."""
        draw(self.run)


class Look:
    """Measures a model on a batch and leaves it as it was: `look(*batch)` gives metrics by name.

    Args:
        model: built; its layers are looked at.
        loss: what is differentiated, of a batch's arrays; default: that of the compiled model, of x and y.
        others: models that `loss` calls, too.
    """

    def __init__(
        self,
        model: keras.Model,
        loss: Callable[..., Any] | None = None,
        others: Sequence[keras.Model] = (),
    ) -> None:
        self.model = model
        self.before: list[np.ndarray] = []

        def own_loss(x: Any, y: Any) -> Any:
            return model.compute_loss(x=x, y=y, y_pred=model(x, training=True))

        loss_of = loss or own_loss
        watched = [layer for layer in model._flatten_layers() if _is_inner(layer, model)]
        variables = [variable for one in (model, *others) for variable in one.variables]

        def step(*batch: Any) -> tuple[dict, list]:
            def value_and_outputs() -> tuple[Any, dict]:
                # Their values go in, but what becomes of them (batch statistics, seeds) stays here.
                scope = keras.StatelessScope([(v, v.value) for v in variables], collect_losses=True)
                with scope, outputs_of(watched) as seen:
                    value = loss_of(*batch)
                return value, {id(layer): seen[id(layer)] for layer in watched if id(layer) in seen}

            (_, seen), slopes = gradients.by_variables(
                value_and_outputs, model.trainable_variables, has_aux=True
            )
            summary = {
                layer.name: _activation_summary(layer, seen[id(layer)])
                for layer in watched
                if id(layer) in seen
            }
            return summary, [ops.sum(ops.square(ops.cast(slope, "float32"))) for slope in slopes]

        self.step = gradients.compiled_step(step, variables)

    def __call__(self, *batch: Any) -> dict[str, float]:
        """Look; with `update_ratio/...` if the weights before the last step are remembered."""
        summary, squares = self.step(*batch)
        squares = [float(square) for square in squares]
        places = {id(variable): index for index, variable in enumerate(self.model.trainable_variables)}
        values = {"grad_norm/global": sum(squares) ** 0.5}
        for layer in weighted(self.model):
            own = [squares[places[id(variable)]] for variable in layer.trainable_variables]
            values[f"grad_norm/{layer.name}"] = sum(own) ** 0.5
            values[f"weight_norm/{layer.name}"] = _norm(
                [ops.convert_to_numpy(variable) for variable in layer.trainable_variables]
            )
        for name, numbers in summary.items():
            values |= {f"{kind}/{name}": float(number) for kind, number in numbers.items()}
        return values | (_update_ratios(self.model, self.before) if self.before else {})

    def remember(self) -> None:
        """Keep the weights as they are before the step that is looked at next."""
        self.before = [np.array(ops.convert_to_numpy(v)) for v in self.model.trainable_variables]


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
            # What a layer gives in a loop over time, or within a loss that is itself a derivative (a gradient
            # penalty), means nothing outside. Of its other calls the last one counts: of a discriminator that
            # on generated images.
            if not (loop.within() or gradients.within()):
                seen[key] = outputs
            return outputs

        return kept


def draw(run: Run) -> None:
    """Store the heatmaps of what a run's probes recorded."""
    for kind, title in KINDS.items():
        names = [n for n in run.history if n.startswith(f"{kind}/") and not n.endswith("/global")]
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
