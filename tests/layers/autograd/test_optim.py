"""Optimizers against those of Keras, step by step; clipping and schedules against numbers."""

import math

import numpy as np
import pytest

from layers.autograd import Tensor, optim, schedules

pytestmark = pytest.mark.once

OPTIMIZERS = {
    "SGD": (lambda w: optim.SGD(w, 0.1), lambda k: k.SGD(0.1)),
    "momentum": (lambda w: optim.SGD(w, 0.1, 0.9), lambda k: k.SGD(0.1, 0.9)),
    "Nesterov": (lambda w: optim.SGD(w, 0.1, 0.9, True), lambda k: k.SGD(0.1, 0.9, True)),
    "AdaGrad": (lambda w: optim.AdaGrad(w, 0.1), lambda k: k.Adagrad(0.1)),
    "RMSprop": (lambda w: optim.RMSprop(w, 0.01), lambda k: k.RMSprop(0.01)),
    "Adam": (lambda w: optim.Adam(w, 0.1), lambda k: k.Adam(0.1)),
    "AdamW": (lambda w: optim.AdamW(w, 0.1, 0.3), lambda k: k.AdamW(0.1, 0.3)),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_steps_equal_those_of_keras(name, rng):
    keras = pytest.importorskip("keras")
    ours, theirs = OPTIMIZERS[name]
    start = [rng.normal(size=(3, 2)).astype("float32"), rng.normal(size=4).astype("float32")]
    weights = [Tensor(value.copy(), requires_grad=True) for value in start]
    variables = [keras.Variable(value) for value in start]
    mine, oracle = ours(weights), theirs(keras.optimizers)
    for _ in range(10):
        gradients = [rng.normal(size=value.shape).astype("float32") for value in start]
        for weight, gradient in zip(weights, gradients, strict=True):
            weight.grad = Tensor(gradient)
        mine.step()
        oracle.apply([keras.ops.convert_to_tensor(g) for g in gradients], variables)
        for weight, variable in zip(weights, variables, strict=True):
            np.testing.assert_allclose(
                weight.data, keras.ops.convert_to_numpy(variable.value), rtol=1e-5, atol=1e-6
            )


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_minimizes_a_badly_scaled_bowl(name):
    w = Tensor(np.array([3.0, -2.0]), requires_grad=True)
    optimizer = OPTIMIZERS[name][0]([w])

    def loss():
        return (w * w * Tensor(np.array([1.0, 0.1]))).sum()

    before = loss().item()
    for _ in range(300):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    assert loss().item() < 0.2 * before


def test_first_steps_of_adam_by_hand():
    # With m and v corrected, the first step is rate * g/|g|.
    w = Tensor(np.array([1.0, 1.0]), requires_grad=True)
    optimizer = optim.Adam([w], 0.1)
    w.grad = Tensor(np.array([5.0, -0.01]))
    optimizer.step()
    np.testing.assert_allclose(w.data, [0.9, 1.1], atol=1e-4)


def test_a_step_leaves_the_gradient_and_unused_weights_alone():
    a, b = Tensor(np.ones(2), requires_grad=True), Tensor(np.ones(2), requires_grad=True)
    a.grad = Tensor(np.array([1.0, 2.0]))
    optim.Adam([a, b]).step()
    np.testing.assert_array_equal(a.grad.data, [1, 2])
    np.testing.assert_array_equal(b.data, [1, 1])


def test_no_weights_is_an_error():
    with pytest.raises(ValueError, match="Adam: no weights; call the model once"):
        optim.Adam([])


def test_clipping():
    a, b = Tensor(np.zeros(2), requires_grad=True), Tensor(np.zeros(1), requires_grad=True)
    a.grad, b.grad = Tensor(np.array([3.0, 0.0])), Tensor(np.array([4.0]))
    assert optim.clip_by_global_norm([a, b], 10.0) == 5.0
    np.testing.assert_array_equal(a.grad.data, [3, 0])
    assert optim.clip_by_global_norm([a, b], 1.0) == 5.0
    np.testing.assert_allclose([*a.grad.data, *b.grad.data], [0.6, 0, 0.8])
    optim.clip_by_value([a, b], 0.7)
    np.testing.assert_allclose([*a.grad.data, *b.grad.data], [0.6, 0, 0.7])


def test_schedules():
    assert schedules.exponential_decay(0.1, 10, 0.5)(20) == pytest.approx(0.025)
    assert [schedules.step_decay(1.0, 2, 0.1)(s) for s in (0, 1, 2)] == [1.0, 1.0, 0.1]
    cosine = schedules.cosine_decay(1.0, 100, 0.2)
    assert [cosine(0), cosine(50), cosine(100), cosine(200)] == pytest.approx([1.0, 0.6, 0.2, 0.2])
    warm = schedules.warmup(cosine, 10)
    assert [warm(0), warm(5), warm(10), warm(60)] == pytest.approx([0, 0.5, 1.0, 0.6])


def test_an_optimizer_follows_its_schedule():
    w = Tensor(np.array([0.0]), requires_grad=True)
    optimizer = optim.SGD([w], schedules.step_decay(1.0, 2, 0.1))
    for _ in range(3):
        w.grad = Tensor(np.array([1.0]))
        optimizer.step()
    assert w.item() == pytest.approx(-(1 + 1 + 0.1))
    assert math.isclose(optimizer.rate, 0.1)
