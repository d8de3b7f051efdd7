"""What do squared error, absolute error, Huber's loss and cross-entropy each make of outliers and mistakes?

Curves and slopes; the constant that each loss calls best; a line fitted to points of which a tenth are
wrong, and the learning rates at which that is possible; cross-entropy against squared error on
classification: the slope where a classifier is surely wrong, and digits learned from a start that is.

References:
    Huber 1964, "Robust estimation of a location parameter".
    Glorot and Bengio 2010, "Understanding the difficulty of training deep feedforward neural networks".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from keras import ops

import layers
from recipes.mlp_fashion import squared_error
from tuning import figures, networks
from tuning.evidence import Evidence, Quantity, Trial, curves_by_setting, values_by_setting
from tuning.statistics import interval, verdict

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FIELDS = {"loss": ["cross_entropy", "squared_error"]}
LOSSES: dict[str, Callable] = {
    "mse": layers.losses.mean_squared_error,
    "mae": layers.losses.mean_absolute_error,
    "huber": layers.losses.huber,
}
WRONG = 0.1  # share of outliers
SLOPE = 2.0  # of the line that is fitted
UNSTABLE = 1e3  # of a line's slope: nothing that was asked for


def per_example(name: str, y: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """One loss of many pairs, (n,)."""
    return ops.convert_to_numpy(
        LOSSES[name](y[:, None].astype("float32"), predicted[:, None].astype("float32"))
    )


def best_constant(name: str, values: np.ndarray, points: int = 2001) -> float:
    """The constant of smallest mean loss, on a grid over the range of the values."""
    grid = np.linspace(values.min(), values.max(), points)
    losses = per_example(name, np.tile(values, points), np.repeat(grid, len(values)))
    return float(grid[losses.reshape(points, -1).mean(axis=1).argmin()])


def residual_slope(name: str, error: np.ndarray) -> np.ndarray:
    """Derivative of a loss by the prediction: of the three, 2 e, sign e, and e cut to -1 ... 1."""
    return {"mse": 2 * error, "mae": np.sign(error), "huber": np.clip(error, -1, 1)}[name]


def points_on_a_line(seed: int, n: int = 100) -> tuple[np.ndarray, np.ndarray]:
    """Y = SLOPE x + noise, of which a share is far above where x is large."""
    rng = np.random.default_rng((seed, 37))
    x = rng.uniform(-1, 1, n)
    y = SLOPE * x + rng.normal(0, 0.2, n)
    wrong = np.argsort(-x)[: round(WRONG * n)]
    y[wrong] += rng.normal(20, 5, len(wrong))
    return x, y


def fitted_slope(name: str, x: np.ndarray, y: np.ndarray, rate: float = 0.1, steps: int = 2000) -> float:
    """The slope that gradient descent on a loss finds for a line through the points."""
    a = b = 0.0
    for step in range(steps):
        slope = residual_slope(name, a * x + b - y) / len(x)
        fall = rate * (1 - step / steps)  # the absolute error would dance around its minimum for ever
        a, b = a - fall * float(slope @ x), b - fall * float(slope.sum())
        if not abs(a) < UNSTABLE:
            return UNSTABLE
    return a


def largest_stable_rate(name: str, seed: int) -> float:
    """Logarithm to 10 of the largest learning rate, of a row of doublings, that can still fit a line."""
    x, y = points_on_a_line(seed)
    stable = [
        rate for rate in 0.01 * 2.0 ** np.arange(12) if abs(fitted_slope(name, 10 * x, y, rate, 300)) < 50
    ]
    return float(np.log10(max(stable, default=0.001)))


def investigate(seeds: Sequence[int], steps: int = 150) -> Evidence:
    """Compare the losses where they differ.

    Args:
        seeds: of points, weights and digits.
        steps: updates of the classifiers.
    """
    lines = {
        name: [abs(fitted_slope(name, *points_on_a_line(seed)) - SLOPE) for seed in seeds] for name in LOSSES
    }
    stability = {name: [largest_stable_rate(name, seed) for seed in seeds] for name in LOSSES}
    trials = classify(seeds, steps)
    accuracy = values_by_setting(trials, "test/accuracy")
    from_mistakes = {
        name.removesuffix(", surely wrong"): values
        for name, values in accuracy.items()
        if "surely wrong" in name
    }
    error, reached = (
        "error of a slope where a tenth of the points are outliers",
        "test accuracy from a wrong start",
    )
    return Evidence(
        [
            Quantity(error, lines, True),
            Quantity("log10 of the largest stable learning rate on inputs of size 10", stability),
            Quantity(f"test accuracy after {steps} steps", accuracy),
        ],
        {
            "curves": draw(),
            "surfaces": surfaces(),
            "learning_curves": figures.bands(
                curves_by_setting(trials, "test/accuracy"),
                "test accuracy",
                "from a usual start, and a surely wrong one",
            ),
        },
        f"{verdict(error, lines, True)}; {reached} is {interval(from_mistakes['cross-entropy'])} with "
        f"cross-entropy and {interval(from_mistakes['squared error'])} with squared error",
        trials,
    )


def classify(seeds: Sequence[int], steps: int) -> list[Trial]:
    """Digits learned with both losses, from a usual start and from one that is sure of wrong answers."""
    trials = []
    for name, loss, rate in (
        ("cross-entropy", networks.cross_entropy, 0.05),
        (
            "squared error",
            squared_error,
            0.5,
        ),  # its slopes are ten times smaller: a mean over classes
    ):
        model = networks.perceptron([64])
        training = networks.Training(model, layers.optimizers.SGD(momentum=0.9), loss)
        for start, factor in (("", 1.0), (", surely wrong", 40.0)):
            for seed in seeds:
                training.restart(seed, rate)
                last = networks.kernels(model)[-1]
                last.assign(factor * ops.convert_to_numpy(last))
                task = networks.digits(1000, seed)
                trials.append(training.run(task, f"{name}{start}", seed, steps, batch_size=64))
    return trials


def sure_mistake(logit: np.ndarray) -> dict[str, np.ndarray]:
    """Loss of two classes by the right one's logit z: -log p and (1 - p)^2, p = 1 / (1 + exp(-z))."""
    p = 1 / (1 + np.exp(-logit))
    return {"cross-entropy": np.logaddexp(0, -logit), "squared error": (1 - p) ** 2}


def draw() -> Figure:
    """The regression losses and their slopes by residual; the classification losses and slopes by logit."""
    e, z = np.linspace(-3, 3, 241), np.linspace(-8, 8, 241)
    figure, axes = figures.panels(4, columns=2)
    losses = {name: (e, per_example(name, np.zeros_like(e), e)) for name in LOSSES}
    figures.line(axes[0], losses, "residual", "loss")
    figures.line(axes[1], {name: (e, residual_slope(name, e)) for name in LOSSES}, "residual", "slope")
    figures.line(axes[2], {k: (z, v) for k, v in sure_mistake(z).items()}, "logit of the right class", "loss")
    slopes = {k: (z, np.gradient(v, z)) for k, v in sure_mistake(z).items()}
    figures.line(axes[3], slopes, "logit of the right class", "slope")
    return figure


def surfaces() -> Figure:
    """Mean loss of a classifier of two weights on four points, one of them mislabelled, over both weights."""
    x = np.array([[1.0, 0.3], [0.4, 1.0], [-1.0, -0.4], [1.2, 1.1]])
    sign = np.array([1, 1, -1, -1])
    ticks = np.linspace(-8, 8, 81)
    weights = np.stack(np.meshgrid(ticks, ticks), -1)
    found = sure_mistake(sign * (weights @ x.T))
    figure, axes = figures.panels(2, size=(4.2, 3.6))
    for each, (name, values) in zip(axes, found.items(), strict=True):
        shown = each.contourf(ticks, ticks, values.mean(axis=-1), 24, cmap="viridis")
        each.set_title(f"{name} by two weights", fontsize=10)
        figure.colorbar(shown)
    return figure
