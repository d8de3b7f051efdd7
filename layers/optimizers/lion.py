"""Lion: the sign of an interpolated momentum."""

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from layers.optimizers.arithmetic import add_scaled, move_towards
from layers.optimizers.base import Optimizer


@keras.saving.register_keras_serializable(package="layers")
class Lion(Optimizer):
    """Lion: w <- w - lr sign(b1 m + (1 - b1) g); then m <- b2 m + (1 - b2) g.

    Every weight moves by lr: learning rates are 3-10 times smaller than Adam's, decay 3-10 times larger.

    Args:
        learning_rate: a float, a schedule, or a callable without arguments.
        beta_1: b1, the share of m in the step.
        beta_2: b2, the decay of m.
        weight_decay: decoupled decay, w <- w - lr weight_decay w, before the step.
        base_options, base_arguments: see `Optimizer`.

    Raises:
        ValueError: if beta_1 is not in (0, 1].

    Reference:
        Chen et al. 2023, "Symbolic discovery of optimization algorithms".
    """

    def __init__(
        self,
        learning_rate: Any = 0.001,
        beta_1: float = 0.9,
        beta_2: float = 0.99,
        weight_decay: float | None = None,
        *base_options: Any,
        **base_arguments: Any,
    ) -> None:
        super().__init__(learning_rate, weight_decay, *base_options, **base_arguments)
        if beta_1 <= 0 or beta_1 > 1:
            raise ValueError(
                "Argument `beta_1` must be in the [0, 1] range. Otherwise, the optimizer degenerates to "
                f"SignSGD. Received: beta_1={beta_1}."
            )
        self.beta_1 = beta_1
        self.beta_2 = beta_2

    def build(self, var_list: Sequence[keras.Variable]) -> None:
        """Make one momentum a variable."""
        if self.built:
            return
        super().build(var_list)
        self._momentums = self.add_optimizer_variables(var_list, "momentum")

    def state_of(self, variable: Any) -> Sequence[keras.Variable]:
        """Return (momentum,)."""
        return (self._momentums[self._get_variable_index(variable)],)

    def coefficients(self, learning_rate: Any, dtype: str) -> tuple:
        """Return (-lr,)."""
        return (-learning_rate,)

    def rule(self, coefficients: tuple, weight: Any, gradient: Any, *state: Any) -> tuple:
        """Return the new (weight, momentum)."""
        (descent,) = coefficients
        (m,) = state
        direction = add_scaled(m * self.beta_1, 1.0 - self.beta_1, gradient)
        weight = add_scaled(weight, descent, ops.sign(direction))
        return weight, move_towards(m, gradient, 1.0 - self.beta_2)

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {**super().get_config(), "beta_1": self.beta_1, "beta_2": self.beta_2}
