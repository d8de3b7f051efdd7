"""The learning-rate range test: which learning rates make the loss fall, and from where on it rises.

Every step of a short training has a higher learning rate than the one before, from far too low to far too
high. Where the smoothed loss falls steepest is a good constant rate; a one-cycle schedule may peak near its
minimum.

Reference:
    Smith, 2017, Cyclical learning rates for training neural networks, arXiv:1506.01186.
"""

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from recipes import engine
from recipes.engine.data.batches import Batches
from recipes.engine.errors import Finished, RecipeError
from recipes.engine.tracking import Run

if TYPE_CHECKING:
    from layers.autograd.optim import Optimizer

LOWEST, HIGHEST = 1e-6, 10.0
STEPS = 150
SMOOTHING = 0.9
WINDOW = 21  # steps between the two losses whose difference is the slope: a factor of ten in the rate
UNSETTLED = 10  # first values of the smoothed loss, which average too few to count
DIVERGED = 2.0  # the test ends at a loss that is above the first one by so many times its size


def find(train: Callable, batches: Batches, run: Run) -> None:
    """Run the test on a compiled program, as `find_by`.

    Args:
        train: training steps, as `programs.training` gives it; the model's weights are spoilt.
        batches: training data.
        run: as there.
    """
    count = batches.accumulate

    def step(number: int, rate: float) -> float:
        return float(np.mean([part["loss"] for part in train(number * count, [rate] * count)]))

    find_by(step, run)


def find_with(optimizer: "Optimizer", step: Callable[[int], float], run: Run) -> None:
    """Run the test with an optimizer of `layers.autograd`, as `find_by`.

    Args:
        optimizer: what is told the rates.
        step: a step with a number, counted from 0, by that optimizer; returns the loss before.
        run: as there.
    """

    def step_at(number: int, rate: float) -> float:
        optimizer.learning_rate = rate
        return step(number)

    find_by(step_at, run)


def find_by(step: Callable[[int, float], float], run: Run) -> None:
    """Run the test and end the run with its result.

    Args:
        step: an optimizer step with a number, counted from 0, and a learning rate; returns the loss before.
        run: where the figure `learning_rate_range` and the curve `range/loss` go; the x-axis is the step.

    Raises:
        Finished: always; its metrics are `suggested/learning_rate` (steepest descent) and
            `suggested/peak` (where the loss is lowest).
    """
    rates = LOWEST * (HIGHEST / LOWEST) ** (np.arange(STEPS) / (STEPS - 1))
    losses: list[float] = []
    for number, rate in enumerate(rates):
        loss = step(number, float(rate))
        if not math.isfinite(loss) or diverged(loss, losses):
            break
        losses.append(loss)
        run.metrics({"range/loss": loss, "lr": rate}, number + 1)
    rates, losses = rates[: len(losses)], np.array(losses)
    smooth = smoothed(losses)
    steepest, lowest = suggest(rates, smooth)
    run.figure("learning_rate_range", engine.figures.range_test(rates, losses, smooth, steepest, lowest))
    raise Finished({"suggested/learning_rate": steepest, "suggested/peak": lowest})


def diverged(loss: float, before: Sequence[float]) -> bool:
    """Whether a loss is too far above the first one: a positive loss, at three times that.

    The size of one that may be 0 or less is what it has fallen by, or how much it varied while the rates were
    too low to matter.
    """
    if len(before) < UNSETTLED:
        return False
    first, early = before[0], before[:UNSETTLED]
    return loss > first + DIVERGED * max(abs(first), first - min(before), max(early) - min(early))


def smoothed(losses: np.ndarray) -> np.ndarray:
    """Exponential moving average, without the bias towards its beginning."""
    average, result = 0.0, []
    for count, loss in enumerate(losses, start=1):
        average = SMOOTHING * average + (1 - SMOOTHING) * loss
        result.append(average / (1 - SMOOTHING**count))
    return np.array(result)


def suggest(rates: np.ndarray, losses: np.ndarray) -> tuple[float, float]:
    """The rates where a smoothed loss falls steepest (by the logarithm of the rate) and where it is lowest.

    Raises:
        RecipeError: the loss never fell.
    """
    lowest = int(np.argmin(losses))
    if lowest < UNSETTLED + WINDOW:
        raise RecipeError(
            f"the loss rises from the first step of the range test on, at a learning rate of {LOWEST}: "
            "the model does not learn with any"
        )
    settled = losses[UNSETTLED : lowest + 1]
    falls = settled[WINDOW:] - settled[:-WINDOW]
    return float(rates[UNSETTLED + int(np.argmin(falls)) + WINDOW // 2]), float(rates[lowest])
