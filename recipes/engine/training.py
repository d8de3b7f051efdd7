"""Training a network: a compiled step like that of `model.fit`, with what every recipe wants around it.

The step differs from Keras' in this: the learning rate and the weight decay are arguments of the compiled
program, so that other values need no new one. What this step cannot say is said with
`gradients.compiled_step` and a loop over `Progress`.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from layers.regularization import AdjustableLayer
from recipes.engine import learning_rates, packs, probes, programs
from recipes.engine.config import TrainingConfig
from recipes.engine.data.batches import Batches
from recipes.engine.data.datasets import Split
from recipes.engine.parts import Part
from recipes.engine.progress import Progress
from recipes.engine.tracking import Run

BLOCK = 64  # learning rates computed at once


def optimizer_options(config: TrainingConfig) -> dict[str, Any]:
    """The arguments of every optimizer that the common flags decide: accumulation, clipping, averaging."""
    return {
        "gradient_accumulation_steps": config.accumulate if config.accumulate > 1 else None,
        "global_clipnorm": config.clip_norm,
        "use_ema": config.ema is not None,
        "ema_momentum": config.ema or 0.99,
    }


def scaling_losses(optimizer: keras.optimizers.Optimizer, config: TrainingConfig) -> Any:
    """An optimizer as `compile` takes it: half precision has its losses scaled, lest gradients become 0."""
    if config.precision != "mixed_float16":
        return optimizer
    return keras.optimizers.LossScaleOptimizer(optimizer, name="loss_scale_optimizer")


def fit(
    model: keras.Model,
    batches: Batches,
    validation: Split | Callable[[], Mapping[str, float]],
    config: TrainingConfig,
    run: Run | Part,
    schedule: Callable[[int], Any],
    validation_batch_size: int = 500,
    each_epoch: Callable[[], None] | None = None,
    kept: Sequence[np.ndarray] = (),
) -> dict[str, float]:
    """Train a compiled model, as the common flags say, and record its curves.

    Where an epoch ends, where a killed run goes on and when to stop is decided by `Progress`.

    Args:
        model: compiled; its optimizer made with `optimizer_options(config)`.
        batches: training data, cut by `config.accumulate`.
        validation: looked at after every epoch, with the averaged weights under `--ema`: a split that
            `model.evaluate` takes, or a function that measures the model itself.
        config: the run's settings.
        run: where curves go, and the number of trainable weights as `parameters`.
        schedule: the learning rate at an optimizer step.
        validation_batch_size: examples evaluated at once.
        each_epoch: called before every validation, with the same weights.
        kept: arrays that `each_epoch` changes in place; checkpoints hold them.

    Returns:
        The metrics of the last epoch, or of the one whose weights were taken after an early stop.

    Raises:
        RecipeError: the loss stopped being a number, or the run cannot be resumed.
    """
    if packs.current() is not None:
        run.take_turns(packs.current().size)
    run.tags({"data.order": batches.fingerprint})
    train = programs.training(model, batches, config)
    if config.find_lr:
        learning_rates.find(train, batches, run)
    measure = validation
    if isinstance(validation, Split):
        measure = programs.evaluation(model, validation, validation_batch_size, config)

    def evaluate() -> dict[str, float]:
        with averaged(model, model.optimizer):
            if each_epoch is not None:
                each_epoch()
            return dict(measure())

    rates = rates_of(schedule, batches.steps_per_epoch // batches.accumulate * config.epochs)
    # Rates of dropout are the Config's: a run that goes on with other values is to have them.
    settings = [layer.setting for layer in model._flatten_layers() if isinstance(layer, AdjustableLayer)]
    others = {id(variable) for variable in (*model.metrics_variables, *settings)}
    progress = Progress(
        config,
        run,
        batches,
        state={
            "model": [variable for variable in model.variables if id(variable) not in others],
            "optimizer": model.optimizer.variables,
            "kept": kept,
        },
        evaluate=evaluate,
        schedule=lambda step: rates[step],
        probe=probes.Probe({"": probes.Look(model)}, run, batches, config.probe) if config.probe else None,
    )
    run.metrics({"parameters": sum(math.prod(weight.shape) for weight in model.trainable_weights)}, step=0)
    while progress.step < progress.total and not progress.stopped:
        # Alone a run looks up after every step; a pack, where it must.
        count = 1 if packs.current() is None else progress.steps_ahead
        numbers = np.arange(progress.step, progress.step + count)
        for values in train(progress.step, rates[numbers // batches.accumulate]):
            progress.after_step(values)
    last = progress.finish()
    take_averages(model, model.optimizer)
    return last


def rates_of(schedule: Callable[[Any], Any], updates: int) -> np.ndarray:
    """The learning rate at every update from 0 to `updates`, in blocks that are compiled once."""
    blocks = range(0, updates + 1, BLOCK)
    rates = [schedule(np.arange(first, first + BLOCK, dtype="float32")) for first in blocks]
    return np.concatenate([keras.ops.convert_to_numpy(block) for block in rates])


@contextlib.contextmanager
def averaged(model: keras.Model, optimizer: keras.optimizers.Optimizer) -> Iterator[None]:
    """Within, a model has the averages for weights that its optimizer keeps, if it does."""
    if not _inner(optimizer).use_ema:
        yield
        return
    weights = [keras.ops.copy(variable.value) for variable in model.trainable_variables]
    take_averages(model, optimizer)
    yield
    for variable, weight in zip(model.trainable_variables, weights, strict=True):
        variable.assign(weight)


def take_averages(model: keras.Model, optimizer: keras.optimizers.Optimizer) -> None:
    """Give a model the averages for weights that its optimizer keeps, if it does."""
    optimizer = _inner(optimizer)
    if not optimizer.use_ema:
        return
    optimizer.finalize_variable_values(model.trainable_variables)
    # On JAX both would now be one array, which Keras' next compiled function takes the memory of.
    for variable in model.trainable_variables:
        variable.assign(keras.ops.copy(variable.value))


def _inner(optimizer: keras.optimizers.Optimizer) -> keras.optimizers.Optimizer:
    """The optimizer itself, where another one scales its losses."""
    return getattr(optimizer, "inner_optimizer", optimizer)
