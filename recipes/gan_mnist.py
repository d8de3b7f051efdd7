"""Generative adversarial networks of handwritten digits: do they cover all ten classes, and how is it seen?

A generator makes images of noise; a discriminator tells them from real ones. Each is the other's loss:

    python -m recipes.gan_mnist --backend torch                              # DCGAN
    python -m recipes.gan_mnist --objective conditional                      # told which digit to draw
    python -m recipes.gan_mnist --objective wgan-gp                          # Wasserstein, gradient penalty
    python -m recipes.gan_mnist --dataset digits --epochs 60                 # built in, no download

    dcgan, conditional   D: -log s(D(x)) - log(1 - s(D(G(z)))),    G: -log s(D(G(z))),   s the sigmoid
    wgan-gp              D: D(G(z)) - D(x) + 10 (|grad D(u)| - 1)^2,    G: -D(G(z)),
                         u anywhere between a real image and a generated one

What is measured, with a small classifier of this recipe's own (trained on the same training images, seed 0
whatever the run's seed, kept in the cache and stored with the run; tag `classifier.fingerprint`):

    frechet_distance   |m - n|^2 + tr(A + B - 2 (A B)^(1/2)), m, A and n, B mean and covariance of the
                       classifier's 64 features before its last layer, of real and of generated images. It is
                       not the FID of the literature, whose features are Inception's: compare numbers of one
                       classifier only. `real/frechet_distance` (training against test images) is the floor.
    coverage           classes that at least 1 % of the generated images fall into
    diversity          variance of the features within a class, generated / real; the mean over all classes
    class_distance     total variation between the shares of the classes, generated and real
    confidence         mean probability of the likeliest class
    obedience          share of the conditional generator's images that the classifier reads as asked

A generator has collapsed when fewer than 8 classes are covered or the diversity is below 0.2. It is looked at
after every epoch, on 2,000 images: a line on the terminal, the curve `val/collapsed` and the tag
`mode_collapse` say so.

Expected: all ten classes, and a Frechet distance of 28 (floor 0.5), with labels of 10, after 4 epochs of
MNIST, on JAX in 1156 and 771 s beside other work; wgan-gp with two critic steps and a rate of 1e-3 comes to
13 in 6 epochs and 356 s (results/gan_mnist.md). On the built-in digits 3.5 to 5.5 (floor 1.6), on PyTorch in
139 to 170 s.

Figures: losses of both players, quality over training, samples, samples_over_training (the same noise after
every epoch), class_shares, nearest_neighbours (of generated images among the training images).

With `--accumulate` batch normalization sees one part of a batch at a time, as in every recipe; what has none
is updated as by the whole batch. `--probe` looks at both players, each with its own loss. `--find-lr` raises
both players' rates together: see `find_learning_rate`.

References:
    Goodfellow et al., 2014, Generative adversarial networks, arXiv:1406.2661.
    Radford, Metz and Chintala, 2016, DCGAN, arXiv:1511.06434.
    Mirza and Osindero, 2014, Conditional generative adversarial nets, arXiv:1411.1784.
    Miyato and Koyama, 2018, cGANs with projection discriminator, arXiv:1802.05637.
    Gulrajani et al., 2017, Improved training of Wasserstein GANs, arXiv:1704.00028.
    Heusel et al., 2017, GANs trained by a two time-scale update rule, arXiv:1706.08500 (Frechet distance).

Differences from the papers:
    1. Two convolutions a network, of 4x4 and fewer filters, for images of 28x28 on a CPU.
    2. The label of the conditional GAN is a vector beside the noise and, in the discriminator, one that
       is multiplied with the features (Miyato and Koyama): logit = w.f(x) + v_label.f(x).
    3. The critic of wgan-gp has no normalization (Gulrajani et al. allow layer normalization).
    4. Weights start as Glorot and Bengio, in place of N(0, 0.02); the two networks have few layers.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Self

import keras
import numpy as np
from keras import ops

import layers
from recipes import engine
from recipes.engine import gradients, launch
from recipes.engine.backend import CACHE
from recipes.engine.config import TrainingConfig
from recipes.engine.errors import usage_error

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PENALTY = 10.0  # weight of the gradient penalty
COVERED = 0.01  # share of the images that makes a class covered
FEWEST_CLASSES, LEAST_DIVERSITY = 8, 0.2  # below either, the generator has collapsed
FEATURES = 64  # of the classifier, before its last layer
CLASSIFIER_EPOCHS = {"digits": 12}  # others: 2
WATCHED = 2000  # images made after every epoch
SHOWN = 12  # of them in the grid over training

# The papers' step sizes and first momenta; the second is that of Adam or, for wgan-gp, 0.9.
LEARNING_RATES = {"dcgan": 2e-4, "conditional": 2e-4, "wgan-gp": 1e-4}
MOMENTA = {"dcgan": (0.5, 0.999), "conditional": (0.5, 0.999), "wgan-gp": (0.0, 0.9)}


@dataclass(frozen=True)
class Config(TrainingConfig):
    """What can be varied."""

    dataset: Literal["mnist", "fashion_mnist", "digits"] = "mnist"
    """Images to imitate; digits is built in."""
    epochs: int = 4
    """Passes over the training data."""
    batch_size: int = 64
    """Real images in one update of the discriminator."""
    learning_rate: float | None = None
    """Step size of both Adams; default: the paper's."""
    objective: Literal["dcgan", "conditional", "wgan-gp"] = "dcgan"
    """What the two play for."""
    latent: int = 64
    """Dimensions of the noise."""
    filters: int = 16
    """Filters next to the image; twice as many in the middle."""
    critic_steps: int = 5
    """Updates of the critic for one of the generator; wgan-gp alone."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("latent", "filters", "critic_steps"):
            if getattr(self, name) < 1:
                raise usage_error(f"--{name.replace('_', '-')} must be at least 1, not {getattr(self, name)}")

    @classmethod
    def small(cls, **changes: Any) -> Self:
        """A few seconds on the built-in digits."""
        fields = {"dataset": "digits", "epochs": 3, "batch_size": 32, "learning_rate": 2e-3, "latent": 16}
        return cls(**{**fields, "filters": 8, "critic_steps": 2, **changes})

    @property
    def updates(self) -> int:
        """Updates of the discriminator in a step of training, which ends with one of the generator."""
        return self.critic_steps if self.objective == "wgan-gp" else 1


def build_generator(config: Config, data: engine.data.Dataset) -> keras.Model:
    """Noise (batch, latent), and labels (batch,) if conditional, to images in -1 ... 1."""
    height, width, channels = data.shape
    noise = keras.Input((config.latent,), name="noise")
    inputs, x = noise, noise
    if config.objective == "conditional":
        label = keras.Input((), dtype="int32", name="label")
        inputs = [noise, label]
        # Codes far apart from the start: small ones are lost beside the noise, and labels stay unheeded.
        far = layers.initializers.Orthogonal(gain=4.0)
        code = layers.Embedding(len(data.labels), len(data.labels), embeddings_initializer=far)(label)
        x = keras.layers.Concatenate()([noise, code])
    x = layers.Dense(height // 4 * (width // 4) * 2 * config.filters, use_bias=False, **_start())(x)
    x = keras.layers.Reshape((height // 4, width // 4, 2 * config.filters))(x)
    x = _activated("relu", layers.BatchNormalization(momentum=0.9)(x))
    x = layers.Conv2DTranspose(config.filters, 4, strides=2, padding="same", use_bias=False, **_start())(
        x
    )  # (batch, height / 2, width / 2, filters)
    x = _activated("relu", layers.BatchNormalization(momentum=0.9)(x))
    x = layers.Conv2DTranspose(channels, 4, strides=2, padding="same", dtype="float32", **_start())(x)
    return keras.Model(inputs, _activated("tanh", x, dtype="float32"), name="generator")


def build_discriminator(config: Config, data: engine.data.Dataset) -> keras.Model:
    """Images in -1 ... 1, and labels (batch,) if conditional, to logits (batch, 1): how real."""
    image = keras.Input(data.shape, name="image")
    x = layers.Conv2D(config.filters, 4, strides=2, padding="same", **_start())(image)
    x = _activated("leaky_relu", x)
    x = layers.Conv2D(2 * config.filters, 4, strides=2, padding="same", **_start())(x)
    if config.objective != "wgan-gp":  # the penalty is each image's own; a batch's statistics would mix them
        x = layers.BatchNormalization(momentum=0.9)(x)
    x = keras.layers.Flatten()(_activated("leaky_relu", x))  # (batch, features)
    logits = layers.Dense(1, dtype="float32", **_start())(x)
    if config.objective != "conditional":
        return keras.Model(image, logits, name="discriminator")
    label = keras.Input((), dtype="int32", name="label")
    wanted = layers.Embedding(len(data.labels), x.shape[-1])(label)  # (batch, features)
    match = keras.layers.Dot(axes=1, dtype="float32")([x, wanted])  # (batch, 1)
    return keras.Model(
        [image, label], keras.layers.Add(dtype="float32")([logits, match]), name="discriminator"
    )


def _start() -> dict[str, keras.initializers.Initializer]:
    return {"kernel_initializer": layers.initializers.GlorotUniform()}


def _activated(name: str, x: Any, dtype: str | None = None) -> Any:
    return keras.layers.Activation(layers.activations.get(name), dtype=dtype)(x)


def gradient_penalty(critic: Callable, points: Any) -> Any:
    """10 (|grad D(u)| - 1)^2 of each point, which keeps the critic's slope near 1.

    Args:
        critic: images to logits, each image by itself.
        points: u, (batch, height, width, channels).

    Returns:
        (batch,)

    Reference:
        Gulrajani et al., 2017, arXiv:1704.00028, equation 3.
    """
    _, slope = gradients.value_and_grad(lambda u: ops.sum(critic(u)))(points)
    # The root of 0 has no slope.
    norm = ops.sqrt(ops.sum(ops.square(slope), axis=(1, 2, 3)) + 1e-12)
    return PENALTY * ops.square(norm - 1.0)


def discriminator_loss(config: Config, critic: Callable, real: Any, fake: Any, mix: Any) -> tuple[Any, dict]:
    """The discriminator's loss and what it is made of.

    Args:
        config: the objective.
        critic: images to logits (batch, 1).
        real: images (batch, height, width, channels).
        fake: generated ones.
        mix: uniform in 0 ... 1, (batch,): where between the two the penalty is taken.

    Returns:
        A scalar; metrics by name.
    """
    on_real, on_fake = critic(real), critic(fake)
    values = {"real": ops.mean(on_real), "fake": ops.mean(on_fake)}
    if config.objective != "wgan-gp":
        return _surprise(on_real, 1.0) + _surprise(on_fake, 0.0), values
    mix = ops.reshape(mix, (-1, 1, 1, 1))
    penalty = ops.mean(gradient_penalty(critic, mix * real + (1.0 - mix) * fake))
    return values["fake"] - values["real"] + penalty, {**values, "penalty": penalty}


def generator_loss(config: Config, on_fake: Any) -> Any:
    """The generator's loss, given the discriminator's logits (batch, 1) for its images."""
    return -ops.mean(on_fake) if config.objective == "wgan-gp" else _surprise(on_fake, 1.0)


def _surprise(logits: Any, label: float) -> Any:
    """Mean cross-entropy of logits with one label for all."""
    labels = ops.full_like(logits, label)
    return ops.mean(layers.losses.binary_crossentropy(labels, logits, from_logits=True))


@dataclass(frozen=True)
class Game:
    """Two networks, their optimizers and a compiled update of each.

    `update_discriminator(real, labels, noise, mix)` takes images in -1 ... 1,
    `update_generator(labels, noise)` needs none. Both change the variables and return metrics by name.
    `losses` are what they differentiate, by the player: functions of the arguments of the one update and then
    of the other.
    """

    generator: keras.Model
    discriminator: keras.Model
    optimizers: tuple[keras.optimizers.Optimizer, keras.optimizers.Optimizer]
    update_discriminator: Callable
    update_generator: Callable
    losses: Mapping[str, Callable]


def build_game(config: Config, data: engine.data.Dataset) -> Game:
    """Everything that training needs, from the run's seed."""
    keras.utils.set_random_seed(config.seed)  # whether or not a classifier was trained before
    generator, discriminator = build_generator(config, data), build_discriminator(config, data)
    rate = config.learning_rate or LEARNING_RATES[config.objective]
    optimizers = tuple(
        engine.training.scaling_losses(
            layers.optimizers.Adam(
                rate, *MOMENTA[config.objective], **engine.training.optimizer_options(config)
            ),
            config,
        )
        for _ in range(2)
    )
    for optimizer, player in zip(optimizers, (generator, discriminator), strict=True):
        optimizer.build(player.trainable_variables)

    def drawn(noise: Any, labels: Any) -> Any:
        return generator(given(config, noise, labels), training=True)

    def judged(images: Any, labels: Any) -> Any:
        return discriminator(given(config, images, labels), training=True)

    def against(real: Any, labels: Any, fake: Any, mix: Any) -> tuple[Any, dict]:
        return discriminator_loss(config, lambda images: judged(images, labels), real, fake, mix)

    def towards(labels: Any, noise: Any) -> Any:
        return generator_loss(config, judged(drawn(noise, labels), labels))

    def update_discriminator(real: Any, labels: Any, noise: Any, mix: Any) -> dict[str, Any]:
        fake = ops.stop_gradient(drawn(noise, labels))

        def loss() -> tuple[Any, dict]:
            value, values = against(real, labels, fake, mix)
            return optimizers[1].scale_loss(value), {"loss": value, **values}

        (_, values), slopes = gradients.by_variables(loss, discriminator.trainable_variables, has_aux=True)
        gradients.update(optimizers[1], slopes)
        return values

    def update_generator(labels: Any, noise: Any) -> dict[str, Any]:
        def loss() -> tuple[Any, Any]:
            value = towards(labels, noise)
            return optimizers[0].scale_loss(value), value

        (_, value), slopes = gradients.by_variables(loss, generator.trainable_variables, has_aux=True)
        gradients.update(optimizers[0], slopes)
        return {"generator_loss": value}

    losses = {
        "discriminator": lambda real, labels, noise, mix, *_: against(
            real, labels, ops.stop_gradient(drawn(noise, labels)), mix
        )[0],
        "generator": lambda real, labels, noise, mix, *its: towards(*its),
    }
    variables = [v for part in (generator, discriminator, *optimizers) for v in part.variables]
    updates = (gradients.compiled_step(f, variables) for f in (update_discriminator, update_generator))
    return Game(generator, discriminator, optimizers, *updates, losses)


def given(config: Config, x: Any, labels: Any) -> Any:
    """What a network is called on: labels count in the conditional game alone."""
    return [x, labels] if config.objective == "conditional" else x


def moves(config: Config, real: np.ndarray, labels: np.ndarray, step: int) -> list[tuple[np.ndarray, ...]]:
    """What the updates of one step of training are given: the discriminator's, then the generator's one.

    Noise is NumPy's and depends on seed and step alone: nothing of it is lost when a run is killed, and it is
    the same however many parts an update is cut into.

    Args:
        config: the run's settings.
        real: bytes, (updates x batch, height, width, channels).
        labels: (updates x batch,).
        step: its number.

    Returns:
        `(real, labels, noise, mix)` of the discriminator's updates, `(labels, noise)` of the generator's.
    """
    rng = np.random.default_rng((config.seed, step, 1))
    batch = len(real) // config.updates
    turns: list[tuple[np.ndarray, ...]] = []
    for update in range(config.updates):
        rows = slice(update * batch, (update + 1) * batch)
        noise = rng.standard_normal((batch, config.latent), dtype="float32")
        turns.append((scaled(real[rows]), labels[rows], noise, rng.random(batch, dtype="float32")))
    return [*turns, (labels[rows], rng.standard_normal((batch, config.latent), dtype="float32"))]


def batches_of(config: Config, data: engine.data.Dataset) -> engine.data.Batches:
    """Batches that each hold the real images of a step.

    Raises:
        RecipeError: there are so few images that `--accumulate` does not divide those of an update.
    """
    batches = engine.data.Batches(data.train, config.batch_size * config.updates, config.seed)
    batch = batches.batch_size // config.updates
    if batch % config.accumulate:
        raise usage_error(f"--accumulate {config.accumulate} does not divide the {batch} images of an update")
    return batches


def parts(config: Config, arrays: Sequence[np.ndarray]) -> list[tuple[Any, ...]]:
    """What an update is given as tensors, cut into as many parts as `--accumulate` says."""
    cut = zip(*(np.split(array, config.accumulate) for array in arrays), strict=True)
    return [tuple(map(ops.convert_to_tensor, part)) for part in cut]


def play(config: Config, game: Game, real: np.ndarray, labels: np.ndarray, step: int) -> dict[str, Any]:
    """One step of training: the discriminator's updates, then one of the generator.

    Args:
        config: the run's settings.
        game: what is trained.
        real, labels, step: as `moves` takes them.

    Returns:
        Metrics of the last update of either; `loss` is the discriminator's.
    """

    def update(by: Callable, arrays: Sequence[np.ndarray]) -> dict[str, Any]:
        values = [by(*part) for part in parts(config, arrays)]  # the optimizer waits for the last one
        return keras.tree.map_structure(lambda *value: sum(value) / len(value), *values)

    *turns, last = moves(config, real, labels, step)
    for turn in turns:
        values = update(game.update_discriminator, turn)
    return {**values, **update(game.update_generator, last)}


def build_probe(
    config: Config, run: engine.tracking.Run, game: Game, batches: engine.data.Batches
) -> engine.probes.Probe:
    """Looks at both players, each with its own loss, on the last part of its last update in a step."""
    players = {"discriminator": game.discriminator, "generator": game.generator}
    looks = {
        f"{name}/": engine.probes.Look(player, game.losses[name], list(players.values()))
        for name, player in players.items()
    }

    def given(step: int) -> tuple[Any, ...]:
        *_, turn, last = moves(config, *batches[step], step)
        return *parts(config, turn)[-1], *parts(config, last)[-1]

    return engine.probes.Probe(looks, run, batches, config.probe, given)


def find_learning_rate(config: Config, run: engine.tracking.Run, data: engine.data.Dataset) -> None:
    """The range test in a game: both players' rates rise together, and the discriminator's loss is watched.

    It falls while the discriminator learns faster than the generator, at the same rate, can mislead it. So
    the suggestion is a rate at which both learn, fast; it says nothing of how good the images become. The
    peak is no rate to train with: it is where the generator is beaten, or where the loss happened to be
    lowest before the game fell apart.

    Raises:
        Finished: always, as in `engine.learning_rates`.
    """
    game, batches = build_game(config, data), batches_of(config, data)

    def train(first: int, rates: Sequence[float]) -> list[dict[str, Any]]:
        values = []
        for step, rate in enumerate(rates, start=first):
            for optimizer in game.optimizers:
                optimizer.learning_rate = rate
            values.append(play(config, game, *batches[step], step))
        return values

    engine.learning_rates.find(train, batches, run)


def generated(config: Config, generator: keras.Model, count: int, seed: int, classes: int) -> np.ndarray:
    """Images in -1 ... 1, (count, height, width, channels); labels go round the classes."""
    rng = np.random.default_rng((seed, count, 2))
    noise = rng.standard_normal((count, config.latent), dtype="float32")
    labels = np.arange(count, dtype="int32") % classes
    return generator.predict(given(config, noise, labels), batch_size=500, verbose=0)


# The yardstick


def scaled(images: np.ndarray) -> np.ndarray:
    """Bytes to -1 ... 1, float32."""
    return (images / 127.5 - 1).astype("float32")


def build_classifier(data: engine.data.Dataset) -> keras.Model:
    """Images in -1 ... 1 to `features` (batch, 64) and `logits` (batch, classes)."""
    image = keras.Input(data.shape, name="image")
    common = {"activation": layers.activations.relu, "dtype": "float32"}
    x = image
    for filters in (16, 32):
        x = layers.Conv2D(filters, 3, strides=2, padding="same", **common)(x)
    features = layers.Dense(FEATURES, **common)(keras.layers.Flatten(dtype="float32")(x))
    logits = layers.Dense(len(data.labels), dtype="float32", name="logits")(features)
    return keras.Model(image, {"features": features, "logits": logits}, name="classifier")


def classifier_of(data: engine.data.Dataset) -> keras.Model:
    """The classifier of a dataset's training images, from the cache or trained; the same for every run.

    A cached one belongs to a dataset (by its fingerprint) and a backend, whose random numbers began it.
    """
    keras.utils.set_random_seed(0)
    model = build_classifier(data)
    name = f"{data.fingerprint}-{keras.backend.backend()}-{model.count_params()}.npz"
    path = CACHE.expanduser() / "classifiers" / name
    with contextlib.suppress(OSError, ValueError):
        with np.load(path) as file:
            model.set_weights([file[key] for key in file.files])
        return model
    batches = engine.data.Batches(engine.data.Split(scaled(data.train.x), data.train.y), 64, 0)
    steps = batches.steps_per_epoch * CLASSIFIER_EPOCHS.get(data.name, 2)
    learner = keras.Model(model.inputs, model.get_layer("logits").output)
    learner.compile(
        layers.optimizers.Adam(2e-3), layers.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    learner.fit(batches.between(0, steps), shuffle=False, verbose=0)
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}.npz")
        np.savez(partial, *model.get_weights())
        partial.replace(path)  # atomic: a killed run leaves no half file
    return model


@dataclass(frozen=True)
class Seen:
    """Images as the classifier sees them: features (n, 64) and probabilities (n, classes)."""

    features: np.ndarray
    probabilities: np.ndarray

    @property
    def classes(self) -> np.ndarray:
        """The likeliest class of each image, (n,)."""
        return self.probabilities.argmax(axis=-1)

    @property
    def shares(self) -> np.ndarray:
        """Share of the images in each class, (classes,)."""
        return np.bincount(self.classes, minlength=self.probabilities.shape[1]) / len(self.features)


def seen_by(classifier: keras.Model, images: np.ndarray) -> Seen:
    """Look at images in -1 ... 1."""
    outputs = classifier.predict(images, batch_size=500, verbose=0)
    logits = outputs["logits"].astype("float64")
    odds = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return Seen(outputs["features"].astype("float64"), odds / odds.sum(axis=-1, keepdims=True))


def frechet_distance(one: np.ndarray, other: np.ndarray) -> float:
    """Distance of two clouds of points, as if both were Gaussian.

        |m - n|^2 + tr(A + B - 2 (A B)^(1/2))

    Args:
        one: (points, dimensions), with mean m and covariance A.
        other: (points, dimensions), with n and B.

    Reference:
        Dowson and Landau, 1982, The Frechet distance between multivariate normal distributions.
    """
    a, b = (np.cov(points, rowvar=False) for points in (one, other))
    values, vectors = np.linalg.eigh(a)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    # A B has the eigenvalues of the symmetric A^(1/2) B A^(1/2), none of them negative but by rounding.
    cross = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ b @ root), 0)).sum()
    mean = one.mean(axis=0) - other.mean(axis=0)
    return float(mean @ mean + np.trace(a) + np.trace(b) - 2 * cross)


def quality(real: Seen, made: Seen) -> dict[str, float]:
    """How good and how varied generated images are; see the top of this file."""
    covered = np.flatnonzero(made.shares >= COVERED)
    spread = [_variance(made, c) / max(_variance(real, c), 1e-12) for c in covered]
    coverage, diversity = len(covered), float(np.mean(spread))
    return {
        "frechet_distance": frechet_distance(real.features, made.features),
        "coverage": coverage,
        "diversity": diversity,
        "class_distance": float(np.abs(real.shares - made.shares).sum() / 2),
        "confidence": float(made.probabilities.max(axis=-1).mean()),
        "collapsed": float(coverage < FEWEST_CLASSES or diversity < LEAST_DIVERSITY),
    }


def _variance(seen: Seen, label: int) -> float:
    """Variance of the features within a class, summed over them."""
    return float(seen.features[seen.classes == label].var(axis=0).sum())


def train(config: Config, run: engine.tracking.Run) -> dict[str, float]:
    """Play, measure on test images once, draw the figures, store generator and classifier."""
    data = engine.data.load(config.dataset, config.data_dir)
    if config.find_lr:
        find_learning_rate(config, run, data)
    classifier = classifier_of(data)
    weights = b"".join(w.tobytes() for w in classifier.get_weights())
    run.tags(
        {
            "dataset.fingerprint": data.fingerprint,
            "classifier.fingerprint": hashlib.sha256(weights).hexdigest()[:16],
        }
    )
    real = {
        name: seen_by(classifier, scaled(split.x))
        for name, split in (("train", data.train), ("validation", data.validation), ("test", data.test))
    }
    game = build_game(config, data)
    samples = fit(config, run, data, classifier, real["validation"], game)
    classes = len(data.labels)
    images = generated(config, game.generator, len(data.test), config.seed, classes)
    made = seen_by(classifier, images)
    measured = quality(real["test"], made)
    verdict = "yes" if measured["collapsed"] else "no"
    run.tags({"mode_collapse": verdict})
    if config.objective == "conditional":
        measured["obedience"] = float(np.mean(made.classes == np.arange(len(images)) % classes))
    figures = draw(data, images, made, real["test"], samples)
    for name, figure in {**figures, "quality": quality_figure(run.history)}.items():
        run.figure(name, figure)
    store(config, run, game.generator, classifier, data)
    return {
        **{f"test/{name}": value for name, value in measured.items()},
        "real/frechet_distance": frechet_distance(real["train"].features, real["test"].features),
        "classifier/accuracy": float(np.mean(real["test"].classes == data.test.y)),
        "parameters": game.generator.count_params() + game.discriminator.count_params(),
    }


def fit(
    config: Config,
    run: engine.tracking.Run,
    data: engine.data.Dataset,
    classifier: keras.Model,
    real: Seen,
    game: Game,
) -> np.ndarray:
    """Train both players; a killed run goes on where it was.

    Returns:
        Images of the same noise after every epoch, (epochs, 12, height, width, channels), in -1 ... 1.
    """
    batches = batches_of(config, data)
    samples = np.zeros((config.epochs, SHOWN, *data.shape), "float32")  # checkpoints hold it

    def evaluate() -> dict[str, float]:
        with engine.training.averaged(game.generator, game.optimizers[0]):
            images = generated(config, game.generator, WATCHED, config.seed, len(data.labels))
        samples[progress.step // batches.steps_per_epoch - 1] = images[:SHOWN]
        values = quality(real, seen_by(classifier, images))
        if values["collapsed"]:
            print(
                f"mode collapse at step {progress.step}: {values['coverage']} of {len(data.labels)} classes, "
                f"diversity {values['diversity']:.2f}",
                flush=True,
            )
        return values

    optimizers = [variable for optimizer in game.optimizers for variable in optimizer.variables]
    progress = engine.progress.Progress(
        config,
        run,
        batches,
        state={
            "generator": game.generator.variables,
            "discriminator": game.discriminator.variables,
            "optimizers": optimizers,
            "samples": [samples],
        },
        evaluate=evaluate,
        monitor="val/frechet_distance",
        probe=build_probe(config, run, game, batches) if config.probe else None,
    )
    try:
        for real_images, labels in progress.batches():
            progress.after_step(play(config, game, real_images, labels, progress.step))
        progress.finish()
    finally:
        run.figure("losses", losses_figure(run.history, config.objective))
    engine.training.take_averages(game.generator, game.optimizers[0])
    # An early stop takes the best weights, and with them the samples up to there.
    last = progress.best_update if progress.stopped else progress.step
    return samples[: last // batches.steps_per_epoch]


def store(
    config: Config,
    run: engine.tracking.Run,
    generator: keras.Model,
    classifier: keras.Model,
    data: engine.data.Dataset,
) -> None:
    """Keep generator and classifier with the run, as models that any backend loads."""
    noise = np.zeros((2, config.latent), "float32")
    conditional = {"noise": noise, "label": np.arange(2, dtype="int32")}
    run.model(generator, conditional if config.objective == "conditional" else noise, "generator")
    run.model(classifier, scaled(data.test.x[:2]), "classifier")


# Figures


def draw(
    data: engine.data.Dataset, images: np.ndarray, made: Seen, real: Seen, samples: np.ndarray
) -> dict[str, Figure]:
    """Pictures of what the generator makes, by name.

    Args:
        data: its training images are searched for neighbours.
        images: generated, in -1 ... 1; labels went round the classes.
        made: the same, as the classifier sees them.
        real: test images, as it sees them.
        samples: of the same noise after every epoch, (epochs, 12, height, width, channels).
    """
    mosaic = engine.figures.mosaic
    epochs = np.unique(np.linspace(0, len(samples) - 1, min(len(samples), 10)).astype(int))
    shown = images[:SHOWN]
    nearest = data.train.x[nearest_neighbours(shown, scaled(data.train.x))]
    return {
        "samples": mosaic(
            images[:100].reshape(10, 10, *data.shape) / 2 + 0.5, title="generated images, not chosen"
        ),
        "samples_over_training": mosaic(
            samples[epochs] / 2 + 0.5,
            [f"epoch {epoch + 1}" for epoch in epochs],
            title="the same noise after every epoch",
        ),
        "nearest_neighbours": mosaic(
            np.stack([shown / 2 + 0.5, nearest / 255]),
            ["generated", "nearest training image"],
            title="is it memory?",
        ),
        "class_shares": shares_figure(real.shares, made.shares, data.labels),
    }


def nearest_neighbours(images: np.ndarray, others: np.ndarray) -> np.ndarray:
    """For each image the number of the nearest among others, by the Euclidean distance of pixels."""
    a, b = (x.reshape(len(x), -1) for x in (images, others))
    return np.argmin((b**2).sum(axis=1) - 2 * a @ b.T, axis=1)


def shares_figure(real: np.ndarray, made: np.ndarray, labels: tuple[str, ...]) -> Figure:
    """How the classifier divides real and generated images among the classes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.2), layout="constrained")
    axes = figure.add_subplot()
    places = np.arange(len(labels))
    axes.bar(places - 0.2, 100 * real, 0.4, label="test images")
    axes.bar(places + 0.2, 100 * made, 0.4, label="generated")
    axes.axhline(100 * COVERED, color="gray", linestyle=":", label="counts as covered")
    axes.set_xticks(places, labels)
    axes.set_ylabel("% of the images")
    axes.set_ylim(top=130 * max(real.max(), made.max()))  # room for the legend
    axes.legend(ncols=3, loc="upper center")
    return figure


def losses_figure(history: Mapping[str, list], objective: str) -> Figure:
    """Both players' losses, and the discriminator's logits for real and generated images."""
    names = {
        "losses": {"train/loss": "discriminator", "train/generator_loss": "generator"},
        "discriminator's logits, mean": {"train/real": "real images", "train/fake": "generated images"},
    }
    if "train/penalty" in history:
        names["gradient penalty"] = {"train/penalty": "penalty"}
    return _panels(history, names, objective, {})


def quality_figure(history: Mapping[str, list]) -> Figure:
    """What the classifier says after every epoch, with the bounds of a collapse."""
    names = ("frechet_distance", "coverage", "diversity", "class_distance")
    bounds = {"coverage": FEWEST_CLASSES, "diversity": LEAST_DIVERSITY}
    return _panels(history, {name: {f"val/{name}": ""} for name in names}, "validation, 2,000 images", bounds)


def _panels(history: Mapping[str, list], names: dict, title: str, bounds: dict) -> Figure:
    """A panel a title, in it a line a metric of the history; bounds below which a generator has collapsed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * len(names), 3.4), layout="constrained")
    for index, (words, lines) in enumerate(names.items()):
        axes = figure.add_subplot(1, len(names), index + 1)
        for name, label in lines.items():
            steps, values = zip(*history.get(name, [(0, np.nan)]), strict=True)
            axes.plot(steps, values, "o-" if name.startswith("val/") else "-", label=label, markersize=4)
        if words in bounds:
            axes.axhline(bounds[words], color="C3", linestyle=":", label="collapsed below")
            axes.set_ylim(bottom=0)
        axes.set_title(words)
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
        if any(lines.values()) or words in bounds:
            axes.legend(fontsize="small", loc="lower right" if words in bounds else "best")
    figure.suptitle(title)
    return figure


if __name__ == "__main__":
    launch.main(Config, train)
