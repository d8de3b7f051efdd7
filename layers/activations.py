"""Activation functions, each with its exact derivative beside it.

`f` and `f_derivative` take the same arguments; `derivative(f)` finds the second from the first. Elementary
functions (`exp`, `expm1`, `log1p`, `erf`, `tanh` and the logistic `sigmoid`, one kernel each on every
backend) are taken from `keras.ops`; everything else is arithmetic on them.

Every kink goes through `_positive_part`, never through `maximum` or `abs`: at a tie the backends disagree
about the gradient of those (TensorFlow 1, JAX and torch 1/2), and exact zeros are common in networks. Its
gradient at zero is 0, and the formulas around it are arranged so that theirs is the right one.
"""

import difflib
import math
from collections.abc import Callable
from typing import Any

import keras
from keras import ops

_SELU_ALPHA = 1.6732632423543772
_SELU_SCALE = 1.0507009873554805

_ACTIVATIONS: dict[str, Callable] = {}
_DERIVATIVES: dict[str, Callable] = {}


def _activation(function: Callable) -> Callable:
    """Register an activation under its name, for `get` and for saved models."""
    _ACTIVATIONS[function.__name__] = function
    return keras.saving.register_keras_serializable(package="layers")(function)


def _derivative_of(function: Callable) -> Callable[[Callable], Callable]:
    """Register the decorated function as the derivative of `function`."""

    def register(derivative_function: Callable) -> Callable:
        _DERIVATIVES[function.__name__] = derivative_function
        return derivative_function

    return register


def get(identifier: str | dict | Callable | None) -> Callable:
    """Return the activation of this name; None is `linear`, a callable is returned as it is.

    Args:
        identifier: a name ("relu"), a serialised activation, a callable, or None.

    Returns:
        A function of one tensor.

    Raises:
        ValueError: for an unknown name; the message gives the nearest known one.
    """
    if identifier is None:
        return linear
    if callable(identifier):
        return identifier
    if isinstance(identifier, dict):
        return keras.saving.deserialize_keras_object(identifier)
    if isinstance(identifier, str) and identifier in _ACTIVATIONS:
        return _ACTIVATIONS[identifier]
    near = difflib.get_close_matches(str(identifier), _ACTIVATIONS, n=1, cutoff=0.0)[0]
    raise ValueError(
        f"Unknown activation {identifier!r}. Did you mean {near!r}? Known: {', '.join(sorted(_ACTIVATIONS))}."
    )


def derivative(identifier: str | Callable | None) -> Callable:
    """Return the derivative f' of an elementwise activation f.

    Args:
        identifier: a name or one of the functions of this module.

    Returns:
        A function of the tensor x (and of the activation's own arguments) that gives f'(x), x's shape.

    Raises:
        ValueError: for an unknown activation, and for softmax and log_softmax, whose outputs depend on the
            whole axis: their derivative is a Jacobian, not a tensor of x's shape.
    """
    function = get(identifier)
    if function.__name__ not in _DERIVATIVES or _ACTIVATIONS.get(function.__name__) is not function:
        raise ValueError(
            f"{function.__name__!r} has no elementwise derivative here. "
            f"Known: {', '.join(sorted(_DERIVATIVES))}."
        )
    return _DERIVATIVES[function.__name__]


def _positive_part(x: Any) -> Any:
    """Return x where x > 0, else 0, with gradient 0 at 0; NaN stays NaN."""
    if keras.config.backend() == "torch":
        # Eager torch: one vectorized kernel, where `where` is three, with a mispredicted branch an element.
        return ops.relu(x)
    return ops.where(x <= 0, 0.0, x)


def _negative_part(x: Any) -> Any:
    """Return what `_positive_part` leaves of x; a difference would be none at infinity."""
    if keras.config.backend() == "torch":
        return ops.clip(x, -math.inf, 0.0)  # one kernel too, with gradient 1 at 0
    return ops.where(x <= 0, x, 0.0)


@_activation
def linear(x: Any) -> Any:
    """f(x) = x."""
    return x


@_derivative_of(linear)
def linear_derivative(x: Any) -> Any:
    """f'(x) = 1."""
    return ops.ones_like(x)


@_activation
def sigmoid(x: Any) -> Any:
    """f(x) = 1 / (1 + exp(-x)), without overflow for any x."""
    return ops.sigmoid(x)


@_derivative_of(sigmoid)
def sigmoid_derivative(x: Any) -> Any:
    """f'(x) = f(x) f(-x); 1 - f(x) would cancel for large x."""
    return ops.sigmoid(x) * ops.sigmoid(-x)


@_activation
def tanh(x: Any) -> Any:
    """f(x) = (exp(x) - exp(-x)) / (exp(x) + exp(-x))."""
    return ops.tanh(x)


@_derivative_of(tanh)
def tanh_derivative(x: Any) -> Any:
    """f'(x) = 1 - f(x)^2 = 4 s(2x) s(-2x) with the logistic s; the second form keeps the tails."""
    return 4.0 * ops.sigmoid(2.0 * x) * ops.sigmoid(-2.0 * x)


@_activation
def relu(x: Any, negative_slope: float = 0.0, max_value: float | None = None, threshold: float = 0.0) -> Any:
    """Rectified linear unit: f(x) = x above the threshold, negative_slope * (x - threshold) at or below it.

    Args:
        x: tensor of any shape.
        negative_slope: slope at or below the threshold.
        max_value: upper bound of f, or None.
        threshold: where the linear part starts.

    Returns:
        Tensor of x's shape and dtype.

    Reference:
        Nair & Hinton 2010, "Rectified linear units improve restricted Boltzmann machines".
    """
    x = ops.convert_to_tensor(x)
    if threshold:
        y = ops.where(x <= threshold, negative_slope * (x - threshold), x)
    elif negative_slope:
        y = negative_slope * x + (1.0 - negative_slope) * _positive_part(x)
    else:
        y = _positive_part(x)
    return y if max_value is None else ops.where(y >= max_value, max_value, y)


@_derivative_of(relu)
def relu_derivative(
    x: Any, negative_slope: float = 0.0, max_value: float | None = None, threshold: float = 0.0
) -> Any:
    """f'(x): 1 above the threshold, negative_slope at or below it, 0 where max_value cuts."""
    x = ops.convert_to_tensor(x)
    slope = ops.where(x <= threshold, ops.full_like(x, negative_slope), ops.ones_like(x))
    return slope if max_value is None else ops.where(x >= max_value, ops.zeros_like(x), slope)


@_activation
def leaky_relu(x: Any, negative_slope: float = 0.2) -> Any:
    """f(x) = x for x > 0, negative_slope * x otherwise (Maas et al. 2013)."""
    return relu(x, negative_slope=negative_slope)


@_derivative_of(leaky_relu)
def leaky_relu_derivative(x: Any, negative_slope: float = 0.2) -> Any:
    """f'(x) = 1 for x > 0, negative_slope otherwise."""
    return relu_derivative(x, negative_slope=negative_slope)


@_activation
def elu(x: Any, alpha: float = 1.0) -> Any:
    """Exponential linear unit: f(x) = x for x > 0, alpha * (exp(x) - 1) otherwise (Clevert et al. 2015)."""
    x = ops.convert_to_tensor(x)
    # The exponential sees min(x, 0): it cannot overflow, nor spoil the gradient of the other branch.
    return _positive_part(x) + alpha * ops.expm1(_negative_part(x))


@_derivative_of(elu)
def elu_derivative(x: Any, alpha: float = 1.0) -> Any:
    """f'(x) = 1 for x > 0, alpha * exp(x) otherwise."""
    x = ops.convert_to_tensor(x)
    return ops.where(x > 0, ops.ones_like(x), alpha * ops.exp(ops.where(x > 0, 0.0, x)))


@_activation
def selu(x: Any) -> Any:
    """f(x) = s * elu(x, a): keeps mean 0, variance 1 through LeCun-normal layers (Klambauer et al. 2017)."""
    return _SELU_SCALE * elu(x, _SELU_ALPHA)


@_derivative_of(selu)
def selu_derivative(x: Any) -> Any:
    """f'(x) = s * elu'(x, a)."""
    return _SELU_SCALE * elu_derivative(x, _SELU_ALPHA)


@_activation
def gelu(x: Any, approximate: bool = False) -> Any:
    """Gaussian error linear unit: f(x) = x * P(X <= x), X standard normal.

    Exact: x/2 * (1 + erf(x / sqrt 2)). Approximate: x/2 * (1 + tanh(sqrt(2/pi) * (x + 0.044715 x^3))).

    Args:
        x: tensor of any shape.
        approximate: use the tanh form.

    Returns:
        Tensor of x's shape and dtype.

    Reference:
        Hendrycks & Gimpel 2016, "Gaussian error linear units".
    """
    x = ops.convert_to_tensor(x)
    half = 0.5 * x
    return half + half * (ops.tanh(_gelu_inner(x)) if approximate else ops.erf(math.sqrt(0.5) * x))


def _gelu_inner(x: Any) -> Any:
    """Return sqrt(2/pi) * (x + 0.044715 x^3)."""
    return x * (math.sqrt(2.0 / math.pi) + (0.044715 * math.sqrt(2.0 / math.pi)) * (x * x))


@_derivative_of(gelu)
def gelu_derivative(x: Any, approximate: bool = False) -> Any:
    """f'(x) = P(x) + x p(x) with the normal's distribution P and density p, or that of the tanh form."""
    x = ops.convert_to_tensor(x)
    if approximate:
        inner_slope = math.sqrt(2.0 / math.pi) * (1.0 + 3.0 * 0.044715 * ops.square(x))
        inner = _gelu_inner(x)
        return 0.5 * (1.0 + ops.tanh(inner)) + 0.5 * x * tanh_derivative(inner) * inner_slope
    density = math.sqrt(0.5 / math.pi) * ops.exp(-0.5 * ops.square(x))
    return 0.5 * (1.0 + ops.erf(math.sqrt(0.5) * x)) + x * density


@_activation
def silu(x: Any) -> Any:
    """f(x) = x * sigmoid(x), also called swish (Ramachandran et al. 2017; Elfwing et al. 2017)."""
    x = ops.convert_to_tensor(x)
    return x * ops.sigmoid(x)


@_derivative_of(silu)
def silu_derivative(x: Any) -> Any:
    """f'(x) = s(x) + x s(x) s(-x) with the logistic s."""
    return ops.sigmoid(x) + x * sigmoid_derivative(x)


swish = silu
_ACTIVATIONS["swish"] = silu


@_activation
def softplus(x: Any) -> Any:
    """f(x) = log(1 + exp(x)), computed as max(x, 0) + log(1 + exp(-|x|)): no overflow, no lost tail."""
    x = ops.convert_to_tensor(x)
    positive = _positive_part(x)
    return positive + ops.log1p(ops.exp(_negative_part(x) - positive))


@_derivative_of(softplus)
def softplus_derivative(x: Any) -> Any:
    """f'(x) = sigmoid(x)."""
    return ops.sigmoid(x)


@_activation
def mish(x: Any) -> Any:
    """f(x) = x * tanh(softplus(x)) (Misra 2019)."""
    x = ops.convert_to_tensor(x)
    return x * ops.tanh(softplus(x))


@_derivative_of(mish)
def mish_derivative(x: Any) -> Any:
    """f'(x) = tanh(p) + x tanh'(p) sigmoid(x) with p = softplus(x)."""
    p = softplus(x)
    return ops.tanh(p) + x * tanh_derivative(p) * ops.sigmoid(x)


@_activation
def softmax(x: Any, axis: int = -1) -> Any:
    """f(x)_i = exp(x_i - max x) / sum_j exp(x_j - max x) along the axis: no overflow for any x."""
    x = ops.convert_to_tensor(x)
    e = ops.exp(x - _peak(x, axis))
    return e / ops.sum(e, axis=axis, keepdims=True)


@_activation
def log_softmax(x: Any, axis: int = -1) -> Any:
    """f(x)_i = x_i - m - log sum_j exp(x_j - m), m = max x: finite where softmax underflows to 0."""
    x = ops.convert_to_tensor(x)
    shifted = x - _peak(x, axis)
    return shifted - ops.log(ops.sum(ops.exp(shifted), axis=axis, keepdims=True))


def _peak(x: Any, axis: int) -> Any:
    """Return the maximum along the axis as a constant: the shift it makes cancels, so does its gradient."""
    return ops.stop_gradient(ops.max(x, axis=axis, keepdims=True))
