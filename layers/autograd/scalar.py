"""Reverse-mode differentiation of single numbers: the whole idea, without arrays.

    a, b = Value(2.0), Value(3.0)
    c = a * b + tanh(a)
    c.backward()
    a.grad, b.grad                  # b + 1 - tanh(a)^2, a

Reference: Karpathy, micrograd, 2020. Unlike there, the reverse pass walks its own stack, so that depth is
no limit, and a node keeps its local derivatives as numbers instead of a function to call.
"""

from __future__ import annotations

import math


class Value:
    """A number that remembers which numbers it was computed from, and its derivative by each of them.

    Args:
        data: the number.
        parents: pairs (value, d self / d value).
    """

    def __init__(self, data: float, parents: tuple[tuple[Value, float], ...] = ()) -> None:
        self.data, self.parents, self.grad = data, parents, 0.0

    def __add__(self, other: Value | float) -> Value:
        """Sum; both derivatives are 1."""
        other = other if isinstance(other, Value) else Value(other)
        return Value(self.data + other.data, ((self, 1.0), (other, 1.0)))

    def __mul__(self, other: Value | float) -> Value:
        """Product; the derivative by each factor is the other."""
        other = other if isinstance(other, Value) else Value(other)
        return Value(self.data * other.data, ((self, other.data), (other, self.data)))

    def __pow__(self, n: float) -> Value:
        """Power with a constant exponent."""
        return Value(self.data**n, ((self, n * self.data ** (n - 1)),))

    def __neg__(self) -> Value:
        """Negative."""
        return self * -1.0

    def __sub__(self, other: Value | float) -> Value:
        """Difference."""
        return self + -other

    def __truediv__(self, other: Value | float) -> Value:
        """Quotient."""
        return self * (other**-1)

    def __rsub__(self, other: float) -> Value:
        """Difference."""
        return -self + other

    def __rtruediv__(self, other: float) -> Value:
        """Quotient."""
        return self**-1 * other

    __radd__, __rmul__ = __add__, __mul__

    def backward(self) -> None:
        """Add d self / d v to v.grad of every value v behind this one."""
        order, seen, stack = [], set(), [(self, False)]
        while stack:
            value, done = stack.pop()
            if done:
                order.append(value)
            elif id(value) not in seen:
                seen.add(id(value))
                stack.append((value, True))
                stack += [(parent, False) for parent, _ in value.parents]
        self.grad = 1.0
        for value in reversed(order):
            for parent, slope in value.parents:
                parent.grad += slope * value.grad  # the chain rule, summed over all ways


def exp(x: Value) -> Value:
    """e^x."""
    return Value(math.exp(x.data), ((x, math.exp(x.data)),))


def tanh(x: Value) -> Value:
    """`tanh` x."""
    return Value(math.tanh(x.data), ((x, 1 - math.tanh(x.data) ** 2),))


def log(x: Value) -> Value:
    """`log` x."""
    return Value(math.log(x.data), ((x, 1 / x.data),))
