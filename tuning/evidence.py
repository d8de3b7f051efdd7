"""What a study finds: quantities by setting and seed, its own training runs, figures and a conclusion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Curve = Sequence[tuple[float, float]]  # (step, value)


@dataclass(frozen=True)
class Quantity:
    """One quantity of several settings.

    Args:
        name: what was measured, with its unit.
        values: one value a seed, in the order of the seeds, by setting.
        smaller_is_better: its sense.
    """

    name: str
    values: Mapping[str, Sequence[float]]
    smaller_is_better: bool = False


@dataclass(frozen=True)
class Trial:
    """One training run of a study's own, which becomes a child of its MLflow run.

    Args:
        setting: its label, the same for all seeds.
        seed: what its chance was drawn from.
        curves: `(step, value)` pairs by metric.
        metrics: final values.
    """

    setting: str
    seed: int
    curves: Mapping[str, Curve]
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class Evidence:
    """All that a study found.

    Args:
        quantities: what its settings are compared by.
        figures: by name, in the order in which a reader wants them.
        conclusion: one sentence made from the numbers, without its full stop.
        trials: its own training runs.
    """

    quantities: Sequence[Quantity]
    figures: Mapping[str, Figure]
    conclusion: str
    trials: Sequence[Trial] = field(default_factory=tuple)


def curves_by_setting(trials: Sequence[Trial], metric: str) -> dict[str, list[Curve]]:
    """One metric's curves, a list of seeds for each setting."""
    result: dict[str, list[Curve]] = {}
    for trial in trials:
        if metric in trial.curves:
            result.setdefault(trial.setting, []).append(trial.curves[metric])
    return result


def values_by_setting(trials: Sequence[Trial], metric: str) -> dict[str, list[float]]:
    """One final metric's values, one a seed, for each setting."""
    result: dict[str, list[float]] = {}
    for trial in trials:
        result.setdefault(trial.setting, []).append(trial.metrics[metric])
    return result
