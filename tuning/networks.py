"""Small networks on the built-in digits, trained in a moment and alike on all backends: what studies vary.

Initial weights, order of the examples and the draw of the training set follow the seed alone, so that two
settings with one seed differ in nothing but the setting: their results can be compared pair by pair.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import ops

import layers
from recipes.engine import data, gradients
from tuning.evidence import Trial


@dataclass(frozen=True)
class Task:
    """Examples to learn from, to choose by and to be measured on: x (n, features) float32, y (n,) int32."""

    x: np.ndarray
    y: np.ndarray
    val_x: np.ndarray
    val_y: np.ndarray
    test_x: np.ndarray
    test_y: np.ndarray


@functools.cache
def _images() -> tuple[np.ndarray, np.ndarray]:
    loaded = data.load("digits")
    x = np.concatenate([split.x for split in (loaded.train, loaded.validation)])
    y = np.concatenate([split.y for split in (loaded.train, loaded.validation)])
    return x.reshape(len(x), -1).astype(np.float32) / 255, y


VALIDATION, TEST = 100, 400  # of the second as many as are left


def digits(examples: int, seed: int) -> Task:
    """Handwritten digits of 64 pixels, centred: a random choice to learn from, and others to be measured on.

    Args:
        examples: how many to learn from.
        seed: of the choice.
    """
    x, y = _images()
    order = np.random.default_rng((seed, 7)).permutation(len(x))
    parts = np.split(order, np.cumsum([examples, VALIDATION, TEST]))[:3]
    mean = x[parts[0]].mean()
    return Task(*(array for part in parts for array in (2 * (x[part] - mean), y[part])))


def perceptron(
    widths: Sequence[int],
    activation: str = "relu",
    normalization: Callable[[], keras.Layer] | None = None,
    dropout: float = 0.0,
    inputs: int = 64,
    outputs: int = 10,
) -> keras.Model:
    """Hidden layers of these widths: normalization before, dropout after the activation."""
    x = first = keras.Input((inputs,))
    for width in widths:
        x = layers.Dense(width)(x)
        if normalization:
            x = normalization()(x)
        x = keras.layers.Activation(layers.activations.get(activation))(x)
        if dropout:
            x = layers.Dropout(dropout, seed=0)(x)
    return keras.Model(first, layers.Dense(outputs)(x))


def kernels(model: keras.Model) -> list[keras.Variable]:
    """The weight matrices of the dense layers, from the first to the last."""
    return [layer.kernel for layer in model.layers if isinstance(layer, layers.Dense)]


def draw(model: keras.Model, seed: int, scale: float = 2.0) -> None:
    """Give the weight matrices new values: normal of variance scale / inputs; biases become zero."""
    rng = np.random.default_rng((seed, 11))
    for layer in model.layers:
        if isinstance(layer, layers.Dense):
            inputs, outputs = layer.kernel.shape
            layer.kernel.assign(rng.normal(0, (scale / inputs) ** 0.5, (inputs, outputs)).astype("float32"))
            layer.bias.assign(np.zeros(outputs, "float32"))


def cross_entropy(labels: Any, logits: Any) -> Any:
    """Of class numbers and logits, (batch,)."""
    return layers.losses.sparse_categorical_crossentropy(labels, logits, from_logits=True)


def accuracy(labels: np.ndarray, outputs: np.ndarray) -> float:
    """Share of examples whose largest output is their class'; of a network of NaNs nothing is right."""
    right = np.argmax(outputs, axis=-1) == labels
    return float(np.mean(right & np.isfinite(outputs).all(axis=-1)))


class Training:
    """A model's training, compiled once and repeated from other weights, seeds and learning rates.

    Args:
        model: built; its outputs go into `loss`.
        optimizer: made for this model.
        loss: (labels, outputs) -> one value an example.
        penalty: a regularizer, added for every weight matrix.
    """

    def __init__(
        self,
        model: keras.Model,
        optimizer: keras.optimizers.Optimizer,
        loss: Callable = cross_entropy,
        penalty: Callable | None = None,
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.loss = loss
        self.penalty = penalty
        optimizer.build(model.trainable_variables)
        trained = {id(variable) for variable in kernels(model)}
        rest = [*model.variables, *optimizer.variables]
        self._start = [(v, ops.convert_to_numpy(v).copy()) for v in rest if id(v) not in trained]
        self._step = gradients.compiled_step(self._update, rest)
        self._outputs = gradients.compiled_step(self._predict, model.variables)

    def _update(self, x: Any, y: Any) -> Any:
        def objective() -> Any:
            value = ops.mean(self.loss(y, self.model(x, training=True)))
            return value + sum(map(self.penalty, kernels(self.model))) if self.penalty else value

        value, slopes = gradients.by_variables(objective, self.model.trainable_variables)
        self.optimizer.apply(slopes, self.model.trainable_variables)
        return value

    def _predict(self, x: Any) -> Any:
        return ops.stop_gradient(self.model(x, training=False))

    def outputs(self, x: np.ndarray) -> np.ndarray:
        """What the model says now, as NumPy."""
        return ops.convert_to_numpy(self._outputs(x))

    def restart(self, seed: int, learning_rate: float | None = None, scale: float = 2.0) -> None:
        """New weights by seed; the optimizer, running averages and seeds as they were at first.

        Args:
            seed: of the weights.
            learning_rate: of the optimizer; None keeps its schedule.
            scale: variance of a weight times its layer's inputs.
        """
        for variable, value in self._start:
            variable.assign(value)
        draw(self.model, seed, scale)
        if learning_rate is not None:
            self.optimizer.learning_rate = learning_rate

    def run(
        self,
        task: Task,
        setting: str,
        seed: int,
        steps: int,
        batch_size: int,
        looks: int = 10,
        augment: Callable[[np.ndarray, np.random.Generator], np.ndarray] | None = None,
    ) -> Trial:
        """Train from the present weights; look at loss and accuracy every now and then.

        Args:
            task: what to learn.
            setting: label of the result.
            seed: of the order of the examples.
            steps: updates.
            batch_size: examples of an update, drawn without repetition within an epoch.
            looks: points of the curves; the last is the final state.
            augment: changes a batch of inputs, drawing from the generator.

        Returns:
            Curves and final values of loss and accuracy, each of `train/`, `val/` and `test/`.
        """
        rng = np.random.default_rng((seed, 13))
        order = np.empty(0, int)
        curves: dict[str, list[tuple[int, float]]] = {}
        points = {round(point) for point in np.linspace(0, steps, looks + 1)}
        for step in range(steps + 1):
            if step in points:
                for name, value in self.measures(task).items():
                    curves.setdefault(name, []).append((step, value))
            if step == steps:
                break
            if len(order) < batch_size:
                order = rng.permutation(len(task.x))
            chosen, order = order[:batch_size], order[batch_size:]
            x = task.x[chosen]
            self._step(augment(x, rng) if augment else x, task.y[chosen])
        return Trial(setting, seed, curves, {name: curve[-1][1] for name, curve in curves.items()})

    def measures(self, task: Task) -> dict[str, float]:
        """Loss and accuracy on every part of a task."""
        found = {}
        for part, x, y in (
            ("train", task.x, task.y),
            ("val", task.val_x, task.val_y),
            ("test", task.test_x, task.test_y),
        ):
            outputs = self.outputs(x)
            found[f"{part}/loss"] = float(ops.mean(self.loss(y, ops.convert_to_tensor(outputs))))
            found[f"{part}/accuracy"] = accuracy(y, outputs)
        return found
