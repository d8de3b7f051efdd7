"""Wide networks are kernel machines: the neural tangent kernel, measured at growing width.

Question: when is training a network the same as regression with a fixed kernel? To first order, gradient
descent moves the outputs of a network by the kernel

    K(x, x') = sum_p  df(x)/dw_p  df(x')/dw_p

With weights drawn from N(0, 1) and divided by the square root of the number of inputs, K at the start tends
to a fixed function Theta as the width grows, and stays there during training. The outputs at time t are then

    f_t(x) = f_0(x) + K(x, X) K(X, X)^-1 (1 - exp(-t K(X, X) / n)) (y - f_0(X))

for the loss sum (f - y)^2 / 2 n on the examples X, y, in closed form and without any training.

    python -m recipes.ntk_width --backend jax                            # both tasks, built-in data
    python -m recipes.ntk_width --widths 64,256,1024 --depth 1 --seeds 5

Two tasks: a wave over the circle, where functions can be drawn, and two classes of images, +1 and -1.

Expected: the kernel's change in training falls with the width, at width^-0.74 on the circle, on JAX in 55 s
(results/ntk_width.md). The kernel at the start is wrong by about 1/sqrt(width); during training
it moves by a share that falls with the width, too, at 1/sqrt(width), the proven bound, or faster. The gap
between networks and kernel regression shrinks with it.

`--find-lr` tests the widest network on the images, to which the smallest rate is suggested.

Figures: by_width (kernel at the start, its change, and the gap to kernel regression, over width), tangent
(the kernel over the circle, before and after training), wave (networks and kernel regressions), images
(outputs of networks against kernel regression's), matrices (kernel of the images before and after).

References:
    Jacot, Gabriel and Hongler, 2018, Neural tangent kernel: convergence and generalization in neural
    networks, arXiv:1806.07572.
    Lee et al., 2019, Wide neural networks of any depth evolve as linear models under gradient descent,
    arXiv:1902.06720.
    Cho and Saul, 2009, Kernel methods for deep learning (the integrals for ReLU).

Differences from Jacot et al.:
    1. Layers after a ReLU are scaled by sqrt(2), which keeps the size of the signals; biases by 0.1 as
       there.
    2. Training is full-batch gradient descent with a small step, taken for the gradient flow at time
       steps * learning rate.
    3. The networks start where they start: kernel regression is given each network's own f_0 and K_0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Self

import keras
import numpy as np
from keras import ops

import layers
from recipes import engine
from recipes.engine import gradients, launch, learning_rates
from recipes.engine.config import ResumableConfig, refuse
from recipes.engine.errors import RecipeError, usage_error
from recipes.engine.parts import Part

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CLASSES = (3, 8)  # labels +1 and -1
BIAS_SCALE = 0.1
MOMENTS = 8  # times, evenly spread over the logarithm, at which the kernel's change is measured


@dataclass(frozen=True)
class Config(ResumableConfig):
    """What can be varied."""

    PARTS = True

    dataset: Literal["digits", "mnist", "fashion_mnist"] = "digits"
    """Images whose classes 3 and 8 are told apart; digits is built in. The wave needs no data."""
    epochs: int = 500
    """Steps of gradient descent, each on all examples."""
    batch_size: int = 32
    """Examples whose Jacobians are in memory at once."""
    learning_rate: float | None = None
    """Step size; default: a quarter of the largest stable one of the infinitely wide network."""
    precision: Literal["float32"] = "float32"
    """Type of weights and activations; kernel regression is solved in float64."""
    widths: str = "32,64,128,256,512"
    """Units of each hidden layer: whole numbers in growing order, with commas between."""
    depth: int = 2
    """Hidden layers."""
    seeds: int = 3
    """Networks of every width, from different starts."""
    examples: int = 64
    """Images to learn from."""
    checkpoint_every: str = "60s"
    """0: keep nothing; else every network's outcome is kept, for a killed run to go on with the next."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.depth, self.seeds, self.examples) < 1:
            raise usage_error("--depth, --seeds and --examples must be at least 1")
        refuse(self, ("early_stopping",), "networks are compared at one time of their training")
        if len(self.sizes) < 2 or sorted({*self.sizes}) != self.sizes or self.sizes[0] < 1:
            raise usage_error(f"--widths takes two or more numbers in growing order, not '{self.widths}'")

    @property
    def sizes(self) -> list[int]:
        """The widths as numbers."""
        try:
            return [int(word) for word in self.widths.split(",")]
        except ValueError:
            raise usage_error(
                f"--widths takes whole numbers, as in 32,128,512, not '{self.widths}'"
            ) from None

    @classmethod
    def small(cls, **changes: Any) -> Self:
        """Narrow networks, few steps."""
        return cls(**{"epochs": 150, "widths": "16,128", "seeds": 2, "examples": 24, **changes})


@dataclass(frozen=True)
class Task:
    """Examples to learn, (n, inputs) and (n,), and others to judge by; inputs have length sqrt(inputs)."""

    name: str
    x: np.ndarray
    y: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray

    @property
    def everywhere(self) -> np.ndarray:
        """Inputs of both kinds, those to learn first."""
        return np.concatenate([self.x, self.x_test])


def wave() -> Task:
    """Twelve points of a wave over the circle; to judge by, the whole of it."""

    def sample(angles: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        x = np.sqrt(2) * np.stack([np.cos(angles), np.sin(angles)], axis=1)
        return x.astype("float32"), (np.sin(2 * angles) + 0.5 * np.cos(angles)).astype("float32")

    # Two arcs with a gap between, where nothing but the kernel says what comes out.
    angles = np.concatenate([np.linspace(-2.8, -0.6, 7), np.linspace(0.9, 2.6, 5)])
    return Task("wave", *sample(angles), *sample(np.linspace(-np.pi, np.pi, 101)))


def two_classes(config: Config, data: engine.data.Dataset) -> Task:
    """Images of two classes, centred and brought to one length; labels +1 and -1."""
    mean = data.train.x.astype("float32").mean(axis=0)

    def pick(split: engine.data.Split, most: int | None) -> tuple[np.ndarray, np.ndarray]:
        chosen = np.flatnonzero(np.isin(split.y, CLASSES))[:most]
        x = (split.x[chosen].astype("float32") - mean).reshape(len(chosen), -1)
        x *= np.sqrt(x.shape[1]) / np.linalg.norm(x, axis=1, keepdims=True)
        return x, np.where(split.y[chosen] == CLASSES[0], 1, -1).astype("float32")

    return Task("images", *pick(data.train, config.examples), *pick(data.test, 200))


class TangentDense(layers.Dense):
    """A fully connected layer whose weights are drawn from N(0, 1) and scaled where they are used.

        y = activation(gain / sqrt(inputs) x W + 0.1 b)

    The function at the start is as that of a usual layer; the gradients are smaller by the same factors,
    so that no single weight has to move far, however many there are.

    Args:
        units: number of outputs.
        activation: name, function or None.
        gain: sqrt(2) after a layer with ReLU, else 1.

    Call arguments:
        inputs: tensor of shape (batch, inputs).

    Returns:
        Tensor of shape (batch, units).

    Reference:
        Jacot et al., 2018, arXiv:1806.07572, section 2.
    """

    def __init__(self, units: int, activation: Any = None, gain: float = 1.0, **kwargs: Any) -> None:
        normal = layers.initializers.RandomNormal
        super().__init__(
            units,
            activation,
            kernel_initializer=normal(stddev=1),
            bias_initializer=normal(stddev=1),
            **kwargs,
        )
        self.gain = gain

    def call(self, inputs: Any) -> Any:
        """Apply the layer."""
        scale = self.gain / inputs.shape[-1] ** 0.5
        outputs = scale * ops.matmul(inputs, self.kernel) + BIAS_SCALE * self.bias  # (batch, units)
        return outputs if self.activation is None else self.activation(outputs)


def build_model(width: int, depth: int, inputs: int) -> keras.Model:
    """(batch, inputs) to (batch, 1): `depth` hidden layers of `width` units with ReLU."""
    gains = [1.0, *[2**0.5] * depth]
    hidden = [TangentDense(width, "relu", gain) for gain in gains[:-1]]
    return keras.Sequential([keras.Input((inputs,)), *hidden, TangentDense(1, gain=gains[-1])])


def draw(model: keras.Model, rng: np.random.Generator) -> list:
    """Weights from N(0, 1), the same on every backend."""
    return [
        ops.convert_to_tensor(rng.normal(size=v.shape).astype("float32")) for v in model.trainable_variables
    ]


def function_of(model: keras.Model) -> Callable:
    """The model as a pure function `f(weights, x) -> (batch,)`."""
    apply = gradients.functional(model)
    return lambda weights, x: apply(weights, [], x)[0][:, 0]


def empirical_kernel(function: Callable, block: int) -> Callable:
    """The tangent kernel of a network, by contraction of its Jacobians.

        K(x, x') = sum_p J_p(x) J_p(x')

    Args:
        function: `f(weights, x) -> (batch,)`, differentiable in the list `weights`.
        block: examples whose Jacobians are made at once; two blocks are in memory at a time.

    Returns:
        `kernel(weights, x, z) -> (len(x), len(z))`, arrays in and out.
    """
    jacobian = gradients.compiled(gradients.jacobian(function))  # a list of (block, *weight)

    @gradients.compiled
    def contract(first: list, second: list) -> Any:
        rows = [[ops.reshape(leaf, (block, -1)) for leaf in leaves] for leaves in (first, second)]
        return sum(ops.matmul(a, ops.transpose(b)) for a, b in zip(*rows, strict=True))  # (block, block)

    def blocks(x: np.ndarray) -> list:
        # Blocks of one size, so that one program serves all; what fills the last one is cut off below.
        padded = np.resize(x, (len(x) + -len(x) % block, *x.shape[1:]))
        return [ops.convert_to_tensor(part) for part in padded.reshape(-1, block, *x.shape[1:])]

    def kernel(weights: list, x: np.ndarray, z: np.ndarray) -> np.ndarray:
        columns = []
        for right in blocks(z):
            second = jacobian(weights, right)
            columns.append(
                [ops.convert_to_numpy(contract(jacobian(weights, left), second)) for left in blocks(x)]
            )
        return np.block([list(row) for row in zip(*columns, strict=True)])[: len(x), : len(z)]

    return kernel


def descent(function: Callable) -> Callable:
    """A step of gradient descent on the mean of (f(x) - y)^2 / 2.

    Args:
        function: `f(weights, x) -> (batch,)`, differentiable in the list `weights`.

    Returns:
        `descend(weights, x, y, rate) -> (loss before, weights after)`, compiled once for all rates.
    """

    def loss(weights: list, x: Any, y: Any) -> Any:
        return ops.mean(ops.square(function(weights, x) - y)) / 2

    @gradients.compiled
    def descend(weights: list, x: Any, y: Any, rate: Any) -> tuple[Any, list]:
        value, slopes = gradients.value_and_grad(loss)(weights, x, y)
        return value, [w - rate * slope for w, slope in zip(weights, slopes, strict=True)]

    return descend


def limit_kernel(x: np.ndarray, z: np.ndarray, depth: int) -> np.ndarray:
    """The tangent kernel of the infinitely wide network, from layer to layer.

        S_1 = x z / inputs + b^2                  T_1 = S_1
        S_k+1 = 2 E[relu(u) relu(v)] + b^2        T_k+1 = S_k+1 + T_k 2 E[relu'(u) relu'(v)]

    for (u, v) Gaussian with the covariances of layer k, at angle a = arccos(S_k(x, z) / |x|_k |z|_k):

        2 E[relu(u) relu(v)] = |x|_k |z|_k (sin a + (pi - a) cos a) / pi
        2 E[relu'(u) relu'(v)] = (pi - a) / pi

    Args:
        x: (n, inputs).
        z: (m, inputs).
        depth: hidden layers.

    Returns:
        T of the output, (n, m), float64.

    Reference:
        Cho and Saul, 2009; Jacot et al., 2018, theorem 1.
    """
    x, z = x.astype("float64"), z.astype("float64")
    bias = BIAS_SCALE**2
    covariance = x @ z.T / x.shape[1] + bias
    variances = [np.mean(a**2, axis=1) + bias for a in (x, z)]
    tangent = covariance
    for _ in range(depth):
        lengths = np.sqrt(np.outer(*variances))
        angle = np.arccos(np.clip(covariance / lengths, -1, 1))
        covariance = lengths * (np.sin(angle) + (np.pi - angle) * np.cos(angle)) / np.pi + bias
        tangent = covariance + tangent * (np.pi - angle) / np.pi
        variances = [variance + bias for variance in variances]
    return tangent


def kernel_regression(
    kernel: np.ndarray, start: np.ndarray, targets: np.ndarray, time: float = np.inf
) -> np.ndarray:
    """What gradient flow with a fixed kernel has made of a function by a time.

        f_t = f_0 + K(., X) K(X, X)^-1 (1 - exp(-t K(X, X) / n)) (y - f_0(X))

    Args:
        kernel: (m, n), rows for the places asked for, of which the first n are the examples themselves.
        start: (m,), f_0 at those places.
        targets: (n,), y.
        time: steps times learning rate; infinity for the end of training.

    Returns:
        f_t, (m,).
    """
    n = len(targets)
    values, vectors = np.linalg.eigh((kernel[:n] + kernel[:n].T) / 2)
    # In float32 the smallest eigenvalues are rounding; what they would take forever to learn stays out.
    kept = values > 1e-6 * values[-1]
    values, vectors = values[kept].astype("float64"), vectors[:, kept]
    learned = -np.expm1(-time * values / n) / values
    return start + kernel @ (vectors @ (learned * (vectors.T @ (targets - start[:n]))))


@dataclass(frozen=True)
class Outcome:
    """One network, from its start to the end of its training; places are `Task.everywhere`."""

    before: np.ndarray  # K at the start, (places, examples)
    after: np.ndarray  # K at the end
    start: np.ndarray  # outputs at the start, (places,)
    end: np.ndarray  # outputs at the end
    regression: np.ndarray  # what kernel regression with K at the start predicts for the end
    moments: np.ndarray  # steps at which the kernel's change was measured
    changes: np.ndarray  # |K_t - K_0| / |K_0| on the examples


Outcomes = dict[tuple[str, int], list[Outcome]]  # by task and width, one a seed


def study(config: Config, task: Task, width: int, rate: float, run: engine.tracking.Run) -> list[Outcome]:
    """Train the networks of one width, measuring the kernel on the way; a killed run keeps those it has."""
    model = build_model(width, config.depth, task.x.shape[1])
    function = function_of(model)
    outputs, descend = gradients.compiled(function), descent(function)
    kernel = empirical_kernel(function, config.batch_size)
    places = ops.convert_to_tensor(task.everywhere)
    x, y = ops.convert_to_tensor(task.x), ops.convert_to_tensor(task.y)
    moments = sorted({round(step) for step in np.geomspace(1, config.epochs, MOMENTS)})

    def train_from(seed: int) -> dict[str, np.ndarray]:
        weights = draw(model, np.random.default_rng((seed, width)))
        before = kernel(weights, task.everywhere, task.x)
        start = ops.convert_to_numpy(outputs(weights, places)).astype("float64")
        changes = []
        for step in range(1, config.epochs + 1):
            value, weights = descend(weights, x, y, ops.convert_to_tensor(rate, "float32"))
            if step in moments:
                if not np.isfinite(float(ops.convert_to_numpy(value))):
                    raise RecipeError(f"no finite loss at width {width}: try a smaller --learning-rate")
                changes.append(distance(kernel(weights, task.x, task.x), before[: len(task.x)]))
        return {
            "before": before,
            "after": kernel(weights, task.everywhere, task.x),
            "start": start,
            "end": ops.convert_to_numpy(outputs(weights, places)).astype("float64"),
            "regression": kernel_regression(before, start, task.y, config.epochs * rate),
            "moments": np.array(moments),
            "changes": np.array(changes),
        }

    return [
        Outcome(**Part(run, config, f"{task.name}-{width}-{seed}").once(lambda seed=seed: train_from(seed)))
        for seed in range(config.seed, config.seed + config.seeds)
    ]


def find_rate(config: Config, task: Task, run: engine.tracking.Run) -> None:
    """The learning-rate range test on the first of the widest networks."""
    model = build_model(config.sizes[-1], config.depth, task.x.shape[1])
    weights = draw(model, np.random.default_rng((config.seed, config.sizes[-1])))
    descend = descent(function_of(model))
    x, y = ops.convert_to_tensor(task.x), ops.convert_to_tensor(task.y)

    def step(_: int, rate: float) -> float:
        nonlocal weights
        value, weights = descend(weights, x, y, ops.convert_to_tensor(rate, "float32"))
        return float(ops.convert_to_numpy(value))

    learning_rates.find_by(step, run)


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """|a - b| / |b|, Frobenius."""
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def step_size(config: Config, limit: np.ndarray, examples: int) -> float:
    """The learning rate; by default a quarter of the largest stable one, 2 / (largest eigenvalue of K / n).

    Kernels of narrow networks can be twice their limit; so the step is small enough for them as well.
    """
    return config.learning_rate or 0.5 * examples / np.linalg.eigvalsh(limit[:examples])[-1]


def train(config: Config, run: engine.tracking.Run) -> dict[str, float]:
    """Train networks of every width on both tasks, compare with kernel regression, draw."""
    data = engine.data.load(config.dataset, config.data_dir)
    run.tags({"dataset.fingerprint": lambda: data.fingerprint})
    tasks = {task.name: task for task in (wave(), two_classes(config, data))}
    if config.find_lr:
        find_rate(config, tasks["images"], run)
    limits = {name: limit_kernel(task.everywhere, task.x, config.depth) for name, task in tasks.items()}
    outcomes, measured, final, lines = {}, {}, {}, []
    for name, task in tasks.items():
        rate = step_size(config, limits[name], len(task.x))
        rows = []
        for width in config.sizes:
            found = outcomes[name, width] = study(config, task, width, rate, run)
            rows.append([judge(task, outcome, limits[name]) for outcome in found])
            over = {key: [row[key] for row in rows[-1]] for key in rows[-1][0]}  # seeds by measure
            run.metrics({f"{key}/{name}": float(np.mean(values)) for key, values in over.items()}, step=width)
            shown = (f"{key} {np.mean(values):.4f} +/- {np.std(values):.4f}" for key, values in over.items())
            lines.append(f"{name}, width {width}: " + ", ".join(shown))
            print(lines[-1], flush=True)
        # (widths, seeds) by measure
        measured[name] = {
            key: np.array([[row[key] for row in found] for found in rows]) for key in rows[0][0]
        }
        for key, values in measured[name].items():
            final[f"{key}/{name}/widest"] = float(values[-1].mean())
            if key in ("initial", "change", "gap"):
                final[f"{key}/{name}/narrowest"] = float(values[0].mean())
                final[f"{key}/{name}/slope"] = slope(config.sizes, values)
    run.text("by_width.txt", "\n".join(lines))
    nothing = np.zeros(len(limits["images"]))
    perfect = kernel_regression(limits["images"], nothing, tasks["images"].y)
    final["limit_accuracy/images"] = accuracy(tasks["images"], perfect)
    run.figure("by_width", by_width_figure(config.sizes, measured, outcomes))
    run.figure("tangent", tangent_figure(tasks["wave"], outcomes, limits["wave"], config.sizes))
    run.figure("wave", wave_figure(tasks["wave"], outcomes, limits["wave"], config.sizes))
    run.figure("images", images_figure(tasks["images"], outcomes, config.sizes))
    run.figure("matrices", matrices_figure(tasks["images"], outcomes, limits["images"], config.sizes))
    return final


def judge(task: Task, outcome: Outcome, limit: np.ndarray) -> dict[str, float]:
    """What is measured of a trained network; gaps are in units of the targets' root mean square."""
    n = len(task.x)
    scale = np.sqrt(np.mean(task.y**2))
    values = {
        "initial": distance(outcome.before[:n], limit[:n]),
        "change": outcome.changes[-1],
        "gap": float(np.sqrt(np.mean((outcome.end - outcome.regression)[n:] ** 2)) / scale),
        "train_rmse": float(np.sqrt(np.mean((outcome.end[:n] - task.y) ** 2)) / scale),
    }
    if task.name == "images":
        values["accuracy"] = accuracy(task, outcome.end)
        values["kernel_accuracy"] = accuracy(task, outcome.regression)
    return values


def accuracy(task: Task, outputs: np.ndarray) -> float:
    """Share of the test examples whose output has the sign of the label."""
    return float(np.mean(np.sign(outputs[len(task.x) :]) == task.y_test))


def slope(widths: list[int], values: np.ndarray) -> float:
    """Exponent of the width: the slope of the logarithm of the mean over seeds, by least squares.

    Args:
        widths: (widths,).
        values: (widths, seeds), positive.
    """
    return float(np.polyfit(np.log(widths), np.log(values.mean(axis=1)), 1)[0])


def by_width_figure(
    widths: list[int],
    measured: dict[str, dict[str, np.ndarray]],
    outcomes: Outcomes,
) -> Figure:
    """Over width: the kernel's distance to its limit, its change, the gap; over steps: its change."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator

    figure = Figure(figsize=(14, 3.9), layout="constrained")
    *panels, last = figure.subplots(1, 4)
    titles = {
        "initial": "$|K_0 - \\Theta|\\,/\\,|\\Theta|$: start to limit",
        "change": "$|K_T - K_0|\\,/\\,|K_0|$: change in training",
        "gap": "network to kernel regression",
    }
    for axis, (key, title) in zip(panels, titles.items(), strict=True):
        top = max(measured[name][key][0].mean() for name in measured)
        for exponent, style in ((-0.5, ":"), (-1, "--")):
            guide = top * (np.array(widths) / widths[0]) ** exponent
            axis.plot(widths, guide, style, color="0.6", lw=1, label=f"width$^{{{exponent:g}}}$")
        for i, name in enumerate(measured):
            values = measured[name][key]
            label = f"{name}, slope {slope(widths, values):.2f}"
            axis.errorbar(
                widths, values.mean(1), values.std(1), color=f"C{i}", fmt="o-", capsize=3, label=label
            )
        axis.set(xscale="log", yscale="log", xlabel="width", title=title)
        axis.set_xticks(widths, [str(w) for w in widths])
        axis.minorticks_off()
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter("{x:g}")
        axis.legend(fontsize="small", loc="lower left")
    for i, width in enumerate(widths):
        found = outcomes["images", width]
        mean = np.mean([outcome.changes for outcome in found], axis=0)
        last.loglog(found[0].moments, mean, ".-", color=shade(i, len(widths)), label=f"width {width}")
    last.set(xlabel="steps of gradient descent", title="change of $K$ over time, images")
    last.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    last.yaxis.set_major_formatter("{x:g}")
    last.yaxis.set_minor_formatter("")
    last.set_ylim(bottom=0.3 * last.get_ylim()[0])  # room for the legend
    last.legend(fontsize="small", loc="lower right", ncols=2)
    return figure


def tangent_figure(task: Task, outcomes: Outcomes, limit: np.ndarray, widths: list[int]) -> Figure:
    """The kernel between one example and the circle, before and after training, narrow and wide."""
    from matplotlib.figure import Figure

    n, example = len(task.x), len(task.x) // 3
    angles, here = angle_of(task.x_test), angle_of(task.x)[example]
    figure = Figure(figsize=(11, 3.9), layout="constrained")
    for axis, width in zip(figure.subplots(1, 2, sharey=True), (widths[0], widths[-1]), strict=True):
        for i, outcome in enumerate(outcomes[task.name, width]):
            axis.plot(angles, outcome.before[n:, example], f"C{i}", lw=1.2, label=f"network {i + 1}, start")
            axis.plot(angles, outcome.after[n:, example], f"C{i}--", lw=1.2, label=f"network {i + 1}, end")
        axis.plot(angles, limit[n:, example], "k", lw=1.5, label="infinite width")
        axis.axvline(here, color="0.7", lw=0.8, zorder=0)
        axis.set(xlabel="angle of x", title=f"width {width}")
    figure.axes[0].set_ylabel(f"K(x, x') for x' at angle {here:.1f}")
    figure.axes[1].legend(fontsize="small")
    return figure


def wave_figure(task: Task, outcomes: Outcomes, limit: np.ndarray, widths: list[int]) -> Figure:
    """Trained networks of three widths, and what kernel regression makes of the same starts."""
    from matplotlib.figure import Figure

    n, angles = len(task.x), angle_of(task.x_test)
    perfect = kernel_regression(limit, np.zeros(len(limit)), task.y)[n:]
    figure = Figure(figsize=(14, 3.9), layout="constrained")
    shown = three(widths)
    for axis, width in zip(figure.subplots(1, len(shown), sharey=True), shown, strict=True):
        axis.plot(angles, task.y_test, color="0.8", lw=4, label="wave")
        axis.plot(angles, perfect, "k:", lw=1.5, label="infinite width, from 0, for ever")
        for i, outcome in enumerate(outcomes[task.name, width]):
            axis.plot(angles, outcome.end[n:], f"C{i}", lw=1.4, label=f"network {i + 1}")
            axis.plot(angles, outcome.regression[n:], f"C{i}--", lw=1.4, label="its kernel regression")
        axis.plot(angle_of(task.x), task.y, "ko", ms=5, zorder=3, label="examples")
        axis.set(xlabel="angle", title=f"width {width}")
    figure.axes[0].set_ylabel("output")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside right center", fontsize="small")
    return figure


def images_figure(task: Task, outcomes: Outcomes, widths: list[int]) -> Figure:
    """Outputs of trained networks against those of kernel regression, image by image."""
    from matplotlib.figure import Figure

    n = len(task.x)
    figure = Figure(figsize=(12, 4.1), layout="constrained")
    shown = three(widths)
    for axis, width in zip(figure.subplots(1, len(shown), sharex=True, sharey=True), shown, strict=True):
        outcome = outcomes[task.name, width][0]
        axis.axline((0, 0), slope=1, color="0.7", lw=1, zorder=0)
        for label, colour, name in ((1, "C0", CLASSES[0]), (-1, "C3", CLASSES[1])):
            chosen = n + np.flatnonzero(task.y_test == label)
            axis.scatter(
                outcome.regression[chosen],
                outcome.end[chosen],
                s=14,
                color=colour,
                alpha=0.7,
                label=f"test, class {name}",
            )
        axis.scatter(
            outcome.regression[:n], outcome.end[:n], s=9, color="k", marker="x", lw=0.7, label="examples"
        )
        axis.set(xlabel="kernel regression with $K_0$", title=f"width {width}", aspect="equal")
    figure.axes[0].set_ylabel("trained network")
    figure.axes[0].legend(fontsize="small")
    return figure


def matrices_figure(task: Task, outcomes: Outcomes, limit: np.ndarray, widths: list[int]) -> Figure:
    """The kernel of the examples, sorted by class: at the start, at the end, the change, the limit."""
    from matplotlib.figure import Figure

    n = len(task.x)
    order = np.argsort(-task.y, kind="stable")
    figure = Figure(figsize=(13, 6.2), layout="constrained")
    for row, width in zip(figure.subplots(2, 4), (widths[0], widths[-1]), strict=True):
        outcome = outcomes[task.name, width][0]
        panels = {
            f"width {width}: start": outcome.before[:n],
            "end": outcome.after[:n],
            "change": outcome.after[:n] - outcome.before[:n],
            "infinite width": limit[:n],
        }
        for axis, (title, matrix) in zip(row, panels.items(), strict=True):
            change = title == "change"
            top = (
                np.abs(matrix).max() if change else max(m[:n].max() for m in (outcome.before, outcome.after))
            )
            image = axis.imshow(
                matrix[np.ix_(order, order)],
                cmap="RdBu" if change else "viridis",
                vmin=-top if change else 0,
                vmax=top,
            )
            axis.set(title=title, xticks=[], yticks=[])
            figure.colorbar(image, ax=axis, shrink=0.8)
    figure.suptitle(f"Tangent kernel of {n} images, class {CLASSES[0]} first, then class {CLASSES[1]}")
    return figure


def angle_of(x: np.ndarray) -> np.ndarray:
    """Angles of points (n, 2) of the circle; the first of a full circle is -pi, not pi."""
    angles = np.arctan2(x[:, 1], x[:, 0])
    return np.where((np.arange(len(x)) == 0) & (angles > 3.14), -np.pi, angles)


def three(widths: list[int]) -> list[int]:
    """The narrowest, the middle and the widest, as many as there are."""
    return sorted({widths[0], widths[len(widths) // 2], widths[-1]})


def shade(i: int, n: int) -> tuple:
    """The i-th of n colours from dark to light."""
    from matplotlib import colormaps

    return colormaps["viridis"](0.9 * i / max(1, n - 1))


if __name__ == "__main__":
    launch.main(Config, train)
