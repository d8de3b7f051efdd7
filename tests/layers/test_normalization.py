"""Normalization against Keras, by hand, and twice differentiated."""

import warnings

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import layers
from layers.normalization import spanned
from recipes.engine import gradients
from tests.layers.checking import assert_parity, at_once, check_layer, numpy_of


def image(rng, channels=4):
    return (rng.normal(size=(3, 2, 3, channels)) * 2 + 1).astype("float32")


CASES = {
    "BatchNormalization": lambda m, **k: m.BatchNormalization(**k),
    "LayerNormalization": lambda m, **k: m.LayerNormalization(**k),
    "GroupNormalization": lambda m, **k: m.GroupNormalization(2, **k),
    "RMSNormalization": lambda m, **k: m.RMSNormalization(**k),
}


@pytest.mark.parametrize("name", CASES)
def test_generic_check_against_the_twin(name, rng, tmp_path):
    make = CASES[name]
    check_layer(lambda **extra: make(layers, **extra), image(rng), tmp_path, twin=lambda: make(keras.layers))


VARIANTS = {
    "batch, axis 1": lambda m: m.BatchNormalization(axis=1, epsilon=0.1, center=False),
    "batch, bare": lambda m: m.BatchNormalization(center=False, scale=False),
    "layer, axes": lambda m: m.LayerNormalization(axis=[3, 1], epsilon=0.1),
    "layer, bare": lambda m: m.LayerNormalization(center=False, scale=False),
    "group, axis 1": lambda m: m.GroupNormalization(3, axis=2, scale=False),
    "instance": lambda m: m.GroupNormalization(-1),
    "rms, axes": lambda m: m.RMSNormalization(axis=[2, 3]),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_variants_equal_keras(name, rng):
    make = VARIANTS[name]
    assert_parity(make(layers), make(keras.layers), image(rng))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"axis": 1, "momentum": 0.5},
        {"renorm": True, "renorm_momentum": 0.5, "renorm_clipping": {"rmax": 1.5, "rmin": 0.5, "dmax": 0.3}},
        {"renorm": True, "scale": False, "center": False},
    ],
)
def test_batch_normalization_trains_as_keras(options, rng):
    ours, theirs = layers.BatchNormalization(**options), keras.layers.BatchNormalization(**options)
    inputs = image(rng)
    assert_parity(ours, theirs, inputs, training=True)
    for _ in range(3):
        batch = image(rng)
        first, second = ours(batch, training=True), theirs(batch, training=True)
    np.testing.assert_allclose(numpy_of(first), numpy_of(second), rtol=1e-5, atol=1e-5)
    for mine, other in zip(ours.get_weights(), theirs.get_weights(), strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-5, atol=1e-6)


def test_batch_statistics_by_hand():
    layer = layers.BatchNormalization(momentum=0.75, epsilon=0.0)
    inputs = np.array([[0.0, 10.0], [2.0, 10.0], [4.0, 16.0]])
    outputs = numpy_of(layer(inputs, training=True))
    # Means 2 and 12, variances 8/3 and 8.
    expected = (inputs - [2.0, 12.0]) / np.sqrt([8 / 3, 8.0])
    np.testing.assert_allclose(outputs, expected, rtol=1e-5)
    np.testing.assert_allclose(numpy_of(layer.moving_mean.value), [0.5, 3.0], rtol=1e-6)
    np.testing.assert_allclose(numpy_of(layer.moving_variance.value), [0.75 + 2 / 3, 2.75], rtol=1e-6)
    inference = (inputs - [0.5, 3.0]) / np.sqrt([0.75 + 2 / 3, 2.75])
    np.testing.assert_allclose(numpy_of(layer(inputs)), inference, rtol=1e-5)


def test_frozen_batch_normalization_neither_uses_nor_learns_the_batch(rng):
    layer = layers.BatchNormalization()
    layer(image(rng), training=True)
    layer.trainable = False
    before = layer.get_weights()
    inputs = image(rng)
    np.testing.assert_array_equal(numpy_of(layer(inputs, training=True)), numpy_of(layer(inputs)))
    for old, new in zip(before, layer.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_masked_entries_do_not_enter_the_statistics(rng):
    inputs = rng.normal(size=(3, 4, 2)).astype("float32")
    mask = np.arange(4) < np.array([[4], [2], [1]])
    ours, theirs = layers.BatchNormalization(), keras.layers.BatchNormalization()
    outputs = numpy_of(ours(inputs, training=True, mask=mask))
    np.testing.assert_allclose(
        outputs, numpy_of(theirs(inputs, training=True, mask=mask)), rtol=1e-5, atol=1e-5
    )
    np.testing.assert_allclose(
        numpy_of(ours.moving_mean.value), 0.01 * inputs[mask].mean(0), rtol=1e-4, atol=1e-7
    )
    spoiled = np.where(mask[..., None], inputs, np.nan)
    again = numpy_of(layers.BatchNormalization()(spoiled, training=True, mask=mask))
    np.testing.assert_allclose(again[mask], outputs[mask], rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="one dimension less"):
        ours(inputs, mask=mask[:, 0])


@pytest.mark.parametrize("name", CASES)
def test_second_derivatives(name, rng):
    # Hessian times a direction against differences of gradients. TensorFlow's own layer normalization and
    # moments fail this: they stop the gradient through the mean inside the variance.
    layer = CASES[name](layers)
    inputs = image(rng)
    layer(inputs)
    apply = gradients.functional(layer)
    trainable, state = gradients.variables_of(layer)
    options = {"training": True} if name == "BatchNormalization" else {}
    weight = keras.ops.convert_to_tensor(rng.normal(size=inputs.shape).astype("float32"))

    def loss(x):
        outputs, _ = apply(trainable, state, x, **options)
        return keras.ops.sum(weight * keras.ops.square(outputs))

    slope = at_once(gradients.value_and_grad(loss))
    direction = rng.normal(size=inputs.shape).astype("float32")
    fixed = keras.ops.convert_to_tensor(direction)

    def along(x):
        return keras.ops.sum(slope(x)[1] * fixed)

    tensor = keras.ops.convert_to_tensor(inputs)
    product = numpy_of(gradients.compiled(gradients.value_and_grad(along))(tensor)[1])
    step = 1e-2
    ahead, behind = (
        numpy_of(slope(keras.ops.convert_to_tensor(inputs + sign * step * direction))[1])
        for sign in (1.0, -1.0)
    )
    differences = (ahead - behind) / (2 * step)
    np.testing.assert_allclose(product, differences, rtol=5e-2, atol=2e-2 * np.abs(differences).max())
    assert np.abs(product).max() > 0.1


@pytest.mark.parametrize("name", ["LayerNormalization", "GroupNormalization", "BatchNormalization"])
def test_a_large_mean_does_not_eat_the_digits(name, rng):
    # In float32 the mean of squares less the squared mean would be off by 100 % here.
    inputs = image(rng)
    options = {"training": True} if name == "BatchNormalization" else {}
    centred = numpy_of(CASES[name](layers)(inputs, **options))
    shifted = numpy_of(CASES[name](layers)(inputs + np.float32(4096), **options))
    np.testing.assert_allclose(shifted, centred, atol=5e-3)


def test_group_normalization_by_hand():
    layer = layers.GroupNormalization(2, epsilon=0.0)
    inputs = np.array([[1.0, 3.0, 10.0, 30.0]])
    # Groups (1, 3) and (10, 30): each is mean -+ one deviation.
    np.testing.assert_allclose(numpy_of(layer(inputs)), [[-1.0, 1.0, -1.0, 1.0]], rtol=1e-5)


def test_rms_by_hand():
    outputs = numpy_of(layers.RMSNormalization(epsilon=0.0)(np.array([[3.0, 4.0]])))
    np.testing.assert_allclose(outputs, np.array([[3.0, 4.0]]) / np.sqrt(12.5), rtol=1e-6)


def test_batch_normalization_under_fit(rng):
    model = keras.Sequential([layers.BatchNormalization(momentum=0.5), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    inputs = rng.normal(size=(8, 3)).astype("float32") + 5
    model.fit(inputs, inputs[:, :1], batch_size=8, epochs=6, verbose=0)
    mean = numpy_of(model.layers[0].moving_mean.value)
    # After six steps with momentum 1/2, 1/64 of the start, zero, is left.
    np.testing.assert_allclose(mean, inputs.mean(0) * (1 - 1 / 64), rtol=1e-4)


@pytest.mark.parametrize("name", ["LayerNormalization", "RMSNormalization"])
def test_inputs_of_another_rank(name, rng):
    ours, theirs = (getattr(module, name)() for module in (layers, keras.layers))
    for layer in (ours, theirs):
        layer.build((None, 6, 4))
        layer.set_weights([weight + np.arange(4) for weight in layer.get_weights()])
    for shape in ((3, 4), (2, 3, 5, 4)):
        x = rng.normal(size=shape).astype("float32")
        np.testing.assert_allclose(numpy_of(ours(x)), numpy_of(theirs(x)), atol=1e-5)


def test_weights_over_mixed_axes_are_in_the_order_of_keras(rng):
    x = rng.normal(size=(2, 5, 4)).astype("float32")
    assert_parity(
        layers.LayerNormalization(axis=[1, -1], gamma_initializer="uniform"),
        keras.layers.LayerNormalization(axis=[1, -1], gamma_initializer="uniform"),
        x,
    )


@pytest.mark.once
@settings(deadline=None)
@given(data=st.data(), shape=st.lists(st.integers(1, 5), min_size=1, max_size=5))
def test_spanned_axes(data, shape):
    axes = data.draw(st.lists(st.integers(0, len(shape) - 1), min_size=1, unique=True))
    negative = [axis - len(shape) if data.draw(st.booleans()) else axis for axis in axes]
    sizes = [shape[axis] for axis in negative]
    order, broadcast = spanned(negative, sizes, len(shape))
    assert order == sorted(axes)
    assert np.ones(broadcast).size == np.prod(sizes)
    assert np.broadcast_shapes(tuple(broadcast), tuple(shape)) == tuple(shape)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: layers.BatchNormalization(synchronized=True), "synchronized"),
        (lambda: layers.BatchNormalization(renorm=True, renorm_clipping={"max": 1}), "invalid keys"),
        (lambda: layers.BatchNormalization(renorm=True, renorm_clipping={"rmax": 1, "rmin": 2}), "rmax"),
        (lambda: layers.BatchNormalization(renorm=True, renorm_clipping={"dmax": -1}), "dmax"),
        (lambda: layers.BatchNormalization(axis=3).build((None, 4)), "out of bounds"),
        (lambda: layers.LayerNormalization(axis=[0, 3]).build((None, 4)), "out of bounds"),
        (lambda: layers.GroupNormalization(0), "positive integer"),
        (lambda: layers.GroupNormalization(3).build((None, 4)), "multiple"),
        (lambda: layers.GroupNormalization(8).build((None, 4)), "more than"),
        (lambda: layers.GroupNormalization(2).build((None, None)), "defined dimension"),
    ],
)
def test_clear_errors(make, match):
    with pytest.raises(ValueError, match=match):
        make()


def test_layer_normalization_wants_integer_axes():
    with pytest.raises(TypeError, match="Expected an int"):
        layers.LayerNormalization(axis="last")


@pytest.mark.parametrize("options", [{}, {"axis": [1, 2], "scale": False}])
def test_deprecated_scaling_of_layer_normalization_is_that_of_keras(options):
    x = np.random.default_rng(0).normal(2.0, size=(3, 4, 5)).astype("float32")
    with pytest.warns(UserWarning, match="RMSNormalization"):
        ours = layers.LayerNormalization(rms_scaling=True, **options)
        theirs = keras.layers.LayerNormalization(rms_scaling=True, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Keras' operation warns at each call
        assert_parity(ours, theirs, x)
