"""Image preparation: standardization and space-to-depth."""

import keras
import numpy as np
import pytest

import layers
from tests.layers.checking import check_layer, numpy_of


def test_standardization_gives_mean_zero_and_deviation_one(rng):
    images = rng.integers(0, 256, (16, 8, 6, 3), dtype=np.uint8)
    pixels = images.reshape(-1, 3)
    layer = layers.ImageStandardization(pixels.mean(axis=0), pixels.std(axis=0))
    result = numpy_of(layer(images))
    expected = (images - pixels.mean(axis=0)) / pixels.std(axis=0)
    np.testing.assert_allclose(result, expected, atol=1e-5)
    np.testing.assert_allclose(result.reshape(-1, 3).std(axis=0), 1, atol=1e-4)


def test_standardization_passes_the_generic_check(rng, tmp_path):
    images = rng.normal(size=(2, 4, 4, 2)).astype("float32")
    check_layer(lambda **k: layers.ImageStandardization((0.1, 0.2), (1.0, 2.0), **k), images, tmp_path)


def test_space_to_depth_by_hand(rng, tmp_path):
    image = np.arange(16, dtype="float32").reshape(1, 4, 4, 1)
    blocks = numpy_of(layers.SpaceToDepth(2)(image))
    np.testing.assert_array_equal(blocks[0, 0, 0], [0, 1, 4, 5])
    np.testing.assert_array_equal(blocks[0, 1, 1], [10, 11, 14, 15])
    check_layer(
        lambda **k: layers.SpaceToDepth(2, **k), rng.normal(size=(2, 4, 6, 3)).astype("float32"), tmp_path
    )


def test_errors_name_what_does_not_fit():
    with pytest.raises(ValueError, match="std positive"):
        layers.ImageStandardization((0.0,), (0.0,))
    with pytest.raises(ValueError, match="1 channels were described, the inputs have 3"):
        layers.ImageStandardization((0.0,), (1.0,)).build((None, 4, 4, 3))
    with pytest.raises(ValueError, match="2x2 pixels do not divide an image of 5x4"):
        layers.SpaceToDepth(2)(keras.ops.zeros((1, 5, 4, 1)))
