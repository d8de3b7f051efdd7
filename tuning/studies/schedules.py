"""Which learning-rate schedule ends lowest when gradients are noisy, and does a network see the difference?

Gradient descent on a quadratic with noise of constant size: a constant rate ends on a floor of noise, a
falling one below it. Then a perceptron learns digits with each schedule at the same peak rate.

References:
    Loshchilov and Hutter 2017, "SGDR". Smith and Topin 2017, "Super-convergence".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from keras import ops

import layers
from tuning import figures, networks
from tuning.evidence import Evidence, Quantity, Trial, curves_by_setting, values_by_setting
from tuning.statistics import verdict

FIELDS = {"schedule": ["constant", "step", "cosine", "one_cycle"]}
NOISE = 1.0  # standard deviation of every gradient
SCHEDULES: dict[str, Callable[[float, int], Any]] = {
    "constant": lambda peak, steps: layers.schedules.Constant(peak),
    "step": lambda peak, steps: layers.schedules.StepDecay(peak, max(1, steps // 3), 0.1),
    "exponential": lambda peak, steps: layers.schedules.ExponentialDecay(peak, steps, 0.01),
    "linear": lambda peak, steps: layers.schedules.PolynomialDecay(peak, steps, 0.0),
    "cosine": lambda peak, steps: layers.schedules.CosineDecay(peak, steps),
    "restarts": lambda peak, steps: layers.schedules.CosineDecayRestarts(peak, max(1, steps // 3), t_mul=1.0),
    "one_cycle": lambda peak, steps: layers.schedules.OneCycle(peak, steps),
}


def rates(name: str, peak: float, steps: int) -> np.ndarray:
    """A schedule's learning rate at every step."""
    schedule = SCHEDULES[name](peak, steps)
    return np.array([float(ops.convert_to_numpy(schedule(step))) for step in range(steps)])


def noisy_descent(learning_rates: np.ndarray, seed: int, dimensions: int = 50) -> np.ndarray:
    """F = x'Dx / 2 over steps of x <- x - rate (D x + noise), with eigenvalues D from 0.1 to 1."""
    rng = np.random.default_rng((seed, 53))
    eigenvalues = np.geomspace(0.1, 1, dimensions)
    x = np.full(dimensions, 3.0)
    values = []
    for rate in learning_rates:
        values.append(0.5 * float(eigenvalues @ x**2))
        x = x - rate * (eigenvalues * x + rng.normal(0, NOISE, dimensions))
    return np.array([*values, 0.5 * float(eigenvalues @ x**2)])


def investigate(seeds: Sequence[int], steps: int = 300, peak: float = 0.5, trained: int = 150) -> Evidence:
    """Descend the noisy quadratic, and train.

    Args:
        seeds: of noise, weights and digits.
        steps: of the descent.
        peak: its highest learning rate.
        trained: updates of the perceptron.
    """
    planned = {name: rates(name, peak, steps) for name in SCHEDULES}
    paths = {name: [noisy_descent(each, seed) for seed in seeds] for name, each in planned.items()}
    ends = {name: [float(np.log10(path[-1])) for path in each] for name, each in paths.items()}
    trials = train(seeds, trained)
    accuracy = values_by_setting(trials, "test/accuracy")
    figure, axes = figures.panels(2, size=(5.0, 3.6))
    figures.line(
        axes[0], {name: (range(steps), each) for name, each in planned.items()}, "step", "learning rate"
    )
    curves = {name: [list(enumerate(np.log10(path)))[::5] for path in each] for name, each in paths.items()}
    figures.band(axes[1], curves, "step", "log10 f", "noisy quadratic")
    floor, reached = (
        f"log10 f of a noisy quadratic after {steps} steps",
        f"test accuracy after {trained} steps",
    )
    return Evidence(
        [Quantity(floor, ends, True), Quantity(reached, accuracy)],
        {
            "schedules": figure,
            "learning_curves": figures.bands(curves_by_setting(trials, "train/loss"), "training loss"),
        },
        f"{verdict(floor, ends, True)}; {verdict(reached, accuracy, False)}",
        trials,
    )


def train(seeds: Sequence[int], steps: int) -> list[Trial]:
    """A perceptron for each schedule, from every seed."""
    trials = []
    for name, schedule in SCHEDULES.items():
        optimizer = layers.optimizers.SGD(schedule(0.1, steps), momentum=0.9)
        training = networks.Training(networks.perceptron([64]), optimizer)
        for seed in seeds:
            training.restart(seed)
            trials.append(training.run(networks.digits(1000, seed), name, seed, steps, batch_size=32))
    return trials
