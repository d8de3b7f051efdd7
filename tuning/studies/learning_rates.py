"""At which learning rate does gradient descent become unstable: where theory says, at 2 / lambda_max?

Close to a minimum the loss is a quadratic with Hessian H, and a step multiplies the error along an
eigenvector by 1 - rate * lambda: it grows where rate > 2 / lambda_max. Measured on a quadratic, and on a
small network whose lambda_max comes from power iteration; and for the network the sharpness while it trains,
which rises to 2 / rate and stays there (the edge of stability).

Reference:
    Cohen et al. 2021, "Gradient descent on neural networks typically occurs at the edge of stability".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from tuning import figures, networks
from tuning.evidence import Curve, Evidence, Quantity
from tuning.statistics import interval

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FIELDS = {"learning_rate": [0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3]}
HIDDEN, EXAMPLES, PIXELS = 16, 100, 64
RATE = 0.1  # that brings the network near a minimum


class Network:
    """x -> tanh(x W) V, half the squared error to one-hot labels, its gradient written out, in float64.

    In NumPy: an instability is followed over hundreds of steps, where rounding to float32 would drown it.

    Args:
        seed: of weights and examples.
    """

    def __init__(self, seed: int) -> None:
        task = networks.digits(EXAMPLES, seed)
        rng = np.random.default_rng((seed, 23))
        self.x, self.y = task.x.astype(float), np.eye(10)[task.y]
        self.start = np.concatenate(
            [rng.normal(0, PIXELS**-0.5, PIXELS * HIDDEN), rng.normal(0, HIDDEN**-0.5, HIDDEN * 10)]
        )

    def value_and_gradient(self, weights: np.ndarray) -> tuple[float, np.ndarray]:
        """Loss and its gradient at these weights, all in one vector."""
        w = weights[: PIXELS * HIDDEN].reshape(PIXELS, HIDDEN)
        v = weights[PIXELS * HIDDEN :].reshape(HIDDEN, 10)
        h = np.tanh(self.x @ w)
        with np.errstate(over="ignore", invalid="ignore"):  # beyond the edge of stability
            error = (h @ v - self.y) / len(self.x)
            below = (error @ v.T) * (1 - h * h)
            gradient = np.concatenate([(self.x.T @ below).ravel(), (h.T @ error).ravel()])
            return float(0.5 * len(self.x) * np.square(error).sum()), gradient

    def gradient(self, weights: np.ndarray) -> np.ndarray:
        """The gradient alone."""
        return self.value_and_gradient(weights)[1]


def sharpness(
    gradient: Callable[[np.ndarray], np.ndarray], weights: np.ndarray, seed: int, iterations: int = 60
) -> tuple[float, np.ndarray]:
    """Largest eigenvalue of the Hessian, and its eigenvector, by power iteration on H v.

    H v is the gradient's central difference along v. The eigenvalue of largest size is meant; near a minimum
    it is positive.

    Args:
        gradient: of the loss.
        weights: where.
        seed: of the first vector.
        iterations: multiplications by H.
    """
    v = np.random.default_rng((seed, 29)).standard_normal(weights.shape)
    v /= np.linalg.norm(v)
    eigenvalue, small = 0.0, 1e-5
    for _ in range(iterations):
        product = (gradient(weights + small * v) - gradient(weights - small * v)) / (2 * small)
        eigenvalue = float(v @ product)
        v = product / np.linalg.norm(product)
    return eigenvalue, v


def edge(grows: Callable[[float], bool], low: float, high: float, halvings: int = 14) -> float:
    """The learning rate from which on a disturbance grows, by bisection between two rates."""
    for _ in range(halvings):
        middle = (low * high) ** 0.5
        low, high = (low, middle) if grows(middle) else (middle, high)
    return (low * high) ** 0.5


def quadratic_edge(seed: int, dimensions: int = 20) -> float:
    """The measured edge of a random quadratic, over 2 / lambda_max of its matrix."""
    rng = np.random.default_rng((seed, 31))
    matrix = rng.standard_normal((dimensions, dimensions))
    hessian = matrix @ matrix.T / dimensions
    theory = 2 / np.linalg.eigvalsh(hessian)[-1]
    start = rng.standard_normal(dimensions)

    def grows(rate: float) -> bool:
        x, half = start, 0.0
        for step in range(4000):
            if step == 2000:  # by then what is not the largest eigenvalue has died away
                half = float(x @ hessian @ x)
            x = x - rate * hessian @ x
            if not np.isfinite(x).all() or np.abs(x).max() > 1e9:
                return True
        return float(x @ hessian @ x) > half > 1e-200

    return edge(grows, theory / 8, theory * 8) / theory


def network_edge(seed: int, steps: int = 3000) -> tuple[float, float]:
    """The measured edge near a network's minimum over 2 / lambda_max there, and lambda_max.

    Gradient descent brings the network near a minimum; there two copies that differ by a little along the
    sharpest direction go on with each rate, and grow apart or together.
    """
    network = Network(seed)
    weights = network.start
    for _ in range(steps):
        weights = weights - RATE * network.gradient(weights)
    largest, direction = sharpness(network.gradient, weights, seed)

    def grows(rate: float) -> bool:
        one, other = weights, weights + 1e-7 * direction
        for _ in range(10):
            one, other = one - rate * network.gradient(one), other - rate * network.gradient(other)
        return not np.linalg.norm(other - one) < 1e-7

    return edge(grows, 0.25 / largest, 16 / largest) * largest / 2, largest


def progressive(seed: int, rate: float, steps: int = 1200, every: int = 60) -> Curve:
    """Rate * sharpness / 2 while a network trains with full batches: 1 is the edge."""
    network, curve = Network(seed), []
    weights = network.start
    for step in range(steps + 1):
        if step % every == 0:
            curve.append((step, rate * sharpness(network.gradient, weights, seed, iterations=25)[0] / 2))
        weights = weights - rate * network.gradient(weights)
    return curve


def investigate(
    seeds: Sequence[int], rates: Sequence[float] = (0.05, 0.1, 0.2), steps: int = 1200
) -> Evidence:
    """Find the edges, and follow the sharpness of training networks.

    Args:
        seeds: of quadratics, networks and examples.
        rates: of the networks whose sharpness is followed.
        steps: of their training.
    """
    measured = {
        "quadratic": [quadratic_edge(seed) for seed in seeds],
        "network": [network_edge(seed)[0] for seed in seeds],
    }
    curves = {f"rate {rate:g}": [progressive(seed, rate, steps) for seed in seeds] for rate in rates}
    last = {name: [curve[-1][1] for curve in each] for name, each in curves.items()}
    quadratic, network = (interval(measured[name]) for name in ("quadratic", "network"))
    highest = f"rate {max(rates):g}"
    return Evidence(
        [
            Quantity("measured edge of stability over 2 / lambda_max", measured, True),
            Quantity(f"rate x sharpness / 2 after {steps} steps", last),
        ],
        {
            "edge_of_stability": figures.bands(
                curves, "rate x sharpness / 2", "full-batch training: 1 is the edge"
            ),
            "losses": draw(seeds[0]),
        },
        f"gradient descent becomes unstable at {quadratic} times 2 / lambda_max on a quadratic and at "
        f"{network} times on a network; training with {highest} brings the sharpness to "
        f"{interval(last[highest])} of 2 / rate",
    )


def draw(seed: int) -> Figure:
    """Loss over steps for rates around the edge that the trained network has."""
    network = Network(seed)
    weights = network.start
    for _ in range(1500):
        weights = weights - RATE * network.gradient(weights)
    largest, direction = sharpness(network.gradient, weights, seed)
    curves = {}
    for factor in (0.5, 0.9, 1.1, 1.5):
        w, losses = weights + 1e-2 * direction, []
        for _ in range(40):
            loss, gradient = network.value_and_gradient(w)
            losses.append(loss)
            w = w - factor * 2 / largest * gradient
        curves[f"{factor} x 2 / lambda_max"] = (range(40), losses)
    figure, (axes,) = figures.panels(1, size=(7.5, 3.8))
    figures.line(axes, curves, "step", "loss", "from a point beside the minimum")
    axes.set_yscale("log")
    return figure
