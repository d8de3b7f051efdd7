"""Variational autoencoders of handwritten digits: how well does a latent code explain an image, in nats?

An encoder describes the code z of an image x by a Gaussian q(z | x), a decoder the image by the probability
of each pixel being 1. Trained together they raise a lower bound of the image's log-likelihood (the ELBO):

    log p(x) >= E_q[log p(x | z)] - KL(q(z | x) || p(z)),    p(z) = N(0, I)

Both parts are curves of a run, in nats an image: `reconstruction` (of the first, the negative) and `kl`.

    python -m recipes.vae_mnist --backend torch                              # Burda et al.'s VAE
    python -m recipes.vae_mnist --model conv-vae --backend tensorflow        # convolutions
    python -m recipes.vae_mnist --model beta-vae --beta 4                    # the divergence weighs more
    python -m recipes.vae_mnist --model ae                                   # no noise and no prior
    python -m recipes.vae_mnist --latent 2                                   # a code that can be drawn
    python -m recipes.vae_mnist --dataset digits --epochs 40                 # built in, no download

`test/log_likelihood` is the mean over K samples z_k of q of importance weights,

    log p(x) >= E[log 1/K sum_k p(x | z_k) p(z_k) / q(z_k | x)],

a bound that K tightens; K is `--samples`. `active_units` counts the dimensions of the code that follow the
image: those whose mean varies over the test images by more than 0.01 (Burda et al.).

Expected: a log-likelihood of -91.0 nats (K = 500) after 40 epochs of MNIST, on JAX in 575 s beside other
work, and -88.8 (K = 5,000) after 100 (results/vae_mnist.md). Burda et al. reach -86.76 after 3,280 epochs.

Data: pixels are 0 or 1. In training each is drawn anew in every epoch, 1 with the probability of its
brightness (`--binarization dynamic`), or once for all (`static`); validation and test images are drawn once,
with one seed for all runs. All draws are NumPy's, so they are the same on every backend.

Figures: learning curves, reconstructions, samples, interpolation between test images, traversals of single
dimensions, latent_map (with two dimensions, also the images all over the plane), kl_by_dimension.

References:
    Kingma and Welling, 2014, Auto-encoding variational Bayes, arXiv:1312.6114.
    Burda, Grosse and Salakhutdinov, 2016, Importance weighted autoencoders, arXiv:1509.00519 (the network,
    the estimate of the likelihood, active units; 86.76 nats for this VAE, with 5,000 samples).
    Higgins et al., 2017, beta-VAE, https://openreview.net/forum?id=Sy2fzU9gl.
    Bowman et al., 2016, Generating sentences from a continuous space, arXiv:1511.06349 (KL warm-up).

Differences from Burda et al.:
    1. Some dozens of epochs with a cosine schedule, in place of 3,280 with steps; so silu, which learns
       faster, in place of tanh, and batches of 50.
    2. The weight of the divergence grows to 1 over the first `--warmup` epochs.
    3. Adam's epsilon is 1e-7 (theirs 1e-4), biases of the last layer start at 0.
    4. A tenth of the training images is set apart for validation.
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
from recipes.engine import gradients, launch
from recipes.engine.config import TrainingConfig
from recipes.engine.data.batches import binarized, thresholds
from recipes.engine.errors import usage_error

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BINARY_SEED = 2016  # of the fixed drawings of pixels, the same in all runs
ACTIVE = 0.01  # variance of a mean over images, above which a dimension counts as used
SPREAD = 3.0  # standard deviations of the prior that traversals and maps cover


@dataclass(frozen=True)
class Config(TrainingConfig):
    """What can be varied."""

    dataset: Literal["mnist", "fashion_mnist", "digits"] = "mnist"
    """Images to model; digits is built in."""
    epochs: int = 40
    """Passes over the training data."""
    batch_size: int = 50
    """Examples in one optimizer step."""
    learning_rate: float = 2e-3
    """Peak step size of Adam; it falls to 0 along a cosine."""
    model: Literal["ae", "vae", "beta-vae", "conv-vae"] = "vae"
    """ae: an autoencoder without noise; beta-vae: a divergence of weight --beta; conv-vae: convolutions."""
    latent: int = 50
    """Dimensions of the code."""
    width: int = 200
    """Units of each of the two hidden layers on either side; of the dense layers in conv-vae."""
    activation: Literal["silu", "gelu", "relu", "tanh"] = "silu"
    """Activation of the hidden layers; tanh, the paper's, learns far more slowly."""
    beta: float = 4.0
    """Weight of the divergence in beta-vae."""
    warmup: int = 10
    """Epochs in which the divergence comes to its full weight; 0: at once."""
    binarization: Literal["dynamic", "static"] = "dynamic"
    """Whether the training images' pixels are drawn in every epoch or once."""
    samples: int = 500
    """Codes an image in the estimate of its likelihood."""
    likelihood_images: int = 10_000
    """Test images that the likelihood is estimated on."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("latent", "width", "samples", "likelihood_images"):
            if getattr(self, name) < 1:
                raise usage_error(f"--{name.replace('_', '-')} must be at least 1, not {getattr(self, name)}")
        if self.warmup < 0 or not self.beta >= 0:
            raise usage_error("--warmup and --beta must not be negative")

    @classmethod
    def small(cls, **changes: Any) -> Self:
        """A few seconds on the built-in digits."""
        fields = {"dataset": "digits", "epochs": 12, "batch_size": 64, "learning_rate": 1e-2, "latent": 8}
        return cls(**{**fields, "width": 64, "warmup": 2, "samples": 20, **changes})


def load(config: Config) -> engine.data.Dataset:
    """The dataset with pixels of 0 and 1; the training images keep their brightness if they are redrawn."""
    data = engine.data.load(config.dataset, config.data_dir)
    rng = np.random.default_rng(BINARY_SEED)
    splits = []
    for split in (data.validation, data.test, data.train):
        drawn = binarized(split.x, thresholds(rng, split.x.shape))
        splits.append(engine.data.Split(drawn, split.y))
    validation, test, train = splits
    if config.binarization == "dynamic":
        train = data.train
    return engine.data.Dataset(data.name, train, validation, test, data.labels)


class Autoencoder(keras.Model):
    """Images to logits by way of a code, with the loss of its kind.

    Args:
        encoder: images to codes (batch, latent) or, of twice that width, their means and log-variances.
        decoder: codes to logits of pixels.
        latent: dimensions of the code.
        beta: weight of the divergence.
        warmup: training batches in which it grows from 0 to that weight.
        seed: fixes the noise.

    Call arguments:
        images: (batch, height, width, channels), 0 or 1.

    Returns:
        Logits of the images' shape and what the encoder gave.
    """

    def __init__(
        self, encoder: keras.Model, decoder: keras.Model, latent: int, beta: float, warmup: int, seed: int
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.variational = encoder.output_shape[-1] == 2 * latent
        self.beta = beta
        self.warmup = warmup
        self.sample = layers.GaussianSampling(seed=seed)
        self.batches = self.add_weight(shape=(), initializer="zeros", trainable=False, name="batches")
        names = ("elbo", "kl", "reconstruction") if self.variational else ("reconstruction",)
        self.measured = {name: keras.metrics.Mean(name) for name in names}

    def call(self, images: Any, training: bool = False) -> tuple[Any, Any]:
        """Encode, draw, decode."""
        code = self.encoder(images)  # (batch, latent), or (batch, 2 latent)
        if training:
            self.batches.assign_add(1.0)
        z = self.sample(ops.split(code, 2, axis=-1)) if self.variational else code
        return self.decoder(z), code

    def compute_loss(
        self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None, training: bool = True
    ) -> Any:
        """Mean over the batch of reconstruction + weight x divergence, in nats; `y` is not looked at."""
        logits, code = y_pred
        reconstruction = -log_likelihood(_rows(x), _rows(logits))  # (batch,)
        values = {"reconstruction": reconstruction}
        loss = reconstruction
        if self.variational:
            kl = layers.sampling.kl_to_standard_normal(*ops.split(code, 2, axis=-1))  # (batch,)
            values |= {"kl": kl, "elbo": -reconstruction - kl}
            weight = ops.minimum(1.0, self.batches / self.warmup) if training and self.warmup else 1.0
            loss = reconstruction + self.beta * weight * kl
        for name, value in values.items():
            self.measured[name].update_state(value)
        return ops.mean(loss)


def log_likelihood(images: Any, logits: Any) -> Any:
    """Log-likelihood of independent pixels, in nats.

    Args:
        images: 0 and 1, (..., pixels).
        logits: log-odds of 1, (..., pixels); leading axes broadcast.

    Returns:
        (...).
    """
    x = ops.cast(images, logits.dtype)
    return ops.sum(x * logits - layers.activations.softplus(logits), axis=-1)


def _rows(images: Any) -> Any:
    """Images (batch, height, width, channels) as rows (batch, pixels).

    XLA sums over three axes at once twenty times as slowly on a CPU.
    """
    return ops.reshape(images, (-1, int(np.prod(images.shape[1:]))))


def build_model(config: Config, data: engine.data.Dataset, steps_per_epoch: int = 1) -> Autoencoder:
    """The autoencoder of a configuration.

    Args:
        config: which one.
        data: gives the images' shape and the mean brightness.
        steps_per_epoch: training batches in an epoch, for the warm-up.
    """
    outputs = config.latent if config.model == "ae" else 2 * config.latent
    inputs = keras.Input(data.shape, dtype="uint8", name="image")  # (batch, height, width, channels)
    mean = float(np.mean(data.validation.x))
    x = layers.ImageStandardization([mean], [(mean * (1 - mean)) ** 0.5])(inputs)
    codes = keras.Input((config.latent,), name="code")
    if config.model == "conv-vae":
        encoded, decoded = _convolutional(config, x, codes, data.shape)
    else:
        encoded = _dense(config, _dense(config, keras.layers.Flatten()(x)))
        decoded = _dense(config, _dense(config, codes))
        decoded = layers.Dense(int(np.prod(data.shape)), dtype="float32")(decoded)
        decoded = keras.layers.Reshape(data.shape, dtype="float32")(decoded)
    # Means, log-variances and logits in float32: a sum of 784 terms in 16 bits has no digits left.
    encoder = keras.Model(inputs, layers.Dense(outputs, dtype="float32")(encoded), name="encoder")
    decoder = keras.Model(codes, decoded, name="decoder")
    beta = config.beta if config.model == "beta-vae" else 1.0
    return Autoencoder(encoder, decoder, config.latent, beta, config.warmup * steps_per_epoch, config.seed)


def _dense(config: Config, x: Any) -> Any:
    activation = layers.activations.get(config.activation)
    return layers.Dense(
        config.width, activation=activation, kernel_initializer=layers.initializers.GlorotUniform()
    )(x)


def _convolutional(config: Config, x: Any, codes: Any, shape: tuple[int, ...]) -> tuple[Any, Any]:
    """Two convolutions that halve the image, two that double it, and dense layers around the code."""
    activation = layers.activations.get(config.activation)
    for filters in (16, 32):
        x = layers.Conv2D(filters, 4, strides=2, padding="same", activation=activation)(x)
    small = x.shape[1:]  # (height / 4, width / 4, 32)
    encoded = _dense(config, keras.layers.Flatten()(x))
    y = _dense(config, codes)
    y = layers.Dense(int(np.prod(small)), activation=activation)(y)
    y = keras.layers.Reshape(small)(y)
    y = layers.Conv2DTranspose(16, 4, strides=2, padding="same", activation=activation)(y)
    return encoded, layers.Conv2DTranspose(shape[-1], 4, strides=2, padding="same", dtype="float32")(y)


def frozen(model: keras.Model) -> Callable:
    """A trained model as a plain function of its inputs, at which no gradients are kept."""
    apply, values = gradients.functional(model), gradients.variables_of(model)
    return lambda inputs: apply(*values, inputs, training=False)[0]


def log_weights(encode: Callable, log_likelihood_of: Callable, images: Any, noise: Any) -> Any:
    """Logarithms of the importance weights p(x | z) p(z) / q(z | x) of codes drawn from q.

    Args:
        encode: images to (mean, log-variance) of q, each (batch, latent).
        log_likelihood_of: `(images, z)` to log p(x | z), (samples, batch).
        images: (batch, ...).
        noise: standard normal, (samples, batch, latent).

    Returns:
        (samples, batch), in nats.
    """
    mean, log_variance = encode(images)
    z = mean + ops.exp(0.5 * log_variance) * noise  # (samples, batch, latent)
    # log p(z) - log q(z | x): the halves of log 2 pi cancel.
    ratio = 0.5 * ops.sum(ops.square(noise) + log_variance - ops.square(z), axis=-1)
    return log_likelihood_of(images, z) + ratio


def importance_weighted(
    weights: Callable,
    images: np.ndarray,
    samples: int,
    latent: int,
    seed: int,
    batch: int = 100,
    draws: int = 10,
) -> np.ndarray:
    """Estimate every image's log-likelihood: log of the mean importance weight, from below.

    Args:
        weights: `(images, noise)` to `log_weights`.
        images: (n, ...).
        samples: codes an image, K.
        latent: dimensions of a code.
        seed: fixes the codes.
        batch: images at once.
        draws: codes at once.

    Returns:
        Nats, (n,), in float64.

    Reference:
        Burda et al., 2016, arXiv:1509.00519, equation 8.
    """
    rng = np.random.default_rng((seed, samples))
    result = np.full(len(images), -np.inf)
    for first in range(0, len(images), batch):
        x = ops.convert_to_tensor(images[first : first + batch])
        total = result[first : first + batch]
        for done in range(0, samples, draws):
            noise = rng.standard_normal((min(draws, samples - done), len(x), latent), dtype="float32")
            found = ops.convert_to_numpy(weights(x, ops.convert_to_tensor(noise))).astype("float64")
            total[:] = np.logaddexp(total, np.logaddexp.reduce(found, axis=0))
    return result - np.log(samples)


def weights_of(model: Autoencoder) -> Callable:
    """The compiled `log_weights` of a trained model."""
    encode, decode = frozen(model.encoder), frozen(model.decoder)

    def log_likelihood_of(images: Any, z: Any) -> Any:
        logits = _rows(decode(ops.reshape(z, (-1, z.shape[-1]))))  # (samples x batch, pixels)
        return log_likelihood(_rows(images), ops.reshape(logits, (*z.shape[:2], -1)))

    return gradients.compiled(
        lambda images, noise: log_weights(
            lambda x: ops.split(encode(x), 2, axis=-1), log_likelihood_of, images, noise
        )
    )


def train(config: Config, run: engine.tracking.Run) -> dict[str, float]:
    """Train, look at the test images once, estimate their likelihood, draw, store the model."""
    data = load(config)
    run.tags({"dataset.fingerprint": lambda: data.fingerprint})
    augment = "binarize" if config.binarization == "dynamic" else "none"
    batches = engine.data.Batches(
        data.train, config.batch_size, config.seed, augment=augment, accumulate=config.accumulate
    )
    model = build_model(config, data, batches.steps_per_epoch)
    steps = batches.steps_per_epoch // config.accumulate * config.epochs
    schedule = layers.schedules.CosineDecay(config.learning_rate, steps)
    model.compile(layers.optimizers.Adam(schedule, **engine.training.optimizer_options(config)))
    try:
        engine.training.fit(model, batches, data.validation, config, run, schedule)
    finally:
        run.figure(
            "learning_curves",
            lambda: engine.figures.learning_curves(run.history, f"{config.model} on {data.name}"),
        )
    metrics = model.evaluate(data.test.x, data.test.y, batch_size=500, verbose=0, return_dict=True)
    metrics = {f"test/{name}": float(value) for name, value in metrics.items()}
    codes = model.encoder.predict(data.test.x, batch_size=500, verbose=0)[:, : config.latent]
    metrics["active_units"] = int(np.sum(codes.var(axis=0) > ACTIVE))
    if model.variational:
        chosen = data.test.x[: config.likelihood_images]
        estimates = importance_weighted(weights_of(model), chosen, config.samples, config.latent, config.seed)
        metrics["test/log_likelihood"] = float(estimates.mean())
    for name, figure in draw(config, model, data).items():
        run.figure(name, figure)
    for part, example in ((model.encoder, data.test.x[:2]), (model.decoder, codes[:2])):
        run.model(keras.Model(part.inputs, part.outputs, name=part.name), example, part.name)
    return {**metrics, "parameters": model.encoder.count_params() + model.decoder.count_params()}


def draw(config: Config, model: Autoencoder, data: engine.data.Dataset) -> dict[str, Figure]:
    """What the codes hold, as figures by name.

    Args:
        config: the run's settings.
        model: trained.
        data: pixels of 0 and 1; test images are shown.
    """
    rng = np.random.default_rng(config.seed)
    images, labels = data.test.x, data.test.y
    found = model.encoder.predict(images, batch_size=500, verbose=0)
    codes = found[:, : config.latent]
    # An autoencoder has no prior: where its codes lie takes the place of one.
    mean, std = (0.0, 1.0) if model.variational else (codes.mean(axis=0), codes.std(axis=0))
    prior = "N(0, I)" if model.variational else "the Gaussian fitted to the codes, dimension by dimension"

    def decoded(z: np.ndarray) -> np.ndarray:
        """Probabilities of pixels: (..., latent) to (..., height, width, channels)."""
        logits = model.decoder.predict(
            z.reshape(-1, z.shape[-1]).astype("float32"), batch_size=500, verbose=0
        )
        return ops.convert_to_numpy(ops.sigmoid(logits)).reshape(*z.shape[:-1], *data.shape)

    mosaic = engine.figures.mosaic
    one_each = np.array([np.flatnonzero(labels == label)[0] for label in range(len(data.labels))])
    pairs = one_each[:8], one_each[[1, 2, 3, 4, 5, 6, 7, 0]]
    share = np.linspace(0, 1, 11)[:, None]
    between = [a + share * (b - a) for a, b in zip(codes[pairs[0]], codes[pairs[1]], strict=True)]
    order = np.argsort(-divergences(found) if model.variational else -codes.var(axis=0))
    walk = np.linspace(-SPREAD, SPREAD, 11)
    paths = np.tile(codes[one_each[3]], (min(10, config.latent), len(walk), 1))
    for path, dimension in zip(paths, order, strict=False):
        path[:, dimension] = (mean + std * walk[:, None] * np.ones(config.latent))[:, dimension]
    shown = np.concatenate([one_each, rng.choice(len(images), 10, replace=False)])
    figures = {
        "reconstructions": mosaic(
            np.stack([images[shown].astype("float32"), decoded(codes[shown])]),
            ["image", "decoded"],
            title="test images and what the decoder makes of their codes' means",
        ),
        "samples": mosaic(
            decoded(mean + std * rng.standard_normal((10, 10, config.latent))),
            title=f"decoded codes drawn from {prior}",
        ),
        "interpolation": mosaic(
            decoded(np.stack(between)),
            [f"{data.labels[labels[a]]} to {data.labels[labels[b]]}" for a, b in zip(*pairs, strict=True)],
            [f"{s:.1f}" for s in share[:, 0]],
            "along straight lines between the codes of test images",
        ),
        "traversals": mosaic(
            decoded(paths),
            [f"z{dimension}" for dimension in order[: len(paths)]],
            [f"{step:.1f}" for step in walk],
            "one dimension of a code changed, in standard deviations; the most used at the top",
        ),
        "latent_map": latent_map(codes, labels, data.labels, decoded),
    }
    if model.variational:
        figures["kl_by_dimension"] = kl_figure(divergences(found), codes.var(axis=0))
    return figures


def divergences(found: np.ndarray) -> np.ndarray:
    """Mean over images of each dimension's divergence from the prior: (n, 2 latent) to (latent,), in nats."""
    mean, log_variance = np.split(found.astype("float64"), 2, axis=-1)
    return 0.5 * np.mean(mean**2 + np.expm1(log_variance) - log_variance, axis=0)


def latent_map(codes: np.ndarray, labels: np.ndarray, names: tuple[str, ...], decoded: Callable) -> Figure:
    """The codes of test images coloured by class and, of a plane, what is decoded all over it.

    Args:
        codes: (n, latent); of more than two dimensions the first two principal components are shown.
        labels: (n,).
        names: of the classes.
        decoded: (..., latent) to images.
    """
    from matplotlib.figure import Figure

    plane = codes.shape[1] == 2
    figure = Figure(figsize=(13 if plane else 7, 6), layout="constrained")
    axes = figure.add_subplot(1, 2 if plane else 1, 1)
    centred = codes - codes.mean(axis=0)
    if plane or codes.shape[1] == 1:
        points, words = np.resize(codes.T, (2, len(codes))).T, ("z0", "z1")
    else:
        _, lengths, components = np.linalg.svd(centred, full_matrices=False)
        points = centred @ components[:2].T
        explained = lengths**2 / np.sum(lengths**2)
        words = [f"principal component {i + 1} of the codes, {explained[i]:.0%}" for i in range(2)]
    for label, name in enumerate(names):
        chosen = points[labels == label][:300]
        axes.scatter(*chosen.T, s=6, color=f"C{label}", label=name, alpha=0.7)
    axes.legend(markerscale=3, fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    axes.set_xlabel(words[0])
    axes.set_ylabel(words[1])
    axes.set_title("codes of test images (means)")
    if plane:
        ticks = np.linspace(-SPREAD, SPREAD, 20)
        images = decoded(np.stack(np.meshgrid(ticks, ticks[::-1]), axis=-1))[
            ..., 0
        ]  # (20, 20, height, width)
        images = np.pad(images, ((0, 0), (0, 0), (0, 1), (0, 1)), constant_values=0.4)
        height, width = images.shape[2:]
        picture = images.transpose(0, 2, 1, 3).reshape(20 * height, 20 * width)
        right = figure.add_subplot(1, 2, 2)
        right.imshow(picture, cmap="gray", extent=(-SPREAD, SPREAD, -SPREAD, SPREAD))
        right.set_xlabel(words[0])
        right.set_ylabel(words[1])
        right.set_title("decoded all over the plane")
    return figure


def kl_figure(nats: np.ndarray, variances: np.ndarray) -> Figure:
    """What each dimension of the code costs, in falling order, and whether it follows the image."""
    from matplotlib.figure import Figure

    order = np.argsort(-nats)
    active = variances[order] > ACTIVE
    places = np.arange(len(nats))
    figure = Figure(figsize=(8, 3.4), layout="constrained")
    axes = figure.add_subplot()
    for chosen, colour, word in ((active, "C0", "active"), (~active, "C3", "not active")):
        axes.bar(places[chosen], nats[order][chosen], color=colour, label=f"{word}: {chosen.sum()}")
    axes.set_xlabel("dimension of the code, the most used first")
    axes.set_ylabel("divergence from the prior, nats")
    axes.set_title(f"{nats.sum():.1f} nats an image in {len(nats)} dimensions")
    axes.legend()
    return figure


if __name__ == "__main__":
    launch.main(Config, train)
