"""Autoencoders: the bounds of the likelihood against exact values, what a run leaves, and that it goes on."""

import dataclasses
import os
from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from keras import ops
from mlflow import MlflowClient

from recipes import vae_mnist as recipe
from recipes.engine import gradients, launch, models, tracking
from recipes.engine.errors import RecipeError
from recipes.engine.progress import Progress
from tests.layers.checking import numpy_of

CLOCKED = ("duration_seconds", "images_per_second")


def config_of(folder, **changes):
    fields = {"tracking_uri": f"sqlite:///{folder}/mlflow.db", "checkpoint_dir": folder / "checkpoints"}
    return recipe.Config.small(
        **{
            "latent": 2,
            "epochs": 10,
            "batch_size": 32,
            "learning_rate": 5e-3,
            "activation": "relu",
            "checkpoint_every": "20",
            **fields,
            **changes,
        }
    )


def trained(config):
    """A run of the recipe, with the names that a new process would give."""
    keras.utils.clear_session()
    return launch.run_recipe(config, recipe.train)


def last_run(folder):
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    experiment = client.get_experiment_by_name("vae_mnist").experiment_id
    return client.search_runs([experiment], order_by=["attributes.start_time DESC"], max_results=1)[0]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing interrupts: its folder, final metrics, and trained parts loaded from MLflow."""
    folder = tmp_path_factory.mktemp("vae")
    metrics = trained(config_of(folder))
    run_id, uri = last_run(folder).info.run_id, f"sqlite:///{folder}/mlflow.db"
    parts = {name: models.load(f"runs:/{run_id}/{name}", uri) for name in ("encoder", "decoder")}
    return SimpleNamespace(folder=folder, metrics=metrics, model=SimpleNamespace(**parts))


@pytest.fixture(scope="module")
def digits():
    return recipe.load(recipe.Config.small(binarization="static"))


def test_it_explains_images_better_than_independent_pixels(whole, digits):
    """The best distribution that knows nothing but each pixel's own probability is the baseline."""
    brightness = digits.train.x.mean(axis=0).clip(0.001, 0.999)
    x = digits.test.x
    baseline = -(x * np.log(brightness) + (1 - x) * np.log(1 - brightness)).sum(axis=(1, 2, 3)).mean()
    metrics = whole.metrics
    # Two dimensions: how good an optimum is found depends on the backend's own start.
    assert metrics["test/loss"] < baseline - 0.2
    assert metrics["test/elbo"] == pytest.approx(
        -metrics["test/reconstruction"] - metrics["test/kl"], rel=1e-4
    )
    assert metrics["test/elbo"] < metrics["test/log_likelihood"] < 0
    assert metrics["test/kl"] > 0.5 and metrics["active_units"] >= 1
    drawn = {path.stem for path in whole.folder.rglob("*.png")}
    assert drawn == {
        "learning_curves", "reconstructions", "samples", "interpolation", "traversals", "latent_map",
        "kl_by_dimension",
    }  # fmt: skip


def test_likelihood_of_a_trained_network_is_the_integral_over_its_codes(whole, digits):
    """In two dimensions p(x) = sum over a fine grid of p(x | z) p(z): no sampling, no encoder."""
    images = digits.test.x[:6]
    ticks = np.linspace(-6, 6, 121)
    grid = np.stack(np.meshgrid(ticks, ticks), axis=-1).reshape(-1, 2)
    logits = whole.model.decoder.predict(grid.astype("float32"), batch_size=14641, verbose=0).astype(
        "float64"
    )
    logits = logits.reshape(len(grid), -1)
    given_z = images.reshape(6, -1) @ logits.T - np.logaddexp(0, logits).sum(axis=1)
    prior = -(grid**2).sum(axis=1) / 2 - np.log(2 * np.pi)
    exact = np.logaddexp.reduce(given_z + prior, axis=1) + 2 * np.log(ticks[1] - ticks[0])
    weights = recipe.weights_of(whole.model)
    estimate = recipe.importance_weighted(weights, images, 3000, 2, seed=1, draws=500)
    np.testing.assert_allclose(estimate, exact, atol=0.05)


def linear_gaussian(rng, shift=0.0, stretch=1.0):
    """x = W z + b + s e: the exact log p(x), and weights with an encoder that is off by shift and stretch."""
    basis, _ = np.linalg.qr(rng.normal(size=(6, 3)))
    w, b, s = basis * [2.0, 1.0, 0.5], rng.normal(size=6), 0.7  # orthogonal: the posterior is diagonal
    x = rng.normal(size=(4, 3)) @ w.T + b + s * rng.normal(size=(4, 6))
    covariance = w @ w.T + s**2 * np.eye(6)
    away = x - b
    exact = -0.5 * (
        np.einsum("ni,ij,nj->n", away, np.linalg.inv(covariance), away)
        + np.linalg.slogdet(2 * np.pi * covariance)[1]
    )
    precision = 1 + (w**2).sum(axis=0) / s**2
    mean = away @ w / s**2 / precision

    def encode(images):
        rows = ops.shape(images)[0]
        log_variance = np.log(stretch / precision) * np.ones((rows, 3))
        posterior = ops.matmul(images - b.astype("float32"), (w / s**2 / precision).astype("float32"))
        return posterior + shift, ops.convert_to_tensor(log_variance.astype("float32"))

    def log_likelihood_of(images, z):
        error = images - ops.matmul(z, w.T.astype("float32")) - b.astype("float32")
        return -0.5 * ops.sum(ops.square(error), axis=-1) / s**2 - 3 * float(np.log(2 * np.pi * s**2))

    np.testing.assert_allclose(mean, numpy_of(encode(ops.convert_to_tensor(x.astype("float32")))[0]) - shift,
                               atol=1e-5)  # fmt: skip

    def weights(images, noise):
        return recipe.log_weights(encode, log_likelihood_of, images, noise)

    return x.astype("float32"), exact, weights


def test_with_the_true_posterior_one_sample_gives_the_exact_likelihood(rng):
    """p(x | z) p(z) / p(z | x) is p(x), whichever z."""
    x, exact, weights = linear_gaussian(rng)
    np.testing.assert_allclose(recipe.importance_weighted(weights, x, 1, 3, seed=0), exact, atol=1e-4)


def test_with_another_posterior_the_bound_rises_to_the_exact_likelihood(rng):
    x, exact, weights = linear_gaussian(rng, shift=0.3, stretch=1.5)
    means = [
        np.mean([recipe.importance_weighted(weights, x, k, 3, seed, draws=5000).mean() for seed in range(n)])
        for k, n in ((1, 60), (10, 30), (5000, 1))
    ]
    assert means[0] < means[1] - 0.05 < means[2] < exact.mean() + 0.01
    np.testing.assert_allclose(
        recipe.importance_weighted(weights, x, 20_000, 3, 7, draws=5000), exact, atol=0.02
    )


def test_samples_and_images_that_do_not_fill_a_batch_count(rng):
    x, exact, weights = linear_gaussian(rng)
    estimate = recipe.importance_weighted(weights, x, 7, 3, seed=0, batch=3, draws=4)
    np.testing.assert_allclose(estimate, exact, atol=1e-4)


@pytest.fixture(scope="module")
def model(digits):
    """A small network with weights from NumPy, equal on all backends."""
    keras.utils.set_random_seed(0)
    config = recipe.Config.small(latent=3, width=16, warmup=4, model="beta-vae", beta=2.0, activation="tanh")
    made = recipe.build_model(config, digits)
    rng = np.random.default_rng(5)
    for variable in made.trainable_variables:
        fan_in = variable.shape[0] if len(variable.shape) > 1 else 10
        variable.assign(rng.normal(size=variable.shape) / np.sqrt(fan_in))
    return made


def by_numpy(weights, model, x, noise):
    """The negative ELBO of one code an image, in float64: standardize, two tanh layers, code; and back."""
    standardize = model.encoder.layers[1]
    h = (x.reshape(len(x), -1) - standardize.mean[0]) / standardize.std[0]
    layer = iter(weights)
    dense = lambda h: h @ next(layer) + next(layer)  # noqa: E731
    mean, log_variance = np.split(dense(np.tanh(dense(np.tanh(dense(h))))), 2, axis=1)
    z = mean + np.exp(log_variance / 2) * noise
    logits = dense(np.tanh(dense(np.tanh(dense(z)))))
    likelihood = (x.reshape(len(x), -1) * logits - np.logaddexp(0, logits)).sum(axis=1)
    log_q = -0.5 * (noise**2 + log_variance).sum(axis=1)
    return np.mean(log_q + 0.5 * (z**2).sum(axis=1) - likelihood)


def test_forward_and_gradient_are_those_of_numpy(model, digits, rng):
    """One reference for all backends: float64 and central differences along a random direction."""
    x, noise = digits.test.x[:5], rng.standard_normal((5, 3)).astype("float32")
    parts = (model.encoder, model.decoder)

    def loss(values):
        encode, decode = (
            lambda inputs, part=part, own=own: gradients.functional(part)(own, [], inputs)[0]
            for part, own in zip(parts, values, strict=True)
        )
        likelihood = lambda images, z: recipe.log_likelihood(rows, ops.reshape(decode(z[0]), (5, 64)))[None]  # noqa: E731
        split = lambda images: ops.split(encode(images), 2, axis=-1)  # noqa: E731
        rows = ops.convert_to_tensor(x.reshape(5, 64))
        draws = ops.convert_to_tensor(noise[None])
        return -ops.mean(recipe.log_weights(split, likelihood, ops.convert_to_tensor(x), draws))

    values = [gradients.variables_of(part)[0] for part in parts]
    value, slopes = gradients.value_and_grad(loss)(values)
    weights = [numpy_of(w).astype("float64") for part in values for w in part]
    assert float(value) == pytest.approx(by_numpy(weights, model, x, noise), rel=1e-5)
    direction = [rng.normal(size=w.shape) for w in weights]
    plus, minus = (
        by_numpy([w + s * d for w, d in zip(weights, direction, strict=True)], model, x, noise)
        for s in (1e-5, -1e-5)
    )
    along = sum(
        np.sum(numpy_of(slope) * d)
        for slope, d in zip((s for part in slopes for s in part), direction, strict=True)
    )
    assert along == pytest.approx((plus - minus) / 2e-5, rel=1e-4)


def test_the_divergence_comes_to_its_weight_within_the_warm_up(model, digits):
    """beta = 2 and 4 batches: 0.5, 1.0, 1.5, 2, 2; at once 2 where nothing is trained."""
    x = ops.convert_to_tensor(digits.test.x[:8])
    model.batches.assign(0.0)
    for expected in (0.5, 1.0, 1.5, 2.0, 2.0):
        assert weight_in(model, x, training=True) == pytest.approx(expected, rel=1e-3)
    assert weight_in(model, x, training=False) == pytest.approx(2.0, rel=1e-3)


def weight_in(model, x, training):
    logits, code = model(x, training=training)
    model.reset_metrics()
    loss = float(model.compute_loss(x, None, (logits, code), training=training))
    parts = {name: float(metric.result()) for name, metric in model.measured.items()}
    mean, log_variance = np.split(numpy_of(code).astype("float64"), 2, axis=1)
    kl = 0.5 * (mean**2 + np.exp(log_variance) - 1 - log_variance).sum(axis=1).mean()
    assert parts["kl"] == pytest.approx(kl, rel=1e-4)
    p = 1 / (1 + np.exp(-numpy_of(logits).astype("float64")))
    images = numpy_of(x)
    surprise = -np.log(np.where(images == 1, p, 1 - p)).sum(axis=(1, 2, 3)).mean()
    assert parts["reconstruction"] == pytest.approx(surprise, rel=1e-4)
    return (loss - surprise) / kl


@pytest.mark.parametrize("name", ["ae", "vae", "conv-vae"])
def test_every_kind_has_its_own_parts(name, digits):
    config = recipe.Config.small(model=name, latent=3, warmup=0)
    model = recipe.build_model(config, digits)
    logits, code = model(ops.convert_to_tensor(digits.test.x[:2]))
    assert logits.shape == (2, 8, 8, 1) and code.shape == (2, 3 if name == "ae" else 6)
    assert set(model.measured) == ({"reconstruction"} if name == "ae" else {"elbo", "kl", "reconstruction"})
    kinds = [type(layer).__name__ for layer in model.decoder.layers]
    assert kinds.count("Conv2DTranspose") == (2 if name == "conv-vae" else 0)
    again, _ = model(ops.convert_to_tensor(digits.test.x[:2]))
    assert np.array_equal(numpy_of(logits), numpy_of(again)) == (name == "ae")  # the others draw


def test_an_autoencoder_runs_without_a_prior(tmp_path):
    metrics = trained(config_of(tmp_path, model="ae", epochs=1, latent=3))
    assert metrics["test/loss"] == pytest.approx(metrics["test/reconstruction"])
    assert not {"test/kl", "test/log_likelihood"} & set(metrics)
    assert "samples" in {path.stem for path in tmp_path.rglob("*.png")}


@pytest.mark.once  # that it is so on every backend is tested with the engine
def test_a_killed_run_goes_on_with_the_same_bits(whole, tmp_path, monkeypatch):
    original, calls = Progress.after_step, []

    def stopping(self, values):
        calls.append(1)
        if len(calls) == 50:
            raise KeyboardInterrupt
        return original(self, values)

    # Pictures and stored models change nothing and take half of the time.
    monkeypatch.setattr(recipe, "draw", lambda *arguments: {})
    monkeypatch.setattr(tracking.Run, "model", lambda *arguments: None)
    with monkeypatch.context() as patch:
        patch.setattr(Progress, "after_step", stopping)
        with pytest.raises(RecipeError, match="is marked KILLED"):
            trained(config_of(tmp_path))
    killed = last_run(tmp_path).info.run_id
    resumed = trained(dataclasses.replace(config_of(tmp_path), resume=killed))
    for name, value in whole.metrics.items():
        if name not in CLOCKED:
            assert resumed[name] == value, name


@pytest.mark.once
def test_pixels_are_drawn_with_the_probability_of_their_brightness():
    from recipes.engine.data import Batches, Split
    from recipes.engine.data.batches import binarized, thresholds

    values = np.array([0, 1, 64, 128, 254, 255], np.uint8)
    images = np.tile(values, (200_000, 1))
    shares = binarized(images, thresholds(np.random.default_rng(0), images.shape)).mean(axis=0)
    np.testing.assert_allclose(shares, values / 255, atol=0.005)
    assert shares[0] == 0 and shares[-1] == 1

    split = Split(np.full((20, 8, 8, 1), 128, np.uint8), np.arange(20))
    whole = Batches(split, 10, 3, augment="binarize")
    parts = Batches(split, 10, 3, augment="binarize", accumulate=2)
    np.testing.assert_array_equal(whole[3][0], np.concatenate([parts[6][0], parts[7][0]]))
    by_image = [dict(zip(y.tolist(), x, strict=True)) for x, y in (whole[i] for i in range(4))]
    first, second = {**by_image[0], **by_image[1]}, {**by_image[2], **by_image[3]}
    assert all(np.any(first[i] != second[i]) for i in range(20))  # anew in the next epoch


@pytest.mark.once
def test_fixed_drawings_are_the_same_for_all_seeds():
    one, other = (recipe.load(recipe.Config.small(seed=seed, binarization="static")) for seed in (1, 2))
    assert one.fingerprint == other.fingerprint and set(np.unique(one.train.x)) == {0, 1}
    dynamic = recipe.load(recipe.Config.small())
    np.testing.assert_array_equal(dynamic.test.x, one.test.x)
    assert dynamic.train.x.max() == 255


@pytest.mark.once
@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"latent": 0}, "--latent must be at least 1, not 0"),
        ({"likelihood_images": 0}, "--likelihood-images must be at least 1, not 0"),
        ({"warmup": -1}, "--warmup and --beta must not be negative"),
        ({"model": "gae"}, "unknown value of --model 'gae': did you mean 'ae'?"),
    ],
)
def test_bad_input_gets_one_sentence(changes, sentence):
    with pytest.raises(RecipeError) as error:
        recipe.Config(**changes)
    assert str(error.value).startswith(sentence) and error.value.exit_code == 2


@pytest.mark.once
@pytest.mark.skipif("TFDS_DATA_DIR" not in os.environ, reason="TFDS_DATA_DIR names no prepared MNIST")
def test_mnist_is_binarized():
    data = recipe.load(recipe.Config(data_dir=Path(os.environ["TFDS_DATA_DIR"])))
    assert data.train.x.shape == (54_000, 28, 28, 1) and set(np.unique(data.test.x)) == {0, 1}
    assert data.test.x.mean() == pytest.approx(0.1325, abs=0.001)  # the mean brightness of the test images
