"""Activations: values and gradients as Keras', derivatives exact, nothing overflows."""

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from layers import activations
from recipes.engine import gradients

CASES = [
    ("linear", {}),
    ("sigmoid", {}),
    ("tanh", {}),
    ("relu", {}),
    ("relu", {"max_value": 1.5}),
    ("relu", {"negative_slope": 0.1}),
    ("relu", {"negative_slope": 0.1, "max_value": 2.0, "threshold": 0.75}),
    ("leaky_relu", {}),
    ("leaky_relu", {"negative_slope": 0.05}),
    ("elu", {}),
    ("elu", {"alpha": 0.7}),
    ("selu", {}),
    ("gelu", {}),
    ("gelu", {"approximate": True}),
    ("silu", {}),
    ("softplus", {}),
    ("mish", {}),
]
NAMES = sorted({name for name, _ in CASES})
# Both signs, both tails, near zero. Zero itself has its own test: Keras differs there between backends.
# Every test takes 13 points: JAX compiles each operation once for each shape.
POINTS = np.array([-80, -20, -5, -1.3, -0.4, -1e-4, 1e-4, 0.4, 0.8, 1.3, 5, 20, 80], "float32")
EXTREMES = np.array([-np.inf, -1e30, -1e10, -1e4, -100, -1, 0, 1, 100, 1e4, 1e30, np.inf, np.nan], "float32")

elementwise = pytest.mark.parametrize(("name", "arguments"), CASES, ids=lambda x: str(x))


def gradient_of(function, x):
    """The gradient of sum(function(x)), which for an elementwise function is its derivative at each x."""
    total = gradients.value_and_grad(lambda t: keras.ops.sum(function(t)))
    return keras.ops.convert_to_numpy(total(keras.ops.convert_to_tensor(x))[1])


def value_of(function, x):
    return keras.ops.convert_to_numpy(function(keras.ops.convert_to_tensor(x)))


def both(name, arguments, x):
    """Values and gradients at x: ((ours, Keras'), (ours, Keras'))."""
    sides = [getattr(module, name) for module in (activations, keras.activations)]
    return tuple(
        tuple(measure(lambda t, side=side: side(t, **arguments), x) for side in sides)
        for measure in (value_of, gradient_of)
    )


@elementwise
def test_values_and_gradients_equal_keras(name, arguments):
    for ours, theirs in both(name, arguments, POINTS):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


@elementwise
def test_extremes_are_those_of_keras(name, arguments):
    (value, theirs), (mine, oracle) = both(name, arguments, EXTREMES)
    # Where Keras has a number at infinity, the kernels of some processors have none (AVX-512).
    known = ~np.isnan(theirs)
    np.testing.assert_allclose(value[known], theirs[known], rtol=1e-5, atol=1e-6)
    assert np.isnan(value[np.isnan(theirs) & np.isnan(EXTREMES)]).all()
    # At 0 and NaN Keras' gradient is another one on every backend.
    number = np.isfinite(oracle) & ~np.isnan(EXTREMES) & (EXTREMES != 0)
    np.testing.assert_allclose(mine[number], oracle[number], rtol=1e-5, atol=1e-6)
    assert np.isfinite(mine[np.isfinite(oracle)]).all()


@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
def test_extreme_scores_are_those_of_keras(name):
    rows = np.stack([EXTREMES, EXTREMES[::-1], np.zeros_like(EXTREMES)], axis=1)
    mine, oracle = (value_of(getattr(module, name), rows) for module in (activations, keras.activations))
    # A row with an infinite score has no softmax; how much of it becomes NaN depends on the processor.
    undefined = np.isnan(oracle).any(axis=-1)
    np.testing.assert_allclose(mine[~undefined], oracle[~undefined], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(np.isnan(mine).any(axis=-1), undefined)


@elementwise
def test_the_derivative_is_the_gradient(name, arguments):
    function, derivative = getattr(activations, name), activations.derivative(name)
    # 2e-6: autodiff of the tanh form of gelu rounds 1 - tanh^2 to 0 at -5, where the derivative is -1.6e-6.
    np.testing.assert_allclose(
        value_of(lambda x: derivative(x, **arguments), POINTS),
        gradient_of(lambda x: function(x, **arguments), POINTS),
        rtol=2e-5,
        atol=2e-6,
    )


@elementwise
def test_the_derivative_is_the_limit_of_differences(name, arguments):
    """Autodiff and the derivative could share a wrong formula; a difference quotient cannot."""
    function, derivative = getattr(activations, name), activations.derivative(name)
    # Away from the kinks at 0, 0.75, 1.5 and 2, within the range where float32 differences mean something.
    points = np.array([-4, -3, -2, -1.3, -1, -0.4, -0.2, 0.4, 0.6, 1.2, 1.8, 3, 4], "float32")
    step = np.float32(2.0**-7)
    up = value_of(lambda x: function(x, **arguments), points + step)
    down = value_of(lambda x: function(x, **arguments), points - step)
    # Error step^2 f''' / 6 ~ 2e-5 plus rounding 1e-7 / step ~ 3e-5.
    np.testing.assert_allclose(
        value_of(lambda x: derivative(x, **arguments), points), (up - down) / (2 * step), atol=1e-4
    )


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("relu", 0.0),
        ("leaky_relu", 0.2),
        ("elu", 1.0),
        ("selu", 1.0507009873554805 * 1.6732632423543772),
        ("softplus", 0.5),
        ("gelu", 0.5),
        ("silu", 0.5),
        ("mish", 0.6),  # tanh(log 2) = 3/5
    ],
)
def test_the_gradient_at_exactly_zero(name, expected):
    """Dead inputs and zero biases put many pre-activations at exactly 0."""
    zero = np.zeros(13, "float32")
    np.testing.assert_allclose(gradient_of(getattr(activations, name), zero), expected, rtol=1e-6)
    np.testing.assert_allclose(value_of(activations.derivative(name), zero), expected, rtol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_overflows_in_value_or_gradient(name):
    extremes = np.array([-1e18, -1e9, -1e4, -1e3, -104, -89, 0, 89, 104, 1e3, 1e4, 1e9, 1e18], "float32")
    assert np.isfinite(value_of(getattr(activations, name), extremes)).all()
    assert np.isfinite(gradient_of(getattr(activations, name), extremes)).all()
    assert np.isfinite(value_of(activations.derivative(name), extremes)).all()


@pytest.mark.once
@pytest.mark.parametrize("name", [*NAMES, "softmax", "log_softmax"])
def test_lists_are_taken(name):
    value = getattr(activations, name)([1.0, -2.0])
    theirs = getattr(keras.activations, name)(keras.ops.convert_to_tensor([1.0, -2.0]))
    np.testing.assert_allclose(*map(keras.ops.convert_to_numpy, (value, theirs)), rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_nan_is_not_hidden(name):
    assert np.isnan(value_of(getattr(activations, name), np.full(13, np.nan, "float32"))).all()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", NAMES)
def test_half_precision_stays_half_and_close(name, dtype):
    x = np.linspace(-4, 4, 13, dtype="float32")
    result = getattr(activations, name)(keras.ops.cast(x, dtype))
    assert keras.backend.standardize_dtype(result.dtype) == dtype
    result = value_of(lambda t: keras.ops.cast(t, "float32"), result)
    np.testing.assert_allclose(result, value_of(getattr(activations, name), x), rtol=2e-2, atol=1e-2)


@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
@pytest.mark.parametrize("axis", [-1, 0])
def test_softmax_equals_keras(name, axis, rng):
    x = rng.normal(size=(3, 4)).astype("float32") * 10
    weight = keras.ops.convert_to_tensor(rng.normal(size=(3, 4)).astype("float32"))
    ours, theirs = (
        (lambda t, f=getattr(library, name): weight * f(t, axis=axis))
        for library in (activations, keras.activations)
    )
    np.testing.assert_allclose(value_of(ours, x), value_of(theirs, x), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(gradient_of(ours, x), gradient_of(theirs, x), rtol=1e-5, atol=1e-6)


def test_softmax_of_huge_logits():
    x = np.array([[1e4, 1e4 - 1.0, -1e30]], "float32")
    e = np.exp(-1.0)
    np.testing.assert_allclose(
        value_of(activations.softmax, x), [[1 / (1 + e), e / (1 + e), 0]], rtol=1e-6, atol=0
    )
    np.testing.assert_allclose(
        value_of(activations.log_softmax, x)[:, :2], [[-np.log1p(e), -1 - np.log1p(e)]], rtol=1e-6
    )


@settings(max_examples=4, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=0, max_size=3))
def test_any_shape_is_kept(shape):
    x = np.ones(shape, "float32")
    for name in ("relu", "gelu", "softplus"):
        assert value_of(getattr(activations, name), x).shape == tuple(shape)
        assert value_of(activations.derivative(name), x).shape == tuple(shape)


def test_models_with_them_save_load_and_run_symbolically(tmp_path):
    x = inputs = keras.Input((4,))
    for name in [*NAMES, "softmax", "log_softmax"]:
        x = keras.layers.Dense(4, activation=getattr(activations, name))(x)
    model = keras.Model(inputs, x)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    batch = np.linspace(-1, 1, 8, dtype="float32").reshape(2, 4)
    np.testing.assert_array_equal(model.predict_on_batch(batch), loaded.predict_on_batch(batch))
    assert loaded.layers[1].activation is activations.elu


@pytest.mark.once
def test_get_and_derivative_find_by_name():
    assert activations.get("swish") is activations.silu is activations.swish
    assert activations.get(None) is activations.linear
    assert activations.get(np.sin) is np.sin
    serialized = keras.saving.serialize_keras_object(activations.mish)
    assert activations.get(serialized) is activations.mish
    assert activations.derivative(activations.gelu) is activations.gelu_derivative
    assert activations.derivative("swish") is activations.silu_derivative


@pytest.mark.once
def test_errors_name_the_nearest():
    with pytest.raises(ValueError, match=r"'geluu'\. Did you mean 'gelu'"):
        activations.get("geluu")
    with pytest.raises(ValueError, match="Did you mean"):
        activations.get(3)
    with pytest.raises(ValueError, match=r"softmax.*no elementwise derivative"):
        activations.derivative("softmax")
    with pytest.raises(ValueError, match="no elementwise derivative"):
        activations.derivative(keras.activations.relu)
