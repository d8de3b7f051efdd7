"""Training a network: `model.fit` with what every recipe wants around it.

What `model.fit` cannot say is said with `gradients.compiled_step` and a loop over `Progress`.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import keras

from recipes.engine import learning_rates, probes
from recipes.engine.config import TrainingConfig
from recipes.engine.data.batches import Batches
from recipes.engine.data.datasets import Split
from recipes.engine.progress import Progress
from recipes.engine.tracking import Run


def optimizer_options(config: TrainingConfig) -> dict[str, Any]:
    """The arguments of every optimizer that the common flags decide: accumulation, clipping, averaging."""
    return {
        "gradient_accumulation_steps": config.accumulate if config.accumulate > 1 else None,
        "global_clipnorm": config.clip_norm,
        "use_ema": config.ema is not None,
        "ema_momentum": config.ema or 0.99,
    }


def fit(
    model: keras.Model,
    batches: Batches,
    validation: Split | Callable[[], Mapping[str, float]],
    config: TrainingConfig,
    run: Run,
    schedule: Callable[[int], Any],
    validation_batch_size: int = 500,
) -> None:
    """Train a compiled model, as the common flags say, and record its curves.

    All epochs are one long epoch to `model.fit`: where one ends, where a killed run goes on and when to stop
    is decided by `Progress`.

    Args:
        model: compiled; its optimizer made with `optimizer_options(config)`.
        batches: training data, cut by `config.accumulate`.
        validation: looked at after every epoch, with the averaged weights under `--ema`: a split that
            `model.evaluate` takes, or a function that measures the model itself.
        config: the run's settings.
        run: where curves go.
        schedule: the learning rate at an optimizer step.
        validation_batch_size: examples evaluated at once.

    Raises:
        RecipeError: the loss stopped being a number, or the run cannot be resumed.
    """
    run.tags({"data.order": batches.fingerprint})
    if not model.built:
        model(batches[0][0][:1])
    if not model.optimizer.built:
        model.optimizer.build(model.trainable_variables)
    if config.find_lr:
        learning_rates.find(model, batches, run)

    def settle() -> None:
        if keras.backend.backend() == "jax":
            model.jax_state_sync()  # during `fit` the values are not in the variables

    def evaluate() -> dict[str, float]:
        with averaged(model, model.optimizer):
            if callable(validation):
                return dict(validation())
            values = model.evaluate(
                validation.x, validation.y, batch_size=validation_batch_size, verbose=0, return_dict=True
            )
        model.reset_metrics()  # else the next point of the training curves would hold these examples, too
        return values

    measured = {id(variable) for variable in model.metrics_variables}
    progress = Progress(
        config,
        run,
        batches,
        state={
            "model": [variable for variable in model.variables if id(variable) not in measured],
            "optimizer": model.optimizer.variables,
        },
        evaluate=evaluate,
        schedule=schedule,
        settle=settle,
        on_point=model.reset_metrics,
        probe=probes.Probe(model, run, batches, config.probe, settle) if config.probe else None,
    )
    if progress.step < progress.total and not progress.stopped:
        rest = batches.between(progress.step, progress.total)
        model.fit(rest, shuffle=False, verbose=0, callbacks=[_Following(progress)])
    progress.finish()
    take_averages(model, model.optimizer)


@contextlib.contextmanager
def averaged(model: keras.Model, optimizer: keras.optimizers.Optimizer) -> Iterator[None]:
    """Within, a model has the averages for weights that its optimizer keeps, if it does."""
    weights = [keras.ops.copy(variable.value) for variable in model.trainable_variables]
    taken = take_averages(model, optimizer)
    yield
    if taken:
        for variable, weight in zip(model.trainable_variables, weights, strict=True):
            variable.assign(weight)


def take_averages(model: keras.Model, optimizer: keras.optimizers.Optimizer) -> bool:
    """Give a model the averages for weights that its optimizer keeps; False where it keeps none."""
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    if not optimizer.use_ema:
        return False
    optimizer.finalize_variable_values(model.trainable_variables)
    # On JAX both would now be one array, which Keras' next compiled function takes the memory of.
    for variable in model.trainable_variables:
        variable.assign(keras.ops.copy(variable.value))
    return True


class _Following(keras.callbacks.Callback):
    """Tells a Progress of every step of `model.fit`."""

    def __init__(self, progress: Progress) -> None:
        super().__init__()
        self.progress = progress

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        """Count the step; Keras' logs are means since its metrics were last reset."""
        self.progress.after_steps(logs)
        if self.progress.stopped:
            self.model.stop_training = True
