"""Weights of eight and four bits, as Keras stores and uses them."""

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import layers
from layers import float8
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


def assert_reloads(model, inputs, tmp_path):
    model.save(tmp_path / "quantized.keras")
    loaded = keras.saving.load_model(tmp_path / "quantized.keras")
    described = [sorted((w.name, tuple(w.shape), w.dtype) for w in each.weights) for each in (loaded, model)]
    assert described[0] == described[1]
    np.testing.assert_array_equal(numpy_of(loaded(inputs)), numpy_of(model(inputs)))


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


MODES = {
    "int8": ("int8", None),
    "int8, weights alone": ("int8", WEIGHTS_ALONE),
    "int4, columns": ("int4", FOUR_BITS["columns"]),
    "int4, groups of 4": ("int4", FOUR_BITS["groups of 4"]),
    "int4, activations too": ("int4", FOUR_BITS["columns, activations too"]),
    "float8": ("float8", None),
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


@pytest.mark.parametrize(
    "mode", ["int8", "int8, weights alone", "int4, columns", "int4, groups of 4", "int4"]
)
@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize("tie_weights", [False, True])
def test_quantized_reversible_embedding_is_that_of_keras(tie_weights, adapted, mode, tmp_path, rng):
    def make(module):
        layer = module.ReversibleEmbedding(5, 4, tie_weights=tie_weights, logit_soft_cap=2.0, name="table")
        tokens, vectors = keras.Input((3,), dtype="int32"), keras.Input((4,))
        return keras.Model([tokens, vectors], [layer(tokens), layer(vectors, reverse=True)])

    bits, config = MODES.get(mode, (mode, None))
    ours, theirs = make(layers), make(keras.layers)
    ours.set_weights(theirs.get_weights())
    arguments = [TOKENS, rng.normal(size=(2, 4)).astype("float32")]
    exact = numpy_of(ours(arguments))
    for model in (ours, theirs):
        model.quantize(bits, config=config)
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
        np.testing.assert_allclose(mine, full, atol=0.05 if bits == "int8" else 0.3)
    # Files go either way, the change of low rank merged in.
    for source, target in ((ours, theirs), (theirs, ours)):
        source.save_weights(tmp_path / "one.weights.h5")
        target.load_weights(tmp_path / "one.weights.h5")
        for variable in target.weights:
            if variable.dtype == "int8" and bits == "int8":
                assert np.abs(numpy_of(variable.value)).max() == 127
    if adapted and mode in ("int4", "int4, groups of 4"):
        return  # merged anew: groups made of what groups stand for are others
    ours.save(tmp_path / "quantized.keras")
    loaded = keras.saving.load_model(tmp_path / "quantized.keras")
    for again, before in zip(numpy_of(loaded(arguments)), numpy_of(ours(arguments)), strict=True):
        np.testing.assert_allclose(again, before, atol=1e-5)


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
    assert_reloads(ours, inputs, tmp_path)


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


@pytest.mark.parametrize("mode", [*MODES, "int8_from_float32", "int4/4_from_float32", "int4/-1_from_float32"])
@pytest.mark.parametrize("name", ["Dense", "Embedding", "ReversibleEmbedding"])
def test_attributes_are_those_of_keras(name, mode):
    facts = []
    for module in (layers, keras.layers):
        arguments, inputs = ((5,), X) if name == "Dense" else ((5, 4), TOKENS)
        made_so = {"dtype": mode} if "_from_" in mode else {}
        layer = getattr(module, name)(*arguments, **made_so)
        layer(inputs)
        if not made_so and (mode != "float8" or name == "Dense"):
            layer.quantize(MODES[mode][0], config=MODES[mode][1])
        names = {each for each in dir(layer) if not each.startswith("_")}
        facts.append((names, bool(getattr(layer, "inputs_quantizer", None)), layer.dtype_policy))
    assert not facts[1][0] - facts[0][0]
    assert name == "Embedding" or facts[0][1] == facts[1][1]  # Keras' has no such word
    assert facts[0][2] == facts[1][2]


BLOCKS = {
    "feed forward": (lambda: layers.FeedForward(8, "swiglu"), (3, 6)),
    "encoder block": (lambda: layers.TransformerEncoderBlock(2, 8), (3, 6)),
    "decoder block": (
        lambda: layers.TransformerDecoderBlock(2, 8, num_key_value_heads=1, cross_attention=False),
        (3, 6),
    ),
    "nested model": (lambda: keras.Sequential([layers.FeedForward(8), layers.Dense(3)]), (3, 6)),
    "squeeze and excite": (lambda: layers.SqueezeExcite(), (4, 4, 8)),
    "MBConv": (lambda: layers.MBConv(8), (4, 4, 8)),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.once
def test_quantized_block_reloads(name, mode, tmp_path, rng):
    make, shape = BLOCKS[name]
    inputs = rng.normal(size=(2, *shape)).astype("float32")
    model = keras.Sequential([keras.Input(shape), make()])
    model.quantize(MODES[mode][0], config=MODES[mode][1])
    assert any("scale" in weight.name for weight in model.weights)
    assert_reloads(model, inputs, tmp_path)


@keras.saving.register_keras_serializable(package="tests")
class Tower(keras.layers.Layer):
    """A layer of a user's, which says nothing of its parts."""

    def build(self, input_shape):
        self.first, self.second = layers.Dense(5), layers.Dense(3, use_bias=False)
        self.first.build(input_shape)
        self.second.build((*input_shape[:-1], 5))

    def call(self, inputs):
        return self.second(self.first(inputs))


@pytest.mark.parametrize("mode", ["int8", "int4, columns", "int4, groups of 4"])
def test_parts_of_a_layer_that_knows_nothing_reload(mode, tmp_path):
    model = keras.Sequential([keras.Input((6,)), Tower()])
    model.quantize(MODES[mode][0], config=MODES[mode][1])
    assert_reloads(model, X, tmp_path)


@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("training", [False, True])
def test_float8_is_that_of_keras(training, bias, dtype):
    ours, theirs = (m.Dense(5, activation="tanh", use_bias=bias, dtype=dtype) for m in (layers, keras.layers))
    for layer in (ours, theirs):
        layer.build((None, 6))
    ours.set_weights(theirs.get_weights())
    exact = numpy_of(keras.ops.cast(ours(X), "float32"))
    for layer in (ours, theirs):
        layer.quantize("float8")
        assert layer.dtype_policy.name == f"float8_from_{dtype}"
        # Not in use yet: ones and zeros.
        layer.inputs_scale.assign(0.01)
        layer.kernel_amax_history.assign(np.linspace(0, 2, layer.kernel_amax_history.shape[0]))
    described = [[(w.path, w.shape, w.dtype, w.trainable) for w in layer.weights] for layer in (ours, theirs)]
    assert [d[1:] for d in described[0]] == [d[1:] for d in described[1]]
    assert [w.name for w in ours.weights] == [w.name for w in theirs.weights]
    assert [w.overwrite_with_gradient for w in ours.weights] == [
        w.overwrite_with_gradient for w in theirs.weights
    ]
    outputs = [numpy_of(keras.ops.cast(layer(X, training=training), "float32")) for layer in (ours, theirs)]
    np.testing.assert_allclose(*outputs, atol=1e-5 if dtype == "float32" else 1e-2)
    np.testing.assert_allclose(outputs[0], exact, atol=0.1)
    stores = [{}, {}]
    for layer, store in zip((ours, theirs), stores, strict=True):
        layer.save_own_variables(store)
    assert {key: value.shape for key, value in stores[0].items()} == {
        key: value.shape for key, value in stores[1].items()
    }


def float8_model(module):
    inputs = keras.Input((3, 6))
    outputs = module.MultiHeadAttention(2, 3)(inputs, inputs)
    return keras.Model(inputs, module.Dense(2)(outputs))


def test_float8_trains_as_in_keras(rng):
    inputs = rng.normal(size=(8, 3, 6)).astype("float32")
    targets = rng.normal(size=(8, 3, 2)).astype("float32")
    ours, theirs = (float8_model(module) for module in (layers, keras.layers))
    ours.set_weights(theirs.get_weights())
    histories = []
    for model in (ours, theirs):
        model.quantize("float8")
        model.compile(keras.optimizers.SGD(0.1), "mse", jit_compile=keras.backend.backend() == "jax")
        histories.append(model.fit(inputs, targets, epochs=4, batch_size=4, shuffle=False, verbose=0).history)
    assert histories[0]["loss"][-1] < histories[0]["loss"][0]
    np.testing.assert_allclose(histories[0]["loss"], histories[1]["loss"], rtol=1e-3)
    for mine, other in zip(ours.weights, theirs.weights, strict=True):
        assert mine.name == other.name
        if "scale" in mine.name:
            assert 0 < numpy_of(mine.value) < 1  # it has moved
        np.testing.assert_allclose(numpy_of(mine.value), numpy_of(other.value), rtol=2e-2, atol=2e-3)


def test_a_scale_by_hand():
    # Of numbers up to 3: the next history starts with 3; the scale follows the largest so far, 8.
    scale, history = float8.following(
        *map(keras.ops.convert_to_tensor, (np.float32([[-3, 1]]), np.float32(1), np.float32([2, 8, 4]))),
        "float8_e4m3fn",
    )
    np.testing.assert_array_equal(numpy_of(history), [3, 4, 2])
    np.testing.assert_allclose(numpy_of(scale), 8 / 448)
    # In e4m3 there are three bits behind the point: 1.06 is nearer to 1 than to 1.125.
    values = keras.ops.convert_to_tensor(np.float32([1.06, 1.1, 500]))
    np.testing.assert_array_equal(
        numpy_of(
            float8.rounded(values, keras.ops.convert_to_tensor(np.float32(1)), "float8_e4m3fn", "float32")
        ),
        [1, 1.125, 448],
    )


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
    table = layers.Embedding(5, 4)
    table.build()
    with pytest.raises(NotImplementedError, match="int8 or int4 alone"):
        table.quantize("float8")
    samples, tokenizer = ["a"], str.split
    for how in (
        keras.quantizers.GPTQConfig(samples, tokenizer),
        keras.quantizers.AWQConfig(samples, tokenizer),
    ):
        with pytest.raises(NotImplementedError, match="int8 or int4 or float8 alone"):
            dense.quantize(how.mode, config=how)
    np.testing.assert_array_equal(dense.get_weights()[0], kernel)
    larger.build((None, 3))
    with pytest.raises(NotImplementedError, match="quantize"):
        larger.quantize("int8")
