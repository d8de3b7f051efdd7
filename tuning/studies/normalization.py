"""What does normalization forgive: weights that start too small or too large, and batches of few examples?

A perceptron of six layers with no, batch, layer, group and RMS normalization: the size of its activations
and gradient by layer when the weights start three times too small; training from starts of three sizes; and
training with batches of four.

References:
    Ioffe and Szegedy 2015, "Batch normalization". Ba et al. 2016, "Layer normalization".
    Wu and He 2018, "Group normalization". Zhang and Sennrich 2019, "Root mean square layer normalization".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import keras
import numpy as np
from keras import ops

import layers
from tuning import figures, networks
from tuning.evidence import Evidence, Quantity, Trial, curves_by_setting, values_by_setting
from tuning.statistics import verdict

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KINDS = ["none", "batch", "layer", "group", "rms"]
FIELDS = {"normalization": KINDS}
FACTORS = (1 / 3, 1.0, 3.0)  # of the standard deviation that suits relu
DEPTH, WIDTH = 6, 64


def perceptron(kind: str, depth: int) -> keras.Model:
    """A network with this normalization in every hidden layer."""
    return networks.perceptron(
        [WIDTH] * depth, normalization=lambda: layers.normalization.get(kind, WIDTH, 0.9)
    )


def activations(model: keras.Model, seed: int, factor: float) -> np.ndarray:
    """Root mean square of every hidden layer's activations, from weights `factor` times the usual size."""
    networks.draw(model, seed, scale=2 * factor**2)
    x, found = networks.digits(256, seed).x, []
    for layer in model.layers[1:]:
        x = layer(x, training=True) if isinstance(layer, layers.BatchNormalization) else layer(x)
        if isinstance(layer, keras.layers.Activation):
            found.append(float(np.sqrt(np.mean(ops.convert_to_numpy(x) ** 2))))
    return np.array(found)


def investigate(seeds: Sequence[int], steps: int = 60, depth: int = DEPTH) -> Evidence:
    """Look at the activations, and train from starts of several sizes and with small batches.

    Args:
        seeds: of weights and digits.
        steps: updates with batches of 64; of those with batches of 4, twice as many.
        depth: hidden layers.
    """
    sizes: dict[str, dict[float, list[np.ndarray]]] = {}
    for kind in KINDS:
        model = perceptron(kind, depth)
        sizes[kind] = {factor: [activations(model, seed, factor) for seed in seeds] for factor in FACTORS}
    kept = {
        kind: [abs(float(np.log10(max(each[-1], 1e-30) / max(each[0], 1e-30)))) for each in by[FACTORS[0]]]
        for kind, by in sizes.items()
    }
    trials = [trial for kind in KINDS for trial in train(kind, seeds, steps, depth)]
    accuracy = values_by_setting(trials, "test/accuracy")
    worst = {
        kind: [
            min(accuracy[f"{kind}, start x {factor:.2g}"][place] for factor in FACTORS)
            for place in range(len(seeds))
        ]
        for kind in KINDS
    }
    small = {kind: accuracy[f"{kind}, batches of 4"] for kind in KINDS}
    name, few = (
        f"test accuracy after {steps} steps, the worst of three starts",
        "test accuracy with batches of 4",
    )
    return Evidence(
        [
            Quantity(f"change of activations over {depth} layers, small start, powers of ten", kept, True),
            Quantity(name, worst),
            Quantity(few, small),
        ],
        {
            "activations": draw(sizes),
            "learning_curves": figures.bands(
                curves_by_setting([t for t in trials if t.setting.endswith("start x 0.33")], "train/loss"),
                "training loss", "from weights three times too small",
            ),
        },
        f"{verdict(name, worst, False)}; {verdict(few, small, False)}",
        trials,
    )  # fmt: skip


def train(kind: str, seeds: Sequence[int], steps: int, depth: int) -> list[Trial]:
    """One kind of normalization: with batches of 64 from every start, with batches of 4 from the usual."""
    training = networks.Training(perceptron(kind, depth), layers.optimizers.SGD(momentum=0.9))
    trials = []
    for factor in FACTORS:
        for seed in seeds:
            training.restart(seed, 0.02, scale=2 * factor**2)
            task = networks.digits(1000, seed)
            trials.append(training.run(task, f"{kind}, start x {factor:.2g}", seed, steps, 64))
    for seed in seeds:
        training.restart(seed, 0.005)
        task = networks.digits(1000, seed)
        trials.append(training.run(task, f"{kind}, batches of 4", seed, 2 * steps, 4, looks=5))
    return trials


def draw(sizes: dict[str, dict[float, list[np.ndarray]]]) -> Figure:
    """Size of the activations by layer, for each start."""
    figure, axes = figures.panels(len(FACTORS))
    for each, factor in zip(axes, FACTORS, strict=True):
        curves = {}
        for kind, by in sizes.items():
            mean = np.mean(by[factor], axis=0)
            curves[kind] = (np.arange(1, len(mean) + 1), mean)
        figures.line(each, curves, "layer", "activations, rms", f"weights x {factor:.2g}")
        each.set_yscale("log")
    return figure
