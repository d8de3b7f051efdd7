"""One training loop, written five ways: what does `model.fit` do, and is it the same as doing it by hand?

    python -m recipes.training_loop --backend torch               # fit, torch's own loop, the portable step
    python -m recipes.training_loop --backend jax --dataset mnist --epochs 2

The same small network, from the same initial weights and dropout seeds, on the same batches: by `model.fit`,
by the native loop of the chosen framework (`tf.GradientTape`, `torch.autograd`, `jax.value_and_grad`), and by
the step that this collection compiles on all three (`engine.gradients`). The losses agree step by step.

Expected: not one loss differs between the three loops, on PyTorch in 18 s, JAX in 29 s, TensorFlow in 9 s
(results/training.md). The largest difference between any two losses of a step stays
under 1e-5 for the first steps; then rounding, which training amplifies, may show.

Figures: losses (three curves on top of each other, and their differences), learning_curves (of the portable
step, whose run can be killed and resumed).

References:
    Keras guides, "Writing a training loop from scratch" in TensorFlow, PyTorch and JAX.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Self

import keras
import numpy as np

import layers
from recipes import engine
from recipes.engine import launch
from recipes.engine.config import TrainingConfig

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Losses = list[float]
COMPARED = 20  # steps within which losses are held against each other


@dataclass(frozen=True)
class Config(TrainingConfig):
    """What can be varied."""

    dataset: Literal["mnist", "fashion_mnist", "digits"] = "digits"
    """Images to classify; digits is built in."""
    epochs: int = 5
    """Passes over the training data, by each loop."""
    batch_size: int = 64
    """Examples in one optimizer step."""
    learning_rate: float = 0.05
    """Step size of SGD with momentum 0.9."""
    dropout: float = 0.2
    """Share of hidden units dropped in a step."""

    @classmethod
    def small(cls, **changes: Any) -> Self:
        """A few seconds on the built-in digits."""
        return cls(**{"epochs": 2, **changes})


def build_model(config: Config, data: engine.data.Dataset) -> keras.Model:
    """A small convolutional network with state of every kind: batch statistics and a dropout seed."""
    keras.utils.set_random_seed(config.seed)  # every loop starts from the same weights
    brightest = float(data.train.x.max())
    return keras.Sequential(
        [
            keras.Input(data.shape, dtype="uint8"),
            keras.layers.Rescaling(1 / brightest),
            layers.Conv2D(16, 3, padding="same", use_bias=False),
            layers.BatchNormalization(momentum=0.9),
            keras.layers.Activation(layers.activations.relu),
            layers.MaxPooling2D(2),
            layers.Conv2D(32, 3, padding="same", activation=layers.activations.relu),
            layers.GlobalAveragePooling2D(),
            layers.Dropout(config.dropout),
            layers.Dense(len(data.labels), dtype="float32"),
        ]
    )


def build_optimizer(config: Config) -> keras.optimizers.Optimizer:
    """SGD with momentum, and what the common flags ask for."""
    options = engine.training.optimizer_options(config)
    optimizer = layers.optimizers.SGD(config.learning_rate, momentum=0.9, **options)
    return engine.training.scaling_losses(optimizer, config)


def loss_of(labels: Any, logits: Any) -> Any:
    """Mean cross-entropy of a batch: a scalar."""
    return keras.ops.mean(layers.losses.sparse_categorical_crossentropy(labels, logits, from_logits=True))


def by_fit(model: keras.Model, optimizer: keras.optimizers.Optimizer, batches: Any, steps: int) -> Losses:
    """`compile` and `fit`."""
    losses = []

    class Collect(keras.callbacks.Callback):
        """Keras reports the mean over an epoch so far: reset each step, it is the step's own loss."""

        def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
            losses.append(float(logs["loss"]))
            if keras.backend.backend() == "jax":
                model.jax_state_sync()
            model.reset_metrics()

    model.compile(optimizer, loss_of)
    model.fit(batches.between(0, steps), shuffle=False, verbose=0, callbacks=[Collect()])
    return losses


def by_tensorflow(
    model: keras.Model, optimizer: keras.optimizers.Optimizer, batches: Any, steps: int
) -> Losses:
    """A `tf.GradientTape` in a `tf.function`; variables change as the step says so."""
    import tensorflow as tf

    @tf.function
    def step(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            loss = loss_of(y, model(x, training=True))
            scaled = optimizer.scale_loss(loss)
        gradients = tape.gradient(scaled, model.trainable_variables)
        optimizer.apply(gradients, model.trainable_variables)
        return loss

    return [float(step(*batches[index])) for index in range(steps)]


def by_torch(model: keras.Model, optimizer: keras.optimizers.Optimizer, batches: Any, steps: int) -> Losses:
    """`loss.backward()` leaves gradients at the parameters, and the optimizer takes them from there."""
    import torch

    losses = []
    for index in range(steps):
        x, y = (torch.from_numpy(part) for part in batches[index])
        loss = loss_of(y, model(x, training=True))
        model.zero_grad()
        optimizer.scale_loss(loss).backward()
        gradients = [variable.value.grad for variable in model.trainable_variables]
        with torch.no_grad():
            optimizer.apply(gradients, model.trainable_variables)
        losses.append(loss.item())
    return losses


def by_jax(model: keras.Model, optimizer: keras.optimizers.Optimizer, batches: Any, steps: int) -> Losses:
    """`jax.value_and_grad` of a pure function; all state goes in and comes out."""
    import jax

    def scaled(trainable: list, others: list, slots: list, x: Any, y: Any) -> tuple[Any, tuple]:
        logits, others = model.stateless_call(trainable, others, x, training=True)
        loss = loss_of(y, logits)
        with keras.StatelessScope(list(zip(optimizer.variables, slots, strict=True))):  # the scale is there
            return optimizer.scale_loss(loss), (loss, others)

    @jax.jit
    def step(state: tuple, x: Any, y: Any) -> tuple[Any, tuple]:
        trainable, others, slots = state
        (_, (loss, others)), gradients = jax.value_and_grad(scaled, has_aux=True)(
            trainable, others, slots, x, y
        )
        trainable, slots = optimizer.stateless_apply(slots, gradients, trainable)
        return loss, (trainable, others, slots)

    variables = (model.trainable_variables, model.non_trainable_variables, optimizer.variables)
    state = tuple([variable.value for variable in group] for group in variables)
    losses = []
    for index in range(steps):
        value, state = step(state, *batches[index])
        losses.append(float(value))
    for group, values in zip(variables, state, strict=True):
        for variable, value in zip(group, values, strict=True):
            variable.assign(value)
    return losses


NATIVE: dict[str, Callable] = {"tensorflow": by_tensorflow, "torch": by_torch, "jax": by_jax}


def portable_step(model: keras.Model, optimizer: keras.optimizers.Optimizer) -> Callable:
    """The same step, written once: `step(x, y)` changes the variables and returns the loss."""

    def step(x: Any, y: Any) -> dict[str, Any]:
        def scaled() -> tuple[Any, Any]:
            loss = loss_of(y, model(x, training=True))
            return optimizer.scale_loss(loss), loss

        (_, value), slopes = engine.gradients.by_variables(scaled, model.trainable_variables, has_aux=True)
        engine.gradients.update(optimizer, slopes)
        return {"loss": value}

    return engine.gradients.compiled_step(step, [*model.variables, *optimizer.variables])


def by_portable_step(
    config: Config, run: engine.tracking.Run, data: engine.data.Dataset, batches: Any
) -> tuple[keras.Model, int, Losses]:
    """The portable step with all that a recipe has: curves, checkpoints, early stopping.

    Returns:
        The model, the step that it was resumed at (0 for a new run), and the losses from there on.
    """
    model, optimizer = build_model(config, data), build_optimizer(config)
    optimizer.build(model.trainable_variables)
    model.compile(loss=loss_of)  # for `--probe` alone
    step = portable_step(model, optimizer)

    def evaluate() -> dict[str, float]:
        with engine.training.averaged(model, optimizer):
            logits = model.predict(data.validation.x, batch_size=500, verbose=0)
        return {
            "loss": float(loss_of(data.validation.y, logits)),
            "accuracy": float(np.mean(logits.argmax(axis=-1) == data.validation.y)),
        }

    probe = None
    if config.probe:
        looks = {"": engine.probes.Look(model)}
        probe = engine.probes.Probe(looks, run, batches, config.probe)
    progress = engine.progress.Progress(
        config,
        run,
        batches,
        state={"model": model.variables, "optimizer": optimizer.variables},
        evaluate=evaluate,
        schedule=lambda _: config.learning_rate,
        probe=probe,
    )
    first, losses = progress.step, []
    for x, y in progress.batches():
        values = step(*(keras.ops.convert_to_tensor(part) for part in (x, y)))
        losses.append(float(values["loss"]))
        progress.after_step(values)
    progress.finish()
    engine.training.take_averages(model, optimizer)
    return model, first, losses


def train(config: Config, run: engine.tracking.Run) -> dict[str, float]:
    """Train three times and compare."""
    data = engine.data.load(config.dataset, config.data_dir)
    run.tags({"dataset.fingerprint": lambda: data.fingerprint})
    batches = engine.data.Batches(data.train, config.batch_size, config.seed, accumulate=config.accumulate)
    steps = batches.steps_per_epoch * config.epochs
    if config.find_lr:
        model = build_model(config, data)
        model.compile(build_optimizer(config), loss_of)
        engine.learning_rates.find(engine.programs.training(model, batches, config), batches, run)
    losses, seconds = {}, {}
    for name, loop in (("fit", by_fit), (config.backend, NATIVE[config.backend])):
        model, optimizer = build_model(config, data), build_optimizer(config)
        optimizer.build(model.trainable_variables)
        begin = time.perf_counter()
        losses[name] = loop(model, optimizer, batches, steps)
        seconds[name] = time.perf_counter() - begin
    model, first, portable = by_portable_step(config, run, data, batches)
    run.figure(
        "learning_curves", engine.figures.learning_curves(run.history, f"portable step on {data.name}")
    )
    run.figure("losses", draw(losses, portable, first))
    logits = model.predict(data.test.x, batch_size=500, verbose=0)
    metrics = {f"seconds/{name}": value for name, value in seconds.items()}
    early = slice(0, max(0, COMPARED - first))
    for name, values in losses.items():
        differences = np.abs(np.array(values[first : first + len(portable)]) - portable)
        metrics[f"difference/{name}"] = float(differences.max(initial=0.0))
        metrics[f"difference/{name}_first_{COMPARED}_steps"] = float(differences[early].max(initial=0.0))
    return {**metrics, "test/accuracy": float(np.mean(logits.argmax(axis=-1) == data.test.y))}


def draw(losses: dict[str, Losses], portable: Losses, first: int) -> Figure:
    """Loss curves of the loops, and how far each is from the portable step's."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    steps = np.arange(first, first + len(portable)) + 1
    for (name, values), width in zip(losses.items(), (6, 3.5), strict=True):
        left.plot(np.arange(len(values)) + 1, values, linewidth=width, alpha=0.4, label=name)
        differences = np.abs(np.array(values[first : first + len(portable)]) - portable)
        right.semilogy(steps, differences + 1e-12, label=f"{name} - portable")
    left.plot(steps, portable, "k-", linewidth=0.8, label="portable step")
    left.set_ylabel("training loss of the batch")
    right.set_ylabel("difference (plus 1e-12)")
    right.axhline(1e-5, color="gray", linestyle=":")
    for axes in (left, right):
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
        axes.legend()
    return figure


if __name__ == "__main__":
    launch.main(Config, train)
