"""Learning rates over time: functions that make a function from the step number to a rate."""

from __future__ import annotations

import math
from collections.abc import Callable

Schedule = Callable[[int], float]


def exponential_decay(initial: float, decay_steps: int, decay_rate: float) -> Schedule:
    """Initial times decay_rate^(step / decay_steps)."""
    return lambda step: initial * decay_rate ** (step / decay_steps)


def step_decay(initial: float, every: int, factor: float) -> Schedule:
    """Initial times factor^floor(step / every)."""
    return lambda step: initial * factor ** (step // every)


def cosine_decay(initial: float, decay_steps: int, final: float = 0.0) -> Schedule:
    """From initial to final along half a cosine, constant afterwards.

    Reference: Loshchilov and Hutter, "SGDR", 2017.
    """

    def rate(step: int) -> float:
        progress = min(step / decay_steps, 1.0)
        return final + (initial - final) * 0.5 * (1 + math.cos(math.pi * progress))

    return rate


def warmup(schedule: Schedule, steps: int) -> Schedule:
    """Linear from 0 to the schedule's first rate during `steps` steps, then the schedule from its start."""
    return lambda step: schedule(0) * step / steps if step < steps else schedule(step - steps)
