"""Gradient checking: the recorded gradients against finite differences."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from layers.autograd.tensor import Tensor, grad


def numeric_gradient(
    function: Callable[..., Tensor], inputs: list[Tensor], position: int, step: float = 1e-6
) -> np.ndarray:
    """Central differences (f(x + h) - f(x - h)) / 2h of a scalar function, error O(h^2).

    Args:
        function: maps the input tensors to a tensor with one element.
        inputs: float64 tensors; their values are changed during the call and restored.
        position: which input to differentiate with respect to.
        step: h. Too large and the curvature shows, too small and rounding does; 1e-6 balances them in
            float64.

    Returns:
        An array of the shape of that input.
    """
    x = inputs[position]
    gradient = np.zeros(x.shape)
    for index in np.ndindex(x.shape):
        kept = x.data[index]
        x.data[index] = kept + step
        above = function(*inputs).item()
        x.data[index] = kept - step
        below = function(*inputs).item()
        x.data[index] = kept
        gradient[index] = (above - below) / (2 * step)
    return gradient


def check_gradients(
    function: Callable[..., Tensor], *arrays: np.ndarray, order: int = 1, tolerance: float = 1e-6
) -> None:
    """Compare recorded gradients with finite differences, for every input and up to the given order.

    The output is first contracted with fixed random weights, so that a function of any output shape becomes a
    scalar one and no error can cancel. For order 2 the gradient itself, contracted the same way, is the
    function that is checked.

    Args:
        function: maps tensors to a tensor.
        *arrays: the point at which to check; taken as float64.
        order: 1, or 2 for the gradient of the gradient as well.
        tolerance: largest allowed |recorded - numeric| / max(1, |numeric|).

    Raises:
        AssertionError: with the input, the worst place in it and both numbers.
    """
    inputs = [Tensor(np.array(a, np.float64), requires_grad=True) for a in arrays]

    def scalar(*tensors: Tensor) -> Tensor:
        return _contract(function(*tensors), seed=1)

    _compare(scalar, inputs, "gradient", tolerance)
    if order == 2:

        def slope(*tensors: Tensor) -> Tensor:
            gradients = grad(scalar(*tensors), list(tensors), create_graph=True)
            # Zero times the inputs: the slope of a linear function is a constant, which has no graph.
            anchored = [g + 0.0 * t for g, t in zip(gradients, tensors, strict=True)]
            return sum(_contract(g, seed=2 + i) for i, g in enumerate(anchored))

        _compare(slope, inputs, "second gradient", tolerance)


def _contract(x: Tensor, seed: int) -> Tensor:
    weights = np.random.default_rng(seed).uniform(0.5, 1.5, x.shape)
    return (x * Tensor(weights)).sum()


def _compare(function: Callable[..., Tensor], inputs: list[Tensor], what: str, tolerance: float) -> None:
    recorded = grad(function(*inputs), inputs)
    for position, value in enumerate(recorded):
        numeric = numeric_gradient(function, inputs, position)
        error = np.abs(value.data - numeric) / np.maximum(1, np.abs(numeric))
        if error.size and not error.max() <= tolerance:
            worst = np.unravel_index(np.argmax(error), error.shape)
            raise AssertionError(
                f"{what} with respect to input {position} of shape {value.shape}, "
                f"at {tuple(map(int, worst))}: recorded {value.data[worst]:.9g}, "
                f"finite differences {numeric[worst]:.9g}"
            )
