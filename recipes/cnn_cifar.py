"""A convolutional network that classifies small images: how far does a CPU get on CIFAR-10?

    python -m recipes.cnn_cifar --backend jax                                 # CIFAR-10, model `small`
    python -m recipes.cnn_cifar --backend torch --precision mixed_bfloat16
    python -m recipes.cnn_cifar --dataset shapes --epochs 4                   # built in, no download
    python -m recipes.cnn_cifar --model resnet20 --epochs 160 --schedule step --batch-size 128

Expected: 81.45 +/- 0.04 % of CIFAR-10's test images on JAX, 81.1 +/- 0.4 % on PyTorch, 81.1 +/- 0.2 % on
TensorFlow, over three seeds each, in 4 minutes on one good core; up to 31 minutes on a weak one
(results/cnn_cifar.md).

Figures: learning curves with the learning rate, confusion matrix, filters of the first layer, feature maps of
one image stage by stage, the most confident mistakes. The trained model is stored with the run.

References:
    He et al., 2015, Deep residual learning for image recognition, arXiv:1512.03385 (the CIFAR networks of
    section 4.2, and ResNet-18).
    Krizhevsky, 2009, Learning multiple layers of features from tiny images (the data).

Differences from He et al.:
    1. Weight decay is decoupled: w shrinks by lr * weight_decay a step, whatever the momentum. With momentum
       0.9 the paper's L2 coefficient of 1e-4 corresponds to 1e-3 here.
    2. It leaves out biases and the scales and offsets of batch normalization.
    3. Labels are smoothed and the schedule is one cycle unless told otherwise; the paper's way is
       `--label-smoothing 0 --schedule step --learning-rate 0.1 --weight-decay 1e-3`.
    4. The validation split is 5,000 images drawn once at random from the training set.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Self

import keras
import numpy as np

import layers
from recipes import engine
from recipes.engine import launch
from recipes.engine.config import BlocksConfig
from recipes.engine.errors import usage_error

# Customary peak learning rates to start from; they were not tuned, so that a fair comparison sweeps them.
LEARNING_RATES = {
    "sgd": 0.2,
    "momentum": 0.2,
    "nesterov": 0.2,
    "adagrad": 0.03,
    "rmsprop": 0.002,
    "adam": 0.004,
    "adamw": 0.004,
    "nadam": 0.004,
    "lion": 0.0005,
}


@dataclass(frozen=True)
class Config(BlocksConfig):
    """What can be varied."""

    VALUES = BlocksConfig.VALUES | {
        "augment",
        "epochs",
        "initializer",
        "label_smoothing",
        "schedule",
        "weight_decay",
    }

    dataset: Literal["cifar10", "cifar100", "svhn_cropped", "mnist", "fashion_mnist", "shapes", "digits"] = (
        "cifar10"
    )
    """Images to classify; shapes and digits are built in."""
    epochs: int = 12
    """Passes over the training data."""
    batch_size: int = 256
    """Examples in one optimizer step."""
    learning_rate: float | None = None
    """Peak step size; default: one that suits the optimizer."""
    model: Literal["small", "resnet20", "resnet32", "resnet44", "resnet56", "resnet18"] = "small"
    """small: made for CPUs; resnet20 ... 56: He et al.'s CIFAR networks; resnet18: 11.2 M parameters."""
    shortcut: Literal["residual", "none"] = "residual"
    """none takes the shortcuts out of the resnets: the paper's plain networks."""
    activation: Literal[
        "relu", "leaky_relu", "elu", "selu", "gelu", "silu", "mish", "softplus", "tanh", "sigmoid"
    ] = "relu"
    """Activation after every convolution."""
    initializer: Literal[
        "he_normal",
        "he_uniform",
        "glorot_normal",
        "glorot_uniform",
        "lecun_normal",
        "lecun_uniform",
        "orthogonal",
    ] = "he_normal"
    """How every convolution's weights start."""
    normalization: Literal["none", "batch", "layer", "group", "rms"] = "batch"
    """After every convolution; group: of eight groups of channels; layer, rms: of each position's."""
    optimizer: Literal[
        "sgd", "momentum", "nesterov", "adagrad", "rmsprop", "adam", "adamw", "nadam", "lion"
    ] = "nesterov"
    """momentum and nesterov are SGD with momentum 0.9; adam is without weight decay, adamw with it."""
    schedule: Literal["constant", "step", "cosine", "one_cycle"] = "one_cycle"
    """step divides by 10 at 1/2 and 3/4 of the run; cosine starts with a linear warm-up of 5 %."""
    weight_decay: float = 5e-3
    """Share of the weights taken off a step, in units of the learning rate; not for adam."""
    label_smoothing: float = 0.1
    """Probability taken from the true class and spread evenly."""
    augment: bool = True
    """Random crop out of the image padded by 4 pixels, and random mirror image."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.remat and self.model == "small":
            raise usage_error("--remat computes blocks again, and --model small has none: choose a resnet")

    @classmethod
    def small(cls, **changes: Any) -> Self:
        """A few seconds on the built-in digits."""
        return cls(**{"dataset": "digits", "epochs": 2, "batch_size": 64, "augment": False, **changes})


def build_model(config: Config, data: engine.data.Dataset) -> keras.Model:
    """The network: uint8 images in, one logit a class out.

    The outputs of its stages are layers named `stage1`, `stage2`, ...; the first convolution is named `stem`.
    """
    inputs = keras.Input(data.shape, dtype="uint8", name="image")  # (batch, height, width, channels)
    pixels = data.train.x.reshape(-1, data.shape[-1])[:: max(1, len(data.train) // 1000)]
    x = layers.ImageStandardization(pixels.mean(axis=0), pixels.std(axis=0), name="standardize")(inputs)
    x = _small(config, x) if config.model == "small" else _resnet(config, x)
    x = layers.GlobalAveragePooling2D(name="pool")(x)  # (batch, features)
    # Logits and loss in float32: a softmax in 16 bits loses the small probabilities.
    logits = layers.Dense(
        len(data.labels), kernel_initializer=_initializer("glorot_uniform"), dtype="float32"
    )(x)
    model = keras.Model(inputs, logits, name=config.model)
    if config.remat:
        engine.gradients.recompute_blocks(model)
    return model


def _convolution(config: Config, x: Any, filters: int, name: str | None = None) -> Any:
    """Convolution, normalization, activation: (batch, height, width, filters)."""
    x = layers.Conv2D(
        filters,
        3,
        padding="same",
        use_bias=config.normalization in layers.normalization.UNCENTERED,
        kernel_initializer=_initializer(config.initializer),
        name=name,
    )(x)
    x = layers.normalization.get(config.normalization, filters, momentum=0.9)(x)
    return keras.layers.Activation(layers.activations.get(config.activation))(x)


def _small(config: Config, x: Any) -> Any:
    """Four convolutions on few positions: pixels become channels first, and every stage halves the image.

    0.55 M parameters and 9 M multiplications an image, to the 0.27 M and 41 M of ResNet-20.
    """
    x = layers.SpaceToDepth(2)(x)  # (batch, 16, 16, 12) for a CIFAR image
    for stage, filters in enumerate((48, 96, 192), start=1):
        x = _convolution(config, x, filters, name="stem" if stage == 1 else None)
        x = keras.layers.Identity(name=f"stage{stage}")(x)
        if min(x.shape[1:3]) > 1:
            x = layers.MaxPooling2D(2, padding="same")(x)
    return keras.layers.Identity(name="stage4")(_convolution(config, x, 192))


def _resnet(config: Config, x: Any) -> Any:
    """A stem and stages of basic blocks; every stage but the first halves the image."""
    depth = int(config.model.removeprefix("resnet"))
    if depth == 18:
        stages, blocks, shortcut = (64, 128, 256, 512), 2, "projection"
    else:  # three convolutions' worth outside the blocks, two in each block of three stages
        stages, blocks, shortcut = (16, 32, 64), (depth - 2) // 6, "identity"
    if config.shortcut == "none":
        shortcut = "none"
    x = _convolution(config, x, stages[0], name="stem")
    for stage, filters in enumerate(stages, start=1):
        for block in range(blocks):
            x = layers.BasicBlock(
                filters,
                strides=2 if stage > 1 and block == 0 else 1,
                activation=layers.activations.get(config.activation),
                kernel_initializer=_initializer(config.initializer),
                shortcut=shortcut,
                normalization=config.normalization,
                name=f"stage{stage}" if block == blocks - 1 else None,
            )(x)
    return x


def _initializer(name: str) -> keras.initializers.Initializer:
    """A fresh initializer: one object gives every layer the same random numbers."""
    named = {
        "he_normal": layers.initializers.HeNormal,
        "he_uniform": layers.initializers.HeUniform,
        "glorot_normal": layers.initializers.GlorotNormal,
        "glorot_uniform": layers.initializers.GlorotUniform,
        "lecun_normal": layers.initializers.LecunNormal,
        "lecun_uniform": layers.initializers.LecunUniform,
        "orthogonal": layers.initializers.Orthogonal,
    }
    return named[name]()


def build_schedule(config: Config, steps: int) -> keras.optimizers.schedules.LearningRateSchedule:
    """The learning rate over the `steps` optimizer steps of a run."""
    peak = config.learning_rate or LEARNING_RATES[config.optimizer]
    if config.schedule == "constant":
        return layers.schedules.Constant(peak)
    if config.schedule == "step":
        return layers.schedules.PiecewiseConstantDecay(
            [steps // 2, 3 * steps // 4], [peak, peak / 10, peak / 100]
        )
    if config.schedule == "cosine":
        warmup = steps // 20
        return layers.schedules.LinearWarmup(
            layers.schedules.CosineDecay(peak, max(1, steps - warmup)), warmup
        )
    return layers.schedules.OneCycle(peak, max(2, steps), pct_start=0.2, anneal_strategy="linear")


def build_optimizer(config: Config, schedule: Any) -> keras.optimizers.Optimizer:
    """The optimizer; weight decay spares biases and normalizations."""
    optimizers = layers.optimizers
    common = {"learning_rate": schedule, **engine.training.optimizer_options(config)}
    decay = {**common, "weight_decay": config.weight_decay or None}
    makers = {
        "sgd": lambda: optimizers.SGD(**decay),
        "momentum": lambda: optimizers.SGD(momentum=0.9, **decay),
        "nesterov": lambda: optimizers.SGD(momentum=0.9, nesterov=True, **decay),
        "adagrad": lambda: optimizers.Adagrad(**decay),
        "rmsprop": lambda: optimizers.RMSprop(**decay),
        "adam": lambda: optimizers.Adam(**common),
        "adamw": lambda: optimizers.AdamW(**{**decay, "weight_decay": config.weight_decay}),
        "nadam": lambda: optimizers.Nadam(**decay),
        "lion": lambda: optimizers.Lion(**decay),
    }
    optimizer = makers[config.optimizer]()
    if optimizer.weight_decay:
        optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta", "scale"])
    return optimizer


def smoothed_cross_entropy(config: Config, classes: int) -> Any:
    """Cross-entropy of integer labels and logits, `label_smoothing` of the label spread over all classes."""
    # A variable, so that a compiled program serves every value.
    smoothing = keras.Variable(config.label_smoothing, trainable=False, dtype="float32", name="smoothing")

    def loss(labels: Any, logits: Any) -> Any:
        targets = keras.ops.one_hot(keras.ops.reshape(labels, (-1,)), classes)  # (batch, classes)
        targets = (1 - smoothing) * targets + smoothing / classes
        return layers.losses.categorical_crossentropy(targets, logits, from_logits=True)

    loss.variables = [smoothing]
    return loss


def train(config: Config, run: engine.tracking.Run) -> dict[str, float]:
    """Train, look at the test images once, draw the figures, store the model."""
    data = engine.data.load(config.dataset, config.data_dir)
    run.tags({"dataset.fingerprint": lambda: data.fingerprint})
    batches = engine.data.Batches(
        data.train,
        config.batch_size,
        config.seed,
        augment="crop_flip" if config.augment else "none",
        accumulate=config.accumulate,
    )
    model = build_model(config, data)
    schedule = build_schedule(config, batches.steps_per_epoch // config.accumulate * config.epochs)
    model.compile(
        build_optimizer(config, schedule),
        smoothed_cross_entropy(config, len(data.labels)),
        metrics=["accuracy"],
    )
    try:
        last = engine.training.fit(model, batches, data.validation, config, run, schedule)
    finally:
        run.figure(
            "learning_curves",
            lambda: engine.figures.learning_curves(run.history, f"{config.model} on {data.name}"),
        )
    loss, _ = model.evaluate(data.test.x, data.test.y, batch_size=500, verbose=0)
    logits = model.predict(data.test.x, batch_size=500, verbose=0)
    for name, figure in draw(model, data, logits).items():
        run.figure(name, figure)
    run.model(keras.Model(model.inputs, model.outputs, name=model.name), data.test.x[:2])
    return {
        "test/loss": loss,
        "test/accuracy": float(np.mean(logits.argmax(axis=-1) == data.test.y)),
        "val/accuracy": last["val/accuracy"],
        "parameters": model.count_params(),
    }


def draw(model: keras.Model, data: engine.data.Dataset, logits: np.ndarray) -> dict[str, Any]:
    """What the trained network sees and where it errs, as figures by name.

    Args:
        model: the trained network.
        data: where the test images are.
        logits: the network's outputs for them, (n, classes).
    """
    predicted = logits.argmax(axis=-1)
    probability = np.exp(logits - logits.max(axis=-1, keepdims=True))
    confidence = 1 / probability.sum(axis=-1)  # the largest probability: its numerator is exp(0)
    wrong = np.flatnonzero(predicted != data.test.y)
    worst = wrong[np.argsort(-confidence[wrong])][:24]
    captions = [
        f"{data.labels[predicted[i]]} {confidence[i]:.0%}\nis {data.labels[data.test.y[i]]}" for i in worst
    ]
    stages = [layer for layer in model.layers if layer.name.startswith("stage")]
    outputs = keras.Model(model.input, [stage.output for stage in stages]).predict(data.test.x[:1], verbose=0)
    maps = {stage.name: output[0].astype("float32") for stage, output in zip(stages, outputs, strict=True)}
    figures = {
        "confusion_matrix": engine.figures.confusion_matrix(data.test.y, predicted, data.labels),
        "first_layer_filters": engine.figures.image_grid(
            first_filters(model, data.shape[-1]), columns=12, title="filters of the first convolution"
        ),
        "feature_maps": engine.figures.feature_maps(data.test.x[0], maps),
    }
    if len(worst):
        figures["confident_mistakes"] = engine.figures.image_grid(
            data.test.x[worst], captions, title="the most confident mistakes on the test images"
        )
    return figures


def first_filters(model: keras.Model, channels: int) -> np.ndarray:
    """The first convolution's kernels as images of pixels, (filters, height, width, channels)."""
    kernel = keras.ops.convert_to_numpy(
        model.get_layer("stem").kernel
    )  # (height, width, s^2 channels, filters)
    height, width, depth, filters = kernel.shape
    s = round((depth // channels) ** 0.5)  # side of the blocks that SpaceToDepth made channels of
    blocks = kernel.reshape(height, width, s, s, channels, filters).transpose(5, 0, 2, 1, 3, 4)
    return blocks.reshape(filters, height * s, width * s, channels)


if __name__ == "__main__":
    launch.main(Config, train)
