"""Reparameterised sampling and Gaussian divergences, against hand values and Monte Carlo."""

import keras
import numpy as np
import pytest
from keras import ops

from layers.sampling import GaussianSampling, kl_between_gaussians, kl_to_standard_normal, sample_gaussian
from recipes.engine import gradients
from tests.layers.checking import numpy_of


def tensor(*values):
    return ops.convert_to_tensor(np.array(values, "float32"))


def close(a, b, tolerance=1e-5):
    np.testing.assert_allclose(numpy_of(a), numpy_of(b), rtol=tolerance, atol=tolerance)


def test_kl_to_standard_normal_by_hand():
    # 1/2 (1 + 1 - 1 - 0) = 1/2; 1/2 (0 + 4 - 1 - log 4); and zero for the standard normal itself.
    mean, log_variance = tensor([1.0, 0.0], [0.0, 0.0]), tensor([0.0, np.log(4)], [0.0, 0.0])
    close(kl_to_standard_normal(mean, log_variance), [0.5 + 0.5 * (3 - np.log(4)), 0.0])
    close(kl_to_standard_normal(mean, log_variance, axis=None), 0.5 + 0.5 * (3 - np.log(4)))


def test_kl_to_standard_normal_keeps_digits_near_zero():
    # 1/2 (e^x - 1 - x) is x^2 / 4 for small x; exp(x) - 1 would lose all of it in float32.
    close(kl_to_standard_normal(tensor([1e-3]), tensor([0.0])), 0.5e-6, 1e-9)
    value = numpy_of(kl_to_standard_normal(tensor([0.0]), tensor([1e-2])))
    np.testing.assert_allclose(value, 1e-4 / 4, rtol=1e-2)


def test_kl_between_gaussians(rng):
    mean, log_variance, other_mean, other_log_variance = rng.normal(size=(4, 3)).astype("float32")
    arguments = [ops.convert_to_tensor(x) for x in (mean, log_variance, other_mean, other_log_variance)]
    variance, other = np.exp(log_variance), np.exp(other_log_variance)
    expected = 0.5 * np.sum(
        other_log_variance - log_variance - 1 + (variance + (mean - other_mean) ** 2) / other
    )
    close(kl_between_gaussians(*arguments), expected)
    close(kl_between_gaussians(*arguments[:2], *arguments[:2]), 0.0)
    zeros = ops.zeros((3,))
    close(kl_between_gaussians(*arguments[:2], zeros, zeros), kl_to_standard_normal(*arguments[:2]))


def test_kl_between_gaussians_against_samples():
    mean, log_variance, other_mean, other_log_variance = 0.3, -0.5, -0.4, 0.2
    draws = np.random.default_rng(0).normal(mean, np.exp(log_variance / 2), 200_000)

    def log_density(x, m, v):
        return -0.5 * ((x - m) ** 2 / np.exp(v) + v)

    estimate = np.mean(
        log_density(draws, mean, log_variance) - log_density(draws, other_mean, other_log_variance)
    )
    exact = kl_between_gaussians(*(tensor([x]) for x in (mean, log_variance, other_mean, other_log_variance)))
    np.testing.assert_allclose(numpy_of(exact), estimate, atol=0.01)


def test_samples_have_mean_and_variance():
    mean, log_variance = (
        np.full((20_000, 2), [1.0, -2.0], "float32"),
        np.full((20_000, 2), [0.0, np.log(9)], "float32"),
    )
    draws = numpy_of(GaussianSampling(seed=1)([mean, log_variance]))
    np.testing.assert_allclose(draws.mean(0), [1, -2], atol=0.08)
    np.testing.assert_allclose(draws.std(0), [1, 3], rtol=0.03)


def test_gradients_pass_through_the_sample():
    """z = m + exp(v / 2) eps: dz/dm = 1 and dz/dv = (z - m) / 2."""
    mean, log_variance = tensor(0.5, -1.0), tensor(0.3, -0.7)

    def value(arguments):
        draws = sample_gaussian(*arguments, seed=7)
        return ops.sum(draws), draws

    (_, draws), (by_mean, by_log_variance) = gradients.value_and_grad(value, has_aux=True)(
        (mean, log_variance)
    )
    close(by_mean, [1.0, 1.0])
    close(by_log_variance, (numpy_of(draws) - numpy_of(mean)) / 2)


def test_sampling_layer_serialises_and_traces(tmp_path):
    inputs = [keras.Input((3,)), keras.Input((3,))]
    model = keras.Model(inputs, GaussianSampling(kl_weight=2.0, seed=3)(inputs))
    assert model.output.shape == (None, 3)
    model.save(tmp_path / "sampling.keras")
    loaded = keras.saving.load_model(tmp_path / "sampling.keras")
    assert loaded.layers[-1].get_config() == model.layers[-1].get_config()
    x = [np.ones((2, 3), "float32"), np.zeros((2, 3), "float32")]
    assert np.isfinite(numpy_of(loaded(x))).all()
    for policy in ("mixed_float16", "mixed_bfloat16"):
        low = GaussianSampling(dtype=policy)(x)
        assert keras.backend.standardize_dtype(low.dtype) == policy.removeprefix("mixed_")


def test_sampling_layer_draws_anew_and_adds_the_divergence():
    layer = GaussianSampling(kl_weight=2.0, seed=0)
    x = [np.full((2, 3), 1.0, "float32"), np.zeros((2, 3), "float32")]
    one, other = numpy_of(layer(x)), numpy_of(layer(x))
    assert np.abs(one - other).max() > 1e-3
    close(layer.losses[0], 2.0 * 1.5)
    assert not GaussianSampling().losses


def test_sampling_layer_errors():
    with pytest.raises(ValueError, match="must not be negative"):
        GaussianSampling(kl_weight=-1.0)
    with pytest.raises(ValueError, match=r"\[mean, log_variance\]"):
        GaussianSampling()([np.zeros((1, 2), "float32"), np.zeros((1, 3), "float32")])
