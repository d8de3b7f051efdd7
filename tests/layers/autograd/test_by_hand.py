"""The gradients derived on paper equal the recorded ones, in float64."""

import numpy as np
import pytest

from layers.autograd import Tensor, by_hand, grad, nn, ops

pytestmark = pytest.mark.once

TOLERANCE = {"rtol": 1e-10, "atol": 1e-12}


def parameters(layer, x):
    layer(x)
    return layer.weights


def compare(derived, output, cotangent, inputs):
    recorded = grad(output, inputs, gradient=cotangent)
    assert len(derived) == len(recorded)
    for mine, other in zip(derived, recorded, strict=True):
        assert mine.shape == other.shape
        np.testing.assert_allclose(mine, other.data, **TOLERANCE)


def leaf(rng, *shape):
    return Tensor(rng.normal(size=shape), requires_grad=True)


def test_dense(rng):
    x = leaf(rng, 5, 3)
    layer = nn.Dense(4, rng=0, dtype="float64")
    kernel, bias = parameters(layer, x)
    y, kept = by_hand.dense_forward(x.data, kernel.data, bias.data)
    output = layer(x)
    np.testing.assert_allclose(y, output.data, **TOLERANCE)
    dy = rng.normal(size=y.shape)
    compare(by_hand.dense_backward(dy, kept), output, dy, [x, kernel, bias])


@pytest.mark.parametrize("name", ["relu", "gelu"])
def test_activation(rng, name):
    x = leaf(rng, 4, 6)
    y, kept = getattr(by_hand, f"{name}_forward")(x.data)
    output = getattr(ops, name)(x)
    np.testing.assert_allclose(y, output.data, **TOLERANCE)
    dy = rng.normal(size=y.shape)
    compare([getattr(by_hand, f"{name}_backward")(dy, kept)], output, dy, [x])


def test_conv2d(rng):
    x = leaf(rng, 2, 6, 5, 3)
    layer = nn.Conv2D(4, (3, 2), rng=0, dtype="float64")
    kernel, bias = parameters(layer, x)
    y, kept = by_hand.conv2d_forward(x.data, kernel.data, bias.data)
    output = layer(x)
    np.testing.assert_allclose(y, output.data, **TOLERANCE)
    dy = rng.normal(size=y.shape)
    compare(by_hand.conv2d_backward(dy, kept), output, dy, [x, kernel, bias])


@pytest.mark.parametrize("shape", [(2, 4, 6, 3), (2, 5, 7, 3)])
def test_max_pool2d(rng, shape):
    x = leaf(rng, *shape)
    y, kept = by_hand.max_pool2d_forward(x.data, 2)
    output = ops.max_pool2d(x, 2)
    np.testing.assert_array_equal(y, output.data)
    dy = rng.normal(size=y.shape)
    compare([by_hand.max_pool2d_backward(dy, kept)], output, dy, [x])


@pytest.mark.parametrize(
    ("name", "layer"), [("batch_norm", nn.BatchNormalization), ("layer_norm", nn.LayerNormalization)]
)
def test_normalization(rng, name, layer):
    x = leaf(rng, 6, 4)
    layer = layer(dtype="float64")
    gamma, beta = parameters(layer, x)[:2]
    gamma.assign(rng.normal(size=4))
    beta.assign(rng.normal(size=4))
    y, kept = getattr(by_hand, f"{name}_forward")(x.data, gamma.data, beta.data)
    output = layer(x, training=True)
    np.testing.assert_allclose(y, output.data, **TOLERANCE)
    dy = rng.normal(size=y.shape)
    compare(getattr(by_hand, f"{name}_backward")(dy, kept), output, dy, [x, gamma, beta])


def test_softmax_crossentropy(rng):
    logits, labels = leaf(rng, 5, 3), rng.integers(0, 3, 5)
    loss, kept = by_hand.softmax_crossentropy_forward(logits.data, labels)
    recorded = nn.losses.sparse_categorical_crossentropy(labels, logits, from_logits=True).mean()
    assert loss == pytest.approx(recorded.item(), rel=1e-12)
    compare([by_hand.softmax_crossentropy_backward(kept)], recorded, np.ones(()), [logits])


def test_softmax_crossentropy_by_numbers():
    # Two equal logits: p = (1/2, 1/2), loss log 2, gradient (p - onehot) / N.
    loss, kept = by_hand.softmax_crossentropy_forward(np.zeros((1, 2)), np.array([1]))
    assert loss == pytest.approx(np.log(2))
    np.testing.assert_allclose(by_hand.softmax_crossentropy_backward(kept), [[0.5, -0.5]])


STEPS = {"rnn": (nn.SimpleRNN, 1), "lstm": (nn.LSTM, 2), "gru": (nn.GRU, 1)}


@pytest.mark.parametrize("name", STEPS)
def test_one_step(rng, name):
    make, count = STEPS[name]
    layer = make(4, rng=0, dtype="float64")
    x, states = leaf(rng, 3, 2), [leaf(rng, 3, 4) for _ in range(count)]
    weights = parameters(layer, x.data[:, None])
    weights[2].assign(rng.normal(size=weights[2].shape))
    forward, backward = getattr(by_hand, f"{name}_step_forward"), getattr(by_hand, f"{name}_step_backward")
    *after, kept = forward(x.data, *[s.data for s in states], *[w.data for w in weights])
    recorded = layer.step(x, states)
    cotangents = [rng.normal(size=(3, 4)) for _ in after]
    for mine, other in zip(after, recorded, strict=True):
        np.testing.assert_allclose(mine, other.data, **TOLERANCE)
    scalar = sum((r * Tensor(c)).sum() for r, c in zip(recorded, cotangents, strict=True))
    compare(backward(*cotangents, kept), scalar, np.ones(()), [x, *states, *weights])


def test_backpropagation_through_time(rng):
    """The step's backward, called from the last step to the first, gives the gradients of the whole layer."""
    layer = nn.LSTM(4, rng=0, dtype="float64")
    x = leaf(rng, 3, 5, 2)
    weights = parameters(layer, x)
    h = c = np.zeros((3, 4))
    kept = []
    for t in range(5):
        h, c, cache = by_hand.lstm_step_forward(x.data[:, t], h, c, *[w.data for w in weights])
        kept.append(cache)
    dy = rng.normal(size=h.shape)
    dh, dc, dx = dy, np.zeros_like(c), np.zeros(x.shape)
    totals = [np.zeros(w.shape) for w in weights]
    for t in reversed(range(5)):
        dx[:, t], dh, dc, *gradients = by_hand.lstm_step_backward(dh, dc, kept[t])
        totals = [total + g for total, g in zip(totals, gradients, strict=True)]
    compare([dx, *totals], layer(x), dy, [x, *weights])
