"""AdaGrad: a learning rate a weight, from the sum of its squared gradients."""

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from layers.optimizers.arithmetic import add_scaled, add_square
from layers.optimizers.base import Optimizer


@keras.saving.register_keras_serializable(package="layers")
class Adagrad(Optimizer):
    """AdaGrad: a <- a + g^2; w <- w - lr g / sqrt(a + epsilon).

    Args:
        learning_rate: a float, a schedule, or a callable without arguments.
        initial_accumulator_value: where a starts.
        epsilon: keeps the root away from zero.
        weight_decay: decoupled decay, w <- w - lr weight_decay w, before the step.
        base_options, base_arguments: see `Optimizer`.

    Reference:
        Duchi et al. 2011, "Adaptive subgradient methods for online learning and stochastic optimization".
    """

    def __init__(
        self,
        learning_rate: Any = 0.001,
        initial_accumulator_value: float = 0.1,
        epsilon: float = 1e-7,
        weight_decay: float | None = None,
        *base_options: Any,
        **base_arguments: Any,
    ) -> None:
        super().__init__(learning_rate, weight_decay, *base_options, **base_arguments)
        self.initial_accumulator_value = initial_accumulator_value
        self.epsilon = epsilon

    def build(self, var_list: Sequence[keras.Variable]) -> None:
        """Make one accumulator a variable."""
        if self.built:
            return
        super().build(var_list)
        self._accumulators = self.add_optimizer_variables(
            var_list, "accumulator", initializer=keras.initializers.Constant(self.initial_accumulator_value)
        )

    def state_of(self, variable: Any) -> Sequence[keras.Variable]:
        """Return (accumulator,)."""
        return (self._accumulators[self._get_variable_index(variable)],)

    def coefficients(self, learning_rate: Any, dtype: str) -> tuple:
        """Return (-lr,)."""
        return (-learning_rate,)

    def rule(self, coefficients: tuple, weight: Any, gradient: Any, *state: Any) -> tuple:
        """Return the new (weight, accumulator)."""
        (descent,) = coefficients
        (accumulator,) = state
        accumulator = add_square(accumulator, 1.0, gradient)
        step = gradient / ops.sqrt(accumulator + self.epsilon)
        return add_scaled(weight, descent, step), accumulator

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {
            **super().get_config(),
            "initial_accumulator_value": self.initial_accumulator_value,
            "epsilon": self.epsilon,
        }
