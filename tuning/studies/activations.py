"""Which activations keep units alive and the gradient's size through depth, and does it show in training?

Curves and derivatives; saturation, dead units and the gradient through thirty layers whose weights suit the
activation's family; then a network of six hidden layers is trained with each.

Reference:
    Glorot and Bengio 2010, "Understanding the difficulty of training deep feedforward neural networks".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from keras import ops

import layers
from tuning import figures, networks
from tuning.evidence import Evidence, Quantity, Trial, curves_by_setting, values_by_setting
from tuning.propagation import Signals, propagate
from tuning.statistics import verdict

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAMES = ("sigmoid", "tanh", "relu", "leaky_relu", "elu", "selu", "gelu", "silu", "mish")
FIELDS = {"activation": list(NAMES)}
# Variance of a weight times its inputs: 2 where half of the units are off (He), 1 elsewhere (LeCun).
SCALES = {name: 1.0 if name in ("sigmoid", "tanh", "selu") else 2.0 for name in NAMES}
DEPTH, WIDTH, EXAMPLES = 30, 256, 128


def signals(name: str, seed: int, depth: int = DEPTH) -> Signals:
    """What a stack of layers with this activation does to random inputs of unit variance."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((EXAMPLES, WIDTH)).astype("float32")
    spread = (SCALES[name] / WIDTH) ** 0.5
    kernels = [rng.normal(0, spread, (WIDTH, WIDTH)).astype("float32") for _ in range(depth)]
    return propagate(x, kernels, name, seed)


def investigate(seeds: Sequence[int], hidden: int = 6, steps: int = 100) -> Evidence:
    """Measure every activation through depth, and train with it.

    Args:
        seeds: of weights and data.
        hidden: hidden layers of the trained network.
        steps: updates of its training.
    """
    found = {name: [signals(name, seed) for seed in seeds] for name in NAMES}
    left = {
        name: [float(np.log10(max(s.gradient[0], 1e-30) / s.gradient[-1])) for s in each]
        for name, each in found.items()
    }
    loss = {name: [abs(value) for value in values] for name, values in left.items()}
    trials = train(seeds, hidden, steps)
    accuracy = values_by_setting(trials, "test/accuracy")
    keeps = min(loss, key=lambda name: float(np.mean(loss[name])))
    loses = max(loss, key=lambda name: float(np.mean(loss[name])))
    conclusion = (
        f"through {DEPTH} layers {keeps} changes the gradient by a factor of "
        f"{10 ** np.mean(left[keeps]):.2g} and {loses} by {10 ** np.mean(left[loses]):.1g}; "
        + verdict(f"test accuracy after {steps} steps of {hidden} layers", accuracy, False)
    )
    return Evidence(
        [
            Quantity(f"change of the gradient over {DEPTH} layers, in powers of ten", loss, True),
            Quantity(f"test accuracy after {steps} steps of {hidden} layers", accuracy),
        ],
        {
            "functions": functions(),
            "through_depth": through_depth(found),
            "learning_curves": figures.bands(
                curves_by_setting(trials, "train/loss"), "training loss", f"{hidden} hidden layers"
            ),
        },
        conclusion,
        trials,
    )


def train(seeds: Sequence[int], hidden: int, steps: int) -> list[Trial]:
    """A network an activation, started as suits it, from every seed."""
    trials = []
    for name in NAMES:
        model = networks.perceptron([64] * hidden, name)
        training = networks.Training(model, layers.optimizers.SGD(momentum=0.9))
        for seed in seeds:
            training.restart(seed, learning_rate=0.02, scale=SCALES[name])
            trials.append(training.run(networks.digits(1000, seed), name, seed, steps, batch_size=64))
    return trials


def functions() -> Figure:
    """Every activation and its derivative."""
    x = np.linspace(-5, 5, 401).astype("float32")
    figure, axes = figures.panels(2, size=(5.0, 3.6))
    for place, (title, of) in enumerate(
        (("f(x)", layers.activations.get), ("f'(x)", layers.activations.derivative))
    ):
        values = {name: (x, ops.convert_to_numpy(of(name)(ops.convert_to_tensor(x)))) for name in NAMES}
        figures.line(axes[place], values, "x", title)
    axes[0].set_ylim(-2.2, 5)
    return figure


def through_depth(found: dict[str, list[Signals]]) -> Figure:
    """Gradient, flat share and dead share by layer."""
    figure, axes = figures.panels(3)
    kinds = (
        ("gradient", "gradient, rms"),
        ("flat", "share of inputs where f' is nearly 0"),
        ("dead", "share of units off for all examples"),
    )
    for each, (kind, text) in zip(axes, kinds, strict=True):
        curves = {
            name: (np.arange(1, DEPTH + 1), np.mean([getattr(s, kind) for s in signals], axis=0))
            for name, signals in found.items()
        }
        figures.line(each, curves, "layer", text)
    axes[0].set_yscale("log")
    return figure
