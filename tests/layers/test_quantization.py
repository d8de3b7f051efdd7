"""Weights of eight and four bits, as Keras stores and uses them."""

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import layers
from layers.packing import packed, quantized_by_groups, unpacked
from tests.layers.checking import numpy_of, outputs_and_gradients

X = np.random.default_rng(0).normal(size=(4, 6)).astype("float32")
TOKENS = np.array([[1, 2, 0], [4, 3, 3]], "int32")
WEIGHTS_ALONE = keras.quantizers.Int8QuantizationConfig(activation_quantizer=None)
CASES = {
    "Dense": (lambda m, **k: m.Dense(5, activation="tanh", **k), X),
    "Dense without bias": (lambda m, **k: m.Dense(5, use_bias=False, **k), X),
    "Embedding": (lambda m, **k: m.Embedding(5, 4, **k), TOKENS),
}


def built_twins(name, **options):
    make, inputs = CASES[name]
    ours, theirs = make(layers, **options), make(keras.layers, **options)
    for layer in (ours, theirs):
        layer(inputs)
    if not ours.quantization_mode:  # else zeros, and what says what they mean
        draw = np.random.default_rng(1)
        theirs.set_weights([draw.normal(size=weight.shape) / 2 for weight in theirs.get_weights()])
    ours.set_weights(theirs.get_weights())
    return ours, theirs, inputs


def assert_same(ours, theirs, inputs):
    described = [[(w.name, w.shape, w.dtype, w.trainable) for w in layer.weights] for layer in (ours, theirs)]
    assert described[0] == described[1]
    for mine, other in zip(ours.get_weights(), theirs.get_weights(), strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-6)
    np.testing.assert_allclose(numpy_of(ours(inputs)), numpy_of(theirs(inputs)), atol=1e-5)


@pytest.mark.parametrize("config", [None, WEIGHTS_ALONE], ids=["all", "weights alone"])
@pytest.mark.parametrize("name", CASES)
def test_quantized_layer_is_that_of_keras(name, config):
    ours, theirs, inputs = built_twins(name)
    exact = numpy_of(ours(inputs))
    for layer in (ours, theirs):
        layer.quantize("int8", config=config)
    assert ours.dtype_policy.name == theirs.dtype_policy.name == "int8_from_float32"
    assert_same(ours, theirs, inputs)
    np.testing.assert_allclose(numpy_of(ours(inputs)), exact, atol=0.05)


GROUPS = keras.quantizers.Int4QuantizationConfig
FOUR_BITS = {
    "default": None,
    "groups of 4": GROUPS(block_size=4),
    "columns": GROUPS(block_size=None),
    "columns, activations too": GROUPS(
        block_size=None,
        activation_quantizer=keras.quantizers.AbsMaxQuantizer(axis=-1),
    ),
}


@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize("config", FOUR_BITS)
@pytest.mark.parametrize("name", ["Dense", "Embedding"])
def test_four_bits_are_those_of_keras(name, config, adapted):
    ours, theirs, inputs = built_twins(name)
    exact = numpy_of(ours(inputs))
    for layer in (ours, theirs):
        layer.quantize("int4", config=FOUR_BITS[config])
    np.testing.assert_allclose(numpy_of(ours(inputs)), exact, atol=0.4)
    if adapted:
        for layer in (ours, theirs):
            layer.enable_lora(2, b_initializer="ones")
        for mine, other in zip(ours.trainable_weights, theirs.trainable_weights, strict=True):
            mine.assign(other)
    assert ours.dtype_policy.name == theirs.dtype_policy.name
    assert_same(ours, theirs, inputs)
    matrix = "kernel" if name == "Dense" else "embeddings"
    if not adapted:
        np.testing.assert_array_equal(
            *(numpy_of(keras.ops.convert_to_tensor(getattr(layer, matrix))) for layer in (ours, theirs))
        )
    stores = [{}, {}]
    for layer, store in zip((ours, theirs), stores, strict=True):
        layer.save_own_variables(store)
    assert list(stores[0]) == list(stores[1])
    stored = [
        {index: numpy_of(keras.ops.convert_to_tensor(value)) for index, value in store.items()}
        for store in stores
    ]
    for index, mine in stored[0].items():
        assert mine.dtype == stored[1][index].dtype
        np.testing.assert_allclose(mine, stored[1][index], rtol=1e-5, atol=1e-6)
    for layer in (ours, theirs):
        layer.load_own_variables(stored[1])
    assert_same(ours, theirs, inputs)


@pytest.mark.parametrize("config", FOUR_BITS)
@pytest.mark.parametrize("name", ["Dense", "Embedding"])
def test_model_of_four_bits_reloads(name, config, tmp_path):
    make, inputs = CASES[name]
    model = keras.Sequential([keras.Input(inputs.shape[1:], dtype=inputs.dtype.name), make(layers)])
    model.quantize("int4", config=FOUR_BITS[config])
    model.save(tmp_path / "quantized.keras")
    loaded = keras.saving.load_model(tmp_path / "quantized.keras")
    np.testing.assert_array_equal(numpy_of(loaded(inputs)), numpy_of(model(inputs)))


@pytest.mark.parametrize("name", ["Dense", "Embedding"])
def test_made_of_four_bits(name):
    ours, theirs, inputs = built_twins(name, dtype="int4/4_from_float32")
    assert_same(ours, theirs, inputs)


@pytest.mark.once
@settings(deadline=None)
@given(rows=st.integers(1, 3), width=st.integers(1, 7), data=st.data())
def test_packing(rows, width, data):
    count = rows * width
    values = data.draw(st.lists(st.integers(-8, 7), min_size=count, max_size=count))
    integers = np.array(values, "int8").reshape(rows, width)
    pairs = packed(integers)
    np.testing.assert_array_equal(numpy_of(pairs), numpy_of(keras.quantizers.pack_int4(integers, axis=-1)[0]))
    np.testing.assert_array_equal(numpy_of(unpacked(pairs, width)), integers)


def test_a_group_by_hand():
    # scale (7 + 8) / 15 = 1, zero 8 - 8 = 0;  scale 1.5 / 15 = 0.1, zero 0 - 8
    integers, scale, zero = quantized_by_groups(np.array([[-8.0, 7.0, 0.0, 1.5]]), axis=1, size=2)
    np.testing.assert_array_equal(numpy_of(integers), [[-8, 7, -8, 7]])
    np.testing.assert_allclose(numpy_of(scale), [[1.0, 0.1]], rtol=1e-6)
    np.testing.assert_array_equal(numpy_of(zero), [[0, -8]])


def test_scale_by_hand():
    layer = layers.Dense(2, use_bias=False)
    layer.build((None, 2))
    layer.set_weights([np.array([[1.0, -0.5], [0.3, 0.1]])])
    layer.quantize("int8")
    # Scales 127 / 1 and 127 / 0.5:  0.3 * 127 = 38.1, 0.1 * 254 = 25.4
    np.testing.assert_array_equal(numpy_of(layer.kernel.value), [[127, -127], [38, 25]])
    np.testing.assert_allclose(numpy_of(layer.kernel_scale.value), [127, 254], rtol=1e-6)


@pytest.mark.skipif(
    keras.backend.backend() == "torch", reason="torch.func takes no gradient of Keras' making"
)
def test_gradient_is_that_of_keras():
    ours, theirs, inputs = built_twins("Dense")
    for layer in (ours, theirs):
        layer.quantize("int8")
    pairs = zip(*(outputs_and_gradients(layer, inputs)[1:] for layer in (ours, theirs)), strict=True)
    for mine, other in pairs:
        for one, another in zip(mine, other, strict=True):
            assert np.abs(another).max() > 0
            np.testing.assert_allclose(one, another, atol=1e-5)


@pytest.mark.parametrize("name", ["Dense", "Embedding"])
def test_quantized_then_adapted_is_saved_as_one(name):
    ours, theirs, inputs = built_twins(name)
    for layer in (ours, theirs):
        layer.quantize("int8")
        layer.enable_lora(2, b_initializer="ones")
    for mine, other in zip(ours.trainable_weights, theirs.trainable_weights, strict=True):
        mine.assign(other)
    assert_same(ours, theirs, inputs)
    stores = [{}, {}]
    for layer, store in zip((ours, theirs), stores, strict=True):
        layer.save_own_variables(store)
    assert list(stores[0]) == list(stores[1])
    for index in stores[0]:
        mine, other = (numpy_of(keras.ops.convert_to_tensor(store[index])) for store in stores)
        assert mine.dtype == other.dtype
        np.testing.assert_allclose(mine, other, rtol=1e-5, atol=1e-6)
    # A change of low rank starts from none again, so that the merged weights are all there is.
    stored = {index: numpy_of(keras.ops.convert_to_tensor(value)) for index, value in stores[0].items()}
    for layer in (ours, theirs):
        layer.load_own_variables(stored)
    assert_same(ours, theirs, inputs)


@pytest.mark.parametrize("name", ["Dense", "Embedding"])
def test_quantized_model_reloads(name, tmp_path):
    make, inputs = CASES[name]
    model = keras.Sequential([keras.Input(inputs.shape[1:], dtype=inputs.dtype.name), make(layers)])
    model.quantize("int8")
    assert model.layers[0].quantization_mode == "int8"
    model.save(tmp_path / "quantized.keras")
    loaded = keras.saving.load_model(tmp_path / "quantized.keras")
    np.testing.assert_array_equal(numpy_of(loaded(inputs)), numpy_of(model(inputs)))


@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize("tie_weights", [False, True])
def test_quantized_reversible_embedding_is_that_of_keras(tie_weights, adapted, tmp_path, rng):
    def make(module):
        layer = module.ReversibleEmbedding(5, 4, tie_weights=tie_weights, logit_soft_cap=2.0, name="table")
        tokens, vectors = keras.Input((3,), dtype="int32"), keras.Input((4,))
        return keras.Model([tokens, vectors], [layer(tokens), layer(vectors, reverse=True)])

    ours, theirs = make(layers), make(keras.layers)
    ours.set_weights(theirs.get_weights())
    arguments = [TOKENS, rng.normal(size=(2, 4)).astype("float32")]
    exact = numpy_of(ours(arguments))
    for model in (ours, theirs):
        model.quantize("int8")
        if adapted:
            model.get_layer("table").enable_lora(2)
            model.set_weights(
                [
                    np.full_like(w, 0.01) if "lora" in v.name else w
                    for v, w in zip(model.weights, model.get_weights(), strict=True)
                ]
            )
    described = [[(w.path, w.shape, w.dtype, w.trainable) for w in model.weights] for model in (ours, theirs)]
    assert described[0] == described[1]
    for mine, other, full in zip(numpy_of(ours(arguments)), numpy_of(theirs(arguments)), exact, strict=True):
        np.testing.assert_allclose(mine, other, atol=1e-5)
        np.testing.assert_allclose(mine, full, atol=0.05)
    # Files go either way, the change of low rank merged in.
    for source, target in ((ours, theirs), (theirs, ours)):
        source.save_weights(tmp_path / "one.weights.h5")
        target.load_weights(tmp_path / "one.weights.h5")
        for variable in target.weights:
            if variable.dtype == "int8":
                assert np.abs(numpy_of(variable.value)).max() == 127
    ours.save(tmp_path / "quantized.keras")
    loaded = keras.saving.load_model(tmp_path / "quantized.keras")
    for again, before in zip(numpy_of(loaded(arguments)), numpy_of(ours(arguments)), strict=True):
        np.testing.assert_allclose(again, before, atol=1e-5)  # merged anew


def attention_model(module, **options):
    inputs = keras.Input((3, 6))
    outputs = module.MultiHeadAttention(2, 3, output_shape=5, name="attention", **options)(inputs, inputs)
    return keras.Model(inputs, module.Dense(2, name="dense")(outputs))


@pytest.mark.parametrize(
    ("mode", "config", "use_gate"),
    [
        ("int8", None, True),
        ("int8", WEIGHTS_ALONE, False),
        ("int4", FOUR_BITS["groups of 4"], True),
        ("int4", FOUR_BITS["columns, activations too"], False),
    ],
)
def test_quantized_attention_is_that_of_keras(mode, config, use_gate, rng, tmp_path):
    ours, theirs = (attention_model(module, use_gate=use_gate) for module in (layers, keras.layers))
    ours.set_weights(theirs.get_weights())
    inputs = rng.normal(size=(4, 3, 6)).astype("float32")
    exact = numpy_of(ours(inputs))
    for model in (ours, theirs):
        model.quantize(mode, config=config)
    assert_same(ours, theirs, inputs)
    np.testing.assert_allclose(numpy_of(ours(inputs)), exact, atol=0.05 if mode == "int8" else 0.6)
    # Keras' own model does not come back: the attention's config says nothing of its projections.
    if mode == "int8" and config is None:
        ours.save(tmp_path / "quantized.keras")
        loaded = keras.saving.load_model(tmp_path / "quantized.keras")
        np.testing.assert_array_equal(numpy_of(loaded(inputs)), numpy_of(ours(inputs)))


@pytest.mark.parametrize("mode", ["int8", "int4"])
def test_quantized_projection_then_adapted(mode, rng):
    inputs = rng.normal(size=(4, 3, 6)).astype("float32")
    ours, theirs = (module.MultiHeadAttention(2, 3) for module in (layers, keras.layers))
    for layer in (ours, theirs):
        layer(inputs, inputs)
    ours.set_weights(theirs.get_weights())
    for projection in ("query_dense", "output_dense"):
        stores = []
        for layer in (ours, theirs):
            part = getattr(layer, projection)
            part.quantize(mode)
            part.enable_lora(2, b_initializer="ones")
            part.lora_kernel_a.assign(np.full(part.lora_kernel_a.shape, 0.1))
            stores.append({})
            part.save_own_variables(stores[-1])
        for index in stores[0] | stores[1]:
            mine, other = (numpy_of(keras.ops.convert_to_tensor(store[index])) for store in stores)
            np.testing.assert_allclose(mine, other, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(numpy_of(ours(inputs, inputs)), numpy_of(theirs(inputs, inputs)), atol=1e-5)


def test_quantized_block_reloads(tmp_path, rng):
    inputs = rng.normal(size=(2, 3, 6)).astype("float32")
    model = keras.Sequential([keras.Input((3, 6)), layers.TransformerEncoderBlock(2, 8)])
    model.quantize("int8")
    assert {weight.dtype for weight in model.weights} == {"int8", "float32"}
    model.save(tmp_path / "quantized.keras")
    loaded = keras.saving.load_model(tmp_path / "quantized.keras")
    np.testing.assert_array_equal(numpy_of(loaded(inputs)), numpy_of(model(inputs)))


@pytest.mark.parametrize("name", ["Dense", "Embedding"])
def test_made_quantized(name):
    ours, theirs, inputs = built_twins(name, dtype="int8_from_float32")
    assert_same(ours, theirs, inputs)


def test_what_is_refused():
    class Larger(layers.Dense):
        """What it does with its kernel is its own affair."""

    dense, larger = layers.Dense(2), Larger(2)
    with pytest.raises(ValueError, match="isn't yet built"):
        dense.quantize("int8")
    dense.build((None, 3))
    kernel = dense.get_weights()[0]
    with pytest.raises(NotImplementedError, match="int8 or int4 alone"):
        dense.quantize("float8")
    np.testing.assert_array_equal(dense.get_weights()[0], kernel)
    larger.build((None, 3))
    with pytest.raises(NotImplementedError, match="quantize"):
        larger.quantize("int8")
