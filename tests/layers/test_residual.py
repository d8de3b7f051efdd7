"""Blocks: what they compute, spelled out with Keras' own layers, and how they are put together."""

import keras
import numpy as np
import pytest

import layers
from layers.residual import subsampled_and_padded
from tests.layers.checking import check_layer, numpy_of

K = keras.layers


def image(rng, channels=4):
    return rng.normal(size=(2, 5, 4, channels)).astype("float32")


BLOCKS = {
    "BasicBlock": lambda **k: layers.BasicBlock(6, 2, **k),
    "Bottleneck": lambda **k: layers.Bottleneck(1, 2, shortcut="projection", normalization="group", **k),
    "PreActivationBlock": lambda **k: layers.PreActivationBlock(6, 2, "gelu", shortcut="projection", **k),
    "DenseBlock": lambda **k: layers.DenseBlock(2, 3, dropout_rate=0.1, **k),
    "TransitionBlock": lambda **k: layers.TransitionBlock(**k),
    "InceptionModule": lambda **k: layers.InceptionModule(1, 2, 3, 2, 2, 1, True, "gelu", **k),
    "SqueezeExcite": lambda **k: layers.SqueezeExcite(0.5, activation="tanh", **k),
    "MBConv": lambda **k: layers.MBConv(4, expansion=2, drop_rate=0.2, **k),
}


@pytest.mark.parametrize("name", BLOCKS)
def test_generic_check(name, rng, tmp_path):
    # Half precision is compiled once more for each policy: the layers within have their own checks.
    check_layer(BLOCKS[name], image(rng), tmp_path, low_precision=name in ("SqueezeExcite", "BasicBlock"))


def spelled_out(block, build, rng, channels=4, **call):
    """The block's outputs, and those of the same expression in Keras' layers with the block's weights."""
    inputs = image(rng, channels)
    block(inputs)
    block.set_weights([np.abs(rng.normal(size=w.shape)) + 0.1 for w in block.get_weights()])
    symbol = keras.Input(inputs.shape[1:])
    model = keras.Model(symbol, build(symbol))
    assert [w.shape for w in model.weights] == [w.shape for w in block.weights]
    model.set_weights(block.get_weights())
    np.testing.assert_allclose(
        numpy_of(block(inputs, **call)), numpy_of(model(inputs, **call)), rtol=1e-4, atol=1e-4
    )


def conv(filters, size, strides=1, bias=False):
    return K.Conv2D(filters, size, strides, "same", use_bias=bias)


def test_basic_block_is_its_equation(rng):
    def build(x):
        y = K.BatchNormalization()(conv(4, 3)(x))
        y = K.BatchNormalization()(conv(4, 3)(K.ReLU()(y)))
        return K.ReLU()(x + y)

    spelled_out(layers.BasicBlock(4), build, rng)


@pytest.mark.parametrize(
    ("name", "layer", "bias"),
    [
        ("none", K.Identity, True),
        ("layer", K.LayerNormalization, False),
        ("group", lambda: K.GroupNormalization(2), False),
        ("rms", K.RMSNormalization, True),
    ],
)
def test_basic_block_with_another_normalization(name, layer, bias, rng):
    """Six channels make two groups, and a bias stands where the normalization has no offset."""

    def build(x):
        y = layer()(conv(6, 3, bias=bias)(x))
        y = layer()(conv(6, 3, bias=bias)(K.ReLU()(y)))
        return K.ReLU()(x + y)

    spelled_out(layers.BasicBlock(6, normalization=name), build, rng, channels=6)


def test_basic_block_projects_where_the_shape_changes(rng):
    def build(x):
        branch = [conv(6, 3, 2), K.BatchNormalization(), K.ReLU(), conv(6, 3), K.BatchNormalization()]
        y = keras.Sequential(branch)(x)
        return K.ReLU()(y + keras.Sequential([conv(6, 1, 2), K.BatchNormalization()])(x))

    spelled_out(layers.BasicBlock(6, 2, shortcut="projection"), build, rng, training=True)


def test_plain_block_has_no_shortcut(rng):
    def build(x):
        y = K.BatchNormalization()(conv(6, 3, 2)(x))
        return K.ReLU()(K.BatchNormalization()(conv(6, 3)(K.ReLU()(y))))

    spelled_out(layers.BasicBlock(6, 2, shortcut="none"), build, rng)


def test_bottleneck_is_its_equation(rng):
    def build(x):
        y = K.ReLU()(K.BatchNormalization()(conv(1, 1)(x)))
        y = K.ReLU()(K.BatchNormalization()(conv(1, 3)(y)))
        return K.ReLU()(x + K.BatchNormalization()(conv(4, 1)(y)))

    spelled_out(layers.Bottleneck(1), build, rng)


def test_pre_activation_projects_the_activated_input(rng):
    def build(x):
        active = K.ReLU()(K.BatchNormalization()(x))
        y = keras.Sequential([conv(6, 3, 2), K.BatchNormalization(), K.ReLU(), conv(6, 3)])(active)
        return y + keras.Sequential([conv(6, 1, 2)])(active)

    spelled_out(layers.PreActivationBlock(6, 2, shortcut="projection"), build, rng)


def test_dense_block_sees_everything_before(rng):
    def build(x):
        for _ in range(2):
            y = conv(12, 1)(K.ReLU()(K.BatchNormalization()(x)))
            y = conv(3, 3)(K.ReLU()(K.BatchNormalization()(y)))
            x = K.Concatenate()([x, y])
        return x

    spelled_out(layers.DenseBlock(2, 3), build, rng)


def test_transition_halves(rng):
    def build(x):
        return K.AveragePooling2D(2)(conv(2, 1)(K.ReLU()(K.BatchNormalization()(x))))

    spelled_out(layers.TransitionBlock(), build, rng)


def test_inception_joins_four_windows(rng):
    def build(x):
        one = K.ReLU()(conv(1, 1, bias=True)(x))
        three = K.ReLU()(conv(3, 3, bias=True)(K.ReLU()(conv(2, 1, bias=True)(x))))
        five = K.ReLU()(conv(2, 5, bias=True)(K.ReLU()(conv(2, 1, bias=True)(x))))
        pool = K.ReLU()(conv(1, 1, bias=True)(K.MaxPooling2D(3, 1, "same")(x)))
        return K.Concatenate()([one, three, five, pool])

    inputs = image(rng)
    block = layers.InceptionModule(1, 2, 3, 2, 2, 1)
    block(inputs)
    symbol = keras.Input(inputs.shape[1:])
    joined = build(symbol)
    paths = [
        keras.Model(symbol, tensor)
        for tensor in joined._keras_history.operation._inbound_nodes[0].input_tensors
    ]
    outputs = numpy_of(block(inputs))
    start = 0
    for path, ours in zip(paths, block.paths, strict=True):
        path.set_weights([w for step in ours if isinstance(step, keras.Layer) for w in step.get_weights()])
        expected = numpy_of(path(inputs))
        stop = start + expected.shape[-1]
        np.testing.assert_allclose(outputs[..., start:stop], expected, rtol=1e-4, atol=1e-5)
        start = stop
    assert stop == outputs.shape[-1] == 7


def test_squeeze_excite_is_its_equation(rng):
    inputs = image(rng)
    layer = layers.SqueezeExcite(0.5)
    outputs = numpy_of(layer(inputs))
    first, first_bias, second, second_bias = layer.get_weights()
    assert first.shape == (4, 2)
    hidden = np.maximum(inputs.mean((1, 2)) @ first + first_bias, 0)
    scale = 1 / (1 + np.exp(-(hidden @ second + second_bias)))
    np.testing.assert_allclose(outputs, inputs * scale[:, None, None], rtol=1e-4, atol=1e-6)


def test_inverted_residual_is_its_equation(rng):
    def build(x):
        y = K.ReLU(6.0)(K.BatchNormalization()(conv(8, 1)(x)))
        y = K.ReLU(6.0)(K.BatchNormalization()(K.DepthwiseConv2D(3, padding="same", use_bias=False)(y)))
        return x + K.BatchNormalization()(conv(4, 1)(y))

    spelled_out(layers.InvertedResidual(4, expansion=2), build, rng)


def test_mbconv_squeezes_to_a_quarter_of_its_input():
    block = layers.MBConv(8, strides=2, expansion=6, kernel_initializer="ones")
    block.build((None, 6, 6, 8))
    squeeze = next(step for step in block.branch if isinstance(step, layers.SqueezeExcite))
    assert squeeze.squeeze.units == 2
    assert not block.joins and block.compute_output_shape((None, 5, None, 8)) == (None, 3, None, 8)
    first = layers.MBConv(8, expansion=1, kernel_initializer="ones")
    first.build((None, 6, 6, 8))
    assert isinstance(first.branch[0], layers.DepthwiseConv2D)


def test_identity_shortcut_keeps_every_second_pixel_and_pads_channels():
    inputs = np.arange(1.0, 19.0).reshape(1, 3, 3, 2).astype("float32")
    outputs = numpy_of(subsampled_and_padded(keras.ops.convert_to_tensor(inputs), 2, 3))
    assert outputs.shape == (1, 2, 2, 3)
    np.testing.assert_array_equal(outputs[..., :2], inputs[:, ::2, ::2])
    np.testing.assert_array_equal(outputs[..., 2], 0.0)


def test_dropped_branch_leaves_the_shortcut(rng):
    inputs = image(rng)
    block = layers.PreActivationBlock(4, drop_rate=0.0)
    assert np.abs(numpy_of(block(inputs, training=True)) - inputs).max() > 0.1
    block.drop.rate = 1.0
    np.testing.assert_array_equal(numpy_of(block(inputs, training=True)), inputs)
    assert np.abs(numpy_of(block(inputs)) - inputs).max() > 0.1
    assert block.get_config()["drop_rate"] == 1.0


def test_training_reaches_the_normalizations(rng):
    block = layers.DenseBlock(1, 2, bottleneck=0)
    inputs = image(rng) + 3
    block(inputs)
    norm = block.steps[0][0]
    np.testing.assert_array_equal(numpy_of(norm.moving_mean.value), 0.0)
    block(inputs, training=True)
    np.testing.assert_allclose(numpy_of(norm.moving_mean.value), 0.01 * inputs.mean((0, 1, 2)), rtol=1e-4)


def test_a_small_network_learns(rng):
    # Bright top against bright bottom.
    inputs = rng.normal(size=(32, 6, 6, 1)).astype("float32") * 0.3
    labels = np.arange(32) % 2
    inputs[labels == 1, :3] += 1
    inputs[labels == 0, 3:] += 1
    model = keras.Sequential(
        [
            layers.BasicBlock(4),
            layers.MBConv(4, expansion=2),
            layers.GlobalAveragePooling2D(),
            layers.Dense(2),
        ]
    )
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.optimizer.learning_rate = 0.02
    history = model.fit(inputs, labels, epochs=15, batch_size=32, verbose=0).history["loss"]
    assert history[-1] < 0.5 * history[0]


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: layers.BasicBlock(4, shortcut="none at all"), "shortcut"),
        (lambda: layers.BasicBlock(4, normalization="power"), "none, batch, layer, group, rms"),
        (lambda: layers.BasicBlock(2).build((None, 4, 4, 4)), "4 channels to 2"),
        (lambda: layers.TransitionBlock(0.0), "compression"),
        (lambda: layers.SqueezeExcite(0), "ratio"),
    ],
)
def test_clear_errors(make, match):
    with pytest.raises(ValueError, match=match):
        make()
