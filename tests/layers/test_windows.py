"""Convolutions as products against Keras' operations and the definition of the transposed one."""

import itertools

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops

import layers
from layers import windows
from tests.layers.checking import at_once, numpy_of


def drawn(*shape):
    return ops.convert_to_tensor(np.random.default_rng(sum(shape)).normal(size=shape).astype("float32"))


def equal(ours, theirs):
    np.testing.assert_allclose(numpy_of(ours), numpy_of(theirs), atol=2e-5)


GEOMETRY = {
    "size": st.tuples(st.integers(1, 6), st.integers(1, 6)),
    "window": st.tuples(st.integers(1, 5), st.integers(1, 5)),
    "step": st.sampled_from([((1, 1), (1, 1)), ((2, 2), (1, 1)), ((3, 3), (1, 1)), ((1, 1), (2, 3))]),
    "padding": st.sampled_from(["valid", "same"]),
}


def fits(size, window, dilation, padding):
    reach = [d * (k - 1) for k, d in zip(window, dilation, strict=True)]
    return padding == "same" or all(r < length for r, length in zip(reach, size, strict=True))


@settings(max_examples=40, deadline=None)
@given(**GEOMETRY)
def test_products_equal_convolutions(size, window, step, padding):
    (strides, dilation), inputs = step, drawn(2, *size, 4)
    if not fits(size, window, dilation, padding):
        return
    moves = strides, dilation, padding
    options = {"strides": strides, "padding": padding, "dilation_rate": dilation}
    options["data_format"] = "channels_last"

    @at_once
    def both(inputs, kernel, in_groups):
        return [
            (windows.convolved(inputs, kernel, *moves), ops.conv(inputs, kernel, **options)),
            (windows.convolved_each(inputs, kernel, *moves), ops.depthwise_conv(inputs, kernel, **options)),
            (
                windows.convolved_in_groups(inputs, in_groups, *moves, 2),
                ops.conv(inputs, in_groups, **options),
            ),
        ]

    for ours, theirs in both(inputs, drawn(*window, 4, 3), drawn(*window, 2, 6)):
        equal(ours, theirs)


@settings(max_examples=40, deadline=None)
@given(
    size=GEOMETRY["size"],
    window=GEOMETRY["window"],
    strides=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    starts=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    beyond=st.tuples(st.integers(-6, 2), st.integers(-6, 2)),
)
def test_the_transposed_convolution_equals_its_definition(size, window, strides, starts, beyond):
    """Outputs end up to six places before the last that is reached, or less than a step beyond it."""
    axes = zip(size, window, strides, starts, beyond, strict=True)
    lengths = [max(1, s * (n - 1) + k - start + min(more, s - 1)) for n, k, s, start, more in axes]
    inputs, kernel = drawn(2, *size, 3), drawn(*window, 4, 3)
    images, weights = numpy_of(inputs).astype("float64"), numpy_of(kernel)
    whole = np.zeros((2, 60, 60, 4))
    for place in itertools.product(*map(range, size)):
        for k in itertools.product(*map(range, window)):
            row, column = (p * s + offset for p, s, offset in zip(place, strides, k, strict=True))
            whole[:, row, column] += images[:, *place] @ weights[k].T
    rows, columns = (slice(start, start + n) for start, n in zip(starts, lengths, strict=True))
    outputs = at_once(lambda *parts: windows.transposed(*parts, strides, starts, lengths))(inputs, kernel)
    equal(outputs, whole[:, rows, columns])


@pytest.mark.skipif(keras.backend.backend() != "jax", reason="the others have one way")
def test_the_layer_is_the_same_either_way(monkeypatch):
    moves = [{}, {"strides": 2}, {"padding": "same"}, {"strides": 3, "padding": "same"}]
    for move, extra, window in itertools.product(moves, (None, 0, 1), ((2, 3), (4, 1), (5, 5))):
        if extra == 1 and "strides" not in move:  # output_padding is less than strides
            continue
        layer = layers.Conv2DTranspose(2, window, output_padding=extra, **move)
        inputs = drawn(2, 4, 3, 3)
        layer.build(inputs.shape)
        ways = []
        for products in (True, False):
            monkeypatch.setattr(windows, "on_cpu", lambda *names, found=products: found and "jax" in names)
            ways.append(at_once(lambda x, layer=layer: layer(x))(inputs))  # a new function is traced anew
        equal(*ways)


def test_a_gpu_has_convolutions_of_its_own(monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    for devices, expected in ((["cpu:0"], True), (["gpu:0", "cpu:0"], False)):
        monkeypatch.setattr(keras.distribution, "list_devices", lambda found=devices: found)
        assert windows.on_cpu.__wrapped__("jax") is expected
    assert not windows.on_cpu.__wrapped__("tensorflow")
