"""Optimizers, with the update rules and defaults of Keras, and gradient clipping.

    optimizer = Adam(model.trainable_weights, learning_rate=1e-3)
    optimizer.zero_grad(); loss.backward(); optimizer.step()

The arithmetic is done in place, in a scratch array a weight: at this size the allocation of temporaries
would cost more than the arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from layers.autograd.tensor import Tensor

Rate = float | Callable[[int], float]


def clip_by_global_norm(weights: Sequence[Tensor], limit: float) -> float:
    """Scale all gradients g by limit / max(norm, limit), norm = sqrt(sum of all g^2); returns that norm."""
    gradients = [w.grad for w in weights if w.grad is not None]
    norm = math.sqrt(sum(float(np.vdot(g.data, g.data)) for g in gradients))
    if norm > limit:
        for g in gradients:
            g.data = g.data * (limit / norm)
    return norm


def clip_by_value(weights: Sequence[Tensor], limit: float) -> None:
    """Limit every element of every gradient to [-limit, limit]."""
    for w in weights:
        if w.grad is not None:
            w.grad.data = np.clip(w.grad.data, -limit, limit)


class Optimizer:
    """The base of all optimizers: a list of weights, a rate, a step counter and arrays of state a weight.

    Args:
        weights: the tensors to change.
        learning_rate: a number, or a schedule: a function of the number of steps already made.
    """

    state_names: tuple[str, ...] = ()

    def __init__(self, weights: Sequence[Tensor], learning_rate: Rate) -> None:
        self.weights = list(weights)
        if not self.weights:
            raise ValueError(f"{type(self).__name__}: no weights; call the model once, so that they exist")
        self.learning_rate = learning_rate
        self._steps = np.zeros((), np.int64)  # an array, to be kept and put back like the others
        self.state = {name: [np.zeros_like(w.data) for w in self.weights] for name in self.state_names}
        self._scratch = [np.empty_like(w.data) for w in self.weights]

    @property
    def steps(self) -> int:
        """Steps made."""
        return int(self._steps)

    @property
    def arrays(self) -> list[np.ndarray]:
        """All that a step changes in place: weights, state and the number of steps."""
        state = [array for arrays in self.state.values() for array in arrays]
        return [*(weight.data for weight in self.weights), *state, self._steps]

    @property
    def rate(self) -> float:
        """The learning rate of the next step."""
        return self.learning_rate(self.steps) if callable(self.learning_rate) else self.learning_rate

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for weight in self.weights:
            weight.grad = None

    def step(self) -> None:
        """Change every weight that has a gradient."""
        rate = self.rate
        self._steps += 1
        for i, weight in enumerate(self.weights):
            if weight.grad is not None:
                state = [self.state[name][i] for name in self.state_names]
                self.update(weight.data, weight.grad.data, rate, self._scratch[i], *state)

    def update(
        self, w: np.ndarray, g: np.ndarray, rate: float, scratch: np.ndarray, *state: np.ndarray
    ) -> None:
        """Change w in place, given its gradient g."""
        raise NotImplementedError(f"{type(self).__name__} does not define update")


class SGD(Optimizer):
    """w <- w - rate g; with momentum m: v <- m v - rate g, w <- w + v; Nesterov: w <- w + m v - rate g.

    Args:
        weights: the tensors to change.
        learning_rate: number or schedule.
        momentum: m.
        nesterov: look ahead along v before the step.

    Reference: Polyak, 1964; Nesterov, 1983; Sutskever et al., 2013.
    """

    state_names = ("velocity",)

    def __init__(
        self,
        weights: Sequence[Tensor],
        learning_rate: Rate = 0.01,
        momentum: float = 0.0,
        nesterov: bool = False,
    ) -> None:
        super().__init__(weights, learning_rate)
        self.momentum, self.nesterov = momentum, nesterov

    def update(
        self, w: np.ndarray, g: np.ndarray, rate: float, scratch: np.ndarray, velocity: np.ndarray
    ) -> None:
        """One step of the rule above."""
        np.multiply(g, rate, out=scratch)
        if not self.momentum:
            w -= scratch
            return
        velocity *= self.momentum
        velocity -= scratch
        if self.nesterov:
            w -= scratch
            np.multiply(velocity, self.momentum, out=scratch)
            w += scratch
        else:
            w += velocity


class AdaGrad(Optimizer):
    """a <- a + g^2;  w <- w - rate g / sqrt(a + epsilon).

    Args:
        weights: the tensors to change.
        learning_rate: number or schedule.
        initial_accumulator_value: a at the start.
        epsilon: keeps the root away from 0.

    Reference: Duchi et al., 2011.
    """

    state_names = ("accumulator",)

    def __init__(
        self,
        weights: Sequence[Tensor],
        learning_rate: Rate = 0.001,
        initial_accumulator_value: float = 0.1,
        epsilon: float = 1e-7,
    ) -> None:
        super().__init__(weights, learning_rate)
        self.epsilon = epsilon
        for accumulator in self.state["accumulator"]:
            accumulator += initial_accumulator_value

    def update(
        self, w: np.ndarray, g: np.ndarray, rate: float, scratch: np.ndarray, accumulator: np.ndarray
    ) -> None:
        """One step of the rule above."""
        accumulator += np.square(g, out=scratch)
        _divide_by_root(g, accumulator, self.epsilon, scratch)
        scratch *= rate
        w -= scratch


class RMSprop(Optimizer):
    """a <- rho a + (1 - rho) g^2;  w <- w - rate g / sqrt(a + epsilon).

    Args:
        weights: the tensors to change.
        learning_rate: number or schedule.
        rho: how slowly old gradients are forgotten.
        epsilon: keeps the root away from 0.

    Reference: Tieleman and Hinton, Coursera lecture 6.5, 2012.
    """

    state_names = ("accumulator",)

    def __init__(
        self,
        weights: Sequence[Tensor],
        learning_rate: Rate = 0.001,
        rho: float = 0.9,
        epsilon: float = 1e-7,
    ) -> None:
        super().__init__(weights, learning_rate)
        self.rho, self.epsilon = rho, epsilon

    def update(
        self, w: np.ndarray, g: np.ndarray, rate: float, scratch: np.ndarray, accumulator: np.ndarray
    ) -> None:
        """One step of the rule above."""
        _average(accumulator, np.square(g, out=scratch), self.rho)
        _divide_by_root(g, accumulator, self.epsilon, scratch)
        scratch *= rate
        w -= scratch


class Adam(Optimizer):
    """m <- b1 m + (1 - b1) g;  v <- b2 v + (1 - b2) g^2;  w <- w - rate_t m / (sqrt(v) + epsilon).

    rate_t = rate sqrt(1 - b2^t) / (1 - b1^t) undoes the bias of averages that start at 0.

    Args:
        weights: the tensors to change.
        learning_rate: number or schedule.
        beta_1: b1.
        beta_2: b2.
        epsilon: keeps the divisor away from 0.

    Reference: Kingma and Ba, "Adam", 2015.
    """

    state_names = ("momentum", "velocity")

    def __init__(
        self,
        weights: Sequence[Tensor],
        learning_rate: Rate = 0.001,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-7,
    ) -> None:
        super().__init__(weights, learning_rate)
        self.beta_1, self.beta_2, self.epsilon = beta_1, beta_2, epsilon

    def update(
        self,
        w: np.ndarray,
        g: np.ndarray,
        rate: float,
        scratch: np.ndarray,
        momentum: np.ndarray,
        velocity: np.ndarray,
    ) -> None:
        """One step of the rule above."""
        np.copyto(scratch, g)
        _average(momentum, scratch, self.beta_1)
        _average(velocity, np.square(g, out=scratch), self.beta_2)
        np.sqrt(velocity, out=scratch)
        scratch += self.epsilon
        np.divide(momentum, scratch, out=scratch)
        scratch *= rate * math.sqrt(1 - self.beta_2**self.steps) / (1 - self.beta_1**self.steps)
        w -= scratch


class AdamW(Adam):
    """Adam, before which the weight itself shrinks: w <- w - rate decay w.

    Decay added to the gradient would be divided by sqrt(v) like it, so that weights with large gradients
    would hardly decay.

    Args:
        weights: the tensors to change.
        learning_rate: number or schedule.
        weight_decay: decay.
        beta_1: b1.
        beta_2: b2.
        epsilon: keeps the divisor away from 0.

    Reference: Loshchilov and Hutter, "Decoupled Weight Decay Regularization", 2019.
    """

    def __init__(
        self,
        weights: Sequence[Tensor],
        learning_rate: Rate = 0.001,
        weight_decay: float = 0.004,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-7,
    ) -> None:
        super().__init__(weights, learning_rate, beta_1, beta_2, epsilon)
        self.weight_decay = weight_decay

    def update(
        self,
        w: np.ndarray,
        g: np.ndarray,
        rate: float,
        scratch: np.ndarray,
        momentum: np.ndarray,
        velocity: np.ndarray,
    ) -> None:
        """Decay, then a step of Adam."""
        w *= 1 - rate * self.weight_decay
        super().update(w, g, rate, scratch, momentum, velocity)


def _average(average: np.ndarray, new: np.ndarray, keep: float) -> None:
    """`average <- keep average + (1 - keep) new`, in place; `new` is used up."""
    average *= keep
    new *= 1 - keep
    average += new


def _divide_by_root(g: np.ndarray, squares: np.ndarray, epsilon: float, out: np.ndarray) -> None:
    """`out <- g / sqrt(squares + epsilon)`."""
    np.add(squares, epsilon, out=out)
    np.sqrt(out, out=out)
    np.divide(g, out, out=out)
