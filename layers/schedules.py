"""Learning-rate schedules: functions of the step, passed to an optimizer as its learning rate.

Names that Keras has are drop-in for `keras.optimizers.schedules`. Each is a few arithmetic operations on the
step, so that it is compiled into the training step and a new value costs no recompilation.
"""

import math
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

_CYCLES = ("triangular", "triangular2", "exp_range")
_ANNEALING = ("cos", "linear")


def _require_positive(**arguments: float) -> None:
    for name, value in arguments.items():
        if value <= 0:
            raise ValueError(f"Argument `{name}` must be > 0. Received: {name}={value}")


def _cosine(start: Any, end: Any, fraction: Any) -> Any:
    """Go from start (fraction 0) to end (fraction 1) along half a cosine."""
    return end + (start - end) * 0.5 * (1.0 + ops.cos(math.pi * fraction))


def _line(start: Any, end: Any, fraction: Any) -> Any:
    """Go from start (fraction 0) to end (fraction 1) along a line."""
    return start + (end - start) * fraction


class _Schedule(keras.optimizers.schedules.LearningRateSchedule):
    """A schedule given by `rate(step)`, the step a float tensor, and by its constructor's arguments."""

    def __call__(self, step: Any) -> Any:
        """Return the learning rate at this step, a scalar tensor of Keras' float type."""
        dtype = keras.config.floatx()
        return ops.cast(self.rate(ops.cast(step, dtype)), dtype)

    def rate(self, step: Any) -> Any:
        """Return the learning rate at this step, a float tensor."""
        raise NotImplementedError

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return dict(vars(self))


@keras.saving.register_keras_serializable(package="layers")
class Constant(_Schedule):
    """lr(t) = learning_rate: what the warm-up below leads to when nothing else is wanted.

    Args:
        learning_rate: the rate.
        name: name of the schedule.
    """

    def __init__(self, learning_rate: float, name: str = "Constant") -> None:
        self.learning_rate = learning_rate
        self.name = name

    def rate(self, step: Any) -> Any:
        """Return the rate, whatever the step."""
        return ops.full_like(step, self.learning_rate)


@keras.saving.register_keras_serializable(package="layers")
class StepDecay(_Schedule):
    """lr(t) = initial_learning_rate * decay_rate ^ floor(t / decay_steps).

    Args:
        initial_learning_rate: the rate of the first stretch.
        decay_steps: length of a stretch.
        decay_rate: factor from one stretch to the next.
        name: name of the schedule.

    Raises:
        ValueError: if decay_steps is not positive.
    """

    def __init__(
        self,
        initial_learning_rate: float,
        decay_steps: int,
        decay_rate: float = 0.1,
        name: str = "StepDecay",
    ) -> None:
        _require_positive(decay_steps=decay_steps)
        self.initial_learning_rate = initial_learning_rate
        self.decay_steps = decay_steps
        self.decay_rate = decay_rate
        self.name = name

    def rate(self, step: Any) -> Any:
        """Return the rate of the stretch the step is in."""
        return self.initial_learning_rate * ops.power(self.decay_rate, ops.floor(step / self.decay_steps))


@keras.saving.register_keras_serializable(package="layers")
class ExponentialDecay(_Schedule):
    """lr(t) = initial_learning_rate * decay_rate ^ (t / decay_steps); staircase floors the exponent.

    Args:
        initial_learning_rate: the rate at step 0.
        decay_steps: steps for one factor decay_rate.
        decay_rate: the factor.
        staircase: decay at multiples of decay_steps only.
        name: name of the schedule.

    Raises:
        ValueError: if decay_steps is not positive.
    """

    def __init__(
        self,
        initial_learning_rate: float,
        decay_steps: int,
        decay_rate: float,
        staircase: bool = False,
        name: str = "ExponentialDecay",
    ) -> None:
        _require_positive(decay_steps=decay_steps)
        self.initial_learning_rate = initial_learning_rate
        self.decay_steps = decay_steps
        self.decay_rate = decay_rate
        self.staircase = staircase
        self.name = name

    def rate(self, step: Any) -> Any:
        """Return the decayed rate."""
        exponent = step / self.decay_steps
        if self.staircase:
            exponent = ops.floor(exponent)
        return self.initial_learning_rate * ops.power(self.decay_rate, exponent)


@keras.saving.register_keras_serializable(package="layers")
class PiecewiseConstantDecay(_Schedule):
    """lr(t) = values[i] for boundaries[i-1] < t <= boundaries[i].

    Args:
        boundaries: increasing steps after which the next value holds.
        values: one more than boundaries.
        name: name of the schedule.

    Raises:
        ValueError: if there is not one more value than boundaries.
    """

    def __init__(
        self, boundaries: Sequence[float], values: Sequence[float], name: str = "PiecewiseConstant"
    ) -> None:
        if len(boundaries) != len(values) - 1:
            raise ValueError(
                "The length of boundaries should be 1 less than the length of values. "
                f"Received: boundaries={boundaries} of length {len(boundaries)}, "
                f"and values={values} of length {len(values)}."
            )
        self.boundaries = boundaries
        self.values = values
        self.name = name

    def rate(self, step: Any) -> Any:
        """Return the value of the interval the step is in."""
        rate = ops.full_like(step, self.values[-1])
        for boundary, value in zip(reversed(self.boundaries), reversed(self.values[:-1]), strict=True):
            rate = ops.where(step <= boundary, value, rate)
        return rate


@keras.saving.register_keras_serializable(package="layers")
class PolynomialDecay(_Schedule):
    """lr(t) = end + (initial - end) * (1 - min(t, T) / T) ^ power, T = decay_steps.

    Args:
        initial_learning_rate: the rate at step 0.
        decay_steps: T.
        end_learning_rate: the rate from step T on.
        power: 1 is a line.
        cycle: instead of staying at the end, stretch T to its next multiple: the rate jumps and falls again.
        name: name of the schedule.

    Raises:
        ValueError: if decay_steps is not positive.
    """

    def __init__(
        self,
        initial_learning_rate: float,
        decay_steps: int,
        end_learning_rate: float = 0.0001,
        power: float = 1.0,
        cycle: bool = False,
        name: str = "PolynomialDecay",
    ) -> None:
        _require_positive(decay_steps=decay_steps)
        self.initial_learning_rate = initial_learning_rate
        self.decay_steps = decay_steps
        self.end_learning_rate = end_learning_rate
        self.power = power
        self.cycle = cycle
        self.name = name

    def rate(self, step: Any) -> Any:
        """Return the decayed rate."""
        if self.cycle:
            horizon = self.decay_steps * ops.maximum(1.0, ops.ceil(step / self.decay_steps))
        else:
            horizon = float(self.decay_steps)
            step = ops.minimum(step, horizon)
        span = self.initial_learning_rate - self.end_learning_rate
        return self.end_learning_rate + span * ops.power(1.0 - step / horizon, self.power)


@keras.saving.register_keras_serializable(package="layers")
class CosineDecay(_Schedule):
    """lr(t) = peak * (alpha + (1 - alpha) * (1 + cos(pi min(t, T) / T)) / 2), T = decay_steps.

    With a `warmup_target`, a line from initial_learning_rate to that peak over `warmup_steps` comes first and
    t counts from its end; without, the peak is initial_learning_rate.

    Args:
        initial_learning_rate: the rate at step 0.
        decay_steps: T.
        alpha: the last rate as a fraction of the peak.
        name: name of the schedule.
        warmup_target: the peak, or None for no warm-up.
        warmup_steps: length of the warm-up.

    Raises:
        ValueError: if decay_steps is not positive.

    Reference:
        Loshchilov & Hutter 2016, "SGDR"; the warm-up Goyal et al. 2017.
    """

    def __init__(
        self,
        initial_learning_rate: float,
        decay_steps: int,
        alpha: float = 0.0,
        name: str = "CosineDecay",
        warmup_target: float | None = None,
        warmup_steps: int = 0,
    ) -> None:
        _require_positive(decay_steps=decay_steps)
        self.initial_learning_rate = initial_learning_rate
        self.decay_steps = decay_steps
        self.alpha = alpha
        self.name = name
        self.warmup_target = warmup_target
        self.warmup_steps = warmup_steps

    def rate(self, step: Any) -> Any:
        """Return the rate of the warm-up or of the decay."""
        if self.warmup_target is None:
            return self._decay(self.initial_learning_rate, step)
        decayed = self._decay(self.warmup_target, step - self.warmup_steps)
        if not self.warmup_steps:
            return decayed
        warming = _line(self.initial_learning_rate, self.warmup_target, step / self.warmup_steps)
        return ops.where(step < self.warmup_steps, warming, decayed)

    def _decay(self, peak: float, step: Any) -> Any:
        return _cosine(peak, self.alpha * peak, ops.minimum(step / self.decay_steps, 1.0))


@keras.saving.register_keras_serializable(package="layers")
class CosineDecayRestarts(_Schedule):
    """Cosine decay with warm restarts (SGDR).

    Period i lasts first_decay_steps * t_mul^i and goes, on half a cosine, from
    initial_learning_rate * (alpha + (1 - alpha) * m_mul^i) down to initial_learning_rate * alpha.

    Args:
        initial_learning_rate: the rate at step 0.
        first_decay_steps: length of the first period.
        t_mul: factor of the period's length.
        m_mul: factor of the period's height.
        alpha: the lowest rate as a fraction of the initial.
        name: name of the schedule.

    Raises:
        ValueError: if first_decay_steps is not positive.

    Reference:
        Loshchilov & Hutter 2016, "SGDR: stochastic gradient descent with warm restarts".
    """

    def __init__(
        self,
        initial_learning_rate: float,
        first_decay_steps: int,
        t_mul: float = 2.0,
        m_mul: float = 1.0,
        alpha: float = 0.0,
        name: str = "SGDRDecay",
    ) -> None:
        _require_positive(first_decay_steps=first_decay_steps)
        self.initial_learning_rate = initial_learning_rate
        self.first_decay_steps = first_decay_steps
        self.t_mul = t_mul
        self.m_mul = m_mul
        self.alpha = alpha
        self.name = name

    def rate(self, step: Any) -> Any:
        """Return the rate at the step's place in its period."""
        elapsed = step / self.first_decay_steps  # in first periods
        if self.t_mul == 1.0:
            period = ops.floor(elapsed)
            fraction = elapsed - period
        else:
            # Periods 0..i-1 take (1 - t_mul^i) / (1 - t_mul) first periods; solved for i.
            period = ops.floor(ops.log(1.0 - elapsed * (1.0 - self.t_mul)) / math.log(self.t_mul))
            length = ops.power(self.t_mul, period)
            fraction = (elapsed - (1.0 - length) / (1.0 - self.t_mul)) / length
        height = ops.power(self.m_mul, period)
        return self.initial_learning_rate * (self.alpha + (1.0 - self.alpha) * _cosine(height, 0.0, fraction))


@keras.saving.register_keras_serializable(package="layers")
class OneCycle(_Schedule):
    """One rise to max_learning_rate and one fall far below the start (Smith's 1cycle, two phases).

    From max / div_factor to max over the first pct_start of total_steps, then to max / div_factor /
    final_div_factor at the last step, total_steps - 1; it stays there.

    Args:
        max_learning_rate: the peak.
        total_steps: length of the cycle, at least 2.
        pct_start: fraction of the cycle that rises.
        div_factor: peak over start.
        final_div_factor: start over end.
        anneal_strategy: "cos" or "linear".
        name: name of the schedule.

    Raises:
        ValueError: for fewer than 2 steps, a pct_start outside (0, 1), and an unknown strategy.

    Reference:
        Smith & Topin 2017, "Super-convergence"; the parameters are those of torch's OneCycleLR.
    """

    def __init__(
        self,
        max_learning_rate: float,
        total_steps: int,
        pct_start: float = 0.3,
        div_factor: float = 25.0,
        final_div_factor: float = 1e4,
        anneal_strategy: str = "cos",
        name: str = "OneCycle",
    ) -> None:
        if total_steps < 2:
            raise ValueError(f"Argument `total_steps` must be >= 2. Received: total_steps={total_steps}")
        if not 0.0 < pct_start < 1.0:
            raise ValueError(f"Argument `pct_start` must be in (0, 1). Received: pct_start={pct_start}")
        if anneal_strategy not in _ANNEALING:
            raise ValueError(
                f"Argument `anneal_strategy` must be one of {_ANNEALING}. "
                f"Received: anneal_strategy={anneal_strategy}"
            )
        self.max_learning_rate = max_learning_rate
        self.total_steps = total_steps
        self.pct_start = pct_start
        self.div_factor = div_factor
        self.final_div_factor = final_div_factor
        self.anneal_strategy = anneal_strategy
        self.name = name

    def rate(self, step: Any) -> Any:
        """Return the rate of the rise or of the fall."""
        anneal = _cosine if self.anneal_strategy == "cos" else _line
        start = self.max_learning_rate / self.div_factor
        last = self.total_steps - 1.0
        # The peak may fall between two steps; a cycle too short for a rise begins at its peak.
        peak = max(self.pct_start * self.total_steps - 1.0, 0.0)
        fall = ops.minimum((step - peak) / (last - peak), 1.0)
        falling = anneal(self.max_learning_rate, start / self.final_div_factor, fall)
        if not peak:
            return falling
        return ops.where(step <= peak, anneal(start, self.max_learning_rate, step / peak), falling)


@keras.saving.register_keras_serializable(package="layers")
class Cyclical(_Schedule):
    """A triangle wave between two rates, of period 2 * step_size.

    lr(t) = base + (max - base) * (1 - |t / step_size - 2 c + 1|) * s, c = floor(1 + t / (2 step_size)), where
    s is 1 ("triangular"), 2^(1-c) ("triangular2": half the height each cycle), or gamma^t ("exp_range").

    Args:
        base_learning_rate: the lowest rate.
        max_learning_rate: the highest rate, of the first cycle.
        step_size: steps of half a cycle.
        mode: which s.
        gamma: the base of "exp_range".
        name: name of the schedule.

    Raises:
        ValueError: if step_size is not positive, or for an unknown mode.

    Reference:
        Smith 2017, "Cyclical learning rates for training neural networks".
    """

    def __init__(
        self,
        base_learning_rate: float,
        max_learning_rate: float,
        step_size: int,
        mode: str = "triangular",
        gamma: float = 1.0,
        name: str = "Cyclical",
    ) -> None:
        _require_positive(step_size=step_size)
        if mode not in _CYCLES:
            raise ValueError(f"Argument `mode` must be one of {_CYCLES}. Received: mode={mode}")
        self.base_learning_rate = base_learning_rate
        self.max_learning_rate = max_learning_rate
        self.step_size = step_size
        self.mode = mode
        self.gamma = gamma
        self.name = name

    def rate(self, step: Any) -> Any:
        """Return the rate at the step's place in its cycle."""
        cycle = ops.floor(1.0 + step / (2.0 * self.step_size))
        triangle = 1.0 - ops.abs(step / self.step_size - 2.0 * cycle + 1.0)
        height = self.max_learning_rate - self.base_learning_rate
        if self.mode == "triangular2":
            height = height * ops.power(2.0, 1.0 - cycle)
        elif self.mode == "exp_range":
            height = height * ops.power(self.gamma, step)
        return self.base_learning_rate + height * triangle


@keras.saving.register_keras_serializable(package="layers")
class LinearWarmup(_Schedule):
    """A line to the first rate of any schedule, then that schedule from its beginning.

    lr(t) = initial + (schedule(0) - initial) * t / warmup_steps for t < warmup_steps,
    schedule(t - warmup_steps) after.

    Args:
        schedule: a schedule, or a number for a constant rate.
        warmup_steps: length of the line.
        initial_learning_rate: where the line starts.
        name: name of the schedule.

    Raises:
        ValueError: if warmup_steps is negative.

    Reference:
        Goyal et al. 2017, "Accurate, large minibatch SGD".
    """

    def __init__(
        self,
        schedule: keras.optimizers.schedules.LearningRateSchedule | float,
        warmup_steps: int,
        initial_learning_rate: float = 0.0,
        name: str = "LinearWarmup",
    ) -> None:
        if warmup_steps < 0:
            raise ValueError(f"Argument `warmup_steps` must be >= 0. Received: warmup_steps={warmup_steps}")
        self.schedule = Constant(schedule) if isinstance(schedule, (int, float)) else schedule
        self.warmup_steps = warmup_steps
        self.initial_learning_rate = initial_learning_rate
        self.name = name

    def rate(self, step: Any) -> Any:
        """Return the rate of the line or of the schedule."""
        after = self.schedule(ops.maximum(step - self.warmup_steps, 0.0))
        if not self.warmup_steps:
            return after
        # During the warm-up the schedule stands at its step 0: `after` is the line's goal.
        line = _line(self.initial_learning_rate, after, ops.minimum(step / self.warmup_steps, 1.0))
        return ops.where(step < self.warmup_steps, line, after)

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments, the inner schedule serialised."""
        return {**super().get_config(), "schedule": keras.optimizers.schedules.serialize(self.schedule)}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "LinearWarmup":
        """Rebuild the inner schedule, then this one."""
        return cls(**{**config, "schedule": keras.optimizers.schedules.deserialize(config["schedule"])})
