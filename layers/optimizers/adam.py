"""The Adam family: running means of the gradient and of its square, corrected for their start at zero."""

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from layers.optimizers.arithmetic import add, add_scaled, add_square, move_towards
from layers.optimizers.base import Optimizer


class _TwoMoments(Optimizer):
    """An optimizer with m <- b1 m + (1 - b1) g and v <- b2 v + (1 - b2) g^2 a variable."""

    def __init__(
        self,
        learning_rate: Any,
        beta_1: float,
        beta_2: float,
        epsilon: float,
        *base_options: Any,
        **base_arguments: Any,
    ) -> None:
        super().__init__(learning_rate, *base_options, **base_arguments)
        self.beta_1 = beta_1
        self.beta_2 = beta_2
        self.epsilon = epsilon

    def build(self, var_list: Sequence[keras.Variable]) -> None:
        """Make one momentum and one velocity a variable, in turns."""
        if self.built:
            return
        super().build(var_list)
        self._momentums, self._velocities = self.add_optimizer_variables(var_list, ["momentum", "velocity"])

    def state_of(self, variable: Any) -> Sequence[keras.Variable]:
        """Return (momentum, velocity)."""
        index = self._get_variable_index(variable)
        return self._momentums[index], self._velocities[index]

    def moments(self, m: Any, v: Any, gradient: Any) -> tuple[Any, Any]:
        """Return the new (m, v)."""
        m = move_towards(m, gradient, 1.0 - self.beta_1)
        v *= self.beta_2
        return m, add_square(v, 1.0 - self.beta_2, gradient)

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {
            **super().get_config(),
            "beta_1": self.beta_1,
            "beta_2": self.beta_2,
            "epsilon": self.epsilon,
        }


@keras.saving.register_keras_serializable(package="layers")
class Adam(_TwoMoments):
    """Adam: w <- w - alpha_t m / (sqrt(v) + epsilon), alpha_t = lr sqrt(1 - b2^t) / (1 - b1^t).

    m <- b1 m + (1 - b1) g and v <- b2 v + (1 - b2) g^2; t counts from 1.

    Args:
        learning_rate: a float, a schedule, or a callable without arguments.
        beta_1: b1, decay of the mean gradient.
        beta_2: b2, decay of the mean square.
        epsilon: the paper's "epsilon hat", added to the uncorrected root.
        amsgrad: divide by the largest v so far.
        weight_decay: decoupled decay, w <- w - lr weight_decay w, before the step.
        base_options, base_arguments: see `Optimizer`.

    Reference:
        Kingma & Ba 2014, "Adam"; Reddi et al. 2018, "On the convergence of Adam and beyond" (amsgrad).
    """

    def __init__(
        self,
        learning_rate: Any = 0.001,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-7,
        amsgrad: bool = False,
        weight_decay: float | None = None,
        *base_options: Any,
        **base_arguments: Any,
    ) -> None:
        super().__init__(
            learning_rate, beta_1, beta_2, epsilon, weight_decay, *base_options, **base_arguments
        )
        self.amsgrad = amsgrad

    def build(self, var_list: Sequence[keras.Variable]) -> None:
        """Make one momentum and one velocity a variable, and with amsgrad one velocity_hat."""
        if self.built:
            return
        super().build(var_list)
        self._velocity_hats = self.add_optimizer_variables(var_list, "velocity_hat") if self.amsgrad else []

    def state_of(self, variable: Any) -> Sequence[keras.Variable]:
        """Return (momentum, velocity, [velocity_hat])."""
        moments = super().state_of(variable)
        return (
            (*moments, self._velocity_hats[self._get_variable_index(variable)]) if self.amsgrad else moments
        )

    def coefficients(self, learning_rate: Any, dtype: str) -> tuple:
        """Return (-alpha_t,)."""
        t = ops.cast(self.iterations + 1, dtype)
        correction = ops.sqrt(1.0 - ops.power(self.beta_2, t)) / (1.0 - ops.power(self.beta_1, t))
        return (-learning_rate * correction,)

    def rule(self, coefficients: tuple, weight: Any, gradient: Any, *state: Any) -> tuple:
        """Return the new (weight, momentum, velocity, [velocity_hat])."""
        (descent,) = coefficients
        m, v, *hat = state
        m, v = self.moments(m, v, gradient)
        hat = [ops.maximum(largest, v) for largest in hat]
        root = ops.sqrt(hat[0] if hat else v)
        root += self.epsilon
        return add_scaled(weight, descent, m / root), m, v, *hat

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {**super().get_config(), "amsgrad": self.amsgrad}


@keras.saving.register_keras_serializable(package="layers")
class AdamW(Adam):
    """Adam with decoupled weight decay: w <- w - lr weight_decay w, then Adam's step on the plain gradient.

    An L2 penalty (weight_decay / 2) ||w||^2 adds weight_decay w to the gradient instead, which Adam then
    divides by sqrt(v): weights with large gradients decay less. Decoupled, all decay alike.

    Args:
        learning_rate: a float, a schedule, or a callable without arguments.
        weight_decay: the decay, times the learning rate.
        beta_1: see `Adam`.
        beta_2: see `Adam`.
        epsilon: see `Adam`.
        amsgrad: see `Adam`.
        base_options, base_arguments: see `Optimizer`.

    Raises:
        ValueError: if weight_decay is None.

    Reference:
        Loshchilov & Hutter 2017, "Decoupled weight decay regularization".
    """

    def __init__(
        self,
        learning_rate: Any = 0.001,
        weight_decay: float = 0.004,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-7,
        amsgrad: bool = False,
        *base_options: Any,
        **base_arguments: Any,
    ) -> None:
        super().__init__(
            learning_rate,
            beta_1,
            beta_2,
            epsilon,
            amsgrad,
            weight_decay,
            *base_options,
            **base_arguments,
        )
        if weight_decay is None:
            raise ValueError("Argument `weight_decay` must be a float. Received: weight_decay=None")


@keras.saving.register_keras_serializable(package="layers")
class Nadam(_TwoMoments):
    """Adam with Nesterov's momentum: the step uses the mean gradient as it will be one step later.

    With u_t = b1 (1 - 0.96^t / 2) and U_t = u_1 ... u_t:
    w <- w - lr (u_{t+1} m / (1 - U_{t+1}) + (1 - u_t) g / (1 - U_t)) / (sqrt(v / (1 - b2^t)) + epsilon).

    Args:
        learning_rate: a float, a schedule, or a callable without arguments.
        beta_1: b1, decay of the mean gradient.
        beta_2: b2, decay of the mean square.
        epsilon: added to the root.
        weight_decay: decoupled decay, w <- w - lr weight_decay w, before the step.
        base_options, base_arguments: see `Optimizer`.

    Reference:
        Dozat 2016, "Incorporating Nesterov momentum into Adam".
    """

    def __init__(
        self,
        learning_rate: Any = 0.001,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-7,
        weight_decay: float | None = None,
        *base_options: Any,
        **base_arguments: Any,
    ) -> None:
        super().__init__(
            learning_rate, beta_1, beta_2, epsilon, weight_decay, *base_options, **base_arguments
        )

    def build(self, var_list: Sequence[keras.Variable]) -> None:
        """Make one momentum and one velocity a variable, and the product U."""
        if self.built:
            return
        super().build(var_list)
        dtype = var_list[0].dtype if var_list else keras.config.floatx()
        self._u_product = self.add_variable((), initializer="ones", dtype=dtype, name="u_product")

    def _u(self, step: Any, dtype: str) -> Any:
        """Return u_t for t = step."""
        return self.beta_1 * (1.0 - 0.5 * ops.power(0.96, ops.cast(step, dtype)))

    def _backend_update_step(
        self, grads: Sequence, trainable_variables: Sequence, learning_rate: Any
    ) -> None:
        dtype = self._u_product.dtype
        self.assign(
            self._u_product, self._u_product * ops.cast(self._u(self.iterations + 1, "float32"), dtype)
        )
        super()._backend_update_step(grads, trainable_variables, learning_rate)

    def coefficients(self, learning_rate: Any, dtype: str) -> tuple:
        """Return (factor of m, factor of g, 1 / sqrt(1 - b2^t)); -lr is in the first two."""
        u, u_next = self._u(self.iterations + 1, dtype), self._u(self.iterations + 2, dtype)
        product = ops.cast(self._u_product, dtype)  # U_t: already multiplied by u_t in this step
        root = ops.sqrt(1.0 - ops.power(self.beta_2, ops.cast(self.iterations + 1, dtype)))
        return (
            -learning_rate * u_next / (1.0 - product * u_next),
            -learning_rate * (1.0 - u) / (1.0 - product),
            1.0 / root,
        )

    def rule(self, coefficients: tuple, weight: Any, gradient: Any, *state: Any) -> tuple:
        """Return the new (weight, momentum, velocity)."""
        of_m, of_gradient, of_root = coefficients
        m, v = self.moments(*state, gradient)
        step = m * of_m
        step = add_scaled(step, of_gradient, gradient)
        root = ops.sqrt(v)
        root *= of_root
        root += self.epsilon
        step /= root
        return add(weight, step), m, v
