"""A two-layer network on MNIST in NumPy: backpropagation written out by hand beside the recorded one.

Question: what does a framework do between `loss.backward()` and the gradients? Two copies of one network
start from the same weights and see the same batches. One gets its gradients from a few matrix products
derived on paper (`manual_gradients`), the other from the graph that the engine in `layers.autograd`
records.

    python -m recipes.numpy_mlp --backend numpy                      # MNIST by TensorFlow Datasets
    python -m recipes.numpy_mlp --backend numpy --dataset digits     # built in, 8x8 pixels

Expected: 98.36 +/- 0.06 % of MNIST's test images over three seeds, with NumPy in 57 to 98 s
(results/numpy/README.md). Both copies end with the
same weights, bit for bit where BLAS adds in the same order.

Figures: learning_curves (both copies and the distance between their weights), predictions, errors (the most
confident ones), confusion, features (what the first layer looks for).

References:
    Rumelhart, Hinton and Williams, 1986, Learning representations by back-propagating errors.
    LeCun et al., 1998, Gradient-based learning applied to document recognition (the data).

Differences from Rumelhart et al.:
    1. ReLU instead of the logistic function.
    2. Cross-entropy of a softmax instead of squared error.
    3. Adam with a falling rate instead of steepest descent, He initialization instead of small random
       weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from layers.autograd import Tensor, no_grad, ops
from layers.autograd.by_hand import (
    dense_backward,
    dense_forward,
    relu_backward,
    relu_forward,
    softmax_crossentropy_backward,
    softmax_crossentropy_forward,
)
from layers.autograd.nn import Dense, Flatten, Module, Sequential
from layers.autograd.nn.losses import sparse_categorical_crossentropy
from layers.autograd.optim import Adam
from layers.autograd.schedules import cosine_decay
from recipes.engine import figures, launch, learning_rates
from recipes.engine.config import ResumableConfig
from recipes.engine.data import Batches, Dataset, Split, load
from recipes.engine.progress import Progress
from recipes.engine.tracking import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Config(ResumableConfig):
    """Settings of the network and its training."""

    backend: Literal["numpy"] = "numpy"
    """Only NumPy: this recipe needs no framework."""
    precision: Literal["float32"] = "float32"
    """Type of weights and activations."""
    dataset: Literal["mnist", "fashion_mnist", "digits"] = "mnist"
    """Images: mnist and fashion_mnist by TensorFlow Datasets, digits built in."""
    epochs: int = 15
    """Passes over the training data."""
    hidden: int = 512
    """Units of the hidden layer."""
    manual: bool = True
    """Train the copy with gradients written by hand as well."""

    @classmethod
    def small(cls, **changes: Any) -> Config:
        """Built-in data, a few seconds."""
        return cls(
            **{
                "dataset": "digits",
                "epochs": 12,
                "hidden": 32,
                "batch_size": 32,
                "learning_rate": 5e-3,
                **changes,
            }
        )


def build_model(config: Config, inputs: int, classes: int) -> Sequential:
    """The network x -> W2 relu(W1 x + b1) + b2, from modules."""
    rng = np.random.default_rng(config.seed)
    model = Sequential(
        [
            Flatten(),
            Dense(config.hidden, "relu", kernel_initializer="he_normal", rng=rng),
            Dense(classes, rng=rng),
        ]
    )
    model(np.zeros((1, inputs), np.float32))
    return model


def manual_gradients(
    weights: list[np.ndarray], x: np.ndarray, y: np.ndarray
) -> tuple[float, list[np.ndarray]]:
    """Loss and gradients of the same network, by the chain rule and nothing else.

    Args:
        weights: W1 (inputs, hidden), b1 (hidden,), W2 (hidden, classes), b2 (classes,).
        x: (N, inputs).
        y: labels (N,).

    Returns:
        The mean cross-entropy, and its gradients in the order of the weights.
    """
    w1, b1, w2, b2 = weights
    z1, kept1 = dense_forward(x, w1, b1)  # (N, hidden)
    h, kept_relu = relu_forward(z1)
    z2, kept2 = dense_forward(h, w2, b2)  # (N, classes)
    loss, kept_loss = softmax_crossentropy_forward(z2, y)
    dz2 = softmax_crossentropy_backward(kept_loss)  # (p - onehot) / N
    dh, dw2, db2 = dense_backward(dz2, kept2)
    dz1 = relu_backward(dh, kept_relu)
    _, dw1, db1 = dense_backward(dz1, kept1)
    return loss, [dw1, db1, dw2, db2]


def recorded_step(model: Sequential, optimizer: Adam, x: np.ndarray, y: np.ndarray) -> float:
    """One step on gradients that the engine found by itself."""
    optimizer.zero_grad()
    loss = sparse_categorical_crossentropy(y, model(x, training=True), from_logits=True).mean()
    loss.backward()
    optimizer.step()
    return loss.item()


def manual_step(model: Sequential, optimizer: Adam, x: np.ndarray, y: np.ndarray) -> float:
    """One step on gradients written by hand."""
    loss, gradients = manual_gradients([w.data for w in model.weights], x, y)
    for weight, gradient in zip(model.weights, gradients, strict=True):
        weight.grad = Tensor(gradient)
    optimizer.step()
    return loss


def prepared(split: Split, mean: float, deviation: float) -> Split:
    """Images as rows of standardized float32."""
    return Split(((split.x.reshape(len(split), -1) - mean) / deviation).astype(np.float32), split.y)


def probabilities(model: Module, x: np.ndarray) -> np.ndarray:
    """The network's class probabilities, (N, classes)."""
    with no_grad():
        return np.concatenate([ops.softmax(model(x[i : i + 1000])).data for i in range(0, len(x), 1000)])


def evaluate(model: Module, split: Split) -> dict[str, float]:
    """Mean cross-entropy and accuracy on a split."""
    p = probabilities(model, split.x)
    likelihood = np.maximum(p[np.arange(len(split)), split.y], 1e-12)
    return {"loss": float(-np.log(likelihood).mean()), "accuracy": float((p.argmax(1) == split.y).mean())}


def train(config: Config, run: Run) -> dict[str, float]:
    """Train the network once by recorded and once by manual gradients; returns the final metrics."""
    data = load(config.dataset, config.data_dir)
    run.tags({"dataset.fingerprint": lambda: data.fingerprint})
    mean, deviation = float(data.train.x.mean()), float(data.train.x.std())
    training, validation, test = (
        prepared(split, mean, deviation) for split in (data.train, data.validation, data.test)
    )
    copies = {"recorded": build_model(config, training.x.shape[1], len(data.labels))}
    steps = {"recorded": recorded_step}
    if config.manual:
        copies["manual"] = build_model(config, training.x.shape[1], len(data.labels))
        steps["manual"] = manual_step
    batches = Batches(training, config.batch_size, config.seed)
    schedule = cosine_decay(config.learning_rate, config.epochs * batches.steps_per_epoch)
    optimizers = {name: Adam(model.weights, schedule) for name, model in copies.items()}
    model = copies["recorded"]

    if config.find_lr:  # of one copy: the other would give the same
        optimizer = optimizers["recorded"]
        learning_rates.find_with(
            optimizer, lambda number: recorded_step(model, optimizer, *batches[number]), run
        )

    def validate() -> dict[str, float]:
        norms = {f"weight_norm/{path}": float(np.linalg.norm(w.data)) for path, w in model.named_weights()}
        if config.manual:
            norms["manual/distance"] = distance(model, copies["manual"])
        run.metrics(norms, progress.step)
        return evaluate(model, validation)

    progress = Progress(
        config,
        run,
        batches,
        state={name: optimizer.arrays for name, optimizer in optimizers.items()},
        evaluate=validate,
        schedule=schedule,
    )
    for x, y in progress.batches():
        losses = {name: steps[name](copies[name], optimizers[name], x, y) for name in copies}
        progress.after_step({"loss": losses.pop("recorded"), **{f"loss_{k}": v for k, v in losses.items()}})
    last = progress.finish()

    final = {f"test/{k}": v for k, v in evaluate(model, test).items()}
    final |= {name: last[name] for name in ("train/loss", "val/loss", "val/accuracy")}
    if config.manual:
        final["manual/test_accuracy"] = evaluate(copies["manual"], test)["accuracy"]
        final["manual/distance"] = distance(model, copies["manual"])
    p = probabilities(model, test.x)
    run.figure("learning_curves", curves_figure(run.history))
    run.figure(
        "predictions", digits_figure(data, p, np.arange(24), "the first test images: prediction and truth")
    )
    wrong = np.flatnonzero(p.argmax(1) != test.y)
    worst = wrong[np.argsort(-p[wrong].max(1))][:24]
    run.figure("errors", digits_figure(data, p, worst, f"the most confident of {len(wrong)} errors"))
    run.figure("confusion", figures.confusion_matrix(test.y, p.argmax(1), data.labels))
    run.figure("features", features_figure(model.layers[1].kernel.data, data.shape))
    return final


def distance(a: Module, b: Module) -> float:
    """|w_a - w_b| / |w_a| over all weights of two copies."""
    squares = [
        (np.square(u.data - v.data).sum(), np.square(u.data).sum())
        for u, v in zip(a.weights, b.weights, strict=True)
    ]
    difference, size = (float(sum(part)) for part in zip(*squares, strict=True))
    return (difference / size) ** 0.5


def curves_figure(history: figures.History) -> Figure:
    """Losses and accuracy over the steps; below, how far rounding has driven the copies apart."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.6), layout="constrained")
    left, middle, right = figure.subplots(1, 3)

    def curve(name: str) -> tuple:
        return tuple(zip(*history[name], strict=True))

    left.semilogy(*curve("train/loss"), label="train, recorded gradients", lw=3, alpha=0.5)
    if "train/loss_manual" in history:
        left.semilogy(*curve("train/loss_manual"), "k--", label="train, gradients by hand", lw=1)
    left.semilogy(*curve("val/loss"), label="validation")
    left.set(title="Loss", xlabel="step")
    left.legend()
    middle.plot(*curve("val/accuracy"), "C2")
    middle.set(title="Validation accuracy", xlabel="step")
    if "manual/distance" in history:
        steps, distances = curve("manual/distance")
        right.plot(steps, distances, "C3.-")
        right.set(title="Relative distance of the two copies' weights", xlabel="step")
        right.set_ylim(bottom=0)
        if not any(distances):
            right.text(0.5, 0.5, "equal, bit for bit", transform=right.transAxes, ha="center")
    else:
        right.axis("off")
    return figure


def digits_figure(data: Dataset, p: np.ndarray, chosen: np.ndarray, title: str) -> Figure:
    """Test images with true and predicted class and the probability of the prediction."""
    guesses = p.argmax(1)
    captions = [
        f"{data.labels[guesses[i]]} {p[i, guesses[i]]:.0%}\nis {data.labels[data.test.y[i]]}" for i in chosen
    ]
    return figures.image_grid(data.test.x[chosen], captions, title=title)


def features_figure(kernel: np.ndarray, shape: tuple[int, ...]) -> Figure:
    """The strongest hidden units' weights as images: blue excites, red inhibits."""
    from matplotlib.figure import Figure

    strongest = np.argsort(-np.linalg.norm(kernel, axis=0))[:32]
    figure = Figure(figsize=(12, 6.2), layout="constrained")
    for axis, unit in zip(figure.subplots(4, 8).ravel(), strongest, strict=False):
        weights = kernel[:, unit].reshape(shape[:2])
        limit = np.abs(weights).max()
        axis.imshow(weights, cmap="RdBu", vmin=-limit, vmax=limit)
        axis.axis("off")
    figure.suptitle("What the first layer looks for: weights of the 32 strongest of its units")
    return figure


if __name__ == "__main__":
    launch.main(Config, train)
