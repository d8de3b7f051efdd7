"""Which optimizer gets furthest in as many steps, when each has the learning rate that suits it?

On four surfaces of two variables, from several starts, with the project's own optimizers; and batch,
stochastic and mini-batch gradient descent of a softmax regression that may look at as many examples. Learning
rates are chosen on other starts and seeds than those that are compared.

References:
    Rosenbrock 1960; Beale 1958. Sutskever et al. 2013, "On the importance of initialization and momentum".
    Kingma and Ba 2015, "Adam". Loshchilov and Hutter 2019, "Decoupled weight decay regularization".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
from keras import ops

import layers
from recipes.engine import gradients
from tuning import figures, networks
from tuning.evidence import Curve, Evidence, Quantity
from tuning.statistics import ranked, verdict

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FIELDS = {"optimizer": ["sgd", "momentum", "nesterov", "adagrad", "rmsprop", "adam", "adamw"]}
TUNED = {"learning_rate": [0.0005, 0.002, 0.01, 0.05, 0.2]}

OPTIMIZERS: dict[str, Callable[[], keras.optimizers.Optimizer]] = {
    "sgd": lambda: layers.optimizers.SGD(),
    "momentum": lambda: layers.optimizers.SGD(momentum=0.9),
    "nesterov": lambda: layers.optimizers.SGD(momentum=0.9, nesterov=True),
    "adagrad": lambda: layers.optimizers.Adagrad(),
    "rmsprop": lambda: layers.optimizers.RMSprop(),
    "adam": lambda: layers.optimizers.Adam(),
    "adamw": lambda: layers.optimizers.AdamW(weight_decay=0.01),
}
RATES = (1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0)
SPREAD = 0.3  # standard deviation of the starts around a surface's own
WORST, BEST = 1e6, 1e-12  # values are compared within; beyond, a run has diverged or arrived


@dataclass(frozen=True)
class Surface:
    """A function of two variables: its formula, its customary start, its minimum, and what to draw of it."""

    of: Callable[[Any, Any], Any]
    start: tuple[float, float]
    minimum: tuple[float, float]
    window: tuple[float, float, float, float]


SURFACES = {
    "rosenbrock": Surface(
        lambda x, y: (1 - x) ** 2 + 100 * (y - x * x) ** 2, (-1.2, 1.0), (1, 1), (-2, 2, -1, 3)
    ),
    "beale": Surface(
        lambda x, y: (1.5 - x + x * y) ** 2 + (2.25 - x + x * y**2) ** 2 + (2.625 - x + x * y**3) ** 2,
        (1.0, 1.5), (3, 0.5), (-1, 4.5, -2, 2.5),
    ),
    # Two minima at x = -1 and 1; between them the saddle, near whose ridge the starts lie.
    "saddle": Surface(lambda x, y: (x * x - 1) ** 2 + y * y, (0.0, 1.5), (1, 0), (-2, 2, -1.5, 2)),
    "ravine": Surface(lambda x, y: 0.5 * (x * x + 100 * y * y), (-4.0, 1.0), (0, 0), (-5, 2, -1.5, 1.5)),
}  # fmt: skip


def trajectories(
    surface: Surface, optimizer: Callable[[], Any], rates: Sequence[float], starts: np.ndarray, steps: int
) -> np.ndarray:
    """Every point on the way from every start, with every learning rate.

    All starts are one variable: the rules work element by element, so that they do not know of each other.

    Args:
        surface: what to descend.
        optimizer: makes one.
        rates: learning rates.
        starts: (starts, 2).
        steps: updates.

    Returns:
        (rates, steps + 1, starts, 2).
    """
    points = keras.Variable(starts.astype("float32"))
    rule = optimizer()
    rule.build([points])
    state = [*rule.variables]
    first = [ops.convert_to_numpy(variable).copy() for variable in state]

    def update() -> Any:
        value, slopes = gradients.by_variables(
            lambda: ops.sum(surface.of(points.value[:, 0], points.value[:, 1])), [points]
        )
        rule.apply(slopes, [points])
        return value

    step = gradients.compiled_step(update, [points, *state])
    paths = np.empty((len(rates), steps + 1, *starts.shape), "float32")
    for place, rate in enumerate(rates):
        points.assign(starts.astype("float32"))
        for variable, value in zip(state, first, strict=True):
            variable.assign(value)
        rule.learning_rate = rate
        paths[place, 0] = starts
        for k in range(steps):
            step()
            paths[place, k + 1] = ops.convert_to_numpy(points)
    return paths


def heights(surface: Surface, paths: np.ndarray) -> np.ndarray:
    """log10 of the surface along paths (..., 2), between `BEST` and `WORST`; NaN is the worst."""
    with np.errstate(all="ignore"):
        values = surface.of(paths[..., 0].astype(np.float64), paths[..., 1].astype(np.float64))
        return np.log10(np.clip(np.nan_to_num(values, nan=WORST, posinf=WORST), BEST, WORST))


def descend(
    surface: Surface, seeds: Sequence[int], steps: int, names: Sequence[str] = tuple(OPTIMIZERS)
) -> dict[str, tuple[float, np.ndarray]]:
    """The learning rate that ends lowest on half of the starts, and the paths of the others.

    Args:
        surface: what to descend.
        seeds: of the starts that are compared; as many others serve to choose.
        steps: updates.
        names: of the optimizers.

    Returns:
        (rate, paths (steps + 1, starts, 2)) by optimizer.
    """
    starts = np.array(
        [
            np.array(surface.start) + np.random.default_rng((seed, half)).normal(0, SPREAD, 2)
            for half in (0, 1)
            for seed in seeds
        ]
    )
    found = {}
    for name in names:
        paths = trajectories(surface, OPTIMIZERS[name], RATES, starts, steps)
        ends = heights(surface, paths[:, -1])[:, : len(seeds)].mean(axis=1)
        best = int(np.argmin(ends))
        found[name] = (RATES[best], paths[best][:, len(seeds) :])
    return found


def softmax_regression(
    task: networks.Task, batch_size: int, rate: float, seed: int, epochs: int, looks: int = 20
) -> Curve:
    """Loss on the training examples over examples seen, of plain gradient descent on logits x W, in NumPy."""
    rng = np.random.default_rng((seed, 19))
    x, targets = task.x.astype(float), np.eye(10)[task.y]
    weights = np.zeros((x.shape[1], 10))

    def probabilities(inputs: np.ndarray) -> np.ndarray:
        logits = inputs @ weights
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        return powers / powers.sum(axis=1, keepdims=True)

    curve, seen, budget = [], 0, epochs * len(x)
    order = np.empty(0, int)
    while True:
        if seen * looks >= len(curve) * budget:
            likely = np.maximum((probabilities(x) * targets).sum(axis=1), 1e-30)
            curve.append((round(len(curve) * budget / looks), float(-np.log(likely).mean())))
        if seen >= budget:
            return curve
        if len(order) < batch_size:
            order = rng.permutation(len(x))
        chosen, order = order[:batch_size], order[batch_size:]
        weights -= rate / batch_size * x[chosen].T @ (probabilities(x[chosen]) - targets[chosen])
        seen += batch_size


def investigate(seeds: Sequence[int], steps: int = 150, epochs: int = 4, examples: int = 512) -> Evidence:
    """Descend the surfaces, and compare batch sizes at an equal number of examples.

    Args:
        seeds: of starts, data and orders.
        steps: updates on a surface.
        epochs: passes of each kind of gradient descent over the examples.
        examples: of the softmax regression.
    """
    descents = {name: descend(surface, seeds, steps) for name, surface in SURFACES.items()}
    quantities = [
        Quantity(
            f"log10 f on {name} after {steps} steps",
            {each: heights(surface, paths[-1]).tolist() for each, (_, paths) in descents[name].items()},
            True,
        )
        for name, surface in SURFACES.items()
    ]
    curves = batch_curves(seeds, epochs, examples)
    ends = {name: [curve[-1][1] for curve in each] for name, each in curves.items()}
    name = f"training loss after {epochs} epochs of softmax regression"
    quantities.append(Quantity(name, ends, True))
    leaders = ", ".join(
        f"{ranked(q.values, True)[0]} on {n}" for n, q in zip(SURFACES, quantities, strict=False)
    )
    return Evidence(
        quantities,
        {
            "trajectories": draw_trajectories(descents),
            "convergence": draw_convergence(descents),
            "batch_sizes": figures.bands(curves, "training loss", "gradient descent at equal examples"),
        },
        f"each with its own learning rate, the lowest after {steps} steps are {leaders}; "
        + verdict(name, ends, True),
    )


def batch_curves(seeds: Sequence[int], epochs: int, examples: int) -> dict[str, list[Curve]]:
    """Loss over examples seen by kind of gradient descent, each at the rate that is best on another seed."""
    kinds = {"batch": examples, "mini-batch of 32": 32, "stochastic": 1}
    other = max(seeds) + 1
    rates = {
        kind: min(
            (0.01, 0.03, 0.1, 0.3, 1.0, 3.0),
            key=lambda rate: softmax_regression(networks.digits(examples, other), size, rate, other, epochs)[
                -1
            ][1],
        )
        for kind, size in kinds.items()
    }
    return {
        f"{kind}, rate {rates[kind]}": [
            softmax_regression(networks.digits(examples, seed), size, rates[kind], seed, epochs)
            for seed in seeds
        ]
        for kind, size in kinds.items()
    }


def draw_trajectories(descents: dict[str, dict[str, tuple[float, np.ndarray]]]) -> Figure:
    """The first start's way down each surface, on its contours."""
    figure, axes = figures.panels(len(SURFACES), columns=2, size=(4.6, 3.8))
    for each, (name, surface) in zip(axes, SURFACES.items(), strict=True):
        left, right, low, high = surface.window
        x, y = np.meshgrid(np.linspace(left, right, 160), np.linspace(low, high, 160))
        each.contour(x, y, np.log10(surface.of(x, y) + 1e-3), 18, cmap="Greys", linewidths=0.6, alpha=0.7)
        for place, (label, (rate, paths)) in enumerate(descents[name].items()):
            way = np.clip(paths[:, 0], -1e3, 1e3)
            each.plot(*way.T, label=f"{label}, {rate:g}", linewidth=1.2, **figures.style(place))
        each.plot(*surface.minimum, "*", color="black", markersize=9)
        each.set_xlim(left, right)
        each.set_ylim(low, high)
        each.set_title(name, fontsize=10)
        each.grid(False)
        each.legend(fontsize=6, frameon=True, framealpha=0.8, loc="best")
    return figure


def draw_convergence(descents: dict[str, dict[str, tuple[float, np.ndarray]]]) -> Figure:
    """log10 of f over steps, mean and standard deviation over starts."""
    figure, axes = figures.panels(len(SURFACES), columns=2)
    for each, (name, surface) in zip(axes, SURFACES.items(), strict=True):
        curves = {
            label: [list(enumerate(values)) for values in heights(surface, paths).T]
            for label, (_, paths) in descents[name].items()
        }
        figures.band(each, curves, "step", "log10 f", name)
    return figure
