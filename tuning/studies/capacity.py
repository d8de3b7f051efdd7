"""How does the error depend on a model's capacity: bias, variance, and beyond interpolation?

Polynomials of growing degree, fitted to many draws of the same noisy curve: squared bias and variance of
their predictions. Random relu features with the least-squares solution of smallest norm: the test error peaks
where there are as many features as examples, and falls again beyond (double descent).

References:
    Geman et al. 1992, "Neural networks and the bias/variance dilemma".
    Belkin et al. 2019, "Reconciling modern machine-learning practice and the classical bias-variance
    trade-off".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from tuning import figures, networks
from tuning.evidence import Evidence, Quantity
from tuning.statistics import interval, verdict

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FIELDS = {"units": [8, 32, 128], "depth": [1, 2, 3]}
DEGREES = tuple(range(10))
NOISE = 0.3
EXAMPLES = 100  # of the double descent
SHARES = (0.1, 0.25, 0.5, 0.75, 0.9, 1.0, 1.1, 1.5, 2.0, 4.0, 10.0)  # features over examples


def bias_and_variance(
    seed: int, degrees: Sequence[int] = DEGREES, draws: int = 200, n: int = 40
) -> tuple[np.ndarray, np.ndarray]:
    """Squared bias and variance of polynomial fits, mean over the interval, by degree.

        E (f^(x) - f(x))^2 = (E f^(x) - f(x))^2 + Var f^(x)

    Args:
        seed: of the draws.
        degrees: of the polynomials.
        draws: data sets.
        n: points of each.
    """
    rng = np.random.default_rng((seed, 41))
    grid = np.linspace(-0.95, 0.95, 60)
    x = rng.uniform(-1, 1, (draws, n))
    y = np.sin(np.pi * x) + rng.normal(0, NOISE, x.shape)
    bias, variance = [], []
    for degree in degrees:
        fits = np.stack(
            [
                np.polynomial.chebyshev.Chebyshev.fit(a, b, degree, domain=(-1, 1))(grid)
                for a, b in zip(x, y, strict=True)
            ]
        )
        bias.append(np.mean((fits.mean(axis=0) - np.sin(np.pi * grid)) ** 2))
        variance.append(fits.var(axis=0).mean())
    return np.array(bias), np.array(variance)


def double_descent(
    seed: int, shares: Sequence[float] = SHARES, examples: int = EXAMPLES
) -> tuple[np.ndarray, np.ndarray]:
    """Errors of random features relu(x W), with the solution of smallest norm, by their number.

    Args:
        seed: of features and digits.
        shares: features over examples.
        examples: to learn from.

    Returns:
        Mean squared errors to one-hot labels, training and test, one a share.
    """
    task = networks.digits(examples, seed)
    targets, wanted = np.eye(10)[task.y], np.eye(10)[task.test_y]
    rng = np.random.default_rng((seed, 43))
    matrix = rng.standard_normal((64, round(max(shares) * examples))) / 8
    train, test = (np.maximum(x.astype(float) @ matrix, 0) for x in (task.x, task.test_x))
    errors = []
    for share in shares:
        count = round(share * examples)
        weights = np.linalg.lstsq(train[:, :count], targets, rcond=1e-10)[0]
        errors.append(
            [np.mean((a[:, :count] @ weights - b) ** 2) for a, b in ((train, targets), (test, wanted))]
        )
    return tuple(np.array(errors).T)


def investigate(seeds: Sequence[int], draws: int = 200) -> Evidence:
    """Take the error apart by degree, and follow it past interpolation.

    Args:
        seeds: of data and features.
        draws: data sets of each polynomial.
    """
    parts = [bias_and_variance(seed, draws=draws) for seed in seeds]
    totals = {
        f"degree {degree}": [float(np.log10(bias[place] + variance[place])) for bias, variance in parts]
        for place, degree in enumerate(DEGREES)
    }
    errors = [double_descent(seed) for seed in seeds]
    tests = {
        f"{share:g} x as many": [float(np.log10(test[place])) for _, test in errors]
        for place, share in enumerate(SHARES)
    }
    peak = max(tests, key=lambda name: float(np.mean(tests[name])))
    last = list(tests)[-1]
    polynomial = "log10 of squared bias + variance of a polynomial"
    return Evidence(
        [
            Quantity(polynomial, totals, True),
            Quantity(f"log10 of the test error of random features on {EXAMPLES} examples", tests, True),
        ],
        {"bias_and_variance": draw_parts(parts), "double_descent": draw_descent(errors)},
        f"{verdict(polynomial, totals, True)}; log10 of the test error of random features is largest with "
        f"{peak} as examples, {interval(tests[peak])}, and {interval(tests[last])} with {last}",
    )


def draw_parts(parts: Sequence[tuple[np.ndarray, np.ndarray]]) -> Figure:
    """Squared bias, variance and their sum by degree."""
    figure, (axes,) = figures.panels(1, size=(7.5, 3.8))
    curves = {
        "squared bias": [_logarithms(DEGREES, bias) for bias, _ in parts],
        "variance": [_logarithms(DEGREES, variance) for _, variance in parts],
        "sum": [_logarithms(DEGREES, bias + variance) for bias, variance in parts],
    }
    figures.band(axes, curves, "degree of the polynomial", "log10 of the deviation from the truth")
    return figure


def draw_descent(errors: Sequence[tuple[np.ndarray, np.ndarray]]) -> Figure:
    """Training and test error over features per example; the line is where training data can just be met."""
    figure, (axes,) = figures.panels(1, size=(7.5, 3.8))
    curves = {
        name: [_logarithms(SHARES, each[place]) for each in errors]
        for place, name in enumerate(("training", "test"))
    }
    figures.band(axes, curves, "features over examples", "log10 of the mean squared error")
    axes.axvline(1, color="#888", linewidth=0.8)
    axes.set_xscale("log")
    return figure


def _logarithms(places: Sequence[float], values: np.ndarray) -> list[tuple[float, float]]:
    """A curve of logarithms; what rounding leaves of zero is shown as 1e-4."""
    return list(zip(places, np.log10(np.maximum(values, 1e-4)), strict=True))
