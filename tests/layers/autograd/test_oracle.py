"""The NumPy engine as an oracle for the Keras layers: same weights, then same outputs and gradients.

Runs on every backend. The engine shares no line with Keras, its backends or this project's Keras layers:
where outputs and gradients agree, both are right, or wrong in the same way twice.
"""

import keras
import numpy as np
import pytest

import layers
from layers.autograd import Tensor, grad, nn, ops

# name: (the Keras layer, the engine's, shapes of the inputs, arguments of the call)
CASES = {
    "Dense": (
        lambda: layers.Dense(4, activation="gelu"),
        lambda: nn.Dense(4, activation="gelu"),
        [(3, 5)],
        {},
    ),
    "Dense on sequences": (
        lambda: layers.Dense(4, activation="softmax"),
        lambda: nn.Dense(4, activation="softmax"),
        [(2, 3, 5)],
        {},
    ),
    "Conv2D": (lambda: layers.Conv2D(3, (3, 2)), lambda: nn.Conv2D(3, (3, 2)), [(2, 5, 6, 2)], {}),
    "Conv2D, strides and same": (
        lambda: layers.Conv2D(3, 3, strides=2, padding="same", activation="tanh"),
        lambda: nn.Conv2D(3, 3, strides=2, padding="same", activation="tanh"),
        [(2, 5, 6, 2)],
        {},
    ),
    "Conv2D, dilated": (
        lambda: layers.Conv2D(2, 2, dilation_rate=2, use_bias=False),
        lambda: nn.Conv2D(2, 2, dilation_rate=2, use_bias=False),
        [(2, 5, 4, 3)],
        {},
    ),
    "SimpleRNN": (
        lambda: layers.SimpleRNN(3, return_sequences=True),
        lambda: nn.SimpleRNN(3, return_sequences=True),
        [(2, 4, 3)],
        {},
    ),
    "LSTM": (
        lambda: layers.LSTM(3, return_sequences=True),
        lambda: nn.LSTM(3, return_sequences=True),
        [(2, 4, 5)],
        {},
    ),
    "GRU": (
        lambda: layers.GRU(3, return_sequences=True),
        lambda: nn.GRU(3, return_sequences=True),
        [(2, 4, 5)],
        {},
    ),
    "LayerNormalization": (
        lambda: layers.LayerNormalization(),
        lambda: nn.LayerNormalization(),
        [(2, 3, 5)],
        {},
    ),
    "GroupNormalization": (
        lambda: layers.GroupNormalization(2),
        lambda: nn.GroupNormalization(2),
        [(2, 3, 4, 6)],
        {},
    ),
    "BatchNormalization, training": (
        lambda: layers.BatchNormalization(),
        lambda: nn.BatchNormalization(),
        [(4, 3, 5)],
        {"training": True},
    ),
    "BatchNormalization, inference": (
        lambda: layers.BatchNormalization(),
        lambda: nn.BatchNormalization(),
        [(4, 3, 5)],
        {"training": False},
    ),
    "MultiHeadAttention": (
        lambda: layers.MultiHeadAttention(2, 3, value_dim=4),
        lambda: nn.MultiHeadAttention(2, 3, value_dim=4),
        [(2, 3, 5), (2, 4, 6)],
        {},
    ),
    "MultiHeadAttention, causal": (
        lambda: layers.MultiHeadAttention(2, 3),
        lambda: nn.MultiHeadAttention(2, 3),
        [(2, 4, 5), (2, 4, 5)],
        {"use_causal_mask": True},
    ),
}


def keras_gradients(layer, inputs, cotangent, call):
    """Outputs, and gradients of sum(cotangent * output) by inputs and trainable weights, on any backend."""
    from recipes.engine import gradients

    apply = gradients.functional(layer)
    trainable, state = gradients.variables_of(layer)

    def scalar(differentiable):
        weights, tensors = differentiable
        outputs, _ = apply(weights, state, *tensors, **call)
        return keras.ops.sum(keras.ops.convert_to_tensor(cotangent) * outputs), outputs

    tensors = [keras.ops.convert_to_tensor(x) for x in inputs]
    # Compiled: op by op, JAX would compile every small operation of every shape by itself.
    derivative = gradients.compiled(gradients.value_and_grad(scalar, has_aux=True))
    (_, outputs), (by_weights, by_inputs) = derivative((trainable, tensors))
    convert = keras.ops.convert_to_numpy
    return convert(outputs), [convert(g) for g in by_weights], [convert(g) for g in by_inputs]


@pytest.mark.parametrize("name", CASES)
def test_layer(name, rng):
    make, make_engine, shapes, call = CASES[name]
    inputs = [rng.normal(size=shape).astype("float32") for shape in shapes]
    layer, engine = make(), make_engine()
    layer(*[keras.ops.convert_to_tensor(x) for x in inputs])
    # Small random values instead of the initial ones: a bias of zero or a gamma of one would hide a mistake.
    values = [rng.uniform(0.2, 0.8, w.shape) * np.sign(rng.normal(size=w.shape)) for w in layer.weights]
    values = [np.abs(v) if "variance" in w.path else v for v, w in zip(values, layer.weights, strict=True)]
    layer.set_weights(values)
    engine(*inputs)
    engine.set_weights(values)

    tensors = [Tensor(x, requires_grad=True) for x in inputs]
    output = engine(*tensors, **call)
    cotangent = rng.normal(size=output.shape).astype("float32")
    recorded = grad(output, [*engine.trainable_weights, *tensors], gradient=cotangent)

    outputs, by_weights, by_inputs = keras_gradients(layer, inputs, cotangent, call)
    assert outputs.shape == output.shape
    np.testing.assert_allclose(outputs, output.data, rtol=1e-5, atol=1e-5)
    named = [*[w.path for w in layer.trainable_weights], *[f"input {i}" for i in range(len(inputs))]]
    for what, keras_gradient, ours in zip(named, [*by_weights, *by_inputs], recorded, strict=True):
        scale = max(1.0, float(np.abs(ours.data).max()))
        np.testing.assert_allclose(keras_gradient, ours.data, rtol=1e-5, atol=1e-5 * scale, err_msg=what)


def test_moving_statistics(rng):
    x = rng.normal(2, 3, (8, 4)).astype("float32")
    layer, engine = layers.BatchNormalization(momentum=0.9), nn.BatchNormalization(momentum=0.9)
    for _ in range(3):
        layer(keras.ops.convert_to_tensor(x), training=True)
        engine(x, training=True)
    for mine, theirs in zip(engine.get_weights(), layer.get_weights(), strict=True):
        np.testing.assert_allclose(theirs, mine, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["SimpleRNN", "LSTM", "GRU"])
def test_masked_sequences(kind, rng):
    x = rng.normal(size=(2, 5, 3)).astype("float32")
    mask = np.array([[1, 1, 1, 0, 0], [1, 0, 1, 1, 0]], bool)
    layer, engine = (
        getattr(layers, kind)(4, return_sequences=True),
        getattr(nn, kind)(4, return_sequences=True),
    )
    layer(keras.ops.convert_to_tensor(x))
    engine(x)
    engine.set_weights(layer.get_weights())
    outputs = layer(keras.ops.convert_to_tensor(x), mask=keras.ops.convert_to_tensor(mask))
    np.testing.assert_allclose(
        keras.ops.convert_to_numpy(outputs), engine(x, mask=mask).data, rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("name", ["relu", "gelu", "softplus", "sigmoid", "tanh", "softmax", "log_softmax"])
def test_activations_of_keras(name, rng):
    x = rng.normal(0, 3, (4, 5)).astype("float32")
    function = getattr(ops, name)
    np.testing.assert_allclose(
        keras.ops.convert_to_numpy(getattr(keras.activations, name)(keras.ops.convert_to_tensor(x))),
        function(Tensor(x)).data,
        rtol=1e-5,
        atol=1e-6,
    )


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("mean_squared_error", {}),
        ("mean_absolute_error", {}),
        ("huber", {"delta": 0.5}),
        ("hinge", {}),
        ("binary_crossentropy", {}),
        ("binary_crossentropy", {"from_logits": True}),
        ("categorical_crossentropy", {}),
        ("categorical_crossentropy", {"from_logits": True}),
        ("sparse_categorical_crossentropy", {}),
        ("sparse_categorical_crossentropy", {"from_logits": True}),
    ],
)
def test_losses_of_keras(name, options, rng):
    guess = rng.uniform(0.05, 0.95, (6, 4)).astype("float32")
    labels = rng.integers(0, 4, 6)
    truth = labels if name.startswith("sparse") else np.eye(4, dtype="float32")[labels]
    expected = getattr(keras.losses, name)(truth, keras.ops.convert_to_tensor(guess), **options)
    ours = getattr(nn.losses, name)(truth, guess, **options)
    np.testing.assert_allclose(keras.ops.convert_to_numpy(expected), ours.data, rtol=1e-5, atol=1e-5)
