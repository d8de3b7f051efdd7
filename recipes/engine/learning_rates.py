"""The learning-rate range test: which learning rates make the loss fall, and from where on it rises.

Every step of a short training has a higher learning rate than the one before, from far too low to far too
high. Where the smoothed loss falls steepest is a good constant rate; a one-cycle schedule may peak near its
minimum.

Reference:
    Smith, 2017, Cyclical learning rates for training neural networks, arXiv:1506.01186.
"""

import math
from collections.abc import Callable

import numpy as np

from recipes import engine
from recipes.engine.data.batches import Batches
from recipes.engine.errors import Finished, RecipeError
from recipes.engine.tracking import Run

LOWEST, HIGHEST = 1e-6, 10.0
STEPS = 150
SMOOTHING = 0.9
WINDOW = 21  # steps between the two losses whose difference is the slope: a factor of ten in the rate
UNSETTLED = 10  # first values of the smoothed loss, which average too few to count
DIVERGED = 3.0  # times the first loss, where the test ends


def find(train: Callable, batches: Batches, run: Run) -> None:
    """Run the test and end the run with its result.

    Args:
        train: training steps, as `programs.training` gives it; the model's weights are spoilt.
        batches: training data.
        run: where the figure `learning_rate_range` and the curve `range/loss` go; the x-axis is the step.

    Raises:
        Finished: always; its metrics are `suggested/learning_rate` (steepest descent) and
            `suggested/peak` (where the loss is lowest).
    """
    rates = LOWEST * (HIGHEST / LOWEST) ** (np.arange(STEPS) / (STEPS - 1))
    losses: list[float] = []
    for step, rate in enumerate(rates):
        first = step * batches.accumulate
        parts = train(first, [rate] * batches.accumulate)
        loss = float(np.mean([part["loss"] for part in parts]))
        if not math.isfinite(loss) or (losses and loss > DIVERGED * max(losses[0], 1e-12)):
            break
        losses.append(loss)
        run.metrics({"range/loss": loss, "lr": rate}, step + 1)
    rates, losses = rates[: len(losses)], np.array(losses)
    smooth = smoothed(losses)
    steepest, lowest = suggest(rates, smooth)
    run.figure("learning_rate_range", engine.figures.range_test(rates, losses, smooth, steepest, lowest))
    raise Finished({"suggested/learning_rate": steepest, "suggested/peak": lowest})


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
