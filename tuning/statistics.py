"""Means with their uncertainty, and whether settings differ: t-intervals, t-tests, Holm's correction."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

LEVEL = 0.05  # of significance, for all comparisons of a table together
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """Mean, standard deviation and confidence interval of a quantity measured with `n` seeds."""

    mean: float
    std: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.mean:.4g} +/- {self.std:.2g}" if self.n > 1 else f"{self.mean:.4g}"


@dataclass(frozen=True)
class Comparison:
    """Two settings: the difference of their means, its p-value, and the p-value after Holm's correction."""

    first: str
    second: str
    difference: float
    p: float
    adjusted: float

    @property
    def significant(self) -> bool:
        """Whether the difference stands, at `LEVEL` for all comparisons together."""
        return self.adjusted < LEVEL


def interval(values: Sequence[float]) -> Interval:
    """Mean +/- t s / sqrt(n), with t the quantile of Student's distribution at n - 1 degrees of freedom.

    Args:
        values: one a seed; of a single one the uncertainty is NaN.

    Returns:
        Mean, standard deviation (n - 1 in the denominator) and the interval of confidence `CONFIDENCE`.
    """
    from scipy import stats

    n = len(values)
    mean = float(np.mean(values))
    std = float(np.std(values, ddof=1)) if n > 1 else math.nan
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1)) * std / math.sqrt(n) if n > 1 else math.nan
    return Interval(mean, std, mean - half, mean + half, n)


def paired_t(first: Sequence[float], second: Sequence[float]) -> float:
    """Two-sided p-value of the mean of the differences seed by seed: t = mean(d) sqrt(n) / std(d).

    What a seed does to both settings alike (the split, the order of the data) drops out of the difference.
    Values that vary while their difference does not are counted in steps, as the accuracy on a few hundred
    examples is: one step for all of a few seeds is no certainty, and the sign test, 2^(1 - n), says how much.
    """
    from scipy import stats

    first, second = np.asarray(first, float), np.asarray(second, float)
    d = first - second
    if len(d) < 2:
        return math.nan
    smallest = 1e-9 * max(np.abs(first).max(), np.abs(second).max())  # what rounding leaves of equal numbers
    if np.ptp(d) <= smallest < max(np.ptp(first), np.ptp(second)):
        return 1.0 if abs(d[0]) <= smallest else 2.0 ** (1 - len(d))
    return _p(float(np.mean(d)), float(np.std(d, ddof=1)) / math.sqrt(len(d)), len(d) - 1, stats)


def welch_t(first: Sequence[float], second: Sequence[float]) -> float:
    """Two-sided p-value of the difference of two means whose variances may differ (Welch 1947)."""
    from scipy import stats

    if min(len(first), len(second)) < 2:
        return math.nan
    parts = [float(np.var(values, ddof=1)) / len(values) for values in (first, second)]
    total = sum(parts)
    freedom = total**2 / sum(
        part**2 / (len(values) - 1) for part, values in zip(parts, (first, second), strict=True)
    ) if total else 1.0  # fmt: skip
    return _p(float(np.mean(first) - np.mean(second)), math.sqrt(total), freedom, stats)


def _p(difference: float, error: float, freedom: float, stats: object) -> float:
    if error == 0:  # without any spread every difference is beyond doubt, and no difference is none
        return 1.0 if difference == 0 else 0.0
    return float(2 * stats.t.sf(abs(difference) / error, freedom))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values that hold for all tests together: the i-th smallest of m, times m - i + 1.

    Args:
        p_values: of m tests; NaN (no test possible) stays NaN and does not count.

    Returns:
        Adjusted values in the same order, at most 1, never falling as the p-values rise.

    Reference:
        Holm 1979, "A simple sequentially rejective multiple test procedure".
    """
    adjusted = [math.nan] * len(p_values)
    known = sorted((p, place) for place, p in enumerate(p_values) if not math.isnan(p))
    largest = 0.0
    for rank, (p, place) in enumerate(known):
        largest = max(largest, min(1.0, p * (len(known) - rank)))
        adjusted[place] = largest
    return adjusted


def compare(values: Mapping[str, Sequence[float]]) -> list[Comparison]:
    """Every pair of settings, tested: pairs of seeds where all settings have as many, else Welch's test.

    All pairs, not the best against the rest: that one is the best was seen in the same numbers. Where other
    settings vary with the seed, two that happen not to are counted by their signs, as in `paired_t`.

    Args:
        values: one a seed, in the order of the seeds, by setting.

    Returns:
        A comparison for each pair.
    """
    pairs = list(itertools.combinations(values, 2))
    paired = len({len(each) for each in values.values()}) == 1
    test = paired_t if paired else welch_t
    still = {name for name, each in values.items() if np.ptp(each) == 0}
    p_values = []
    for first, second in pairs:
        p = test(values[first], values[second])
        if {first, second} <= still < set(values):
            p = max(p, 2.0 ** (1 - min(len(values[first]), len(values[second]))))
        p_values.append(p)
    return [
        Comparison(first, second, float(np.mean(values[first]) - np.mean(values[second])), p, adjusted)
        for (first, second), p, adjusted in zip(pairs, p_values, holm(p_values), strict=True)
    ]


def ranked(values: Mapping[str, Sequence[float]], smaller_is_better: bool) -> list[str]:
    """The settings, best mean first."""
    return sorted(values, key=lambda name: float(np.mean(values[name])), reverse=not smaller_is_better)


def verdict(quantity: str, values: Mapping[str, Sequence[float]], smaller_is_better: bool) -> str:
    """What the numbers allow to say, in one sentence without its full stop.

    Args:
        quantity: what was measured.
        values: one a seed, by setting.
        smaller_is_better: the sense of the quantity.
    """
    best, *others = ranked(values, smaller_is_better)
    told_apart = {
        name
        for each in compare(values)
        if each.significant and best in (each.first, each.second)
        for name in (each.first, each.second)
    }
    beaten = [name for name in others if name in told_apart]
    equal = [name for name in others if name not in told_apart]
    parts = [f"{quantity} is best with {best}, {interval(values[best])}"]
    if beaten:
        parts.append(f"better than {_listed(beaten)} (p < {LEVEL} after Holm)")
    if equal and max(map(len, values.values())) < 2:
        parts.append("with one seed each, chance is not ruled out")
    elif equal:
        seeds = len(values[best])
        parts.append(f"not told apart from {_listed(equal)} with {seeds} seed{'s' if seeds > 1 else ''}")
    return "; ".join(parts)


def _listed(names: Sequence[str], most: int = 6) -> str:
    """Names in a sentence, not too many."""
    shown = names if len(names) <= most else [*names[: most - 1], f"{len(names) - most + 1} more"]
    return " and ".join([", ".join(shown[:-1]), shown[-1]]) if len(shown) > 1 else shown[0]
