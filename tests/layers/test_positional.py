"""Encodings of position: hand values, and the properties that each was made for."""

import keras
import numpy as np
import pytest
from keras import ops

from layers.multi_head_attention import MultiHeadAttention
from layers.positional import (
    ALiBi,
    LearnedPosition,
    RelativePositionBias,
    RotaryEmbedding,
    ShawRelativePosition,
    SinusoidalPosition,
    alibi_slopes,
    relative_bucket,
    sinusoidal_encoding,
)
from tests.layers.checking import check_layer, numpy_of


def normal(rng, *shape):
    return rng.normal(size=shape).astype("float32")


def close(a, b, tolerance=1e-5):
    np.testing.assert_allclose(numpy_of(a), numpy_of(b), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("depth", [4, 5])
def test_sinusoidal_encoding_by_hand(depth):
    encoding = numpy_of(sinusoidal_encoding(ops.arange(3), depth, 100.0))
    for t in range(3):
        for i in range(depth):
            angle = t / 100.0 ** (2 * (i // 2) / depth)
            np.testing.assert_allclose(encoding[t, i], np.cos(angle) if i % 2 else np.sin(angle), atol=1e-6)


@pytest.mark.parametrize("make", [SinusoidalPosition, lambda **k: LearnedPosition(6, **k)])
def test_added_positions_as_every_layer(rng, tmp_path, make):
    check_layer(make, normal(rng, 2, 4, 6), tmp_path)


@pytest.mark.parametrize("make", [SinusoidalPosition, lambda: LearnedPosition(6)])
def test_added_positions_continue_from_start(rng, make):
    layer, x = make(), normal(rng, 2, 6, 4)
    whole = numpy_of(layer(x))
    assert np.abs(whole - x).max() > 0.1
    close(layer(x[:, 4:], start=4), whole[:, 4:])


def test_learned_position_refuses_long_inputs():
    with pytest.raises(ValueError, match="has 3 positions"):
        LearnedPosition(3)(np.zeros((1, 4, 2), "float32"))


# Rotary


def test_rotary_by_hand():
    # Two pairs, (0, 2) and (1, 3), at wavelengths 1 and 100^(-1/2) = 1/10.
    x = np.array([1.0, 0.0, 0.0, 2.0], "float32")
    heads = ops.convert_to_tensor(np.tile(x, (1, 3, 1, 1)))
    turned = numpy_of(RotaryEmbedding(100.0).rotate(heads, ops.arange(3)))[0, :, 0]
    for t in range(3):
        expected = [np.cos(t), -2 * np.sin(t / 10), np.sin(t), 2 * np.cos(t / 10)]
        np.testing.assert_allclose(turned[t], expected, atol=1e-6)


def test_rotary_sees_the_difference_of_positions_only(rng):
    query, key = (ops.convert_to_tensor(normal(rng, 1, 1, 1, 8)) for _ in range(2))
    rotary = RotaryEmbedding()

    def product(query_position, key_position):
        turned = (
            rotary.rotate(x, ops.convert_to_tensor([p]))
            for x, p in ((query, query_position), (key, key_position))
        )
        return float(ops.convert_to_numpy(ops.sum(next(turned) * next(turned))))

    for shift in (1, 17, 300):
        assert product(5, 2) == pytest.approx(product(5 + shift, 2 + shift), abs=1e-4)
    assert product(5, 2) != pytest.approx(product(5, 3), abs=1e-2)


def test_rotary_keeps_lengths(rng):
    x = normal(rng, 2, 3, 5, 8)
    close(np.linalg.norm(numpy_of(RotaryEmbedding()(x)), axis=-1), np.linalg.norm(x, axis=-1))


def test_rotary_as_every_layer(rng, tmp_path):
    check_layer(RotaryEmbedding, normal(rng, 2, 2, 3, 4), tmp_path)
    with pytest.raises(ValueError, match="must be even"):
        RotaryEmbedding().build((1, 2, 3, 5))


# ALiBi


@pytest.mark.once
def test_alibi_slopes_of_the_paper():
    np.testing.assert_allclose(alibi_slopes(8), 2.0 ** -np.arange(1, 9))
    np.testing.assert_allclose(alibi_slopes(16), 2.0 ** (-np.arange(1, 17) / 2), rtol=1e-6)
    # Not a power of two: four heads' slopes, then every other of eight's.
    np.testing.assert_allclose(alibi_slopes(6), [2**-2, 2**-4, 2**-6, 2**-8, 2**-1, 2**-3])
    np.testing.assert_allclose(alibi_slopes(1), [2**-8])


def test_alibi_by_hand(rng, tmp_path):
    x = normal(rng, 2, 2, 3, 4)
    bias = numpy_of(ALiBi()(x))
    distance = np.array([[0, 1, 2], [1, 0, 1], [2, 1, 0]])
    for head, slope in enumerate((1 / 16, 1 / 256)):
        np.testing.assert_allclose(bias[1, head], -slope * distance)
    check_layer(ALiBi, x, tmp_path)


# T5


def test_t5_buckets_by_hand():
    def buckets(distances, **arguments):
        return numpy_of(relative_bucket(ops.convert_to_tensor(distances, "int32"), **arguments)).tolist()

    causal = {"bidirectional": False, "num_buckets": 8, "max_distance": 16}
    # Four exact buckets, then 4 + floor(4 log(d / 4) / log 4): 4 and 5 in bucket 4, 6 and 7 in 5,
    # 8 to 11 in 6, and from 12 on in 7; the future in 0.
    assert buckets([0, -1, -2, -3], **causal) == [0, 1, 2, 3]
    assert buckets([-4, -5, -6, -7, -9, -11, -12, -15, -1000], **causal) == [4, 4, 5, 5, 6, 6, 7, 7, 7]
    assert buckets([1, 5], **causal) == [0, 0]
    both = {"bidirectional": True, "num_buckets": 8, "max_distance": 16}
    # Two exact a side, then 2 + floor(2 log(d / 2) / log 8): bucket 3 from 6 on; the future 4 higher.
    assert buckets([0, -1, -2, -5, -6, -100], **both) == [0, 1, 2, 2, 3, 3]
    assert buckets([1, 2, 5, 6, 100], **both) == [5, 6, 6, 7, 7]


def test_t5_buckets_of_the_original_size():
    """The first distance of each far bucket, with 32 buckets to 128, as in T5's causal attention."""
    distances = -np.arange(200)
    buckets = numpy_of(
        relative_bucket(ops.convert_to_tensor(distances, "int32"), False, num_buckets=32, max_distance=128)
    )
    exact = 16 + np.log(np.arange(16, 200) / 16) / np.log(128 / 16) * 16
    # Off the borders, where rounding decides.
    inside = np.abs(exact - np.round(exact)) > 1e-4
    np.testing.assert_array_equal(buckets[:16], np.arange(16))
    np.testing.assert_array_equal(buckets[16:][inside], np.minimum(exact.astype(int), 31)[inside])


def test_t5_bias_as_every_layer(rng, tmp_path):
    x = normal(rng, 2, 2, 5, 4)
    layer = check_layer(lambda **k: RelativePositionBias(4, 4, **k), x, tmp_path)
    bias, table = numpy_of(layer(x)), numpy_of(layer.embeddings)
    # Two steps back and further are bucket 1 of the past; two ahead and further bucket 3.
    for head in range(2):
        assert bias[0, head, 3, 3] == table[0, head]
        assert bias[0, head, 4, 0] == bias[0, head, 3, 1] == table[1, head]
        assert bias[0, head, 0, 4] == table[3, head]
    with pytest.raises(ValueError, match="must be at least 4"):
        RelativePositionBias(3)


def test_t5_bias_is_shared_by_layers(rng):
    shared = RelativePositionBias(4, 4)
    inputs = keras.Input((3, 8))
    x = MultiHeadAttention(2, 4, position=shared)(inputs, inputs)
    x = MultiHeadAttention(2, 4, position=shared)(x, x)
    model = keras.Model(inputs, x)
    assert sum(w.name == "embeddings" for w in model.weights) == 1


# Shaw


def test_shaw_attention_by_hand(rng):
    layer = MultiHeadAttention(2, 4, position=ShawRelativePosition(1))
    x = normal(rng, 1, 4, 8)
    output, weights = layer(x, x, return_attention_scores=True)
    query, key, value = (
        numpy_of(dense(x))[0] for dense in (layer.query_dense, layer.key_dense, layer.value_dense)
    )
    keys, values = (numpy_of(w) for w in layer.position.weights)
    heads = np.zeros((1, 4, 2, 4), "float32")
    for n in range(2):
        for i in range(4):
            near = [np.clip(j - i, -1, 1) + 1 for j in range(4)]
            scores = np.array([query[i, n] @ (key[j, n] + keys[near[j]]) / 2 for j in range(4)])
            p = np.exp(scores) / np.exp(scores).sum()
            np.testing.assert_allclose(numpy_of(weights)[0, n, i], p, rtol=1e-4)
            heads[0, i, n] = sum(p[j] * (value[j, n] + values[near[j]]) for j in range(4))
    close(output, layer.output_dense(heads))


@pytest.mark.parametrize(
    "position",
    [RotaryEmbedding, ALiBi, lambda: RelativePositionBias(8, 16), lambda: ShawRelativePosition(2)],
)
def test_attention_with_positions_as_every_layer(rng, tmp_path, position):
    x = normal(rng, 2, 5, 8)
    check_layer(lambda **k: MultiHeadAttention(2, 4, position=position(), **k), (x, x), tmp_path)


@pytest.mark.parametrize(
    "position",
    [RotaryEmbedding, ALiBi, lambda: RelativePositionBias(8, 16), lambda: ShawRelativePosition(2)],
)
def test_positions_tell_the_order(rng, position):
    """Without positions, attention does not see the order of the keys; with them it does."""
    x = normal(rng, 1, 5, 8)
    mixed = x[:, [0, 3, 1, 2, 4]]
    plain = MultiHeadAttention(2, 4)
    close(plain(x[:, :1], x), plain(x[:, :1], mixed))
    layer = MultiHeadAttention(2, 4, position=position())
    layer(x, x)
    # Far from its small initial values, so that the difference is plain.
    layer.position.set_weights([np.arange(w.size).reshape(w.shape) / 4 for w in layer.position.get_weights()])
    difference = numpy_of(layer(x[:, :1], x)) - numpy_of(layer(x[:, :1], mixed))
    assert np.abs(difference).max() > 1e-3
