"""Which initial weights carry a signal up and a gradient down through fifty layers, and do they train better?

The variance of the activations and the size of the gradient, layer by layer, for relu and tanh; then the same
network of twelve relu layers is trained from each start, with one learning rate.

References:
    Glorot and Bengio 2010, "Understanding the difficulty of training deep feedforward neural networks".
    He et al. 2015, "Delving deep into rectifiers". Mishkin and Matas 2015, "All you need is a good init".
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
from tuning.propagation import Signals, propagate
from tuning.statistics import interval, verdict

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FIELDS = {
    "initializer": [
        "glorot_normal",
        "glorot_uniform",
        "he_normal",
        "he_uniform",
        "lecun_normal",
        "orthogonal",
    ]
}
STARTS = ("zero", "small", "xavier", "he", "orthogonal", "lsuv")
SMALL = 0.01  # standard deviation of the start of that name, as in AlexNet
DEPTH, WIDTH, EXAMPLES = 50, 128, 128


def matrices(start: str, shapes: Sequence[tuple[int, int]], seed: int) -> list[np.ndarray]:
    """Weight matrices of these shapes; LSUV's are orthogonal as yet, and scaled in their network."""
    makers = {
        "zero": lambda s: keras.initializers.Zeros(),
        "small": lambda s: keras.initializers.RandomNormal(stddev=SMALL, seed=s),
        "xavier": lambda s: layers.initializers.GlorotNormal(seed=s),
        "he": lambda s: layers.initializers.HeNormal(seed=s),
        "orthogonal": lambda s: layers.initializers.Orthogonal(seed=s),
        "lsuv": lambda s: layers.initializers.Orthogonal(seed=s),
    }
    return [
        ops.convert_to_numpy(makers[start](1000 * seed + place)(shape, "float32"))
        for place, shape in enumerate(shapes)
    ]


def assign(model: keras.Model, start: str, seed: int, x: np.ndarray) -> None:
    """Give a model's dense layers their weights; LSUV rescales them on the examples."""
    kernels = networks.kernels(model)
    for kernel, matrix in zip(kernels, matrices(start, [tuple(k.shape) for k in kernels], seed), strict=True):
        kernel.assign(matrix)
    if start == "lsuv":
        layers.initializers.lsuv(model, x)


def signals(start: str, activation: str, seed: int, depth: int = DEPTH, width: int = WIDTH) -> Signals:
    """What a start does to random inputs of unit variance, through a stack of equal layers."""
    x = np.random.default_rng(seed).standard_normal((EXAMPLES, width)).astype("float32")
    if start != "lsuv":
        return propagate(x, matrices(start, [(width, width)] * depth, seed), activation, seed)
    # Only LSUV needs a network to be put into: it measures and scales layer by layer.
    model = keras.Sequential(
        [
            keras.Input((width,)),
            *(layers.Dense(width, activation=layers.activations.get(activation)) for _ in range(depth)),
        ]
    )
    assign(model, start, seed, x)
    return propagate(x, [ops.convert_to_numpy(k) for k in networks.kernels(model)], activation, seed)


def investigate(seeds: Sequence[int], depth: int = DEPTH, trained: int = 12, steps: int = 100) -> Evidence:
    """Measure the starts, and train from them.

    Args:
        seeds: of weights and data.
        depth: layers of the measured stack.
        trained: hidden layers of the trained network.
        steps: updates of its training.
    """
    found = {
        activation: {start: [signals(start, activation, seed, depth) for seed in seeds] for start in STARTS}
        for activation in ("relu", "tanh")
    }
    variance = {start: [float(s.before[-1]) for s in each] for start, each in found["relu"].items()}
    trials = train(seeds, trained, steps)
    reached = values_by_setting(trials, "test/accuracy")
    off = {start: [abs(np.log10(max(v, 1e-30))) for v in each] for start, each in variance.items()}
    steadiest = min(off, key=lambda start: float(np.mean(off[start])))
    conclusion = (
        f"through {depth} relu layers the variance stays nearest to 1 with {steadiest} "
        f"({interval(variance[steadiest])}, where xavier leaves {np.mean(variance['xavier']):.1g}); "
        + verdict(f"test accuracy after {steps} steps of {trained} layers", reached, False)
    )
    return Evidence(
        [
            Quantity(
                f"distance of the variance after {depth} relu layers from 1, in powers of ten", off, True
            ),
            Quantity(f"test accuracy after {steps} steps of {trained} relu layers", reached),
        ],
        {
            "variance_and_gradient": draw(found),
            "learning_curves": figures.bands(
                curves_by_setting(trials, "train/loss"),
                "training loss",
                f"{trained} relu layers from each start",
            ),
        },
        conclusion,
        trials,
    )


def train(seeds: Sequence[int], depth: int, steps: int) -> list[Trial]:
    """One network, compiled once, trained from every start with every seed."""
    model = networks.perceptron([64] * depth)
    training = networks.Training(model, layers.optimizers.SGD(momentum=0.9))
    trials = []
    for start in STARTS:
        for seed in seeds:
            task = networks.digits(1000, seed)
            training.restart(seed, learning_rate=0.01)
            assign(model, start, seed, task.x[:EXAMPLES])
            trials.append(training.run(task, start, seed, steps, batch_size=64))
    return trials


def draw(found: dict[str, dict[str, list[Signals]]]) -> Figure:
    """Variance of z and size of the gradient by layer, for each activation, on logarithmic axes."""
    figure, axes = figures.panels(4, columns=2)
    for column, (activation, by_start) in enumerate(found.items()):
        for row, (name, text) in enumerate((("before", "variance of z"), ("gradient", "gradient, rms"))):
            mean = {
                start: np.mean([getattr(s, name) for s in each], axis=0)
                for start, each in by_start.items()
                if start != "zero"  # nothing at all, which a logarithm cannot show
            }
            curves = {start: (np.arange(1, len(values) + 1), values) for start, values in mean.items()}
            figures.line(axes[2 * row + column], curves, "layer", text, activation)
            axes[2 * row + column].set_yscale("log")
    return figure
