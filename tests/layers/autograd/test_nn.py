"""Layers, initializers and losses: weights, statistics, and a network that learns."""

import math

import numpy as np
import pytest

from layers.autograd import Tensor, check_gradients, grad, nn, optim

pytestmark = pytest.mark.once


def test_weights_in_the_order_of_keras():
    expected = {
        nn.Dense(4): ["kernel", "bias"],
        nn.LSTM(4): ["kernel", "recurrent_kernel", "bias"],
        nn.LayerNormalization(): ["gamma", "beta"],
        nn.BatchNormalization(): ["gamma", "beta", "moving_mean", "moving_variance"],
    }
    for layer, names in expected.items():
        layer(np.ones((2, 3, 5), np.float32))
        assert [w.name for w in layer.weights] == names
    assert len(layer.trainable_weights) == 2  # the moving statistics are not trained


def test_paths_of_nested_weights():
    model = nn.Sequential([nn.Dense(3), nn.Sequential([nn.Dense(2, use_bias=False)])])
    model(np.ones((1, 4), np.float32))
    assert [path for path, _ in model.named_weights()] == [
        "0/kernel",
        "0/bias",
        "1/0/kernel",
    ]


def test_set_weights_round_trip_and_its_errors():
    a, b = nn.Dense(3, rng=0), nn.Dense(3, rng=1)
    x = np.ones((2, 4), np.float32)
    with pytest.raises(ValueError, match="2 arrays for 0 weights; call the layer once"):
        b.set_weights([np.ones((4, 3)), np.ones(3)])
    a(x), b(x)
    b.set_weights(a.get_weights())
    np.testing.assert_array_equal(a(x).data, b(x).data)
    with pytest.raises(ValueError, match=r"kernel: .*\(3, 4\) to shape \(4, 3\)"):
        b.set_weights([np.ones((3, 4)), np.ones(3)])


def test_zero_grad_forgets():
    layer = nn.Dense(2)
    layer(np.ones((1, 3), np.float32)).sum().backward()
    assert layer.kernel.grad is not None
    layer.zero_grad()
    assert layer.kernel.grad is None


def test_same_seed_same_model():
    def weights(seed):
        rng = np.random.default_rng(seed)
        model = nn.Sequential([nn.Dense(3, rng=rng), nn.Dense(2, rng=rng)])
        model(np.ones((1, 4), np.float32))
        return model.get_weights()

    for a, b, c in zip(weights(0), weights(0), weights(1), strict=True):
        np.testing.assert_array_equal(a, b)
        assert a.ndim == 1 or not np.array_equal(a, c)


LAYERS = {
    "dense": (lambda: nn.Dense(3, "tanh", rng=0, dtype="float64"), (2, 4)),
    "conv2d": (lambda: nn.Conv2D(2, 3, strides=2, padding="same", rng=0, dtype="float64"), (1, 5, 4, 2)),
    "dilated conv2d": (lambda: nn.Conv2D(2, 2, dilation_rate=2, rng=0, dtype="float64"), (1, 5, 4, 1)),
    "batch norm": (lambda: nn.BatchNormalization(dtype="float64"), (4, 3)),
    "layer norm": (lambda: nn.LayerNormalization(dtype="float64"), (2, 3, 4)),
    "group norm": (lambda: nn.GroupNormalization(2, dtype="float64"), (2, 3, 2, 4)),
    "rnn": (lambda: nn.SimpleRNN(3, return_sequences=True, rng=0, dtype="float64"), (2, 3, 2)),
    "lstm": (lambda: nn.LSTM(3, rng=0, dtype="float64"), (2, 3, 2)),
    "gru": (lambda: nn.GRU(3, rng=0, dtype="float64"), (2, 3, 2)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_gradients_of_a_layer_against_finite_differences(name):
    make, shape = LAYERS[name]
    layer = make()
    x = np.random.default_rng(0).normal(size=shape)
    layer(x)
    trainable = layer.trainable_weights

    def function(inputs, *values):
        for weight, value in zip(trainable, values, strict=True):
            replace(layer, weight.name, value)
        return layer(inputs, training=True)

    check_gradients(function, x, *[w.data for w in trainable], tolerance=1e-6)


def replace(layer, name, value):
    setattr(layer, name, value)


def test_attention_gradients_against_finite_differences():
    layer = nn.MultiHeadAttention(2, 3, value_dim=2, rng=0, dtype="float64")
    rng = np.random.default_rng(0)
    query, value = rng.normal(size=(2, 3, 4)), rng.normal(size=(2, 5, 3))
    check_gradients(lambda q, v: layer(q, v), query, value)


def test_attention_sees_neither_future_nor_masked_places():
    layer = nn.MultiHeadAttention(2, 3, rng=0, dtype="float64")
    x = Tensor(np.random.default_rng(0).normal(size=(1, 4, 6)), requires_grad=True)
    y = layer(x, x, use_causal_mask=True)
    reach = np.abs(grad(y[:, 1].sum(), x, retain_graph=True).data).sum(axis=(0, 2))
    assert (reach[:2] > 0).all() and (reach[2:] == 0).all()
    _, weights = layer(
        x, x, attention_mask=np.array([[[1, 0, 1, 0]] * 4], bool), return_attention_scores=True
    )
    np.testing.assert_array_equal(weights.data[..., [1, 3]], 0)
    np.testing.assert_allclose(weights.data.sum(-1), 1)


@pytest.mark.parametrize("make", [nn.SimpleRNN, nn.LSTM, nn.GRU])
def test_padding_does_not_change_a_recurrent_layer(make):
    layer = make(3, rng=0)
    x = np.random.default_rng(0).normal(size=(2, 5, 2)).astype("float32")
    short = layer(x[:, :3]).data
    padded = layer(x, mask=np.array([[1, 1, 1, 0, 0]] * 2)).data
    np.testing.assert_array_equal(short, padded)


def test_state_handed_on_continues_the_sequence():
    layer = nn.LSTM(3, return_state=True, rng=0)
    x = np.random.default_rng(0).normal(size=(2, 6, 2)).astype("float32")
    whole, *_ = layer(x)
    _, h, c = layer(x[:, :4])
    rest, *_ = layer(x[:, 4:], initial_state=[h, c])
    np.testing.assert_allclose(whole.data, rest.data, rtol=1e-6)


def test_dropout():
    layer = nn.Dropout(0.25, rng=0)
    x = np.ones((200, 200), np.float32)
    y = layer(x, training=True).data
    assert set(np.unique(y)) == {np.float32(0), np.float32(1 / 0.75)}
    assert y.mean() == pytest.approx(1, abs=0.02)  # 40,000 draws: three deviations are 0.009
    np.testing.assert_array_equal(layer(x).data, x)
    with pytest.raises(ValueError, match="rate"):
        nn.Dropout(1.0)


def test_embedding_adds_the_gradients_of_repeats():
    layer = nn.Embedding(5, 2, rng=0)
    layer(np.array([[1, 3, 1]])).sum().backward()
    np.testing.assert_array_equal(layer.embeddings.grad.data[:, 0], [0, 2, 0, 1, 0])
    with pytest.raises(IndexError, match=r"1..5 for 5 rows"):
        layer(np.array([1, 5]))
    with pytest.raises(TypeError, match="float64"):
        layer(np.array([1.0]))


def test_batch_normalization_keeps_moving_averages():
    layer = nn.BatchNormalization(momentum=0.9, dtype="float64")
    x = np.array([[1.0], [3.0]])
    y = layer(x, training=True)
    np.testing.assert_allclose(y.data.ravel(), np.array([-1, 1]) / math.sqrt(1 + 1e-3))
    np.testing.assert_allclose(layer.moving_mean.data, 0.1 * 2)
    np.testing.assert_allclose(layer.moving_variance.data, 0.9 * 1 + 0.1 * 1)
    np.testing.assert_allclose(layer(x).data, (x - 0.2) / math.sqrt(1 + 1e-3))


def test_layer_errors():
    layer = nn.Dense(2)
    layer(np.ones((1, 3), np.float32))
    with pytest.raises(ValueError, match=r"Dense: input \(1, 4\) for a kernel of shape \(3, 2\)"):
        layer(np.ones((1, 4), np.float32))
    rnn = nn.GRU(2)
    rnn(np.ones((1, 3, 4), np.float32))
    with pytest.raises(ValueError, match=r"GRU: expected \(N, T, 4\), got shape \(1, 3\)"):
        rnn(np.ones((1, 3), np.float32))
    with pytest.raises(ValueError, match=r"GroupNormalization: 4 groups for input \(1, 6\)"):
        nn.GroupNormalization(4)(np.ones((1, 6)))
    with pytest.raises(ValueError, match="activation 'rellu' is unknown; there are"):
        nn.Dense(2, "rellu")(np.ones((1, 2)))
    with pytest.raises(ValueError, match="initializer 'xavier' is unknown; there are"):
        nn.Dense(2, kernel_initializer="xavier")(np.ones((1, 2)))
    with pytest.raises(ValueError, match=r"MultiHeadAttention: .*\(2, 3\)"):
        nn.MultiHeadAttention(1, 2)(np.ones((2, 3)), np.ones((2, 3)))


VARIANCES = {
    "glorot_uniform": 2 / (200 + 300),
    "glorot_normal": 2 / (200 + 300),
    "he_uniform": 2 / 200,
    "he_normal": 2 / 200,
    "random_uniform": 0.1**2 / 12,
}


@pytest.mark.parametrize("name", VARIANCES)
def test_variance_of_an_initializer(name):
    values = nn.initializers.get(name)((200, 300), np.random.default_rng(0))
    # The variance of 60,000 draws has a relative deviation of at most sqrt(2/60000) = 0.6 %.
    assert values.var() == pytest.approx(VARIANCES[name], rel=0.03)
    assert abs(values.mean()) < 4 * math.sqrt(VARIANCES[name] / values.size)


def test_fans_of_a_convolution():
    values = nn.initializers.he_uniform((5, 5, 8, 16), np.random.default_rng(0))
    assert np.abs(values).max() <= math.sqrt(6 / (5 * 5 * 8))
    assert values.var() == pytest.approx(2 / (5 * 5 * 8), rel=0.1)


@pytest.mark.parametrize("shape", [(5, 3), (3, 5), (2, 2, 3, 4)])
def test_orthogonal(shape):
    q = nn.initializers.orthogonal(shape, np.random.default_rng(0)).reshape(-1, shape[-1])
    product = q.T @ q if q.shape[0] >= q.shape[1] else q @ q.T
    np.testing.assert_allclose(product, np.eye(len(product)), atol=1e-12)


def test_lsuv_gives_every_layer_unit_variance():
    rng = np.random.default_rng(0)
    layers = [nn.Conv2D(6, 3, activation="relu", rng=rng), nn.Flatten()]
    layers += [nn.Dense(30, "relu", rng=rng) for _ in range(4)]
    model = nn.Sequential(layers)
    x = rng.normal(3, 2, (64, 6, 6, 2)).astype("float32")
    nn.initializers.lsuv(model, x, tolerance=0.02)
    y = Tensor(x)
    for layer in model.layers:
        if hasattr(layer, "kernel"):
            assert layer.preactivation(y).data.var() == pytest.approx(1, abs=0.02)
        y = layer(y)


def test_losses_by_numbers():
    losses = nn.losses
    truth, guess = np.array([[1.0, 2.0]]), np.array([[2.0, 0.0]])
    assert losses.mean_squared_error(truth, guess).item() == (1 + 4) / 2
    assert losses.mean_absolute_error(truth, guess).item() == 1.5
    assert losses.huber(truth, guess).item() == (0.5 + (2 - 0.5)) / 2
    assert losses.hinge(np.array([[0.0, 1.0]]), np.array([[0.5, 3.0]])).item() == 1.5 / 2
    p = np.array([[0.8, 0.4]])
    expected = -(math.log(0.8) + math.log(0.6)) / 2
    assert losses.binary_crossentropy(np.array([[1.0, 0.0]]), p).item() == pytest.approx(expected)
    z = np.log(p / (1 - p))
    assert losses.binary_crossentropy(np.array([[1.0, 0.0]]), z, from_logits=True).item() == pytest.approx(
        expected
    )
    q = np.array([[0.2, 0.3, 0.5]])
    for labels in (np.array([2]), np.array([[2]])):
        assert losses.sparse_categorical_crossentropy(labels, q).item() == pytest.approx(-math.log(0.5))
        assert losses.sparse_categorical_crossentropy(
            labels, np.log(q) + 7, from_logits=True
        ).item() == pytest.approx(-math.log(0.5))
    with pytest.raises(ValueError, match=r"huber: truth of shape \(2,\).*\(1, 2\)"):
        losses.huber(truth[0], guess)
    with pytest.raises(ValueError, match=r"labels \(3,\) for predictions \(1, 3\)"):
        losses.sparse_categorical_crossentropy(np.zeros(3, int), q)


def test_losses_of_hopeless_predictions_stay_finite():
    x = Tensor(np.array([[0.0, 1.0]]), requires_grad=True)
    for loss in (nn.losses.binary_crossentropy, nn.losses.categorical_crossentropy):
        value = loss(np.array([[1.0, 0.0]]), x).sum()
        assert np.isfinite(value.item()) and np.isfinite(grad(value, x).data).all()


def test_a_network_solves_xor():
    rng = np.random.default_rng(0)
    model = nn.Sequential([nn.Dense(8, "tanh", rng=rng), nn.Dense(1, rng=rng)])
    x = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], np.float32)
    y = np.array([[0], [1], [1], [0]], np.float32)
    model(x)
    optimizer = optim.Adam(model.trainable_weights, 0.05)
    for _ in range(200):
        optimizer.zero_grad()
        loss = nn.losses.binary_crossentropy(y, model(x), from_logits=True).mean()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05
    np.testing.assert_array_equal(model(x) > 0, y == 1)
