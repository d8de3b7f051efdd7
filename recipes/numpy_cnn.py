"""LeNet on MNIST in NumPy: a convolutional network on an engine of a thousand lines.

Question: is a convolution anything but a matrix product? Here it is one: `unfold` lays the windows of the
image beside each other, BLAS multiplies, and the gradient comes from the transposes of both
(layers/autograd/ops).

    python -m recipes.numpy_cnn --backend numpy                      # MNIST by TensorFlow Datasets
    python -m recipes.numpy_cnn --backend numpy --dataset digits     # built in, 8x8 pixels enlarged to 16x16

Expected: 98.95 +/- 0.11 % of MNIST's test images over three seeds, with NumPy in 54 to 78 s
(results/numpy/README.md).

Figures: learning_curves, filters (kernels of the first layer), feature_maps (a digit on its way through the
layers), errors (the most confident ones).

References:
    LeCun, Bottou, Bengio and Haffner, 1998, Gradient-based learning applied to document recognition.

Differences from LeNet-5:
    1. ReLU instead of a scaled tanh; max-pooling instead of a mean with trained scale.
    2. All maps of the second convolution see all of the first.
    3. A softmax with cross-entropy instead of radial basis functions.
    4. Adam instead of a diagonal Levenberg-Marquardt step.
    5. Zeros around the first convolution instead of images enlarged to 32x32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from layers.autograd import no_grad, ops
from layers.autograd.nn import Conv2D, Dense, Flatten, MaxPooling2D, Module, Sequential
from layers.autograd.nn.losses import sparse_categorical_crossentropy
from layers.autograd.optim import Adam, clip_by_global_norm
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
    epochs: int = 6
    """Passes over the training data."""
    learning_rate: float = 2e-3
    """Step size at the start; it falls to 0 along a cosine."""
    clip_norm: float = 5.0
    """Largest norm of the gradient; longer ones are shortened to it."""

    @classmethod
    def small(cls, **changes: Any) -> Config:
        """Built-in data, a few seconds."""
        return cls(**{"dataset": "digits", "epochs": 4, "batch_size": 32, "learning_rate": 4e-3, **changes})


def build_model(config: Config, shape: tuple[int, ...], classes: int) -> Sequential:
    """LeNet: two convolutions with pooling, three dense layers."""
    rng = np.random.default_rng(config.seed)
    he = {"kernel_initializer": "he_normal", "rng": rng}
    model = Sequential(
        [
            Conv2D(6, 5, padding="same", activation="relu", **he),  # (N, 28, 28, 6)
            MaxPooling2D(2),  # (N, 14, 14, 6)
            Conv2D(
                16, 5, padding="valid" if shape[0] >= 28 else "same", activation="relu", **he
            ),  # (N, 10, 10, 16)
            MaxPooling2D(2),  # (N, 5, 5, 16)
            Flatten(),
            Dense(120, "relu", **he),
            Dense(84, "relu", **he),
            Dense(classes, rng=rng),
        ]
    )
    model(np.zeros((1, *shape), np.float32))
    return model


def prepared(split: Split, mean: float, deviation: float) -> Split:
    """Standardized float32 images (N, H, W, 1), those of 8x8 pixels enlarged to 16x16."""
    x = ((split.x - mean) / deviation).astype(np.float32)
    if x.shape[1] < 16:
        x = x.repeat(2, axis=1).repeat(2, axis=2)
    return Split(x, split.y)


def probabilities(model: Module, x: np.ndarray) -> np.ndarray:
    """The network's class probabilities, (N, classes)."""
    with no_grad():
        return np.concatenate([ops.softmax(model(x[i : i + 500])).data for i in range(0, len(x), 500)])


def evaluate(model: Module, split: Split) -> dict[str, float]:
    """Mean cross-entropy and accuracy on a split."""
    p = probabilities(model, split.x)
    likelihood = np.maximum(p[np.arange(len(split)), split.y], 1e-12)
    return {"loss": float(-np.log(likelihood).mean()), "accuracy": float((p.argmax(1) == split.y).mean())}


def train(config: Config, run: Run) -> dict[str, float]:
    """Train LeNet and draw what it learned; returns the final metrics."""
    data = load(config.dataset, config.data_dir)
    run.tags({"dataset.fingerprint": lambda: data.fingerprint})
    mean, deviation = float(data.train.x.mean()), float(data.train.x.std())
    training, validation, test = (
        prepared(split, mean, deviation) for split in (data.train, data.validation, data.test)
    )
    model = build_model(config, training.x.shape[1:], len(data.labels))
    batches = Batches(training, config.batch_size, config.seed)
    schedule = cosine_decay(config.learning_rate, config.epochs * batches.steps_per_epoch)
    optimizer = Adam(model.weights, schedule)

    def step(x: np.ndarray, y: np.ndarray) -> dict[str, float]:
        optimizer.zero_grad()
        loss = sparse_categorical_crossentropy(y, model(x, training=True), from_logits=True).mean()
        loss.backward()
        norm = clip_by_global_norm(model.weights, config.clip_norm)
        optimizer.step()
        return {"loss": loss.item(), "grad_norm": norm}

    if config.find_lr:
        learning_rates.find_with(optimizer, lambda number: step(*batches[number])["loss"], run)

    def validate() -> dict[str, float]:
        norms = {f"weight_norm/{path}": float(np.linalg.norm(w.data)) for path, w in model.named_weights()}
        run.metrics(norms, progress.step)
        return evaluate(model, validation)

    progress = Progress(
        config, run, batches, state={"training": optimizer.arrays}, evaluate=validate, schedule=schedule
    )
    for x, y in progress.batches():
        progress.after_step(step(x, y))
    last = progress.finish()

    final = {f"test/{k}": v for k, v in evaluate(model, test).items()}
    final |= {name: last[name] for name in ("train/loss", "val/loss", "val/accuracy")}
    run.figure("learning_curves", figures.learning_curves(run.history, f"LeNet on {data.name}"))
    run.figure("filters", filters_figure(model.layers[0].kernel.data))
    run.figure("feature_maps", maps_figure(model, test.x[0]))
    run.figure("errors", errors_figure(data, probabilities(model, test.x)))
    return final


def filters_figure(kernel: np.ndarray) -> Figure:
    """The first layer's kernels (h, w, 1, filters): blue excites, red inhibits."""
    from matplotlib.figure import Figure

    filters = kernel.shape[3]
    figure = Figure(figsize=(1.7 * filters, 2.2), layout="constrained")
    for i, axis in enumerate(figure.subplots(1, filters)):
        limit = np.abs(kernel[..., i]).max()
        axis.imshow(kernel[:, :, 0, i], cmap="RdBu", vmin=-limit, vmax=limit)
        axis.axis("off")
    figure.suptitle("Kernels of the first convolution")
    return figure


def maps_figure(model: Sequential, image: np.ndarray) -> Figure:
    """One image (H, W, 1) after every layer that keeps it an image."""
    stages, x = {}, image[None]
    with no_grad():
        for number, layer in enumerate(model.layers[:4], start=1):
            x = layer(x).data
            stages[f"{number} {type(layer).__name__}"] = x[0]
    return figures.feature_maps(image, stages, most=16)


def errors_figure(data: Dataset, p: np.ndarray) -> Figure:
    """The test images that were misread with the greatest confidence."""
    guesses = p.argmax(1)
    wrong = np.flatnonzero(guesses != data.test.y)
    worst = wrong[np.argsort(-p[wrong].max(1))][:24]
    captions = [
        f"{data.labels[guesses[i]]} {p[i, guesses[i]]:.0%}\nis {data.labels[data.test.y[i]]}" for i in worst
    ]
    title = f"the most confident of {len(wrong)} errors in {len(p)} test images"
    return figures.image_grid(data.test.x[worst], captions, title=title)


if __name__ == "__main__":
    launch.main(Config, train)
