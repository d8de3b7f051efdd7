"""Dense, and the low-rank adaptation that convolutions share."""

import keras
import numpy as np
import pytest

import layers
from layers.regularization import L2
from tests.layers.checking import assert_parity, check_layer, numpy_of


def test_dense_passes_the_generic_check(rng, tmp_path):
    inputs = rng.normal(size=(4, 5)).astype("float32")
    check_layer(
        lambda **extra: layers.Dense(3, activation="tanh", **extra),
        inputs,
        tmp_path,
        twin=lambda: keras.layers.Dense(3, activation="tanh"),
    )


def test_leading_axes_and_missing_bias(rng):
    inputs = rng.normal(size=(2, 3, 4, 5)).astype("float32")
    assert_parity(layers.Dense(6, use_bias=False), keras.layers.Dense(6, use_bias=False), inputs)


def test_hand_value():
    layer = layers.Dense(1, activation="relu")
    layer.build((None, 2))
    layer.set_weights([np.array([[2.0], [-1.0]]), np.array([0.5])])
    # relu(2 * 1 - 3 + 0.5) = 0;  relu(2 * 3 - 1 + 0.5) = 5.5
    np.testing.assert_allclose(numpy_of(layer(np.array([[1.0, 3.0], [3.0, 1.0]]))), [[0.0], [5.5]])


def test_penalties_constraints_and_mask(rng):
    inputs = rng.normal(size=(4, 5)).astype("float32")
    layer = layers.Dense(
        3,
        kernel_regularizer=L2(0.1),
        bias_regularizer="l1",
        activity_regularizer=L2(0.5),
        kernel_constraint="non_neg",
    )
    outputs = numpy_of(layer(inputs))
    kernel, _ = layer.get_weights()
    expected = 0.1 * (kernel**2).sum() + 0.5 * (outputs**2).sum() / len(inputs)
    np.testing.assert_allclose(sum(float(loss) for loss in numpy_of(layer.losses)), expected, rtol=1e-5)
    assert isinstance(layer.kernel.constraint, keras.constraints.NonNeg)
    assert layer.supports_masking


@pytest.mark.parametrize("units", [0, -1, 2.5, None])
def test_units_must_be_a_positive_integer(units):
    with pytest.raises(ValueError, match="expected a positive integer"):
        layers.Dense(units)


def test_other_inputs_are_refused():
    layer = layers.Dense(3)
    with pytest.raises(ValueError, match="min_ndim=2"):
        layer(np.zeros((4,), "float32"))
    layer(np.zeros((4, 5), "float32"))
    with pytest.raises(ValueError, match="incompatible"):
        layer(np.zeros((4, 6), "float32"))


@pytest.mark.parametrize("make", [lambda **k: layers.Dense(4, **k), lambda **k: layers.Conv2D(4, 3, **k)])
def test_low_rank_adaptation(make, rng, tmp_path):
    inputs = rng.normal(size=(2, 5, 5, 3)).astype("float32")
    model = keras.Sequential([keras.Input((5, 5, 3)), make()])
    layer = model.layers[0]
    before = numpy_of(model(inputs))
    layer.enable_lora(2, lora_alpha=4)
    np.testing.assert_array_equal(numpy_of(model(inputs)), before)
    assert [w.name for w in layer.trainable_weights] == ["bias", "lora_kernel_a", "lora_kernel_b"]

    a, b = (
        rng.normal(size=tuple(w.shape)).astype("float32") for w in (layer.lora_kernel_a, layer.lora_kernel_b)
    )
    layer.lora_kernel_a.assign(a)
    layer.lora_kernel_b.assign(b)
    # kernel + alpha / rank A B = kernel + 2 A B
    expected = numpy_of(layer._kernel.value) + 2 * a @ b
    np.testing.assert_allclose(numpy_of(layer.kernel), expected, rtol=1e-5, atol=1e-6)

    # A file holds the merged kernel and loads into a layer without adaptation.
    after = numpy_of(model(inputs))
    model.save_weights(tmp_path / "merged.weights.h5")
    plain = keras.Sequential([keras.Input((5, 5, 3)), make()])
    plain.load_weights(tmp_path / "merged.weights.h5")
    np.testing.assert_allclose(numpy_of(plain(inputs)), after, rtol=1e-5, atol=1e-5)


def test_adaptation_equals_keras_and_reports_misuse(rng):
    inputs = rng.normal(size=(4, 5)).astype("float32")
    assert_parity(layers.Dense(3, lora_rank=2), keras.layers.Dense(3, lora_rank=2), inputs)
    assert layers.Dense(3, lora_rank=2).get_config()["lora_alpha"] == 2
    with pytest.raises(ValueError, match="isn't yet built"):
        layers.Dense(3).enable_lora(2)
    constrained = layers.Dense(3, kernel_constraint="non_neg")
    constrained.build((None, 2))
    with pytest.raises(ValueError, match="kernel constraints"):
        constrained.enable_lora(2)
    adapted = layers.Dense(3, lora_rank=2)
    adapted.build((None, 2))
    with pytest.raises(ValueError, match="already enabled"):
        adapted.enable_lora(2)
