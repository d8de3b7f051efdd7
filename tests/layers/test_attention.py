"""Scaled dot-product, Keras-compatible and Luong attention, multi-head and grouped attention, the cache."""

import keras
import numpy as np
import pytest
from keras import ops

import layers
from layers.attention import (
    LOWEST_SCORE,
    AdditiveAttention,
    Attention,
    LuongAttention,
    scaled_dot_product_attention,
    softmax,
)
from layers.multi_head_attention import GroupedQueryAttention, HeadProjection, MultiHeadAttention
from layers.positional import ALiBi, RelativePositionBias, RotaryEmbedding, ShawRelativePosition
from recipes.engine import gradients
from tests.layers.checking import assert_parity, check_layer, numpy_of, outputs_and_gradients


def normal(rng, *shape):
    return rng.normal(size=shape).astype("float32")


def close(a, b, tolerance=1e-5):
    np.testing.assert_allclose(numpy_of(a), numpy_of(b), rtol=tolerance, atol=tolerance)


def numpy_softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


# Softmax and scaled dot-product attention


def test_softmax_of_large_and_empty_rows():
    scores = np.array([[1000.0, 1000.0, -1000.0], [-np.inf, 0.0, np.log(3)], [-np.inf] * 3], "float32")
    close(softmax(ops.convert_to_tensor(scores)), [[0.5, 0.5, 0], [0, 0.25, 0.75], [0, 0, 0]])


def test_softmax_gradient_is_finite_in_an_empty_row():
    scores = ops.convert_to_tensor(np.array([[0.0, 1.0], [-np.inf, -np.inf]], "float32"))
    weights = ops.convert_to_tensor(np.array([[1.0, 2.0], [3.0, 4.0]], "float32"))
    _, gradient = gradients.value_and_grad(lambda x: ops.sum(weights * softmax(x)))(scores)
    p = numpy_softmax(np.array([0.0, 1.0]))
    expected = p * (np.array([1.0, 2.0]) - p @ [1.0, 2.0])
    close(gradient, np.stack([expected, [0.0, 0.0]]))


def test_scaled_dot_product_by_hand(rng):
    query, key, value = normal(rng, 2, 3, 4), normal(rng, 2, 5, 4), normal(rng, 2, 5, 6)
    bias, mask = normal(rng, 3, 5), np.tril(np.ones((3, 5), bool), 1)
    scores = np.where(mask, query @ key.swapaxes(-1, -2) / 2 + bias, -np.inf)
    expected = numpy_softmax(scores)
    tensors = [ops.convert_to_tensor(x) for x in (query, key, value)]
    output, weights = scaled_dot_product_attention(*tensors, mask=mask, bias=bias, return_weights=True)
    close(weights, expected)
    close(output, expected @ value)
    # Without weights the division comes after the product with the values: the same output.
    close(scaled_dot_product_attention(*tensors, mask=mask, bias=bias), expected @ value)


def test_a_query_that_may_look_nowhere(rng):
    query, key, value = (ops.convert_to_tensor(normal(rng, 1, 2, 3)) for _ in range(3))
    mask = np.array([[True, True], [False, False]])
    nothing = numpy_of(scaled_dot_product_attention(query, key, value, mask=mask))
    close(nothing[:, 1], np.zeros((1, 3)))
    mean = scaled_dot_product_attention(query, key, value, mask=mask, masked_score=LOWEST_SCORE)
    close(mean[:, 1], numpy_of(value).mean(1))


@pytest.mark.parametrize("groups", [1, 2])
def test_grouped_heads_equal_repeated_keys(rng, groups):
    query = ops.convert_to_tensor(normal(rng, 2, 4, 3, 5))
    key, value = (ops.convert_to_tensor(normal(rng, 2, groups, 6, 5)) for _ in range(2))
    grouped = scaled_dot_product_attention(query, key, value)
    repeated = [ops.repeat(x, 4 // groups, axis=1) for x in (key, value)]
    close(grouped, scaled_dot_product_attention(query, *repeated))


# Attention over unprojected inputs


@pytest.mark.parametrize(
    "arguments",
    [{}, {"use_scale": True}, {"score_mode": "concat"}, {"score_mode": "concat", "use_scale": True}],
    ids=str,
)
def test_attention_equals_keras(rng, arguments):
    inputs = [normal(rng, 2, 3, 4), normal(rng, 2, 5, 4), normal(rng, 2, 5, 4)]
    assert_parity(Attention(**arguments), keras.layers.Attention(**arguments), inputs)
    assert_parity(
        Attention(**arguments),
        keras.layers.Attention(**arguments),
        inputs[:2],
        use_causal_mask=True,
        return_attention_scores=True,
    )


def test_attention_masks_equal_keras(rng):
    inputs = [normal(rng, 2, 3, 4), normal(rng, 2, 5, 4)]
    mask = [np.array([[True, True, False]] * 2), np.array([[True, False, True, True, False]] * 2)]
    for ours, theirs in (
        (Attention(), keras.layers.Attention()),
        (AdditiveAttention(), keras.layers.AdditiveAttention()),
    ):
        assert_parity(ours, theirs, inputs, mask=mask, return_attention_scores=True)
        output = numpy_of(ours(inputs, mask=mask))
        assert np.all(output[:, 2] == 0)
        changed = inputs[1].copy()
        changed[:, [1, 4]] += 10
        close(ours([inputs[0], changed], mask=mask), output)


def test_additive_attention_equals_keras(rng, tmp_path):
    inputs = [normal(rng, 2, 3, 4), normal(rng, 2, 5, 4)]
    check_layer(AdditiveAttention, inputs, tmp_path, twin=keras.layers.AdditiveAttention)
    assert_parity(AdditiveAttention(use_scale=False), keras.layers.AdditiveAttention(use_scale=False), inputs)


def test_attention_as_every_layer(rng, tmp_path):
    inputs = [normal(rng, 2, 3, 4), normal(rng, 2, 5, 4)]
    check_layer(
        lambda **k: Attention(use_scale=True, **k),
        inputs,
        tmp_path,
        twin=lambda: keras.layers.Attention(use_scale=True),
    )


def test_attention_dropout_acts_in_training_only(rng):
    inputs = [normal(rng, 2, 3, 4), normal(rng, 2, 50, 4)]
    layer = Attention(dropout=0.5, seed=1)
    _, kept = layer(inputs, return_attention_scores=True, training=False)
    _, dropped = layer(inputs, return_attention_scores=True, training=True)
    kept, dropped = numpy_of(kept), numpy_of(dropped)
    zero = dropped == 0
    assert 0.3 < zero.mean() < 0.7
    close(dropped[~zero], 2 * kept[~zero])


@pytest.mark.once
def test_attention_errors():
    x = np.zeros((1, 2, 3), "float32")
    with pytest.raises(ValueError, match=r"Expected one of \{'dot', 'concat'\}"):
        Attention(score_mode="cosine")
    with pytest.raises(ValueError, match="must be called on a list"):
        Attention()(x)
    with pytest.raises(ValueError, match="length 2 or 3"):
        Attention()([x] * 4)
    with pytest.raises(ValueError, match="mask must be a list"):
        Attention()([x, x], mask=x)


def luong_scores(layer, query, key):
    """Luong's equation 8, pair by pair."""
    scores = np.zeros((query.shape[1], key.shape[1]))
    for i, q in enumerate(query[0]):
        for j, k in enumerate(key[0]):
            if layer.score_mode == "dot":
                scores[i, j] = q @ k
            elif layer.score_mode == "general":
                scores[i, j] = q @ (numpy_of(layer.kernel).T @ k)
            else:
                hidden = np.tanh(numpy_of(layer.kernel).T @ np.concatenate([q, k]))
                scores[i, j] = hidden @ numpy_of(layer.vector)[:, 0]
    return scores


@pytest.mark.parametrize("score_mode", ["dot", "general", "concat"])
def test_luong_attention_by_hand(rng, score_mode):
    query, value = normal(rng, 1, 3, 4), normal(rng, 1, 5, 4)
    layer = LuongAttention(score_mode, units=6)
    output, weights = layer([query, value], return_attention_scores=True)
    expected = numpy_softmax(luong_scores(layer, query, value))
    close(weights[0], expected)
    close(output[0], expected @ value[0])


@pytest.mark.parametrize("score_mode", ["general", "concat"])
def test_luong_attention_as_every_layer(rng, tmp_path, score_mode):
    # Keys of another width than queries.
    inputs = [normal(rng, 2, 3, 4), normal(rng, 2, 5, 6)]
    check_layer(lambda **k: LuongAttention(score_mode, **k), inputs, tmp_path)


# Multi-head attention

MULTI_HEAD = [
    {},
    {"value_dim": 3, "output_shape": (2, 3), "use_bias": False, "kernel_regularizer": "l2"},
    {"sliding_window": 2, "use_gate": True, "bias_initializer": "ones"},
]


def multi_head(**arguments):
    return MultiHeadAttention(2, 4, **arguments)


def keras_multi_head(**arguments):
    return keras.layers.MultiHeadAttention(2, 4, **arguments)


@pytest.mark.parametrize("arguments", MULTI_HEAD, ids=str)
def test_multi_head_equals_keras(rng, arguments):
    inputs = (normal(rng, 2, 5, 8), normal(rng, 2, 3, 8), normal(rng, 2, 3, 8))
    # With scores: Keras' own layer fails on JAX for a `value_dim` of its own without them.
    assert_parity(
        multi_head(**arguments), keras_multi_head(**arguments), inputs, return_attention_scores=True
    )


def test_multi_head_as_every_layer(rng, tmp_path):
    inputs = (normal(rng, 2, 5, 8), normal(rng, 2, 3, 8))
    check_layer(multi_head, inputs, tmp_path, twin=keras_multi_head)


@pytest.mark.parametrize(
    ("shape", "scores", "causal"),
    [((5, 3), True, True), ((2, 5, 3), False, True), ((2, 2, 5, 3), False, False)],
)
def test_multi_head_masks_equal_keras(rng, shape, scores, causal):
    # One query may look nowhere.
    mask = rng.random(shape) > 0.4
    mask[..., 1, :] = False
    assert_parity(
        multi_head(),
        keras_multi_head(),
        (normal(rng, 2, 5, 8), normal(rng, 2, 3, 8)),
        attention_mask=mask,
        use_causal_mask=causal,
        return_attention_scores=scores,
    )


@pytest.mark.parametrize("scores", [False, True])
def test_multi_head_causal_equals_keras(rng, scores):
    inputs = (normal(rng, 2, 5, 8), normal(rng, 2, 5, 8))
    assert_parity(
        multi_head(), keras_multi_head(), inputs, use_causal_mask=True, return_attention_scores=scores
    )


@pytest.mark.parametrize(
    ("axes", "mask_shape"),
    [
        (None, None),
        (-2, (4, 3)),
        (2, (2, 4, 3)),
        ((2,), (2, 3, 4, 3)),
        ((1, 2), (3, 4, 1, 3)),
        ((1, 2), (2, 3, 4, 3, 3)),
        (1, (3, 3)),
    ],
    ids=str,
)
def test_multi_head_over_other_axes_equals_keras(rng, axes, mask_shape):
    inputs = (normal(rng, 2, 3, 4, 8), normal(rng, 2, 3, 4 if axes == 1 else 3, 8))
    mask = None if mask_shape is None else rng.random(mask_shape) > 0.3
    assert_parity(
        multi_head(attention_axes=axes),
        keras_multi_head(attention_axes=axes),
        inputs,
        attention_mask=mask,
        return_attention_scores=True,
    )


def test_multi_head_takes_keras_masks(rng):
    tokens, source = np.array([[1, 2, 3, 0], [3, 1, 0, 0]]), np.array([[1, 2, 0], [2, 0, 0]])
    embed = keras.layers.Embedding(4, 8, mask_zero=True)
    for layer, twin in (
        (multi_head(), keras_multi_head()),
        (grouped(), keras_grouped()),
    ):
        layer(embed(tokens), embed(source))
        twin(embed(tokens), embed(source))
        layer.set_weights(twin.get_weights())
        for causal in (False, True):
            ours = layer(embed(tokens), embed(source), use_causal_mask=causal)
            close(ours, twin(embed(tokens), embed(source), use_causal_mask=causal))
            np.testing.assert_array_equal(numpy_of(ours._keras_mask), tokens != 0)


def test_padding_cannot_change_the_output(rng):
    query, value = normal(rng, 2, 4, 8), normal(rng, 2, 5, 8)
    mask = np.array([[True] * 3 + [False] * 2] * 2)
    changed = value.copy()
    changed[:, 3:] = 1e4
    for layer in (multi_head(), multi_head(position=RotaryEmbedding()), grouped()):
        for scores in (False, True):
            one, other = (
                layer(query, x, value_mask=mask, return_attention_scores=scores) for x in (value, changed)
            )
            keras.tree.map_structure(close, one, other)


@pytest.mark.parametrize(
    "position", [None, RotaryEmbedding, ALiBi, RelativePositionBias, ShawRelativePosition]
)
def test_the_future_cannot_change_the_past(rng, position):
    layer = multi_head(position=position and position())
    x = normal(rng, 2, 6, 8)
    changed = x.copy()
    changed[:, 4:] += 5
    one, other = (numpy_of(layer(y, y, use_causal_mask=True)) for y in (x, changed))
    np.testing.assert_array_equal(one[:, :4], other[:, :4])
    assert np.abs(one[:, 4:] - other[:, 4:]).max() > 1e-2


def test_multi_head_starts_like_keras():
    """The same seed gives the same weights: fans and the order of the draws agree."""
    weights = []
    for make in (multi_head, keras_multi_head):
        keras.utils.set_random_seed(3)
        layer = make(use_gate=True)
        layer.build((2, 5, 8), (2, 3, 8))
        weights.append(layer.get_weights())
    for ours, theirs in zip(*weights, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_multi_head_reads_weight_files_of_keras(rng, tmp_path):
    x = normal(rng, 2, 5, 8)

    def model(make):
        inputs = keras.Input((5, 8))
        return keras.Model(inputs, make(name="attention")(inputs, inputs))

    theirs, ours = model(keras_multi_head), model(multi_head)
    theirs.save_weights(tmp_path / "keras.weights.h5")
    ours.load_weights(tmp_path / "keras.weights.h5")
    close(ours(x), theirs(x))


def test_multi_head_dropout(rng):
    x = normal(rng, 2, 30, 8)
    layer = multi_head(dropout=0.5, seed=0)
    close(layer(x, x, training=False), layer(x, x))
    assert np.abs(numpy_of(layer(x, x, training=True)) - numpy_of(layer(x, x))).max() > 1e-3
    # The scores are returned as they were before dropout, as in Keras.
    _, scores = layer(x, x, training=True, return_attention_scores=True)
    close(ops.sum(scores, -1), np.ones((2, 2, 30)))


def test_multi_head_low_rank_adaptation(rng):
    x = normal(rng, 2, 5, 8)
    layer = multi_head()
    before = layer(x, x)
    layer.query_dense.enable_lora(2)
    close(layer(x, x), before)
    assert len(layer.trainable_variables) == 9
    assert len(layer.non_trainable_variables) == 1


def test_multi_head_in_fit(rng):
    inputs = keras.Input((None, 8))
    model = keras.Model(inputs, multi_head(dropout=0.1)(inputs, inputs, use_causal_mask=True))
    model.compile("sgd", "mse", jit_compile="auto")
    x = normal(rng, 6, 5, 8)
    history = model.fit(x, x, epochs=2, batch_size=3, verbose=0).history["loss"]
    assert history[1] < history[0]
    # Another length, the same model.
    assert model.predict(x[:, :3], verbose=0).shape == (6, 3, 8)


def test_an_overridden_attention_gets_the_whole_mask(rng):
    """Keras' point of extension: an override knows no `use_causal_mask`, and must not attend to all."""
    seen = {}

    class Recording(MultiHeadAttention):
        def _compute_attention(self, query, key, value, attention_mask=None, training=None):
            seen["mask"] = attention_mask
            return super()._compute_attention(query, key, value, attention_mask, training)

    x = normal(rng, 2, 3, 8)
    layer = Recording(2, 4)
    output = layer(x, x, use_causal_mask=True)
    np.testing.assert_array_equal(numpy_of(seen["mask"])[0], np.tril(np.ones((3, 3), bool)))
    plain = multi_head()
    plain(x, x)
    plain.set_weights(layer.get_weights())
    close(output, plain(x, x, use_causal_mask=True))


@pytest.mark.once
def test_multi_head_errors():
    for bad in (0, -2, 1.5):
        with pytest.raises(ValueError, match="argument `num_heads`"):
            MultiHeadAttention(num_heads=bad, key_dim=4)
        with pytest.raises(ValueError, match="argument `key_dim`"):
            MultiHeadAttention(num_heads=4, key_dim=bad)
        with pytest.raises(ValueError, match="argument `value_dim`"):
            MultiHeadAttention(num_heads=4, key_dim=4, value_dim=bad)
    with pytest.raises(ValueError, match="Invalid `output_shape`"):
        MultiHeadAttention(2, 4, output_shape=8.0)
    with pytest.raises(ValueError, match="`attention_axes` must be"):
        MultiHeadAttention(2, 4, attention_axes="1")
    with pytest.raises(ValueError, match="`sliding_window` must be"):
        MultiHeadAttention(2, 4, sliding_window=0)
    with pytest.raises(ValueError, match="Dropout is not supported when flash"):
        MultiHeadAttention(2, 4, flash_attention=True, dropout=0.1)
    with pytest.raises(ValueError, match="must be equal"):
        multi_head().build((2, 4, 8), (2, 2, 8), (2, 1, 7))
    with pytest.raises(ValueError, match="must be divisible"):
        GroupedQueryAttention(4, 4, 3)
    with pytest.raises(ValueError, match="must be equal"):
        grouped().compute_output_shape((2, 4, 8), (2, 2, 7))
    x = np.zeros((1, 2, 8), "float32")
    with pytest.raises(ValueError, match="Returning attention scores is not supported"):
        multi_head(flash_attention=True)(x, x, return_attention_scores=True)
    with pytest.raises(ValueError, match="none was given"):
        multi_head()(x, x, cache_update_index=0)
    with pytest.raises(ValueError, match="A `position` needs inputs"):
        multi_head(position=ALiBi()).build((2, 3, 4, 8), (2, 3, 4, 8))


def test_symbolic_scores_of_cross_attention():
    query, value = keras.Input((5, 8)), keras.Input((3, 8))
    for layer in (multi_head(), GroupedQueryAttention(4, 2, 1)):
        output, scores = layer(query, value, return_attention_scores=True)
        assert output.shape == (None, 5, 8)
        assert scores.shape == (None, 2, 5, 3)


def test_head_projection_as_every_layer(rng, tmp_path):
    check_layer(lambda **k: HeadProjection((2, 3), 2, **k), normal(rng, 2, 5, 4, 3), tmp_path)


# Grouped-query attention


def grouped(**arguments):
    return GroupedQueryAttention(4, 4, 2, **arguments)


def keras_grouped(**arguments):
    return keras.layers.GroupQueryAttention(4, 4, 2, **arguments)


@pytest.mark.parametrize(
    ("arguments", "call"),
    [
        ({"use_gate": True}, {"use_causal_mask": True}),
        ({"sliding_window": 2, "use_bias": False}, {"return_attention_scores": True}),
    ],
)
def test_grouped_equals_keras(rng, arguments, call):
    inputs = (normal(rng, 2, 5, 8), normal(rng, 2, 5, 8), normal(rng, 2, 5, 8))
    assert_parity(grouped(**arguments), keras_grouped(**arguments), inputs, **call)


def test_grouped_as_every_layer(rng, tmp_path):
    inputs = (normal(rng, 2, 5, 8), normal(rng, 2, 3, 8))
    check_layer(grouped, inputs, tmp_path, twin=keras_grouped)


def test_grouped_with_all_heads_is_multi_head(rng):
    x = normal(rng, 2, 5, 8)
    one, other = GroupedQueryAttention(4, 2, 2), multi_head()
    one(x, x), other(x, x)
    other.set_weights(one.get_weights())
    close(one(x, x), other(x, x))


# The key/value cache


@pytest.mark.parametrize(
    "make",
    [
        multi_head,
        lambda: multi_head(value_dim=3, sliding_window=2),
        grouped,
        lambda: multi_head(position=RotaryEmbedding()),
        lambda: grouped(position=RotaryEmbedding()),
        lambda: multi_head(position=ALiBi()),
        lambda: multi_head(position=RelativePositionBias(8, 16, bidirectional=False)),
        lambda: multi_head(position=ShawRelativePosition(2)),
    ],
)
def test_decoding_with_a_cache_equals_the_whole_sequence(rng, make):
    layer, x = make(), normal(rng, 2, 6, 8)
    whole = numpy_of(layer(x, x, use_causal_mask=True))
    # A longer cache than needed; a prompt of three tokens at once, then one by one.
    cache = layer.empty_cache(2, 8)
    prompt, cache = layer(x[:, :3], x[:, :3], cache=cache, cache_update_index=0)
    outputs = [numpy_of(prompt)]
    for index in range(3, 6):
        token = x[:, index : index + 1]
        output, cache = layer(token, token, cache=cache, cache_update_index=index)
        outputs.append(numpy_of(output))
    close(np.concatenate(outputs, axis=1), whole)


def test_the_cache_remembers_padding(rng):
    layer, x = multi_head(), normal(rng, 2, 5, 8)
    mask = np.array([[False, True, True, True, True], [True] * 5])
    whole = numpy_of(layer(x, x, value_mask=mask, use_causal_mask=True))
    _, cache = layer(
        x[:, :3], x[:, :3], value_mask=mask[:, :3], cache=layer.empty_cache(2, 5), cache_update_index=0
    )
    last, _ = layer(x[:, 3:], x[:, 3:], cache=cache, cache_update_index=3)
    close(last, whole[:, 3:])


def test_decoding_compiles_once_for_all_positions(rng):
    layer, x = multi_head(position=RotaryEmbedding()), normal(rng, 2, 4, 8)
    whole = numpy_of(layer(x, x, use_causal_mask=True))
    trainable, state = gradients.variables_of(layer)
    apply = gradients.functional(layer)
    traces = []

    def step(token, cache, index):
        traces.append(index)
        (output, cache), _ = apply(trainable, state, token, token, cache=cache, cache_update_index=index)
        return output, cache

    compiled = gradients.compiled(step)
    cache = layer.empty_cache(2, 4)
    for index in range(4):
        token = ops.convert_to_tensor(x[:, index : index + 1])
        output, cache = compiled(token, cache, ops.convert_to_tensor(index, "int32"))
        close(output[:, 0], whole[:, index])
    assert len(traces) == (4 if keras.backend.backend() == "torch" else 1)


def test_a_fixed_source_is_projected_once(rng):
    layer, x, source = multi_head(), normal(rng, 2, 3, 8), normal(rng, 2, 5, 8)
    mask = np.array([[True, True, True, False, False]] * 2)
    direct = layer(x, source, value_mask=mask)
    cached = layer(x, x, cache=layer.project_source(source, mask=mask))
    close(cached, direct)


def test_names_are_exported():
    assert layers.MultiHeadAttention is MultiHeadAttention
    assert layers.Attention is Attention


def test_second_order_gradient(rng):
    """A gradient of a gradient is that of finite differences of the first."""
    layer, x = multi_head(), normal(rng, 1, 3, 8)
    layer(x, x)
    weights, state = gradients.variables_of(layer)
    direction = ops.convert_to_tensor(normal(rng, 1, 3, 8))

    def slope(inputs):
        def value(y):
            output, _ = gradients.functional(layer)(weights, state, y, y, return_attention_scores=True)
            return ops.sum(ops.square(output[0]))

        _, first = gradients.value_and_grad(value)(inputs)
        return ops.sum(first * direction)

    tensor = ops.convert_to_tensor(x)
    _, second = gradients.value_and_grad(slope)(tensor)
    step = 1e-2 * normal(rng, 1, 3, 8)
    difference = numpy_of(slope(tensor + step) - slope(tensor - step)) / 2
    np.testing.assert_allclose(np.sum(numpy_of(second) * step), difference, rtol=2e-2)


def test_mixed_precision_stays_finite_for_long_rows():
    """Sums of unnormalised weights would overflow in float16."""
    x = np.full((1, 2000, 4), 50.0, "float16")
    tensors = [ops.convert_to_tensor(x)] * 3
    output = numpy_of(scaled_dot_product_attention(*tensors))
    np.testing.assert_allclose(output.astype("float32"), 50.0, rtol=1e-2)


def test_gradients_of_masked_keys_are_zero(rng):
    mask = np.array([[True, True, False]] * 2)
    inputs = (normal(rng, 2, 4, 8), normal(rng, 2, 3, 8))
    _, _, (_, by_value) = outputs_and_gradients(built(multi_head(), *inputs), inputs, value_mask=mask)
    assert np.all(by_value[:, 2] == 0)
    assert np.all(np.abs(by_value[:, :2]).max(-1) > 0)


def built(layer, *inputs):
    layer(*inputs)
    return layer
