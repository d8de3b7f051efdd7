"""Convolutions against Keras, and against loops that know nothing of either."""

import itertools

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import layers
from layers.convolution import as_tuple, transposed_length, window_count
from tests.layers.checking import assert_parity, check_layer, numpy_of


def image(rng, channels=4, size=(6, 5)):
    return rng.normal(size=(2, *size, channels)).astype("float32")


def same_padding(length, window, stride, dilation):
    """Zeros before and after, as TensorFlow's "same" has them: the odd one goes to the end."""
    count = -(-length // stride)
    total = max((count - 1) * stride + dilation * (window - 1) + 1 - length, 0)
    return total // 2, total - total // 2


def convolve(inputs, kernel, bias, strides=(1, 1), padding="valid", dilation=(1, 1), groups=1):
    """A convolution by its definition: one window, one filter at a time, in float64."""
    batch, *sizes, _ = inputs.shape
    *windows, within, filters = kernel.shape
    if padding == "same":
        widths = [same_padding(*geometry) for geometry in zip(sizes, windows, strides, dilation, strict=True)]
        inputs = np.pad(inputs, [(0, 0), *widths, (0, 0)])
    counts = [
        (size - d * (window - 1) - 1) // stride + 1
        for size, window, stride, d in zip(inputs.shape[1:-1], windows, strides, dilation, strict=True)
    ]
    outputs = np.zeros((batch, *counts, filters))
    for n, i, j, f in itertools.product(range(batch), range(counts[0]), range(counts[1]), range(filters)):
        group = f // (filters // groups)
        for k, m in itertools.product(range(windows[0]), range(windows[1])):
            pixel = inputs[n, i * strides[0] + k * dilation[0], j * strides[1] + m * dilation[1]]
            seen = pixel[group * within : (group + 1) * within].astype("float64")
            outputs[n, i, j, f] += seen @ kernel[k, m, :, f]
    return outputs + bias


CONFIGURATIONS = {
    "plain": {"kernel_size": 3},
    "same": {"kernel_size": (3, 2), "padding": "same", "activation": "tanh"},
    "strided": {"kernel_size": 3, "strides": 2, "padding": "same"},
    "dilated": {"kernel_size": 2, "dilation_rate": (2, 3)},
    "grouped": {"kernel_size": 3, "groups": 2, "padding": "same"},
    "no bias": {"kernel_size": 1, "use_bias": False, "strides": (1, 2)},
}


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_conv2d_equals_keras(name, rng):
    options = CONFIGURATIONS[name]
    assert_parity(layers.Conv2D(4, **options), keras.layers.Conv2D(4, **options), image(rng))


@pytest.mark.parametrize("name", ["plain", "strided", "dilated", "grouped"])
def test_conv2d_equals_its_definition(name, rng):
    options = CONFIGURATIONS[name]
    layer = layers.Conv2D(4, bias_initializer="normal", **options)
    inputs = image(rng)
    outputs = numpy_of(layer(inputs))
    kernel, bias = layer.get_weights()
    expected = convolve(inputs, kernel, bias, layer.strides, layer.padding, layer.dilation_rate, layer.groups)
    np.testing.assert_allclose(outputs, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("size", "options"),
    [
        ((2, 2), {"kernel_size": 3}),
        ((1, 3), {"kernel_size": (5, 2), "strides": (1, 2)}),
        ((2, 3), {"kernel_size": 5, "strides": (2, 2), "groups": 2}),
        ((3, 2), {"kernel_size": (2, 2), "dilation_rate": (4, 3)}),
    ],
)
def test_a_window_larger_than_the_image(size, options, rng):
    ours = layers.Conv2D(4, padding="same", bias_initializer="normal", **options)
    theirs = keras.layers.Conv2D(4, padding="same", **options)
    inputs = image(rng, size=size)
    assert_parity(ours, theirs, inputs)
    expected = convolve(
        inputs,
        *map(numpy_of, ours.weights),
        strides=options.get("strides", (1, 1)),
        padding="same",
        dilation=options.get("dilation_rate", (1, 1)),
        groups=options.get("groups", 1),
    )
    np.testing.assert_allclose(numpy_of(ours(inputs)), expected, atol=1e-5)
    line = inputs[:, 0]
    assert_parity(layers.Conv1D(3, 4, padding="same"), keras.layers.Conv1D(3, 4, padding="same"), line)


def test_conv2d_hand_value():
    layer = layers.Conv2D(1, 2)
    layer.build((None, 3, 3, 1))
    layer.set_weights([np.array([[1.0, 2.0], [3.0, 4.0]]).reshape(2, 2, 1, 1), np.array([10.0])])
    inputs = np.arange(9.0).reshape(1, 3, 3, 1)
    # Top left: 0*1 + 1*2 + 3*3 + 4*4 + 10 = 37; each step right adds 10, each step down 30.
    np.testing.assert_allclose(numpy_of(layer(inputs))[0, :, :, 0], [[37.0, 47.0], [67.0, 77.0]])


CASES = {
    "Conv2D": (lambda m, **k: m.Conv2D(4, 3, padding="same", strides=2, activation="relu", **k), "image"),
    "Conv1D": (lambda m, **k: m.Conv1D(3, 3, padding="causal", dilation_rate=2, **k), "sequence"),
    "DepthwiseConv2D": (lambda m, **k: m.DepthwiseConv2D(3, depth_multiplier=2, **k), "image"),
    "SeparableConv2D": (lambda m, **k: m.SeparableConv2D(3, 3, depth_multiplier=2, **k), "image"),
    "Conv2DTranspose": (lambda m, **k: m.Conv2DTranspose(3, 3, strides=2, padding="same", **k), "image"),
}


@pytest.mark.parametrize("name", CASES)
def test_generic_check_against_the_twin(name, rng, tmp_path):
    make, kind = CASES[name]
    inputs = image(rng) if kind == "image" else rng.normal(size=(2, 7, 4)).astype("float32")
    check_layer(lambda **extra: make(layers, **extra), inputs, tmp_path, twin=lambda: make(keras.layers))


VARIANTS = {
    "Conv1D same strided": lambda m: m.Conv1D(2, 3, strides=2, padding="same"),
    "Conv1D causal strided": lambda m: m.Conv1D(2, 3, strides=2, padding="causal"),
    "Depthwise same": lambda m: m.DepthwiseConv2D(3, padding="same", strides=2, activation="relu"),
    "Separable strided": lambda m: m.SeparableConv2D(3, 3, strides=2, padding="same", use_bias=False),
    "Transpose valid": lambda m: m.Conv2DTranspose(3, 3, strides=2),
    "Transpose output padding": lambda m: m.Conv2DTranspose(2, 3, 2, "same", output_padding=1),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_variants_equal_keras(name, rng):
    make = VARIANTS[name]
    inputs = rng.normal(size=(2, 7, 4)).astype("float32") if "1D" in name else image(rng)
    assert_parity(make(layers), make(keras.layers), inputs)


def test_channels_first_is_channels_last_turned(rng):
    inputs = image(rng)
    last, first = layers.Conv2D(3, 3), layers.Conv2D(3, 3, data_format="channels_first")
    expected = numpy_of(last(inputs))
    assert first.compute_output_shape((2, 4, 6, 5)) == (2, 3, 4, 3)
    if keras.backend.backend() == "tensorflow":
        pytest.skip("TensorFlow has no channels-first convolution on a CPU")
    first.build((2, 4, 6, 5))
    first.set_weights(last.get_weights())
    outputs = numpy_of(first(inputs.transpose(0, 3, 1, 2)))
    np.testing.assert_allclose(outputs.transpose(0, 2, 3, 1), expected, rtol=1e-5, atol=1e-5)


def test_depthwise_and_separable_equal_their_definition(rng):
    inputs = image(rng, channels=2)
    layer = layers.SeparableConv2D(3, 3, depth_multiplier=2, padding="same")
    outputs = numpy_of(layer(inputs))
    each, across, bias = layer.get_weights()
    # A depthwise convolution is a grouped one whose filters are c m + q.
    grouped = convolve(inputs, each.reshape(3, 3, 1, 4), 0, padding="same", groups=2)
    np.testing.assert_allclose(outputs, grouped @ across[0, 0] + bias, rtol=1e-5, atol=1e-5)
    depthwise = layers.DepthwiseConv2D(3, depth_multiplier=2, padding="same", use_bias=False)
    depthwise.build(inputs.shape)
    depthwise.set_weights([each])
    np.testing.assert_allclose(numpy_of(depthwise(inputs)), grouped, rtol=1e-5, atol=1e-5)


def test_transpose_is_the_adjoint_of_the_convolution(rng):
    # <conv(x), y> = <x, conv^T(y)> for the same kernel, without bias.
    x, kernel = image(rng, channels=3, size=(7, 7)), rng.normal(size=(3, 3, 3, 2)).astype("float32")
    forward = layers.Conv2D(2, 3, strides=2, use_bias=False)
    backward = layers.Conv2DTranspose(3, 3, strides=2, use_bias=False)
    forward.build((None, 7, 7, 3))
    backward.build((None, 3, 3, 2))
    forward.set_weights([kernel])
    backward.set_weights([kernel])
    y = rng.normal(size=(2, 3, 3, 2)).astype("float32")
    left = (numpy_of(forward(x)) * y).sum()
    np.testing.assert_allclose(left, (x * numpy_of(backward(y))).sum(), rtol=1e-4)


def test_transpose_hand_value():
    layer = layers.Conv2DTranspose(1, 2, strides=1, use_bias=False)
    layer.build((None, 1, 2, 1))
    layer.set_weights([np.array([[1.0, 2.0], [3.0, 4.0]]).reshape(2, 2, 1, 1)])
    # 5 paints (5, 10; 15, 20) at column 0 and 6 paints (6, 12; 18, 24) at column 1.
    outputs = numpy_of(layer(np.array([5.0, 6.0]).reshape(1, 1, 2, 1)))
    np.testing.assert_allclose(outputs[0, :, :, 0], [[5.0, 16.0, 12.0], [15.0, 38.0, 24.0]])


@pytest.mark.parametrize(
    "make",
    [
        lambda: layers.Conv1D(3, 3, padding="causal", dilation_rate=2),
        lambda: layers.WaveNetBlock(4, kernel_size=3, dilation_rate=2),
    ],
)
def test_the_future_cannot_change_the_past(make, rng):
    layer = make()
    inputs = rng.normal(size=(1, 9, 4)).astype("float32")
    changed = inputs.copy()
    changed[:, 5] += 1.0
    for before, after in zip(
        keras.tree.flatten(numpy_of(layer(inputs))), keras.tree.flatten(numpy_of(layer(changed))), strict=True
    ):
        np.testing.assert_array_equal(before[:, :5], after[:, :5])
        assert np.abs(before[:, 5] - after[:, 5]).max() > 1e-4


def test_wavenet_block_equals_its_equation(rng):
    inputs, condition = (rng.normal(size=s).astype("float32") for s in ((2, 6, 3), (2, 2)))
    block = layers.WaveNetBlock(3, kernel_size=2, dilation_rate=2, skip_filters=4)
    residual, skip = numpy_of(block(inputs, condition))
    gates, gates_bias, outputs, outputs_bias, projection = block.get_weights()
    past = np.concatenate([np.zeros((2, 2, 3)), inputs[:, :-2]], axis=1)
    both = past @ gates[0] + inputs @ gates[1] + gates_bias + (condition @ projection)[:, None]
    z = np.tanh(both[..., :3]) / (1 + np.exp(-both[..., 3:]))
    joined = z @ outputs[0] + outputs_bias
    np.testing.assert_allclose(residual, inputs + joined[..., :3], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(skip, joined[..., 3:], rtol=1e-5, atol=1e-5)


def test_wavenet_block_passes_the_generic_check(rng, tmp_path):
    inputs = rng.normal(size=(2, 6, 4)).astype("float32")
    check_layer(lambda **extra: layers.WaveNetBlock(4, skip_filters=2, **extra), inputs, tmp_path)


def test_unknown_sizes_stay_unknown():
    assert layers.Conv2D(8, 3).compute_output_shape((None, None, 6, 3)) == (None, None, 4, 8)
    assert layers.Conv1D(8, 3, padding="causal").compute_output_shape((None, None, 3)) == (None, None, 8)
    assert layers.Conv2DTranspose(8, 3, 2).compute_output_shape((None, None, 4, 3)) == (None, None, 9, 8)
    sequence = keras.Input((None, 3))
    assert layers.Conv1D(8, 3, padding="causal")(sequence).shape == (None, None, 8)


@pytest.mark.once
@settings(deadline=None, max_examples=200)
@given(
    length=st.integers(1, 30), window=st.integers(1, 5), stride=st.integers(1, 4), dilation=st.integers(1, 3)
)
def test_lengths_by_counting(length, window, stride, dilation):
    reach = dilation * (window - 1) + 1
    starts = [p for p in range(0, length, stride) if p + reach <= length]
    assert max(window_count(length, window, stride, "valid", dilation), 0) == len(starts)
    assert window_count(length, window, stride, "same", dilation) == len(range(0, length, stride))
    # Transposing gives an input length that the convolution maps back to where it came from.
    for padding in ("valid", "same"):
        longer = transposed_length(length, window, stride, padding, None, dilation)
        assert window_count(longer, window, stride, padding, dilation) == length


@pytest.mark.once
@pytest.mark.parametrize(
    ("value", "match"),
    [((1, 2, 3), "tuple of 2"), ("3", "tuple of 2"), ((1, 0), "> 0"), ((1, "a"), "element a")],
)
def test_window_arguments_are_checked(value, match):
    with pytest.raises(ValueError, match=match):
        as_tuple(value, 2, "kernel_size")


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: layers.Conv2D(0, 3), "strictly positive"),
        (lambda: layers.Conv2D(4, 3, groups=0), "positive integer"),
        (lambda: layers.Conv2D(4, 3, groups=3), "evenly divisible"),
        (lambda: layers.Conv2D(4, 0), "kernel_size"),
        (lambda: layers.Conv2D(4, 3, strides=2, dilation_rate=2), "not supported in conjunction"),
        (lambda: layers.Conv2D(4, 3, padding="causal"), "padding"),
        (lambda: layers.Conv2D(4, 3, data_format="last"), "data_format"),
        (lambda: layers.Conv2D(4, 3, groups=2).build((None, 5, 5, 3)), "input channels"),
        (lambda: layers.Conv2D(4, 7).build((None, 5, 5, 3)), "zero or negative"),
        (lambda: layers.DepthwiseConv2D(3, depth_multiplier=0), "depth_multiplier"),
        (lambda: layers.Conv2DTranspose(4, 3, strides=2, output_padding=2), "strictly less"),
        (lambda: layers.WaveNetBlock(4).build((None, 5, 3)), "4 channels"),
        (lambda: layers.Conv2D(4, 3, colour="red"), "Unrecognized keyword"),
    ],
)
def test_clear_errors(make, match):
    with pytest.raises(ValueError, match=match):
        make()
