"""One hidden layer approximates any continuous function: seen by construction, and by training.

Question: what does width buy? Cybenko's theorem says that sums of sigmoids come arbitrarily near to any
continuous function; the proof can be drawn: two steep sigmoids make a bump, bumps make a staircase. Trained
networks need far fewer units than the staircase, but training, not width, soon sets the limit.

    python -m recipes.universal_approximation --backend numpy

Expected: 64 trained units are 1.3 to 3.5 times as exact as a staircase of 64, with NumPy in 38 s
(results/numpy/README.md). The staircase's error falls like 1/width; that of trained networks much
faster at first, then levels off at what the optimizer reaches in its steps.

`--find-lr` tests the widest network on the first function: the wider, the smaller the rates that it bears.

Figures: construction (bumps and staircases), fits (1-D functions and networks of growing width),
error_by_width (mean and range over seeds, beside the staircase), surfaces (2-D functions, networks,
errors).

References:
    Cybenko, 1989, Approximation by superpositions of a sigmoidal function.
    Hornik, Stinchcombe and White, 1989, Multilayer feedforward networks are universal approximators.
    Barron, 1993, Universal approximation bounds for superpositions of a sigmoidal function.

Differences from Cybenko:
    1. His proof is by contradiction and builds nothing; the staircase is the usual constructive argument in
       1-D.
    2. Trained networks use tanh, which is a sigmoid scaled.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from layers.autograd import no_grad, ops
from layers.autograd.nn import Dense, Sequential
from layers.autograd.optim import Adam
from layers.autograd.schedules import cosine_decay
from recipes.engine import launch, learning_rates
from recipes.engine.config import ResumableConfig, refuse
from recipes.engine.errors import usage_error
from recipes.engine.parts import Part
from recipes.engine.tracking import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Function = Callable[[np.ndarray], np.ndarray]

ONE_D: dict[str, Function] = {
    "waves": lambda x: np.sin(2 * np.pi * x[:, 0]) + 0.5 * np.sin(6 * np.pi * x[:, 0]),
    "corner": lambda x: 2 * np.abs(x[:, 0] - 0.4) - 0.5,
    "jump": lambda x: np.tanh(40 * (x[:, 0] - 0.55)),
}
TWO_D: dict[str, Function] = {
    "egg box": lambda x: np.sin(2 * np.pi * x[:, 0]) * np.cos(2 * np.pi * x[:, 1]),
    "hill": lambda x: 2 * np.exp(-30 * ((x[:, 0] - 0.4) ** 2 + (x[:, 1] - 0.6) ** 2)) - 0.5,
}
FUNCTIONS = {**ONE_D, **TWO_D}


@dataclass(frozen=True)
class Config(ResumableConfig):
    """Settings of the networks and their training."""

    PARTS = True

    backend: Literal["numpy"] = "numpy"
    """Only NumPy: this recipe needs no framework."""
    precision: Literal["float32"] = "float32"
    """Type of weights and activations."""
    dataset: Literal["functions"] = "functions"
    """Three functions of one variable and two of two, on the unit interval and square."""
    epochs: int = 1500
    """Steps of every network, each on all points."""
    learning_rate: float = 0.05
    """Step size at the start; it falls to 0 along a cosine."""
    largest: int = 64
    """Largest width; the widths are 1, 2, 4, ... up to it."""
    seeds: int = 3
    """Networks of every width, from different starts."""
    checkpoint_every: str = "60s"
    """0: keep nothing; else every trained network is kept, for a killed run to go on with the next."""

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse(self, ("early_stopping",), "networks are compared after equally many steps")
        if self.largest < 1 or self.seeds < 1:
            raise usage_error("--largest and --seeds must be at least 1")

    @classmethod
    def small(cls, **changes: Any) -> Config:
        """Narrow networks, few steps."""
        return cls(**{"epochs": 300, "largest": 8, "seeds": 1, **changes})


def sample(name: str, side: int) -> tuple[np.ndarray, np.ndarray]:
    """A grid of points (n, d) and the function's values (n,)."""
    ticks = np.linspace(0, 1, side)
    x = ticks[:, None] if name in ONE_D else np.stack(np.meshgrid(ticks, ticks), -1).reshape(-1, 2)
    return x.astype(np.float32), FUNCTIONS[name](x).astype(np.float32)


def build_model(width: int, inputs: int, seed: int) -> Sequential:
    """`x` -> v tanh(W x + b) + c, the kinks of its units spread over the domain."""
    rng = np.random.default_rng(seed)
    model = Sequential([Dense(width, "tanh", rng=rng), Dense(1, rng=rng)])
    model(np.zeros((1, inputs), np.float32))
    hidden = model.layers[0]
    # Slopes of some units a domain, each unit's middle at a random point of it. With Glorot's small slopes
    # and bias zero all units would start as the same straight line through the origin.
    kernel = rng.normal(0, 2 + 0.5 * width ** (1 / inputs), (inputs, width))
    hidden.kernel.assign(kernel)
    hidden.bias.assign(-(rng.uniform(0, 1, (inputs, width)) * kernel).sum(axis=0))
    return model


def fit(config: Config, name: str, width: int, seed: int, run: Run) -> tuple[Sequential, float]:
    """One trained network, and its root mean square error on a finer grid than it was trained on.

    A run that goes on after a kill takes the networks that it had trained.
    """
    x, y = sample(name, coarse(name))
    model = build_model(width, x.shape[1], seed)
    optimizer = Adam(model.weights, cosine_decay(config.learning_rate, config.epochs))

    def step() -> float:
        optimizer.zero_grad()
        error = model(x) - y[:, None]
        loss = (error * error).mean()
        loss.backward()
        optimizer.step()
        return loss.item()

    if config.find_lr:
        learning_rates.find_with(optimizer, lambda _: step(), run)

    def trained() -> dict[str, np.ndarray]:
        for _ in range(config.epochs):
            step()
        return {path: weight.data for path, weight in model.named_weights()}

    weights = Part(run, config, f"{name}-{width}-{seed}".replace(" ", "_")).once(trained)
    model.set_weights([*weights.values()])
    return model, root_mean_square(predict(model, name), sample(name, fine(name))[1])


def coarse(name: str) -> int:
    """Points a side of the grid that networks learn from."""
    return 128 if name in ONE_D else 20


def fine(name: str) -> int:
    """Points a side of the grid on which errors are measured; no multiple of the training grid."""
    return 501 if name in ONE_D else 57


def predict(model: Sequential, name: str) -> np.ndarray:
    """The network on the fine grid."""
    with no_grad():
        return model(sample(name, fine(name))[0]).data[:, 0]


def root_mean_square(a: np.ndarray, b: np.ndarray) -> float:
    """sqrt(mean (a - b)^2)."""
    return float(np.sqrt(np.mean((a - b) ** 2)))


def bump(x: np.ndarray, left: float, right: float, steepness: float) -> np.ndarray:
    """Two sigmoids whose difference is about 1 on [left, right] and about 0 elsewhere."""
    return ops.sigmoid(steepness * (x - left)).data - ops.sigmoid(steepness * (x - right)).data


def staircase(function: Function, x: np.ndarray, intervals: int) -> np.ndarray:
    """The construction: in every interval a bump as high as the function in its middle.

    Bumps of neighbours share the sigmoid at their border, so a hidden layer of `intervals` + 1 units
    suffices. With sigmoids steep against the width of the interval, the error is at most the change of the
    function over an interval (its modulus of continuity), which goes to 0.
    """
    borders = np.linspace(0, 1, intervals + 1)
    heights = function(((borders[1:] + borders[:-1]) / 2)[:, None])
    # The outermost borders lie outside, so that the ends of the domain are not half way down a slope.
    borders = np.concatenate([[-1.0], borders[1:-1], [2.0]])
    steepness = 20 * intervals
    bumps = [bump(x, a, b, steepness) for a, b in pairwise(borders)]
    return np.sum([h * b for h, b in zip(heights, bumps, strict=True)], axis=0)


def train(config: Config, run: Run) -> dict[str, float]:
    """Measure the error at every width, build the staircases, draw; returns the final metrics."""
    widths = [2**i for i in range(config.largest.bit_length())]
    errors: dict[str, np.ndarray] = {}
    models: dict[tuple[str, int], Sequential] = {}
    if config.find_lr:
        fit(config, "waves", widths[-1], config.seed, run)
    for name in FUNCTIONS:
        rows = []
        for width in widths:
            found = [fit(config, name, width, config.seed + i, run) for i in range(config.seeds)]
            rows.append([error for _, error in found])
            models[name, width] = min(found, key=lambda pair: pair[1])[0]
            run.metrics({f"rmse/{name.replace(' ', '_')}": float(np.mean(rows[-1]))}, step=width)
        errors[name] = np.array(rows)
        first, last = errors[name].mean(axis=1)[[0, -1]]
        print(f"{name}: rmse {first:.4f} at width 1, {last:.4f} at width {widths[-1]}", flush=True)
    stairs = {name: [stair_error(name, max(1, width - 1)) for width in widths] for name in ONE_D}
    run.figure("construction", construction_figure())
    run.figure("fits", fits_figure(models, widths))
    run.figure("error_by_width", errors_figure(errors, stairs, widths))
    run.figure("surfaces", surfaces_figure(models, widths))
    final = {}
    for name, rows in errors.items():
        key = name.replace(" ", "_")
        final |= {
            f"rmse/{key}/narrowest": float(rows[0].mean()),
            f"rmse/{key}/widest": float(rows[-1].mean()),
        }
    final |= {f"staircase/{name}/widest": values[-1] for name, values in stairs.items()}
    return final


def stair_error(name: str, intervals: int) -> float:
    """Root mean square error of the staircase on the fine grid."""
    x, y = sample(name, fine(name))
    return root_mean_square(staircase(FUNCTIONS[name], x[:, 0], intervals), y)


def construction_figure(name: str = "waves") -> Figure:
    """A bump of two sigmoids, bumps side by side, and staircases of growing width."""
    from matplotlib.figure import Figure

    x = np.linspace(0, 1, 800)
    figure = Figure(figsize=(14, 3.6), layout="constrained")
    first, second, *rest = figure.subplots(1, 4)
    for steepness, alpha in ((20, 0.35), (60, 0.6), (400, 1.0)):
        first.plot(x, bump(x, 0.3, 0.6, steepness), color="C0", alpha=alpha, label=f"steepness {steepness}")
    first.set_title("Two sigmoids make a bump")
    first.legend(fontsize=8)
    borders = np.linspace(0, 1, 9)
    heights = FUNCTIONS[name](((borders[1:] + borders[:-1]) / 2)[:, None])
    for a, b, h in zip(borders[:-1], borders[1:], heights, strict=True):
        second.fill_between(x, h * bump(x, a, b, 300), alpha=0.5)
    second.plot(x, FUNCTIONS[name](x[:, None]), "k", lw=1)
    second.set_title("8 bumps as high as the function")
    for axis, intervals in zip(rest, (16, 64), strict=True):
        y = staircase(FUNCTIONS[name], x, intervals)
        axis.plot(x, FUNCTIONS[name](x[:, None]), "k", lw=1, label="function")
        axis.plot(x, y, "C3", lw=1.2, label=f"{intervals + 1} hidden units")
        axis.set_title(f"Their sum: largest error {np.abs(y - FUNCTIONS[name](x[:, None])).max():.2f}")
        axis.legend(fontsize=8)
    return figure


def fits_figure(models: dict[tuple[str, int], Sequential], widths: list[int]) -> Figure:
    """The 1-D functions with the best network of some widths."""
    from matplotlib.figure import Figure

    shown = widths[:: max(1, len(widths) // 3)][:4]
    figure = Figure(figsize=(13, 3.8), layout="constrained")
    for axis, name in zip(figure.subplots(1, len(ONE_D)), ONE_D, strict=True):
        x, y = sample(name, fine(name))
        axis.plot(x[:, 0], y, "k", lw=3, alpha=0.3, label="function")
        for i, width in enumerate(shown):
            axis.plot(x[:, 0], predict(models[name, width], name), f"C{i}", lw=1.2, label=f"width {width}")
        axis.set_title(name)
    figure.axes[0].legend(fontsize=8)
    return figure


def errors_figure(errors: dict[str, np.ndarray], stairs: dict[str, list[float]], widths: list[int]) -> Figure:
    """Error by width: mean and range over the seeds, and the staircase of as many units."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4.4), layout="constrained")
    for axis, family in zip(figure.subplots(1, 2, sharey=True), (ONE_D, TWO_D), strict=True):
        for i, name in enumerate(family):
            rows = errors[name]
            axis.loglog(widths, rows.mean(1), f"C{i}o-", label=f"{name}, trained")
            axis.fill_between(widths, rows.min(1), rows.max(1), color=f"C{i}", alpha=0.2)
            if name in stairs:
                axis.loglog(widths, stairs[name], f"C{i}:", label=f"{name}, staircase")
        axis.set(xlabel="hidden units", title="One variable" if family is ONE_D else "Two variables")
        axis.set_xticks(widths, [str(w) for w in widths])
        axis.minorticks_off()
        axis.legend(fontsize=8)
    figure.axes[0].set_ylabel("root mean square error")
    return figure


def surfaces_figure(models: dict[tuple[str, int], Sequential], widths: list[int]) -> Figure:
    """The 2-D functions, networks of three widths, and the error of the widest."""
    from matplotlib.figure import Figure

    shown = sorted({widths[len(widths) // 3], widths[2 * len(widths) // 3], widths[-1]})
    figure = Figure(figsize=(3.1 * (len(shown) + 2), 6), layout="constrained")
    for row, name in zip(figure.subplots(len(TWO_D), len(shown) + 2), TWO_D, strict=True):
        side = fine(name)
        truth = sample(name, side)[1].reshape(side, side)
        panels = {"function": truth}
        panels |= {f"width {w}": predict(models[name, w], name).reshape(side, side) for w in shown}
        panels["error of the widest"] = panels[f"width {shown[-1]}"] - truth
        for axis, (title, values) in zip(row, panels.items(), strict=True):
            error = title.startswith("error")
            limit = np.abs(values).max() if error else np.abs(truth).max()
            image = axis.imshow(
                values,
                origin="lower",
                extent=(0, 1, 0, 1),
                cmap="RdBu" if error else "viridis",
                vmin=-limit if error else truth.min(),
                vmax=limit if error else truth.max(),
            )
            axis.set(title=f"{name}: {title}" if title == "function" else title, xticks=[], yticks=[])
            if error:
                figure.colorbar(image, ax=axis, shrink=0.8)
    return figure


if __name__ == "__main__":
    launch.main(Config, train)
