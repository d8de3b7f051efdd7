"""How automatic differentiation works: a scalar engine, a tensor engine, and three frameworks.

Question: is a hand-made engine right? The same formulas, written once, are differentiated by an engine for
single numbers that fits on two screens (`layers.autograd.scalar`), by the tensor engine in
`layers.autograd`, and by PyTorch, JAX and TensorFlow, as far as they are installed. In float64 all agree to
rounding.

    python -m recipes.autograd_engine --backend numpy

Expected: largest difference to any framework below 1e-12, with NumPy in about half a minute, most of which
the frameworks take to start (results/numpy/README.md).

Figures: graph (a formula as the engine records it, values and gradients in every box), agreement
(differences by formula and framework), derivatives (tanh and three derivatives by grad of grad of grad),
gradient_flow (the norm of the gradient in every layer of a deep network, by activation and initialization).

References:
    Wengert, 1964, A simple automatic derivative evaluation program.
    Baydin et al., 2018, Automatic differentiation in machine learning: a survey, arXiv:1502.05767.
    Karpathy, 2020, micrograd (the idea of a scalar engine).
    Glorot and Bengio, 2010, Understanding the difficulty of training deep feedforward neural networks.
"""

from __future__ import annotations

import importlib.util
import math
import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from layers.autograd import Tensor, draw, grad, ops, scalar
from layers.autograd.nn import Dense, Sequential
from layers.autograd.nn.initializers import lsuv
from recipes.engine import launch
from recipes.engine.config import RunConfig
from recipes.engine.tracking import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FRAMEWORKS = ("torch", "jax", "tensorflow")


@dataclass(frozen=True)
class Config(RunConfig):
    """Settings of the gradient-flow experiment."""

    backend: Literal["numpy"] = "numpy"
    """Only NumPy; the frameworks it is compared with run in processes of their own."""
    precision: Literal["float64"] = "float64"
    """Type of all numbers: agreement is a matter of digits."""
    dataset: Literal["formulas"] = "formulas"
    """Fixed formulas at random points."""
    depth: int = 20
    """Layers of the network whose gradients are followed."""
    width: int = 64
    """Units of each of its layers."""
    frameworks: bool = True
    """Compare with PyTorch, JAX and TensorFlow where installed."""

    @classmethod
    def small(cls, **changes: Any) -> Config:
        """No frameworks, a shallow network."""
        return cls(**{"depth": 6, "width": 16, "frameworks": False, **changes})


# Formulas of numbers: every engine can differentiate them. `m` is the namespace of functions.
SCALAR: dict[str, tuple[Callable[..., Any], int]] = {
    "rational": (lambda m, a, b: a * b + a**3 - b / (1 + a * a), 2),
    "neuron": (lambda m, a, b, c: m.tanh(a * b + c) ** 2, 3),
    "logistic loss": (lambda m, a, b: m.log(1 + m.exp(-a * b)) + 0.1 * b * b, 2),
    "shared parts": (lambda m, a: (a + m.exp(a)) * (a + m.exp(a)) / (1 + m.exp(a)), 1),
}


def network_loss(m: Any, x: Any, w: Any, b: Any, v: Any, truth: Any) -> Any:
    """Cross-entropy of a network with one hidden layer, the softmax written out."""
    z = m.tanh(x @ w + b) @ v  # (N, classes)
    return m.sum((m.log(m.sum(m.exp(z), -1)[:, None]) - z) * truth) * (1 / 4)


def normalized(m: Any, x: Any, gamma: Any) -> Any:
    """Layer normalization, weighted by position."""
    centred = x - m.sum(x, -1)[:, None] * (1 / 5)
    variance = m.sum(centred * centred, -1)[:, None] * (1 / 5)
    return m.sum(gamma * m.tanh(centred / (variance + 1e-3) ** 0.5))


# Formulas of tensors, with the shapes of their arguments.
TENSOR: dict[str, tuple[Callable[..., Any], list[tuple[int, ...]]]] = {
    "network": (network_loss, [(4, 3), (3, 5), (5,), (5, 2), (4, 2)]),
    "normalization": (normalized, [(4, 5), (5,)]),
    "broadcast quotient": (lambda m, a, b: m.sum(a / (1 + b * b)), [(3, 1, 4), (2, 4)]),
    "quadratic form": (lambda m, x, a: m.sum((x @ a) * x) * 0.5, [(1, 6), (6, 6)]),
}


def points(seed: int) -> dict[str, list[np.ndarray]]:
    """A random point for every formula."""
    rng = np.random.default_rng(seed)
    shapes = {name: [()] * count for name, (_, count) in SCALAR.items()}
    shapes |= {name: wanted for name, (_, wanted) in TENSOR.items()}
    return {name: [np.asarray(rng.normal(size=s)) for s in wanted] for name, wanted in shapes.items()}


def formula(name: str) -> Callable[..., Any]:
    """The formula of that name."""
    return (SCALAR[name] if name in SCALAR else TENSOR[name])[0]


def scalar_gradients(arguments: dict[str, list[np.ndarray]]) -> dict[str, list[np.ndarray]]:
    """By the scalar engine, for the formulas of numbers."""
    result = {}
    for name in SCALAR:
        values = [scalar.Value(float(x)) for x in arguments[name]]
        formula(name)(scalar, *values).backward()
        result[name] = [np.asarray(v.grad) for v in values]
    return result


def tensor_gradients(arguments: dict[str, list[np.ndarray]]) -> dict[str, list[np.ndarray]]:
    """By the tensor engine, for all formulas."""
    result = {}
    for name, arrays in arguments.items():
        tensors = [Tensor(x, requires_grad=True) for x in arrays]
        result[name] = [g.data for g in grad(formula(name)(ops, *tensors), tensors)]
    return result


def framework_gradients(
    framework: str, arguments: dict[str, list[np.ndarray]]
) -> dict[str, list[np.ndarray]]:
    """By PyTorch, JAX or TensorFlow; runs in a process of its own, because they do not mix well in one."""
    by_framework = {"torch": _torch_gradient, "jax": _jax_gradient, "tensorflow": _tensorflow_gradient}
    return {name: by_framework[framework](formula(name), arrays) for name, arrays in arguments.items()}


def _torch_gradient(function: Callable[..., Any], arrays: list[np.ndarray]) -> list[np.ndarray]:
    import torch

    tensors = [torch.tensor(x, requires_grad=True) for x in arrays]
    return [g.numpy() for g in torch.autograd.grad(function(torch, *tensors), tensors)]


def _jax_gradient(function: Callable[..., Any], arrays: list[np.ndarray]) -> list[np.ndarray]:
    import jax

    jax.config.update("jax_enable_x64", True)
    gradient = jax.grad(lambda *values: function(jax.numpy, *values), argnums=tuple(range(len(arrays))))
    return [np.asarray(g) for g in gradient(*arrays)]


def _tensorflow_gradient(function: Callable[..., Any], arrays: list[np.ndarray]) -> list[np.ndarray]:
    import tensorflow as tf

    namespace = SimpleNamespace(exp=tf.exp, tanh=tf.tanh, log=tf.math.log, sum=tf.reduce_sum)
    variables = [tf.Variable(x) for x in arrays]
    with tf.GradientTape() as tape:
        value = function(namespace, *variables)
    return [g.numpy() for g in tape.gradient(value, variables)]


def differences(ours: dict[str, list[np.ndarray]], theirs: dict[str, list[np.ndarray]]) -> dict[str, float]:
    """Largest |a - b| / max(1, |b|) over the gradients of each formula both have."""
    return {
        name: max(
            float((np.abs(a - b) / np.maximum(1, np.abs(b))).max())
            for a, b in zip(ours[name], theirs[name], strict=True)
        )
        for name in ours
        if name in theirs
    }


# Activation, initializer of the kernels, and what the combination shows.
FLOWS = {
    "sigmoid, Xavier": ("sigmoid", "glorot_uniform"),
    "tanh, Xavier": ("tanh", "glorot_uniform"),
    "ReLU, Xavier": ("relu", "glorot_uniform"),
    "ReLU, He": ("relu", "he_normal"),
    "tanh, LSUV": ("tanh", "lsuv"),
    "tanh, too large": ("tanh", lambda shape, rng: rng.normal(0, 3 / math.sqrt(shape[0]), shape)),
}


def gradient_flow(config: Config, activation: str, initializer: Any) -> np.ndarray:
    """Norm of the loss gradient with respect to each layer's output, first to last, in a fresh network."""
    rng = np.random.default_rng(config.seed)
    start = "orthogonal" if initializer == "lsuv" else initializer
    model = Sequential(
        [
            Dense(config.width, activation, kernel_initializer=start, rng=rng, dtype="float64")
            for _ in range(config.depth)
        ]
    )
    x = rng.normal(size=(128, config.width))
    if initializer == "lsuv":
        lsuv(model, x)
    outputs = [Tensor(x, requires_grad=True)]
    for layer in model.layers:
        outputs.append(layer(outputs[-1]))
    readout = Tensor(rng.normal(size=(config.width, 1)) / math.sqrt(config.width))
    error = outputs[-1] @ readout - Tensor(rng.normal(size=(128, 1)))
    gradients = grad((error * error).mean(), outputs[1:])
    return np.array([np.linalg.norm(g.data) for g in gradients])


def microseconds(function: Callable[[], Any], repeats: int = 200) -> float:
    """Mean time of a call."""
    start = time.perf_counter()
    for _ in range(repeats):
        function()
    return 1e6 * (time.perf_counter() - start) / repeats


def train(config: Config, run: Run) -> dict[str, float]:
    """Differentiate, compare and draw; returns the largest differences."""
    arguments = points(config.seed)
    ours = tensor_gradients(arguments)
    table = {"scalar engine": differences(ours, scalar_gradients(arguments))}
    installed = [name for name in FRAMEWORKS if config.frameworks and _present(name)]
    with ProcessPoolExecutor(
        1, mp_context=multiprocessing.get_context("spawn"), max_tasks_per_child=1
    ) as pool:
        for name in installed:
            table[name] = differences(ours, pool.submit(framework_gradients, name, arguments).result())
    final = {f"difference/{name.replace(' ', '_')}": max(column.values()) for name, column in table.items()}

    numbers = {name: arguments[name] for name in SCALAR}
    final["microseconds/scalar_engine"] = microseconds(lambda: scalar_gradients(numbers)) / len(SCALAR)
    final["microseconds/tensor_engine"] = microseconds(lambda: tensor_gradients(numbers)) / len(SCALAR)

    flows = {name: gradient_flow(config, *setting) for name, setting in FLOWS.items()}
    for name, norms in flows.items():
        # What reaches the first layer of what leaves the last; 1 would be perfect.
        key = name.replace(", ", "_").replace(" ", "_").lower()
        final[f"flow/{key}"] = float(norms[0] / norms[-1])
    run.metrics(final, 0)
    run.figure("graph", graph_figure())
    run.figure("agreement", agreement_figure(table))
    run.figure("derivatives", derivatives_figure())
    run.figure("gradient_flow", flow_figure(flows))
    return final


def _present(framework: str) -> bool:
    try:
        return importlib.util.find_spec(framework) is not None
    except ValueError:  # kept out of this process by the recipes' own start; its own process finds it
        return True


def graph_figure() -> Figure:
    """A neuron with its loss, as recorded."""
    x, w, b = (Tensor(v, requires_grad=True, name=n) for v, n in ((1.5, "x"), (-0.8, "w"), (0.4, "b")))
    y = ops.tanh(x * w + b)
    return draw((y - 0.5) ** 2, title="(tanh(x w + b) - 0.5)$^2$: values forward, gradients backward")


def agreement_figure(table: dict[str, dict[str, float]]) -> Figure:
    """Differences between the tensor engine and the others, formula by formula."""
    from matplotlib.figure import Figure

    names = [*SCALAR, *TENSOR]
    figure = Figure(figsize=(8.5, 4.2), layout="constrained")
    axis = figure.subplots()
    for i, (engine, column) in enumerate(table.items()):
        rows = [names.index(name) for name in column]
        values = np.maximum(list(column.values()), 1e-18)  # a difference of zero has no logarithm
        axis.scatter(values, np.array(rows) + 0.15 * (i - 1.5), label=engine, s=36)
    axis.axvline(np.finfo(float).eps, color="0.5", ls="--", lw=1, label="spacing of float64 at 1")
    axis.set(xscale="log", yticks=range(len(names)), xlim=(5e-19, 1e-9))
    axis.set_yticklabels(names)
    axis.set(title="Difference of gradients to the tensor engine (left edge: none)")
    axis.legend(fontsize=8, loc="lower right")
    return figure


def derivatives_figure() -> Figure:
    """Tanh and its first three derivatives, each the gradient of the one before."""
    from matplotlib.figure import Figure

    x = Tensor(np.linspace(-3, 3, 301), requires_grad=True)
    curve = ops.tanh(x)
    figure = Figure(figsize=(7, 4), layout="constrained")
    axis = figure.subplots()
    for label in ("tanh", "first derivative", "second", "third"):
        axis.plot(x.data, curve.data, label=label)
        curve = grad(curve.sum(), x, create_graph=True)
    axis.axhline(0, color="0.7", lw=0.8)
    axis.set_title("grad of grad of grad")
    axis.legend()
    return figure


def flow_figure(flows: dict[str, np.ndarray]) -> Figure:
    """The gradient's norm by layer: flat is good."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.5, 4.6), layout="constrained")
    axis = figure.subplots()
    for name, norms in flows.items():
        axis.semilogy(range(1, len(norms) + 1), norms / norms[-1], ".-", label=name)
    axis.set(
        xlabel="layer (input left, loss right)",
        ylabel="norm of the gradient / norm at the last layer",
        title="Gradient flow through a deep network before training",
    )
    axis.legend(fontsize=8)
    return figure


if __name__ == "__main__":
    launch.main(Config, train)
