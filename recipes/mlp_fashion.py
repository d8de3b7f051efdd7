"""A multilayer perceptron on images of clothes: what do hidden layers buy, and what do their parts?

Two hidden layers on Fashion-MNIST's pixels, beside logistic regression (no hidden layer) and gradient
boosting (an ensemble of trees) on the same split. Activation, optimizer and dropout are varied
one at a time by sweeps.

    python -m recipes.mlp_fashion --backend torch
    python -m recipes.mlp_fashion --model logistic                       # scikit-learn, the same split
    python -m recipes.mlp_fashion --model boosting
    python -m recipes.mlp_fashion --dataset digits --epochs 30           # built in, no download
    python -m tuning.sweep mlp_fashion --epochs 6 --projected 0 --grid activation=relu,tanh --seeds 3

Expected: 89.84 +/- 0.09 % of Fashion-MNIST's test images over three seeds, on JAX in 236 to 452 s beside
other work; logistic regression 83.8 %, boosting 89.5 % (results/mlp_fashion.md).

Figures: learning_curves; confusion_matrix; features (what the first layer's units look for); pca and tsne
(test images by their pixels and by each hidden layer). Of the classic models the confusion matrix.

References:
    Xiao, Rasul and Vollgraf, 2017, Fashion-MNIST: a novel image dataset for benchmarking machine learning
    algorithms, arXiv:1708.07747.
    Srivastava et al., 2014, Dropout: a simple way to prevent neural networks from overfitting.

Differences from Xiao et al.:
    1. A tenth of the training images is set apart for validation, for every model alike.
    2. Their figures are the best of a grid of settings, chosen by test accuracy; here settings are chosen on
       validation images.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Self

import keras
import numpy as np

import layers
from recipes import engine
from recipes.engine import launch
from recipes.engine.config import TrainingConfig, refuse
from recipes.engine.errors import usage_error

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Peak learning rates of a one-cycle schedule, by optimizer.
LEARNING_RATES = {
    "sgd": 0.5,
    "momentum": 0.1,
    "nesterov": 0.1,
    "adagrad": 0.03,
    "rmsprop": 0.002,
    "adam": 0.002,
    "adamw": 0.002,
    "nadam": 0.002,
    "lion": 0.0003,
}

# What the classic models know nothing of.
NETWORK_ONLY = (
    "accumulate", "clip_norm", "ema", "early_stopping", "probe", "find_lr", "precision", "resume"
)  # fmt: skip


@dataclass(frozen=True)
class Config(TrainingConfig):
    """What can be varied."""

    VALUES = TrainingConfig.VALUES | {"dropout", "epochs", "projected"}

    dataset: Literal["fashion_mnist", "mnist", "kmnist", "digits"] = "fashion_mnist"
    """Images to classify; digits are built in."""
    model: Literal["mlp", "logistic", "boosting"] = "mlp"
    """mlp: this recipe's network; logistic, boosting: scikit-learn's classifiers, for comparison."""
    epochs: int = 20
    """Passes over the training data."""
    learning_rate: float | None = None
    """Peak step size of one cycle; default: one that suits the optimizer."""
    units: int = 512
    """Width of the hidden layers."""
    depth: int = 2
    """Number of hidden layers."""
    activation: Literal["relu", "leaky_relu", "elu", "selu", "gelu", "silu", "tanh", "sigmoid"] = "relu"
    """Activation of the hidden layers."""
    normalization: Literal["none", "batch", "layer", "group", "rms"] = "none"
    """Normalization before the activation; group: of eight groups of units."""
    optimizer: Literal[
        "sgd", "momentum", "nesterov", "adagrad", "rmsprop", "adam", "adamw", "nadam", "lion"
    ] = "adamw"
    """momentum and nesterov are SGD with momentum 0.9; adamw has a weight decay of 0.01."""
    loss: Literal["cross_entropy", "squared_error"] = "cross_entropy"
    """What training lowers; squared_error: of the classes' probabilities."""
    dropout: float = 0.3
    """Share of every hidden layer's units dropped in training."""
    strength: float = 0.01
    """Of logistic regression: one over the penalty on squared weights."""
    rounds: int = 100
    """Of boosting: trees a class."""
    projected: int = 1000
    """Test images in the figures pca and tsne; 0: no such figures."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.dropout < 1:
            raise usage_error(f"--dropout must lie in 0 ... 1, not {self.dropout}")
        for name in ("units", "depth", "rounds"):
            if getattr(self, name) < 1:
                raise usage_error(f"--{name} must be at least 1, not {getattr(self, name)}")
        if self.model != "mlp":
            refuse(self, NETWORK_ONLY, f"--model {self.model} is fitted by scikit-learn, in one piece")

    @classmethod
    def small(cls, **changes: Any) -> Self:
        """A few seconds on the built-in digits."""
        return cls(**{"dataset": "digits", "epochs": 12, "units": 64, "projected": 60, **changes})


def build_model(config: Config, data: engine.data.Dataset) -> keras.Model:
    """The network: uint8 images in, one logit a class out; its hidden layers are `hidden1`, `hidden2`, ..."""
    inputs = keras.Input(data.shape, dtype="uint8", name="image")  # (batch, height, width, channels)
    pixels = data.train.x.reshape(-1, data.shape[-1])
    x = layers.ImageStandardization(pixels.mean(axis=0), pixels.std(axis=0))(inputs)
    x = keras.layers.Flatten()(x)  # (batch, pixels)
    initializer = {"selu": layers.initializers.LecunNormal, "tanh": layers.initializers.GlorotNormal}.get(
        config.activation, layers.initializers.HeNormal
    )
    for number in range(1, config.depth + 1):
        x = layers.Dense(config.units, kernel_initializer=initializer(), name=f"weights{number}")(x)
        x = layers.normalization.get(config.normalization, config.units, momentum=0.9)(x)
        x = keras.layers.Activation(layers.activations.get(config.activation), name=f"hidden{number}")(x)
        x = layers.Dropout(config.dropout)(x)
    return keras.Model(inputs, layers.Dense(len(data.labels), dtype="float32", name="logits")(x), name="mlp")


def build_optimizer(config: Config, schedule: Any) -> keras.optimizers.Optimizer:
    """The optimizer, by name."""
    optimizers = layers.optimizers
    common = {"learning_rate": schedule, **engine.training.optimizer_options(config)}
    makers = {
        "sgd": lambda: optimizers.SGD(**common),
        "momentum": lambda: optimizers.SGD(momentum=0.9, **common),
        "nesterov": lambda: optimizers.SGD(momentum=0.9, nesterov=True, **common),
        "adagrad": lambda: optimizers.Adagrad(**common),
        "rmsprop": lambda: optimizers.RMSprop(**common),
        "adam": lambda: optimizers.Adam(**common),
        "adamw": lambda: optimizers.AdamW(weight_decay=0.01, **common),
        "nadam": lambda: optimizers.Nadam(**common),
        "lion": lambda: optimizers.Lion(**common),
    }
    return makers[config.optimizer]()


def cross_entropy(labels: Any, logits: Any) -> Any:
    """Of integer labels and logits, (batch,)."""
    return layers.losses.sparse_categorical_crossentropy(labels, logits, from_logits=True)


def squared_error(labels: Any, logits: Any) -> Any:
    """Mean over classes of (softmax(logits) - one hot)^2, (batch,)."""
    wanted = keras.ops.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
    return layers.losses.mean_squared_error(wanted, layers.activations.softmax(logits))


def train(config: Config, run: engine.tracking.Run) -> dict[str, float]:
    """Train the network, or fit a classic model; look at the test images once; draw."""
    data = engine.data.load(config.dataset, config.data_dir)
    run.tags({"dataset.fingerprint": lambda: data.fingerprint})
    return train_network(config, data, run) if config.model == "mlp" else fit_classic(config, data, run)


def train_network(config: Config, data: engine.data.Dataset, run: engine.tracking.Run) -> dict[str, float]:
    """Train the network, measure and draw it."""
    batches = engine.data.Batches(data.train, config.batch_size, config.seed, accumulate=config.accumulate)
    model = build_model(config, data)
    start = first_kernel(model)
    schedule = layers.schedules.OneCycle(
        config.learning_rate or LEARNING_RATES[config.optimizer],
        max(2, batches.steps_per_epoch // config.accumulate * config.epochs),
        pct_start=0.2,
    )
    loss = {"cross_entropy": cross_entropy, "squared_error": squared_error}[config.loss]
    model.compile(build_optimizer(config, schedule), loss, metrics=["accuracy"])
    try:
        last = engine.training.fit(model, batches, data.validation, config, run, schedule)
    finally:
        run.figure(
            "learning_curves",
            lambda: engine.figures.learning_curves(
                run.history, f"{config.depth} x {config.units} on {data.name}"
            ),
        )
    loss, _ = model.evaluate(data.test.x, data.test.y, batch_size=500, verbose=0)
    predicted = model.predict(data.test.x, batch_size=500, verbose=0).argmax(axis=-1)
    run.figure("confusion_matrix", engine.figures.confusion_matrix(data.test.y, predicted, data.labels))
    for name, figure in draw(config, data, model, start).items():
        run.figure(name, figure)
    run.model(keras.Model(model.inputs, model.outputs, name=model.name), data.test.x[:2])
    return {
        "test/loss": loss,
        "test/accuracy": float(np.mean(predicted == data.test.y)),
        "val/accuracy": last["val/accuracy"],
        "parameters": model.count_params(),
    }


def fit_classic(config: Config, data: engine.data.Dataset, run: engine.tracking.Run) -> dict[str, float]:
    """A classifier of scikit-learn on the pixels of the same training images."""
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.linear_model import LogisticRegression

    # On a scale of 0 to 1: trees do not mind, and the penalty of logistic regression has a known meaning.
    x, y = data.train.x.reshape(len(data.train), -1) / np.float32(255), data.train.y
    if config.model == "logistic":
        classic = LogisticRegression(C=config.strength, max_iter=300)
    else:
        classic = HistGradientBoostingClassifier(
            max_iter=config.rounds, early_stopping=False, random_state=config.seed
        )
    classic.fit(x, y)

    def predicted(split: engine.data.Split) -> np.ndarray:
        return classic.predict(split.x.reshape(len(split), -1) / np.float32(255))

    test = predicted(data.test)
    run.figure("confusion_matrix", engine.figures.confusion_matrix(data.test.y, test, data.labels))
    return {
        "test/accuracy": float(np.mean(test == data.test.y)),
        "val/accuracy": float(np.mean(predicted(data.validation) == data.validation.y)),
    }


def draw(
    config: Config, data: engine.data.Dataset, model: keras.Model, start: np.ndarray
) -> dict[str, Figure]:
    """What the hidden layers look for, and where they put the test images, as figures by name.

    Args:
        config: the run's settings.
        data: where the test images are.
        model: the trained network.
        start: the first layer's kernel before training, (pixels, units).
    """
    title = "what training added to the weights of the first layer, in the units that changed most"
    features = learned_features(first_kernel(model) - start, data.shape)
    figures = {"features": engine.figures.image_grid(features, columns=12, title=title)}
    if not config.projected:
        return figures
    shown = data.test.x[: config.projected]
    classes = data.test.y[: config.projected]
    hidden = {f"hidden layer {n}": model.get_layer(f"hidden{n}").output for n in range(1, config.depth + 1)}
    outputs = keras.Model(model.input, list(hidden.values())).predict(shown, verbose=0)
    outputs = outputs if isinstance(outputs, list) else [outputs]
    points = {"pixels": shown.reshape(len(shown), -1) / 255, **dict(zip(hidden, outputs, strict=True))}
    by_pca = {}
    for name, values in points.items():
        plane, shares = engine.projections.pca(values)
        by_pca[f"{name} ({shares.sum():.0%} of the variance)"] = plane
    by_tsne = {name: engine.projections.tsne(values) for name, values in points.items()}
    title = f"{len(shown)} test images of {data.name}"
    figures["pca"] = engine.figures.scatter(by_pca, classes, data.labels, f"{title}, principal components")
    figures["tsne"] = engine.figures.scatter(by_tsne, classes, data.labels, f"{title}, t-SNE")
    return figures


def first_kernel(model: keras.Model) -> np.ndarray:
    """A copy of the first hidden layer's weights, (pixels, units)."""
    return np.array(keras.ops.convert_to_numpy(model.get_layer("weights1").kernel))


def learned_features(change: np.ndarray, shape: tuple[int, ...], most: int = 48) -> np.ndarray:
    """Changes of weights as images, the largest first.

    The weights themselves show little: most of what they are is the noise that they started from.

    Args:
        change: of the first layer's kernel, (pixels, units).
        shape: of one image.
        most: how many units.

    Returns:
        (units, height, width, channels).
    """
    largest = np.argsort(-np.linalg.norm(change, axis=0), kind="stable")[:most]
    return change[:, largest].T.reshape(-1, *shape)


if __name__ == "__main__":
    launch.main(Config, train)
