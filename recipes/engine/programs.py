"""Compiled training and evaluation of a network, kept for the next run in the same process.

What a program computes is decided by the fields of a Config that are not among its `VALUES`. Those only
change numbers that a program takes as arguments (learning rate, weight decay) or finds in variables (weights,
dropout rates, seeds), so that a worker that trains the same network with many of them compiles once.
"""

import contextlib
import dataclasses
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from recipes.engine import gradients, packs
from recipes.engine.config import RunConfig
from recipes.engine.data.batches import Batches
from recipes.engine.data.datasets import Split

_kept: OrderedDict[Hashable, Callable] | None = None
_limit = 0


def keep(limit: int = 8) -> None:
    """From now on keep the programs used last, up to `limit` of them: for a process of many runs."""
    global _kept, _limit
    _kept, _limit = _kept or OrderedDict(), limit


def training(model: keras.Model, batches: Batches, config: RunConfig) -> Callable:
    """The training step of a compiled model.

    Args:
        model: compiled; what is not built yet is built.
        batches: training data.
        config: the run's settings; those that are not among its `VALUES` identify the program.

    Returns:
        `train(first, learning_rates)`: a step on each of the batches from number `first` on, with these
        learning rates; returns the loss and the metrics of each. Runs of a pack do this together.
    """
    _build(model, batches[0])
    optimizer = model.optimizer
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    decay = inner.weight_decay
    variables = _variables(model, optimizer.variables)

    def step(x: Any, y: Any, rate: Any, decay: Any) -> dict[str, Any]:
        def loss() -> tuple[Any, tuple]:
            outputs = model(x, training=True)
            value = model.compute_loss(x=x, y=y, y_pred=outputs, training=True)
            return optimizer.scale_loss(value), (value, outputs)

        _reset(model)
        (_, (value, outputs)), slopes = gradients.by_variables(loss, model.trainable_variables, has_aux=True)
        with _told(inner, rate, decay):
            gradients.update(optimizer, slopes)
        return _measured(model, x, y, outputs, value)

    pack = packs.current()
    kind = "train" if pack is None else "train in a pack"
    maker = gradients.program if pack is None else gradients.program_for_many
    compiled = _program((kind, decay is None), maker, step, variables, config)
    decay = np.float32(0.0 if decay is None else decay)

    def one_by_one(first: int, learning_rates: Sequence[float]) -> list[dict[str, float]]:
        return [
            _numbers(compiled(variables, *batches[number], np.float32(rate), decay))
            for number, rate in enumerate(learning_rates, start=first)
        ]

    def together(first: int, learning_rates: Sequence[float]) -> list[dict[str, float]]:
        row = [batches[number] for number in range(first, first + len(learning_rates))]
        arrays = [np.stack(parts) for parts in zip(*row, strict=True)]
        rates = np.asarray(learning_rates, "float32")
        results = pack.call(compiled, variables, *arrays, rates, np.full_like(rates, decay))
        return [
            _numbers({name: values[place] for name, values in results.items()}) for place in range(len(row))
        ]

    return one_by_one if pack is None else together


def evaluation(model: keras.Model, split: Split, batch_size: int, config: RunConfig) -> Callable:
    """The loss and the metrics of a compiled model on a split, as `model.evaluate` measures them.

    Args:
        model: compiled and built.
        split: what to measure it on.
        batch_size: examples at once; they come in order.
        config: as in `training`.

    Returns:
        A function of no arguments that returns them.
    """
    variables = _variables(model, [])

    def step(x: Any, y: Any) -> dict[str, Any]:
        _reset(model)
        outputs = model(x, training=False)
        value = model.compute_loss(x=x, y=y, y_pred=outputs, training=False)
        return _measured(model, x, y, outputs, value)

    compiled = _program("evaluate", gradients.program, step, variables, config)

    def evaluate() -> dict[str, float]:
        sums: dict[str, float] = {}
        for first in range(0, len(split), batch_size):
            part = slice(first, first + batch_size)
            x, y = split.x[part], split.y[part]
            for name, value in compiled(variables, x, y).items():
                sums[name] = sums.get(name, 0.0) + float(value) * len(x)
        return {name: total / len(split) for name, total in sums.items()}

    return evaluate


def _numbers(results: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in results.items()}


def _program(
    kind: Hashable,
    maker: Callable[[Callable, Sequence[keras.Variable]], Callable],
    step: Callable,
    variables: Sequence[keras.Variable],
    config: RunConfig,
) -> Callable:
    """The compiled step, or that of an earlier run that is the same but for values."""
    if _kept is None:
        return maker(step, variables)
    fields = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    key = (
        kind,
        type(config),
        tuple((name, value) for name, value in fields.items() if name not in config.VALUES),
        tuple((tuple(variable.shape), variable.dtype) for variable in variables),
    )
    if key not in _kept:
        _kept[key] = maker(step, variables)
    _kept.move_to_end(key)
    while len(_kept) > _limit:
        _kept.popitem(last=False)
    return _kept[key]


def _build(model: keras.Model, batch: tuple) -> None:
    """Make all variables, as `model.fit` does first: they cannot be made while a program is traced.

    To learn what the loss and the metrics will be given, Keras would trace the network, for longer than a
    small one trains; a functional model with one output can tell.
    """
    outputs, (*_, targets) = getattr(model, "outputs", None), batch
    if outputs and len(outputs) == 1 and isinstance(targets, np.ndarray):
        targets = keras.KerasTensor(targets.shape, str(targets.dtype))
        for part in (model._compile_metrics, model._compile_loss):
            if part is not None and not part.built:
                part.build(targets, outputs[0])
    else:
        model._symbolic_build(data_batch=batch)
    if not model.optimizer.built:
        model.optimizer.build(model.trainable_variables)


def _variables(model: keras.Model, others: Sequence[keras.Variable]) -> list[keras.Variable]:
    """All that a step reads or changes; a loss may have variables, too."""
    settings = getattr(model.loss, "variables", [])
    every = [*model.variables, *model.metrics_variables, *others, *settings]
    return list({id(variable): variable for variable in every}.values())


def _reset(model: keras.Model) -> None:
    """Metrics begin anew, so that a step's are those of its batch."""
    for metric in model.metrics:
        metric.reset_state()


def _measured(model: keras.Model, x: Any, y: Any, outputs: Any, loss: Any) -> Mapping[str, Any]:
    return {**model.compute_metrics(x, y, outputs), "loss": loss}


@contextlib.contextmanager
def _told(optimizer: keras.optimizers.Optimizer, rate: Any, decay: Any) -> Iterator[None]:
    """Within, an optimizer has this learning rate and weight decay, which may be arguments of a program."""
    kept = {name: getattr(optimizer, name) for name in ("_learning_rate", "weight_decay")}
    told = {"_learning_rate": lambda: rate, "weight_decay": None if kept["weight_decay"] is None else decay}
    # Past Keras' own setters, which would take them for the optimizer's own variables.
    for name, value in told.items():
        object.__setattr__(optimizer, name, value)
    try:
        yield
    finally:
        for name, value in kept.items():
            object.__setattr__(optimizer, name, value)
