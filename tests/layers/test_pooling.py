"""Pooling against Keras, by hand, and under masks."""

import keras
import numpy as np
import pytest

import layers
from tests.layers.checking import assert_parity, check_layer, numpy_of

CASES = {
    "MaxPooling1D": (lambda m, **k: m.MaxPooling1D(2, **k), 1),
    "MaxPooling2D": (lambda m, **k: m.MaxPooling2D(3, 2, padding="same", **k), 2),
    "AveragePooling1D": (lambda m, **k: m.AveragePooling1D(3, 1, padding="same", **k), 1),
    "AveragePooling2D": (lambda m, **k: m.AveragePooling2D((2, 3), **k), 2),
    "GlobalAveragePooling1D": (lambda m, **k: m.GlobalAveragePooling1D(**k), 1),
    "GlobalAveragePooling2D": (lambda m, **k: m.GlobalAveragePooling2D(keepdims=True, **k), 2),
    "GlobalMaxPooling1D": (lambda m, **k: m.GlobalMaxPooling1D(keepdims=True, **k), 1),
    "GlobalMaxPooling2D": (lambda m, **k: m.GlobalMaxPooling2D(**k), 2),
}


@pytest.mark.parametrize("name", CASES)
def test_generic_check_against_the_twin(name, rng, tmp_path):
    make, rank = CASES[name]
    inputs = rng.normal(size=(2, *(6, 5)[:rank], 3)).astype("float32")
    check_layer(lambda **extra: make(layers, **extra), inputs, tmp_path, twin=lambda: make(keras.layers))


def test_what_is_not_a_number_stays_so_where_it_does_in_keras():
    """Wherever in the window it is: a network that has diverged must not look sound."""
    inputs = np.zeros((4, 2, 2, 1), "float32")
    inputs[np.arange(4), [0, 0, 1, 1], [0, 1, 0, 1]] = np.nan
    inputs[:, 0, 0, 0] += 1
    lost = np.isnan(numpy_of(layers.MaxPooling2D(2)(inputs)))
    np.testing.assert_array_equal(lost, np.isnan(numpy_of(keras.layers.MaxPooling2D(2)(inputs))))
    assert lost.all() or keras.backend.backend() == "tensorflow"  # whose kernel on CPUs loses it


def test_hand_values():
    inputs = np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [7.0, 8.0, 9.0]]).reshape(1, 3, 3, 1)
    largest = numpy_of(layers.MaxPooling2D(2, 1)(inputs))[0, :, :, 0]
    np.testing.assert_allclose(largest, [[5.0, 6.0], [8.0, 9.0]])
    # "same" with stride 2 pads the end only; the mean does not count the padding.
    mean = numpy_of(layers.AveragePooling2D(2, padding="same")(inputs))[0, :, :, 0]
    np.testing.assert_allclose(mean, [[3.0, 4.5], [7.5, 9.0]])
    assert numpy_of(layers.MaxPooling2D(2, padding="same")(-inputs))[0, 1, 1, 0] == -9.0


@pytest.mark.parametrize(
    "make",
    [
        lambda m: m.MaxPooling2D(2, data_format="channels_first"),
        lambda m: m.GlobalAveragePooling2D(data_format="channels_first"),
        lambda m: m.GlobalMaxPooling2D(data_format="channels_first", keepdims=True),
    ],
)
def test_channels_first(make, rng):
    shape = (2, 3, 6, 4)
    assert make(layers).compute_output_shape(shape) == tuple(make(keras.layers).compute_output_shape(shape))
    if keras.backend.backend() == "tensorflow" and "Global" not in type(make(layers)).__name__:
        pytest.skip("TensorFlow has no channels-first pooling on a CPU")
    assert_parity(make(layers), make(keras.layers), rng.normal(size=shape).astype("float32"))


@pytest.mark.parametrize("keepdims", [False, True])
def test_masked_steps_do_not_count(keepdims, rng):
    inputs = rng.normal(size=(2, 4, 3)).astype("float32")
    mask = np.array([[True, True, False, False], [True, True, True, False]])
    layer = layers.GlobalAveragePooling1D(keepdims=keepdims)
    outputs = numpy_of(layer(inputs, mask=mask)).reshape(2, 3)
    np.testing.assert_allclose(outputs[0], inputs[0, :2].mean(0), rtol=1e-5)
    np.testing.assert_allclose(outputs[1], inputs[1, :3].mean(0), rtol=1e-5)
    spoiled = np.where(mask[..., None], inputs, np.nan)
    np.testing.assert_array_equal(numpy_of(layer(spoiled, mask=mask)).reshape(2, 3), outputs)
    twin = keras.layers.GlobalAveragePooling1D(keepdims=keepdims)
    np.testing.assert_allclose(numpy_of(twin(inputs, mask=mask)).reshape(2, 3), outputs, rtol=1e-6)


def test_a_mask_reaches_the_mean_and_ends_there():
    tokens = keras.Input((4,), dtype="int32")
    embedded = keras.layers.Embedding(5, 3, mask_zero=True)(tokens)
    pooled = layers.GlobalAveragePooling1D()(embedded)
    assert getattr(pooled, "_keras_mask", None) is None
    model = keras.Model(tokens, [embedded, pooled])
    vectors, mean = numpy_of(model(np.array([[1, 2, 0, 0]])))
    np.testing.assert_allclose(mean[0], vectors[0, :2].mean(0), rtol=1e-5)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: layers.MaxPooling2D(0), "pool_size"),
        (lambda: layers.MaxPooling2D((2, 2, 2)), "tuple of 2"),
        (lambda: layers.MaxPooling2D(2, padding="causal"), "padding"),
        (lambda: layers.MaxPooling2D(7).compute_output_shape((1, 5, 5, 3)), "zero or negative"),
        (lambda: layers.MaxPooling2D(2)(np.zeros((2, 4, 3), "float32")), "ndim=4"),
    ],
)
def test_clear_errors(make, match):
    with pytest.raises(ValueError, match=match):
        make()
