"""The perceptron: what one neuron can learn, what it cannot, and how a hidden layer helps.

Question: why are there hidden layers at all? Rosenblatt's rule finds a separating line whenever there is
one, in a number of mistakes bounded by (R / margin)^2. XOR has none, so the rule walks in circles; a
network with a hidden layer, trained by backpropagation, solves it, and one set of weights can even be read
as logic.

    python -m recipes.numpy_perceptron --backend numpy

Expected: 0 mistakes on OR, AND and separable clouds, never more than 3 of 4 right on XOR, 4 of 4 for the
two-layer network, with NumPy in a few seconds.

`--find-lr` tests that network: the perceptron's rule, which starts from zero, draws the same lines at any
rate.

Figures: perceptron (the line after each of its corrections, mistakes against the bound), boundaries (OR,
AND, XOR, XOR with a hidden layer), forward_pass (fixed weights that compute XOR, drawn as a network with
its values), hidden_space (how the hidden layer makes XOR separable).

References:
    Rosenblatt, 1958, The perceptron.
    Novikoff, 1962, On convergence proofs on perceptrons (the bound).
    Minsky and Papert, 1969, Perceptrons (XOR).
    Rumelhart, Hinton and Williams, 1986, Learning representations by back-propagating errors.

Differences from Rosenblatt:
    1. Inputs are coordinates, not a retina with random connections.
    2. The bias is the weight of a constant input, so that the bound holds for the extended vectors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from layers.autograd import no_grad
from layers.autograd.nn import Dense, Sequential
from layers.autograd.nn.losses import binary_crossentropy
from layers.autograd.optim import Adam
from recipes.engine import launch, learning_rates
from recipes.engine.config import ResumableConfig, refuse
from recipes.engine.parts import Part
from recipes.engine.tracking import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CORNERS = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], np.float32)
GATES = {"OR": np.array([0, 1, 1, 1]), "AND": np.array([0, 0, 0, 1]), "XOR": np.array([0, 1, 1, 0])}


@dataclass(frozen=True)
class Config(ResumableConfig):
    """Settings of the clouds and of the two-layer network."""

    PARTS = True

    backend: Literal["numpy"] = "numpy"
    """Only NumPy: this recipe needs no framework."""
    precision: Literal["float32"] = "float32"
    """Type of weights and activations."""
    dataset: Literal["clouds"] = "clouds"
    """Two clouds of points with a gap between them, and the gates OR, AND and XOR."""
    epochs: int = 1000
    """Passes of the two-layer network over XOR; the perceptron stops by itself, or after 100."""
    learning_rate: float = 0.03
    """Step size for the two-layer network; the perceptron needs none."""
    points: int = 120
    """Points of the two clouds together."""
    margin: float = 0.15
    """Distance of the points from the line that separates the clouds."""
    hidden: int = 4
    """Hidden units of the two-layer network; two suffice in principle, but some starts then get stuck."""
    checkpoint_every: str = "60s"
    """0: keep nothing; else the trained network is kept, for a killed run to go on with."""

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse(self, ("early_stopping",), "the four corners of XOR are all there is: none validates")

    @classmethod
    def small(cls, **changes: Any) -> Config:
        """A few seconds."""
        return cls(**{"epochs": 400, "points": 40, **changes})


def clouds(points: int, margin: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Points of the unit square on both sides of a random line, none nearer to it than the margin."""
    rng = np.random.default_rng(seed)
    angle = rng.uniform(0, 2 * np.pi)
    normal = np.array([np.cos(angle), np.sin(angle)])
    x = rng.uniform(-1, 1, (20 * points, 2))
    height = x @ normal - rng.uniform(-0.2, 0.2)
    far = np.abs(height) > margin
    return x[far][:points].astype(np.float32), (height[far][:points] > 0).astype(int)


def perceptron(
    x: np.ndarray, y: np.ndarray, rounds: int = 100
) -> tuple[np.ndarray, list[int], list[np.ndarray]]:
    """Rosenblatt's rule: w <- w + t x for every point on the wrong side, t = -1 or 1.

    Args:
        x: points (n, d).
        y: classes 0 or 1, (n,).
        rounds: passes after which to give up.

    Returns:
        The weights (d + 1,) with the bias last, the mistakes in every pass, and the weights after every
        correction.
    """
    extended = np.c_[x, np.ones(len(x))]
    signs = 2 * y - 1
    w = np.zeros(extended.shape[1])
    mistakes, path = [], []
    for _ in range(rounds):
        count = 0
        for point, sign in zip(extended, signs, strict=True):
            if sign * (w @ point) <= 0:
                w = w + sign * point
                path.append(w)
                count += 1
        mistakes.append(count)
        if not count:
            break
    return w, mistakes, path


def novikoff_bound(x: np.ndarray, y: np.ndarray) -> float:
    """(R / margin)^2: no run of the rule makes more mistakes than this on separable points.

    R is the length of the longest extended point; the margin is that of the best line through the origin of
    the extended space, found by the rule's own averaged direction refined by a few thousand steps of the
    maximal margin perceptron (each correcting the worst point).
    """
    extended = np.c_[x, np.ones(len(x))] * (2 * y - 1)[:, None]
    w = extended.mean(0)
    for _ in range(20_000):
        w = w + extended[np.argmin(extended @ w)]
    margin = (extended @ w).min() / np.linalg.norm(w)
    return float((np.linalg.norm(extended, axis=1).max() / margin) ** 2)


def accuracy(w: np.ndarray, x: np.ndarray, y: np.ndarray) -> float:
    """Share of points on the right side of the line w."""
    return float(((np.c_[x, np.ones(len(x))] @ w > 0) == y).mean())


def train_network(config: Config, run: Run) -> Sequential:
    """The two-layer network on XOR, by backpropagation, or as a killed run had trained it."""
    rng = np.random.default_rng(config.seed)
    model = Sequential([Dense(config.hidden, "tanh", rng=rng), Dense(1, rng=rng)])
    model(CORNERS)
    optimizer = Adam(model.weights, config.learning_rate)
    part = Part(run, config, "network")

    def step() -> float:
        optimizer.zero_grad()
        loss = binary_crossentropy(GATES["XOR"][:, None], model(CORNERS), from_logits=True).mean()
        loss.backward()
        optimizer.step()
        return loss.item()

    if config.find_lr:
        learning_rates.find_with(optimizer, lambda _: step(), run)

    def trained() -> dict[str, np.ndarray]:
        for number in range(1, config.epochs + 1):
            loss = step()
            if number % max(1, config.epochs // 50) == 0:
                part.metrics({"train/loss": loss, "train/accuracy": network_accuracy(model)}, number)
        return {path: weight.data for path, weight in model.named_weights()}

    model.set_weights([*part.once(trained).values()])
    return model


def network_accuracy(model: Sequential) -> float:
    """Share of the four corners of XOR that the network has right."""
    with no_grad():
        return float(((model(CORNERS).data[:, 0] > 0) == GATES["XOR"]).mean())


def xor_by_hand(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """XOR with weights chosen by thought: OR and not AND, steps as activations.

    Returns:
        The hidden values [OR, AND] (n, 2) and the output (n,).
    """
    kernel, bias = np.array([[1, 1], [1, 1]]), np.array([-0.5, -1.5])
    hidden = (x @ kernel + bias > 0).astype(float)
    return hidden, (hidden @ np.array([1, -1]) - 0.5 > 0).astype(float)


def train(config: Config, run: Run) -> dict[str, float]:
    """All experiments in turn; returns the final metrics."""
    model = train_network(config, run)
    x, y = clouds(config.points, config.margin, config.seed)
    w, mistakes, path = perceptron(x, y)
    bound = novikoff_bound(x, y)
    results = {name: perceptron(CORNERS, truth) for name, truth in GATES.items()}
    run.figure("perceptron", perceptron_figure(x, y, path, mistakes, bound))
    run.figure("boundaries", boundaries_figure({name: result[0] for name, result in results.items()}, model))
    run.figure("forward_pass", forward_figure())
    run.figure("hidden_space", hidden_figure(model))
    final = {"clouds/accuracy": accuracy(w, x, y), "clouds/mistakes": len(path), "clouds/bound": bound}
    for name, truth in GATES.items():
        final[f"{name.lower()}/accuracy"] = accuracy(results[name][0], CORNERS, truth)
    # The best the rule ever held on XOR, not only where it happened to stop.
    final["xor/best_accuracy"] = max(accuracy(v, CORNERS, GATES["XOR"]) for v in results["XOR"][2])
    final["network/accuracy"] = network_accuracy(model)
    return final


def scatter(axis: Axes, x: np.ndarray, y: np.ndarray) -> None:
    """Points of two classes."""
    for label, colour, marker in ((0, "tab:red", "o"), (1, "tab:blue", "s")):
        axis.scatter(*x[y == label].T, c=colour, marker=marker, edgecolors="white", s=55, zorder=3)


def line(axis: Axes, w: np.ndarray, **style: Any) -> None:
    """The line w . (x1, x2, 1) = 0 across the axes, if w is one."""
    if np.hypot(*w[:2]) > 1e-9:
        foot = -w[2] * w[:2] / (w[:2] @ w[:2])
        along = np.array([-w[1], w[0]]) / np.hypot(*w[:2])
        axis.plot(*np.array([foot - 5 * along, foot + 5 * along]).T, **style)


def perceptron_figure(
    x: np.ndarray, y: np.ndarray, path: list[np.ndarray], mistakes: list[int], bound: float
) -> Figure:
    """The line after every correction, and the mistakes against Novikoff's bound."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for i, w in enumerate(path):
        line(left, w, color="0.4", alpha=0.15 + 0.5 * i / len(path), lw=0.8)
    line(left, path[-1], color="black", lw=2.5, label="last")
    scatter(left, x, y)
    left.set(xlim=(-1.1, 1.1), ylim=(-1.1, 1.1), aspect="equal")
    left.set_title(f"The line after each of {len(path)} corrections")
    left.legend(loc="upper right", fontsize=8)
    right.plot(range(1, len(mistakes) + 1), np.cumsum(mistakes), "o-", label="mistakes so far")
    right.axhline(bound, color="crimson", ls="--", label=f"bound $(R/\\gamma)^2$ = {bound:.0f}")
    right.set(xlabel="pass over the points", title="Mistakes of the perceptron rule", yscale="log")
    right.legend()
    return figure


def boundaries_figure(weights: dict[str, np.ndarray], model: Sequential) -> Figure:
    """Decision regions of the perceptron on the gates, and of the two-layer network on XOR."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 3.6), layout="constrained")
    axes = figure.subplots(1, len(weights) + 1)
    u, v = np.meshgrid(np.linspace(-0.4, 1.4, 150), np.linspace(-0.4, 1.4, 150))
    grid = np.c_[u.ravel(), v.ravel()].astype(np.float32)
    for axis, (name, w) in zip(axes, weights.items(), strict=False):
        value = (np.c_[grid, np.ones(len(grid))] @ w > 0).astype(float)
        right = round(4 * accuracy(w, CORNERS, GATES[name]))
        axis.contourf(u, v, value.reshape(u.shape), levels=[-0.5, 0.5, 1.5], cmap="RdBu", alpha=0.35)
        axis.set_title(f"{name}, perceptron: {right} of 4")
        scatter(axis, CORNERS, GATES[name])
    with no_grad():
        value = 1 / (1 + np.exp(-model(grid).data[:, 0]))
    axes[-1].contourf(u, v, value.reshape(u.shape), levels=np.linspace(0, 1, 21), cmap="RdBu", alpha=0.6)
    scatter(axes[-1], CORNERS, GATES["XOR"])
    axes[-1].set_title(f"XOR, two layers: {round(4 * network_accuracy(model))} of 4")
    for axis in axes:
        axis.set(xticks=[0, 1], yticks=[0, 1], aspect="equal")
    return figure


def forward_figure(x: tuple[int, int] = (1, 0)) -> Figure:
    """The forward pass of `xor_by_hand` for one input, drawn as a network."""
    from matplotlib.figure import Figure

    (hidden,), (output,) = xor_by_hand(np.array([x]))
    sums = [x[0] + x[1] - 0.5, x[0] + x[1] - 1.5, hidden[0] - hidden[1] - 0.5]
    places = {"x1": (0, 1), "x2": (0, -1), "OR": (2, 1), "AND": (2, -1), "XOR": (4, 0)}
    texts = {
        "x1": f"$x_1$\n{x[0]}",
        "x2": f"$x_2$\n{x[1]}",
        "OR": f"OR\n[{sums[0]:+g} > 0]\n{hidden[0]:g}",
        "AND": f"AND\n[{sums[1]:+g} > 0]\n{hidden[1]:g}",
        "XOR": f"XOR\n[{sums[2]:+g} > 0]\n{output:g}",
    }
    values = {"x1": x[0], "x2": x[1], "OR": hidden[0], "AND": hidden[1], "XOR": output}
    edges = [(x, gate, 1) for x in ("x1", "x2") for gate in ("OR", "AND")]
    edges += [("OR", "XOR", 1), ("AND", "XOR", -1)]
    figure = Figure(figsize=(8.5, 4.6), layout="constrained")
    axis = figure.subplots()
    for start, end, weight in edges:
        (x0, y0), (x1, y1) = places[start], places[end]
        colour = "tab:blue" if weight > 0 else "tab:red"
        axis.plot([x0, x1], [y0, y1], color=colour, lw=2.5, alpha=1 if values[start] else 0.3, zorder=1)
        middle = (x0 + 0.36 * (x1 - x0), y0 + 0.36 * (y1 - y0) + 0.1)
        axis.text(*middle, f"{weight:+d}", color=colour, fontsize=11)
    for name, (a, b) in places.items():
        axis.scatter(a, b, s=4200, c="#ffe9a8" if values[name] else "white", edgecolors="black", zorder=2)
        axis.text(a, b, texts[name], ha="center", va="center", fontsize=9.5, zorder=3)
    for name, bias in (("OR", -0.5), ("AND", -1.5), ("XOR", -0.5)):
        axis.text(
            places[name][0], places[name][1] - 0.62, f"bias {bias}", ha="center", fontsize=9, color="0.35"
        )
    axis.set(xlim=(-0.6, 4.6), ylim=(-1.8, 1.7))
    axis.set_title(f"Forward pass of ({x[0]}, {x[1]}) through fixed weights; yellow: 1")
    axis.axis("off")
    return figure


def hidden_figure(model: Sequential) -> Figure:
    """The corners of XOR before and after a hidden layer: by hand, and in the trained network's two main
    directions.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.9), layout="constrained")
    axes = figure.subplots(1, 3)
    with no_grad():
        learned = model.layers[0](CORNERS).data
    centred = learned - learned.mean(0)
    learned = centred @ np.linalg.svd(centred)[2][:2].T
    spaces = {
        "Input: no line separates": CORNERS,
        "Hidden units OR and AND (by hand)": xor_by_hand(CORNERS)[0],
        "Hidden units of the trained network (2 principal axes)": learned,
    }
    for axis, (title, points) in zip(axes, spaces.items(), strict=True):
        scatter(axis, points, GATES["XOR"])
        names: dict[tuple, list[str]] = {}  # corners that meet in one place share a label
        for corner, place in zip(CORNERS, points, strict=True):
            names.setdefault(tuple(place), []).append(f"({corner[0]:g},{corner[1]:g})")
        for place, corners in names.items():
            text = "\n".join(corners)
            axis.annotate(text, place, xytext=(7, 7), textcoords="offset points", fontsize=9)
        axis.set_title(title, fontsize=10)
        axis.margins(0.25)
    line(axes[1], np.array([1.0, -1.0, -0.5]), color="black", lw=1.5)
    axes[1].set(xlim=(-0.4, 1.5), ylim=(-0.4, 1.5))
    return figure


if __name__ == "__main__":
    launch.main(Config, train)
