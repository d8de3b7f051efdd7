"""Gradient descent, plain, with momentum, and with Nesterov's momentum."""

from collections.abc import Sequence
from typing import Any

import keras

from layers.optimizers import base
from layers.optimizers.arithmetic import add, add_scaled


@keras.saving.register_keras_serializable(package="layers")
class SGD(base.Optimizer):
    """Gradient descent: w <- w - lr g.

    Momentum: m <- momentum m - lr g; w <- w + m.
    Nesterov: m as before; w <- w + momentum m - lr g, the gradient step seen from where momentum leads.

    Args:
        learning_rate: a float, a schedule, or a callable without arguments.
        momentum: a float in [0, 1]; 0 is plain descent, 0.9 usual.
        nesterov: use Nesterov's form; needs a momentum.
        weight_decay: decoupled decay, w <- w - lr weight_decay w, before the step.
        base_options, base_arguments: see `Optimizer`.

    Raises:
        ValueError: if momentum is not a float in [0, 1].

    Reference:
        Polyak 1964 (momentum); Nesterov 1983; Sutskever et al. 2013 (both, for networks).
    """

    def __init__(
        self,
        learning_rate: Any = 0.01,
        momentum: float = 0.0,
        nesterov: bool = False,
        weight_decay: float | None = None,
        *base_options: Any,
        **base_arguments: Any,
    ) -> None:
        super().__init__(learning_rate, weight_decay, *base_options, **base_arguments)
        if not isinstance(momentum, float) or momentum < 0 or momentum > 1:
            raise ValueError("`momentum` must be a float between [0, 1].")
        self.momentum = momentum
        self.nesterov = nesterov

    def build(self, variables: Sequence[keras.Variable]) -> None:
        """Make one momentum a variable, if there is momentum."""
        if self.built:
            return
        super().build(variables)
        self.momentums = self.add_optimizer_variables(variables, "momentum") if self.momentum else []

    def state_of(self, variable: Any) -> Sequence[keras.Variable]:
        """Return (momentum,), or nothing without momentum."""
        return (self.momentums[self._get_variable_index(variable)],) if self.momentum else ()

    def coefficients(self, learning_rate: Any, dtype: str) -> tuple:
        """Return (-lr,)."""
        return (-learning_rate,)

    def _backend_update_step(
        self, grads: Sequence, trainable_variables: Sequence, learning_rate: Any
    ) -> None:
        """Without decay, torch goes straight through the tensors, with fewer look-ups for each."""
        if keras.config.backend() != "torch" or self.weight_decay is not None:
            super()._backend_update_step(grads, trainable_variables, learning_rate)
            return
        coefficients, others = None, []
        for gradient, variable in zip(grads, trainable_variables, strict=True):
            value = variable.value
            # A StatelessScope's values are the caller's; other types and devices need a conversion first, and
            # what is large goes block by block.
            if (
                value is variable._value
                and value.is_cpu
                and getattr(gradient, "is_cpu", False)
                and gradient.dtype is value.dtype
                and value.numel() <= base.BLOCK
            ):
                coefficients = coefficients or (-float(learning_rate),)
                state = [each._value.detach() for each in self.state_of(variable)]
                self.rule(coefficients, value.detach(), gradient.detach(), *state)
            else:
                others.append((gradient, variable))
        if others:
            super()._backend_update_step(*zip(*others, strict=True), learning_rate)

    def rule(self, coefficients: tuple, weight: Any, gradient: Any, *state: Any) -> tuple:
        """Return the new (weight, momentum)."""
        (descent,) = coefficients
        if not state:
            return (add_scaled(weight, descent, gradient),)
        (m,) = state
        m *= self.momentum
        m = add_scaled(m, descent, gradient)
        if self.nesterov:
            weight = add_scaled(weight, descent, gradient)
            weight = add_scaled(weight, self.momentum, m)
        else:
            weight = add(weight, m)
        return weight, m

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {**super().get_config(), "momentum": self.momentum, "nesterov": self.nesterov}
