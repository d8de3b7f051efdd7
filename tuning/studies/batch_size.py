"""What does a larger batch buy: less noise in the gradient, and a better model from as many examples?

The variance of the gradient of a softmax regression by batch size, which theory has fall as 1 / batch size;
then a perceptron learns digits from an equal number of examples, with one learning rate for all batch sizes,
and with one in proportion to the batch size.

References:
    Goyal et al. 2017, "Accurate, large minibatch SGD".
    McCandlish et al. 2018, "An empirical model of large-batch training".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

import layers
from tuning import figures, networks
from tuning.evidence import Evidence, Quantity, Trial, curves_by_setting, values_by_setting
from tuning.statistics import interval, verdict

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FIELDS = {"batch_size": [32, 64, 128, 256, 512]}
SIZES = (8, 32, 128, 512)
RATE, BASE = 0.05, 32  # the learning rate, and the batch size that it belongs to
EXAMPLES = 1024


def gradient_noise(seed: int, sizes: Sequence[int] = SIZES, draws: int = 400) -> np.ndarray:
    """Total variance of a softmax regression's first gradient over random batches, by batch size."""
    task = networks.digits(EXAMPLES, seed)
    rng = np.random.default_rng((seed, 47))
    # At weights of zero every class has probability 1/10; one example's gradient is x times that error.
    each = task.x[:, :, None] * (0.1 - np.eye(10)[task.y])[:, None, :]
    each = each.reshape(len(task.x), -1)
    return np.array(
        [
            np.stack([each[rng.integers(0, len(each), size)].mean(axis=0) for _ in range(draws)])
            .var(axis=0)
            .sum()
            for size in sizes
        ]
    )


def exponent(noise: np.ndarray, sizes: Sequence[int] = SIZES) -> float:
    """Slope of log variance over log batch size, by least squares; theory: -1."""
    return float(np.polyfit(np.log(sizes), np.log(noise), 1)[0])


def investigate(seeds: Sequence[int], epochs: int = 6) -> Evidence:
    """Measure the noise, and train with every batch size.

    Args:
        seeds: of data, weights and batches.
        epochs: passes over the examples, for every batch size.
    """
    noise = [gradient_noise(seed) for seed in seeds]
    slopes = [exponent(each) for each in noise]
    trials = train(seeds, epochs)
    accuracy = values_by_setting(trials, "test/accuracy")
    name = f"test accuracy after {epochs} epochs"
    return Evidence(
        [
            Quantity(
                "variance of the gradient",
                {f"batch of {size}": [float(each[k]) for each in noise] for k, size in enumerate(SIZES)},
                True,
            ),
            Quantity(name, accuracy),
        ],
        {
            "gradient_noise": draw(noise),
            "learning_curves": figures.bands(
                curves_by_setting(trials, "train/loss"),
                "training loss",
                f"{epochs} epochs, each in its own steps",
            ),
        },
        f"the gradient's variance falls as batch size to the power {interval(slopes)}; "
        + verdict(name, accuracy, False),
        trials,
    )


def train(seeds: Sequence[int], epochs: int) -> list[Trial]:
    """One perceptron, trained with every batch size at a constant and at a proportional learning rate."""
    training = networks.Training(networks.perceptron([64]), layers.optimizers.SGD(momentum=0.9))
    trials = []
    for size in SIZES:
        rates = {"constant rate": RATE, "proportional rate": RATE * size / BASE}
        for kind, rate in rates.items():
            if kind == "proportional rate" and size == BASE:
                continue  # the same
            for seed in seeds:
                training.restart(seed, rate)
                task = networks.digits(EXAMPLES, seed)
                steps = epochs * EXAMPLES // size
                trials.append(training.run(task, f"batch of {size}, {kind}", seed, steps, size, looks=6))
    return trials


def draw(noise: Sequence[np.ndarray]) -> Figure:
    """Variance of the gradient over batch size, and a line of slope -1."""
    figure, (axes,) = figures.panels(1, size=(7.5, 3.8))
    curves = {"measured": [list(zip(SIZES, each, strict=True)) for each in noise]}
    first = float(np.mean([each[0] for each in noise]))
    curves["1 / batch size"] = [[(size, first * SIZES[0] / size) for size in SIZES]]
    figures.band(axes, curves, "batch size", "variance of the gradient")
    axes.set_xscale("log")
    axes.set_yscale("log")
    return figure
