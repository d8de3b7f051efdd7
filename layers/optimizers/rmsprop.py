"""RMSprop: the gradient over a running root mean square of itself."""

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from layers.optimizers.arithmetic import add_scaled, add_square, move_towards
from layers.optimizers.base import Optimizer


@keras.saving.register_keras_serializable(package="layers")
class RMSprop(Optimizer):
    """RMSprop: v <- rho v + (1 - rho) g^2; w <- w - lr g / sqrt(v + epsilon).

    Centered: a <- rho a + (1 - rho) g, and v - a^2, the variance, replaces v under the root.
    Momentum: m <- momentum m + lr g / sqrt(v + epsilon); w <- w - m.

    Args:
        learning_rate: a float, a schedule, or a callable without arguments.
        rho: decay of the running means.
        momentum: 0 is none.
        epsilon: keeps the root away from zero.
        centered: divide by the running standard deviation instead of the root mean square.
        weight_decay: decoupled decay, w <- w - lr weight_decay w, before the step.
        base_options, base_arguments: see `Optimizer`.

    Reference:
        Tieleman & Hinton 2012, "Neural networks for machine learning", lecture 6e; Graves 2013 (centered).
    """

    def __init__(
        self,
        learning_rate: Any = 0.001,
        rho: float = 0.9,
        momentum: float = 0.0,
        epsilon: float = 1e-7,
        centered: bool = False,
        weight_decay: float | None = None,
        *base_options: Any,
        **base_arguments: Any,
    ) -> None:
        super().__init__(learning_rate, weight_decay, *base_options, **base_arguments)
        self.rho = rho
        self.momentum = momentum
        self.epsilon = epsilon
        self.centered = centered

    def build(self, var_list: Sequence[keras.Variable]) -> None:
        """Make one velocity a variable, then the momentums and the mean gradients that are asked for."""
        if self.built:
            return
        super().build(var_list)
        self._velocities = self.add_optimizer_variables(var_list, "velocity")
        self._momentums = self.add_optimizer_variables(var_list, "momentum") if self.momentum > 0 else []
        self._average_gradients = (
            self.add_optimizer_variables(var_list, "average_gradient") if self.centered else []
        )

    def state_of(self, variable: Any) -> Sequence[keras.Variable]:
        """Return (velocity, [momentum], [average gradient])."""
        index = self._get_variable_index(variable)
        kinds = (self._velocities, self._momentums, self._average_gradients)
        return tuple(kind[index] for kind in kinds if kind)

    def coefficients(self, learning_rate: Any, dtype: str) -> tuple:
        """Return (lr,)."""
        return (learning_rate,)

    def rule(self, coefficients: tuple, weight: Any, gradient: Any, *state: Any) -> tuple:
        """Return the new (weight, velocity, [momentum], [average gradient])."""
        (learning_rate,) = coefficients
        velocity, *rest = state
        velocity *= self.rho
        velocity = add_square(velocity, 1.0 - self.rho, gradient)
        denominator = velocity + self.epsilon
        if self.centered:
            rest[-1] = move_towards(rest[-1], gradient, 1.0 - self.rho)
            denominator = add_square(denominator, -1.0, rest[-1])
        step = gradient / ops.sqrt(denominator)
        if self.momentum > 0:
            rest[0] *= self.momentum
            rest[0] = add_scaled(rest[0], learning_rate, step)
            weight = add_scaled(weight, -1.0, rest[0])
        else:
            weight = add_scaled(weight, -learning_rate, step)
        return weight, velocity, *rest

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {
            **super().get_config(),
            "rho": self.rho,
            "momentum": self.momentum,
            "epsilon": self.epsilon,
            "centered": self.centered,
        }
