"""The embedding table against Keras', and patches against a convolution."""

import keras
import numpy as np
import pytest
from keras import ops

from layers.embedding import Embedding, PatchEmbedding, ReversibleEmbedding
from tests.layers.checking import assert_parity, check_layer, numpy_of


def close(a, b, tolerance=1e-5):
    np.testing.assert_allclose(numpy_of(a), numpy_of(b), rtol=tolerance, atol=tolerance)


def make(**arguments):
    return Embedding(5, 4, **arguments)


def twin(**arguments):
    return keras.layers.Embedding(5, 4, **arguments)


def test_embedding_as_every_layer(tmp_path):
    # Every token, some twice: their gradients add up.
    tokens = np.array([[0, 1, 2], [3, 4, 1]], "int32")
    check_layer(make, tokens, tmp_path, twin=twin)


@pytest.mark.parametrize("shape", [(), (3,), (2, 3, 2)])
def test_embedding_of_any_shape(rng, shape):
    tokens = rng.integers(0, 5, (2, *shape)).astype("int64")
    assert_parity(make(embeddings_regularizer="l2"), twin(embeddings_regularizer="l2"), tokens)


def test_embedding_of_floats():
    assert_parity(make(), twin(), np.array([[0.0, 1.0], [4.0, 2.0]], "float32"))


def test_embedding_masks_zero():
    tokens = np.array([[1, 0, 2], [0, 0, 3]], "int32")
    layer = make(mask_zero=True)
    output = layer(tokens)
    np.testing.assert_array_equal(numpy_of(output._keras_mask), tokens != 0)
    assert layer.supports_masking
    assert not make().supports_masking
    assert make().compute_mask(tokens) is None


def test_embedding_from_weights():
    table = np.arange(20, dtype="float32").reshape(5, 4)
    for weights in (table, [table]):
        close(make(weights=weights)(np.array([[3, 0]])), table[[[3, 0]]])


def test_embedding_starts_like_keras():
    tables = []
    for layer in (make, twin):
        keras.utils.set_random_seed(1)
        one = layer()
        one.build()
        tables.append(one.get_weights()[0])
    np.testing.assert_array_equal(*tables)


def test_embedding_low_rank_adaptation_equals_keras(tmp_path):
    tokens = np.array([[0, 1, 2], [3, 4, 1]], "int32")
    assert_parity(make(lora_rank=2), twin(lora_rank=2), tokens)
    ours, theirs = make(), twin()
    for layer in (ours, theirs):
        layer.build()
        layer.enable_lora(2, lora_alpha=3.0)
    # Keras forgets a `lora_alpha` that its constructor is given; ours keeps it.
    assert make(lora_rank=2, lora_alpha=3.0).lora_alpha == 3.0
    assert_parity(ours, theirs, tokens)
    values = [np.linspace(-1, 1, np.prod(w.shape)).reshape(w.shape).astype("float32") for w in ours.weights]
    for layer in (ours, theirs):
        layer.set_weights(values)
    close(ours(tokens), theirs(tokens))
    assert len(ours.trainable_variables) == 2
    # The file holds the sum, for a layer without adaptation.
    inputs = keras.Input((3,), dtype="int32")
    keras.Model(inputs, ours(inputs)).save_weights(tmp_path / "adapted.weights.h5")
    plain = make()
    keras.Model(inputs, plain(inputs)).load_weights(tmp_path / "adapted.weights.h5")
    close(plain(tokens), ours(tokens))


@pytest.mark.once
def test_embedding_errors():
    for bad in (3.7, "3", None, True, -1, 0):
        with pytest.raises(ValueError, match="`input_dim` must be a positive integer"):
            Embedding(bad, 4)
        with pytest.raises(ValueError, match="`output_dim` must be a positive integer"):
            Embedding(4, bad)
    with pytest.raises(AttributeError, match=r"must build|no attribute 'embeddings'"):
        _ = make().embeddings
    with pytest.raises(ValueError, match="isn't yet built"):
        make().enable_lora(2)
    constrained = make(embeddings_constraint="non_neg")
    constrained.build()
    with pytest.raises(ValueError, match="incompatible with embedding constraints"):
        constrained.enable_lora(2)


# There and back


def there_and_back(layer):
    """A model that looks tokens up, and scores what it found."""
    inputs = keras.Input((3,), dtype="int32")
    return keras.Model(inputs, layer(ops.tanh(layer(inputs)), reverse=True))


@pytest.mark.parametrize("options", [{}, {"tie_weights": False}, {"logit_soft_cap": 0.5}], ids=str)
def test_reversible_embedding_equals_keras(options, tmp_path):
    tokens = np.array([[0, 1, 2], [3, 4, 1]], "int32")
    ours, theirs = (
        there_and_back(kind(5, 4, **options))
        for kind in (ReversibleEmbedding, keras.layers.ReversibleEmbedding)
    )
    assert_parity(ours, theirs, tokens)
    assert len(ours.weights) == 1 + (not options.get("tie_weights", True))
    assert_parity(
        ReversibleEmbedding(5, 4, **options), keras.layers.ReversibleEmbedding(5, 4, **options), tokens
    )
    ours.save(tmp_path / "model.keras")
    close(keras.models.load_model(tmp_path / "model.keras")(tokens), ours(tokens))


def test_reversible_embedding_by_hand():
    layer = ReversibleEmbedding(3, 2, reverse_dtype="float32", dtype="mixed_float16")
    layer.build()
    table = np.array([[1, 0], [0, 2], [3, 4]], "float32")
    layer.set_weights([table])
    close(layer(np.array([[2]])), [[[3, 4]]])
    logits = layer(ops.convert_to_tensor([[1.0, 10.0]]), reverse=True)
    close(logits, [[1, 20, 43]])
    assert keras.backend.standardize_dtype(logits.dtype) == "float32"
    # Its two tables, where they are two, start different.
    untied = ReversibleEmbedding(6, 6, tie_weights=False)
    untied.build()
    first, second = untied.get_weights()
    assert np.abs(first - second).max() > 1e-3 and np.abs(first - second.T).max() > 1e-3


def test_reversible_embedding_with_low_rank_adaptation(tmp_path):
    tokens = np.array([[0, 1, 2]], "int32")
    adapted = there_and_back(ReversibleEmbedding(5, 4, tie_weights=False, lora_rank=2))
    assert len(adapted.trainable_variables) == 3
    adapted.save_weights(tmp_path / "adapted.weights.h5")
    for options in ({}, {"lora_rank": 2}):
        plain = there_and_back(ReversibleEmbedding(5, 4, tie_weights=False, **options))
        plain.load_weights(tmp_path / "adapted.weights.h5")
        close(plain(tokens), adapted(tokens))


# Patches


def test_patches_by_hand():
    # The kernel copies, so that an output is the flattened patch.
    image = np.arange(4 * 6).reshape(1, 4, 6, 1).astype("float32")
    layer = PatchEmbedding(2, 4, kernel_initializer="identity")
    output = numpy_of(layer(image))
    assert output.shape == (1, 6, 4)
    np.testing.assert_array_equal(output[0, 0], [0, 1, 6, 7])
    np.testing.assert_array_equal(output[0, 1], [2, 3, 8, 9])
    np.testing.assert_array_equal(output[0, 3], [12, 13, 18, 19])


def test_patches_are_a_strided_convolution(rng):
    images = rng.normal(size=(2, 4, 6, 3)).astype("float32")
    layer = PatchEmbedding(2, 5, bias_initializer="ones")
    output = layer(images)
    kernel = ops.reshape(layer.kernel, (2, 2, 3, 5))
    convolved = ops.conv(images, kernel, strides=2, padding="valid", data_format="channels_last") + 1
    close(output, ops.reshape(convolved, (2, 6, 5)))


def test_patches_channels_first(rng):
    images = rng.normal(size=(2, 4, 6, 3)).astype("float32")
    last, first = PatchEmbedding(2, 5), PatchEmbedding(2, 5, data_format="channels_first")
    expected = last(images)
    turned = images.transpose(0, 3, 1, 2)
    first(turned)
    first.set_weights(last.get_weights())
    close(first(turned), expected)
    assert first.compute_output_shape((None, 3, 4, 6)) == (None, 6, 5)


def test_patches_as_every_layer(rng, tmp_path):
    images = rng.normal(size=(2, 4, 4, 3)).astype("float32")
    check_layer(lambda **k: PatchEmbedding(2, 5, class_token=True, **k), images, tmp_path)
    with pytest.raises(ValueError, match="divide into patches of 3 x 3"):
        PatchEmbedding(3, 5)(images)
