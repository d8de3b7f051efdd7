"""Settings compared by several metrics at once: those on the front are beaten in everything by none."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tuning import comparison
from tuning.comparison import smaller_is_better

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAMED = 12  # settings on the front that the figure's legend has room for


def summarize(
    finished: list[tuple[dict, dict]], settings: list[dict], metrics: Sequence[str]
) -> list[dict[str, Any]]:
    """The rows of `comparison.summarize` by the first metric, with the others; those on the front come first.

    Args:
        finished: pairs of a trial and its final metrics.
        settings: all settings of the sweep.
        metrics: what to compare, each in its own sense.

    Returns:
        Rows with, beside the first metric's, `means` and `stds` by metric, and `front`: whether no other
        setting is as good in every metric and better in one, by the means over seeds.

    Raises:
        RecipeError: the recipe does not report one of the metrics.
    """
    by_metric = [comparison.summarize(finished, settings, metric) for metric in metrics]
    rows = []
    for first in by_metric[0]:
        same = [next(row for row in rows if row["setting"] == first["setting"]) for rows in by_metric]
        rows.append(
            {
                **first,
                "means": {metric: row["mean"] for metric, row in zip(metrics, same, strict=True)},
                "stds": {metric: row["std"] for metric, row in zip(metrics, same, strict=True)},
            }
        )
    for row, undominated in zip(rows, front([row["means"] for row in rows]), strict=True):
        row["front"] = undominated
    return sorted(rows, key=lambda row: not row["front"])


def front(points: Sequence[dict[str, float]]) -> list[bool]:
    """Which points are dominated by no other one.

    A point dominates another one that it is nowhere worse than and somewhere better; equal points do not
    dominate each other. What is not a number is worse than any.

    Args:
        points: values by metric; the sense of each follows from its name.
    """
    costs = [tuple(_cost(metric, value) for metric, value in point.items()) for point in points]
    return [not any(_dominates(other, cost) for other in costs) for cost in costs]


def _cost(metric: str, value: float) -> float:
    if math.isnan(value):
        return math.inf
    return value if smaller_is_better(metric) else -value


def _dominates(one: Sequence[float], other: Sequence[float]) -> bool:
    return one != other and all(mine <= its for mine, its in zip(one, other, strict=True))


def table(rows: list[dict[str, Any]], metrics: Sequence[str]) -> str:
    """The comparison as Markdown: settings on the front have their number in the figure."""
    width = max(len("setting"), *(len(row["label"]) for row in rows))
    widths = [max(19, len(metric)) for metric in metrics]
    titles = " | ".join(f"{metric:^{wide}}" for metric, wide in zip(metrics, widths, strict=True))
    dashes = "|".join("-" * (wide + 2) for wide in widths)
    lines = [
        f"| front | {'setting':<{width}} | {titles} | seeds | seconds |",
        f"|------:|{'-' * (width + 2)}|{dashes}|------:|--------:|",
    ]
    for number, row in enumerate(rows, start=1):
        cells = " | ".join(
            f"{_spread(row, metric):^{wide}}" for metric, wide in zip(metrics, widths, strict=True)
        )
        lines.append(
            f"| {number if row['front'] else '':>5} | {row['label']:<{width}} | {cells} "
            f"| {len(row['values']):>5} | {row['seconds']:>7.1f} |"
        )
    return "\n".join(lines)


def _spread(row: dict[str, Any], metric: str) -> str:
    mean, std = row["means"][metric], row["stds"][metric]
    text = f"{mean:.0f}" if float(mean).is_integer() else f"{mean:.4f}"
    return f"{text} +/- {std:.4f}" if std > 0 else text


def sheet(rows: list[dict[str, Any]], metrics: Sequence[str]) -> str:
    """The comparison as comma-separated values: fields, mean and deviation of each metric, the front."""
    columns = [f"{metric} {what}" for metric in metrics for what in ("mean", "std")]
    cells = ([row[kind][metric] for metric in metrics for kind in ("means", "stds")] for row in rows)
    return comparison.separated(
        rows, [*columns, "front"], ([*own, row["front"]] for own, row in zip(cells, rows, strict=True))
    )


def figure(rows: list[dict[str, Any]], metrics: Sequence[str]) -> Figure:
    """All settings by the first metric and each other one, the front marked and numbered as in the table.

    The line is what is attained at the least: only of two metrics, as more have no such line in a plane.
    """
    from tuning.figures import panels

    y, *others = metrics
    drawn, every = panels(len(others), columns=2, size=(5.2, 3.9))
    best = [row for row in rows if row["front"]]
    beaten = [row for row in rows if not row["front"]]
    for axes, x in zip(every, others, strict=True):
        axes.plot(*_points(beaten, x, y), "o", color="tab:gray", alpha=0.5, markersize=5, label="dominated")
        if len(metrics) == 2:
            places = sorted(zip(*_points(best, x, y), strict=True))
            style = "steps-post" if smaller_is_better(x) else "steps-pre"
            axes.plot(*zip(*places, strict=True), drawstyle=style, color="tab:orange", linewidth=1.2)
        axes.plot(*_points(best, x, y), "o", color="tab:orange", markersize=7, label="front")
        numbers: dict[tuple[float, float], list[str]] = {}
        for number, place in enumerate(zip(*_points(best, x, y), strict=True), start=1):
            numbers.setdefault(place, []).append(str(number))
        for place, equal in numbers.items():
            axes.annotate(
                ", ".join(equal), place, (0, 6), textcoords="offset points", fontsize=8, ha="center"
            )
        axes.margins(0.08, 0.12)
        for metric, which in ((x, "x"), (y, "y")):
            _scale(axes, which, [row["means"][metric] for row in rows])
        axes.set_xlabel(f"{x} ({_sense(x)})", fontsize=9)
        axes.set_ylabel(f"{y} ({_sense(y)})", fontsize=9)
    every[0].legend(fontsize=8, frameon=False, loc="best")
    if len(best) <= NAMED:
        named = "\n".join(f"{number}  {row['label']}" for number, row in enumerate(best, start=1))
        drawn.supxlabel(f"front:\n{named}", fontsize=8, ha="left", x=0.02)
        drawn.set_figheight(drawn.get_figheight() + 0.15 * (len(best) + 1))
    return drawn


def _points(rows: list[dict[str, Any]], x: str, y: str) -> tuple[list[float], list[float]]:
    return [row["means"][x] for row in rows], [row["means"][y] for row in rows]


def _scale(axes: Any, which: str, values: Sequence[float]) -> None:
    """A logarithmic axis for what spreads over more than one power of ten, as sizes and losses do."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    if min(values) > 0 and max(values) > 20 * min(values):
        getattr(axes, f"set_{which}scale")("log")
        axis = getattr(axes, f"{which}axis")
        narrow = max(values) < 100 * min(values)  # powers of ten alone would be too few
        axis.set_major_locator(LogLocator(subs=(1, 2, 5) if narrow else (1,)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())


def _sense(metric: str) -> str:
    return "less is better" if smaller_is_better(metric) else "more is better"
