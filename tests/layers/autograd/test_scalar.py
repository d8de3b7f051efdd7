"""The engine for single numbers."""

import math

import pytest

from layers.autograd.scalar import Value, exp, log, tanh

pytestmark = pytest.mark.once


def test_by_hand():
    a, b = Value(2.0), Value(3.0)
    c = a * b + a
    (c * c).backward()  # d/da = 2 c (b + 1), d/db = 2 c a
    assert (a.grad, b.grad) == (2 * 8 * 4, 2 * 8 * 2)


def test_takes_numbers_on_both_sides():
    x = Value(2.0)
    y = 1 - x / 4 + 3 / x - (2 + x) * 2 * x
    y.backward()
    assert y.data == 1 - 0.5 + 1.5 - 16
    assert x.grad == pytest.approx(-0.25 - 3 / 4 - (4 + 4 * 2))


def test_survives_a_deep_chain():
    x = Value(1.0)
    y = x
    for _ in range(10_000):
        y = y + 0.001
    y.backward()
    assert x.grad == 1.0


def test_functions():
    for function, slope in ((exp, math.exp(0.7)), (tanh, 1 - math.tanh(0.7) ** 2), (log, 1 / 0.7)):
        x = Value(0.7)
        function(x).backward()
        assert x.grad == pytest.approx(slope)
