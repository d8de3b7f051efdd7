"""Feed-forward networks, encoder and decoder blocks."""

import keras
import numpy as np
import pytest

from layers.positional import RotaryEmbedding
from layers.transformer import FeedForward, TransformerDecoderBlock, TransformerEncoderBlock
from tests.layers.checking import check_layer, numpy_of


def normal(rng, *shape):
    return rng.normal(size=shape).astype("float32")


def close(a, b, tolerance=1e-5):
    np.testing.assert_allclose(numpy_of(a), numpy_of(b), rtol=tolerance, atol=tolerance)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def numpy_norm(x, epsilon=1e-5):
    mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + epsilon)


@pytest.mark.parametrize(
    ("activation", "gate"),
    [
        ("glu", sigmoid),
        ("bilinear", lambda x: x),
        ("reglu", lambda x: np.maximum(x, 0)),
        ("swiglu", lambda x: x * sigmoid(x)),
        ("tanh", None),
    ],
)
def test_feed_forward_by_hand(rng, activation, gate):
    x = normal(rng, 2, 3, 4)
    layer = FeedForward(5, activation)
    output = layer(x)
    layer.set_weights([normal(rng, *w.shape) for w in layer.weights])
    output, weights = layer(x), layer.get_weights()
    hidden = x @ weights[0] + weights[1]
    hidden = np.tanh(hidden) if gate is None else gate(hidden) * (x @ weights[2] + weights[3])
    close(output, hidden @ weights[-2] + weights[-1])


def test_feed_forward_geglu_uses_the_exact_gelu(rng):
    layer = FeedForward(3, "geglu", use_bias=False)
    x = normal(rng, 1, 2, 4)
    layer(x)
    first, gate, last = layer.get_weights()
    hidden = numpy_of(keras.ops.gelu(x @ first, approximate=False)) * (x @ gate)
    close(layer(x), hidden @ last)


@pytest.mark.parametrize("activation", ["relu", "swiglu"])
def test_feed_forward_as_every_layer(rng, tmp_path, activation):
    check_layer(lambda **k: FeedForward(5, activation, **k), normal(rng, 2, 3, 4), tmp_path)


@pytest.mark.parametrize("norm_first", [True, False])
def test_encoder_block_is_its_parts(rng, norm_first):
    x = normal(rng, 2, 4, 8)
    block = TransformerEncoderBlock(2, 16, norm_first=norm_first)
    output = block(x)

    def attention(y):
        return numpy_of(block.attention(y, y))

    def network(y):
        return numpy_of(block.feed_forward(y))

    if norm_first:
        middle = x + attention(numpy_norm(x))
        expected = middle + network(numpy_norm(middle))
    else:
        middle = numpy_norm(x + attention(x))
        expected = numpy_norm(middle + network(middle))
    close(output, expected)


ENCODERS = [
    {},
    {
        "norm_first": False,
        "normalization": "rms",
        "activation": "swiglu",
        "num_key_value_heads": 1,
        "use_bias": False,
    },
]


@pytest.mark.parametrize("arguments", ENCODERS, ids=["plain", "grouped"])
def test_encoder_block_as_every_layer(rng, tmp_path, arguments):
    position = RotaryEmbedding() if arguments else None
    check_layer(
        lambda **k: TransformerEncoderBlock(2, 16, position=position, **arguments, **k),
        normal(rng, 2, 3, 8),
        tmp_path,
    )


def test_encoder_block_hides_padding(rng):
    block, x = TransformerEncoderBlock(2, 16), normal(rng, 2, 4, 8)
    mask = np.array([[True, True, True, False]] * 2)
    changed = x.copy()
    changed[:, 3] += 5
    close(block(x, mask=mask)[:, :3], block(changed, mask=mask)[:, :3])
    # An attention mask beside it does not make it forget the padding.
    allowed = np.ones((4, 4), bool)
    one, other = (block(y, inputs_mask=mask, attention_mask=allowed) for y in (x, changed))
    close(one[:, :3], other[:, :3])


@pytest.mark.filterwarnings("error:.*does not support masking")
@pytest.mark.parametrize("normalization", ["layer", "rms"])
def test_encoder_block_takes_and_passes_keras_masks(normalization, rng):
    tokens = np.array([[1, 2, 0], [3, 0, 0]])
    block, table = TransformerEncoderBlock(2, 16, normalization=normalization), normal(rng, 4, 8)
    embed = keras.layers.Embedding(4, 8, mask_zero=True, weights=table)
    output = block(embed(tokens))
    np.testing.assert_array_equal(numpy_of(output._keras_mask), tokens != 0)
    expected = block(table[tokens], mask=tokens != 0)
    close(output[:, 0], expected[:, 0])
    assert np.abs(numpy_of(output[:, 0] - block(table[tokens])[:, 0])).max() > 1e-4


def test_encoder_block_can_be_causal(rng):
    block, x = TransformerEncoderBlock(2, 16), normal(rng, 2, 4, 8)
    changed = x.copy()
    changed[:, 3] += 5
    one, other = (numpy_of(block(y, use_causal_mask=True)) for y in (x, changed))
    np.testing.assert_allclose(one[:, :3], other[:, :3], atol=1e-6)


def test_decoder_block_as_every_layer(rng, tmp_path):
    inputs = (normal(rng, 2, 3, 8), normal(rng, 2, 4, 6))
    check_layer(lambda **k: TransformerDecoderBlock(2, 16, **k), inputs, tmp_path)


def test_decoder_block_alone_as_every_layer(rng, tmp_path):
    check_layer(
        lambda **k: TransformerDecoderBlock(2, 16, cross_attention=False, **k), normal(rng, 2, 3, 8), tmp_path
    )


def test_decoder_block_sees_no_future_and_no_padded_memory(rng):
    block, x, memory = TransformerDecoderBlock(2, 16), normal(rng, 2, 4, 8), normal(rng, 2, 3, 8)
    mask = np.array([[True, True, False]] * 2)
    output = numpy_of(block(x, memory, memory_mask=mask))
    future, padded = x.copy(), memory.copy()
    future[:, 3] += 5
    padded[:, 2] += 5
    close(block(future, memory, memory_mask=mask)[:, :3], output[:, :3])
    close(block(x, padded, memory_mask=mask), output)
    padded[:, 1] += 5
    assert np.abs(numpy_of(block(x, padded, memory_mask=mask)) - output).max() > 1e-3


@pytest.mark.parametrize("norm_first", [True, False])
def test_decoding_with_caches_equals_the_whole_sequence(rng, norm_first):
    block = TransformerDecoderBlock(
        2, 16, num_key_value_heads=1, norm_first=norm_first, position=RotaryEmbedding()
    )
    x, memory = normal(rng, 2, 4, 8), normal(rng, 2, 3, 8)
    whole = numpy_of(block(x, memory))
    memory_cache = block.cross_attention_layer.project_source(memory)
    cache, outputs = block.empty_cache(2, 4), []
    for index in range(4):
        output, cache = block(
            x[:, index : index + 1], cache=cache, cache_update_index=index, memory_cache=memory_cache
        )
        outputs.append(numpy_of(output))
    close(np.concatenate(outputs, axis=1), whole)


def test_blocks_drop_in_training_only(rng):
    x = normal(rng, 2, 4, 8)
    block = TransformerEncoderBlock(2, 16, dropout=0.5, attention_dropout=0.5, seed=0)
    close(block(x), block(x, training=False))
    assert np.abs(numpy_of(block(x, training=True) - block(x))).max() > 1e-2


def test_errors(rng):
    x = normal(rng, 1, 2, 6)
    with pytest.raises(ValueError, match="`normalization` must be one of"):
        TransformerEncoderBlock(2, 16, normalization="batch")
    with pytest.raises(ValueError, match="Give `key_dim`"):
        TransformerEncoderBlock(4, 16)(x)
    with pytest.raises(ValueError, match="takes a `memory` if and only if"):
        TransformerDecoderBlock(2, 16)(x)
    with pytest.raises(ValueError, match="takes a `memory` if and only if"):
        TransformerDecoderBlock(2, 16, cross_attention=False)(x, x)
