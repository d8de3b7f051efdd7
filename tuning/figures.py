"""What sweeps and studies are seen by: bands over seeds, intervals, importance, parallel coordinates."""

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from tuning.evidence import Curve
from tuning.statistics import interval

COLOURS = ("#1f6f8b", "#d1603d", "#5b8c5a", "#8a5a9e", "#c79a2a", "#4a5a6a", "#b03a5b", "#3a9e9e", "#7a6a4a")
LINES = ("-", "--", ":")
LONG = 30  # characters of a label


def style(place: int) -> dict[str, Any]:
    """Colour and dash of the curve number `place`: no two of 27 alike."""
    return {
        "color": COLOURS[place % len(COLOURS)],
        "linestyle": LINES[place // len(COLOURS) % len(LINES)],
    }


def panels(count: int, columns: int = 3, size: tuple[float, float] = (4.0, 3.1)) -> tuple[Figure, list]:
    """A figure of `count` plain axes in rows of at most `columns`, in reading order."""
    columns = min(count, columns)
    rows = -(-count // columns)
    figure = Figure(figsize=(size[0] * columns, size[1] * rows), layout="constrained")
    axes = [figure.add_subplot(rows, columns, index + 1) for index in range(count)]
    for each in axes:
        plain(each)
    return figure, axes


def plain(axes: Any) -> None:
    """Take off what is not data."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.tick_params(labelsize=8)


def line(axes: Any, curves: Mapping[str, tuple[Sequence, Sequence]], x: str, y: str, title: str = "") -> None:
    """Plain curves by label on axes, with a legend."""
    for place, (label, (xs, ys)) in enumerate(curves.items()):
        axes.plot(xs, ys, label=label, linewidth=1.4, **style(place))
    axes.set_xlabel(x, fontsize=9)
    axes.set_ylabel(y, fontsize=9)
    axes.set_title(title, fontsize=10)
    axes.legend(fontsize=7, frameon=False)


def band(axes: Any, curves: Mapping[str, Sequence[Curve]], x: str, y: str, title: str = "") -> None:
    """Mean over seeds and one standard deviation to either side, by setting.

    Args:
        axes: where to draw.
        curves: for each setting one curve a seed; steps that not all seeds have are left out.
        x, y: labels of the axes.
        title: of the axes.
    """
    for place, (label, seeds) in enumerate(curves.items()):
        steps = sorted(set.intersection(*(({step for step, _ in curve}) for curve in seeds)))
        table = np.array([[dict(curve)[step] for step in steps] for curve in seeds])
        mean, std = table.mean(axis=0), table.std(axis=0, ddof=1 if len(seeds) > 1 else 0)
        axes.plot(steps, mean, label=label, linewidth=1.4, **style(place))
        axes.fill_between(steps, mean - std, mean + std, color=style(place)["color"], alpha=0.15, linewidth=0)
    axes.set_xlabel(x, fontsize=9)
    axes.set_ylabel(y, fontsize=9)
    axes.set_title(title, fontsize=10)
    axes.legend(fontsize=7, frameon=False)


def bands(curves: Mapping[str, Sequence[Curve]], y: str, title: str = "") -> Figure:
    """`band` as a figure of its own."""
    figure, (axes,) = panels(1, size=(7.5, 3.8))
    band(axes, curves, "optimizer step", y, title)
    if max(map(len, curves)) > LONG:  # such a legend would cover the curves
        axes.get_legend().remove()
        figure.set_figheight(3.8 + 0.16 * len(curves))
        figure.legend(loc="outside lower left", fontsize=7, frameon=False)
    return figure


def intervals(values: Mapping[str, Sequence[float]], quantity: str) -> Figure:
    """Every seed a dot, every setting its mean and confidence interval, the first at the top."""
    wrapped = {label: textwrap.wrap(label, 42) or [""] for label in values}
    lines = max(map(len, wrapped.values()))
    figure, (axes,) = panels(1, size=(7.5, 0.9 + (0.12 + 0.12 * lines) * len(values)))
    for place, (label, seeds) in enumerate(reversed(values.items())):
        found = interval(seeds)
        half = 0.0 if math.isnan(found.low) else found.high - found.mean
        axes.plot(seeds, [place] * len(seeds), "o", color=COLOURS[1], markersize=3.5, alpha=0.6)
        axes.errorbar(found.mean, place, xerr=half, fmt="s", color=COLOURS[0], capsize=4, markersize=5)
        text = "\n".join(wrapped[label])
        axes.text(1.01, place, text, transform=axes.get_yaxis_transform(), fontsize=8, va="center")
    axes.set_yticks([])
    axes.set_ylim(-0.6, len(values) - 0.4)
    axes.set_xlabel(f"{quantity}: seeds (dots), mean and 95 % interval (squares)", fontsize=9)
    return figure


def importances(found: Mapping[str, tuple[float, float]], title: str) -> Figure:
    """How much each hyperparameter matters: mean and standard deviation, the largest at the top."""
    names = sorted(found, key=lambda name: found[name][0])
    figure, (axes,) = panels(1, size=(7.5, 1.1 + 0.36 * len(names)))
    axes.barh(
        range(len(names)), [found[name][0] for name in names], xerr=[found[name][1] for name in names],
        color=COLOURS[0], height=0.6, error_kw={"linewidth": 1, "ecolor": "#444"},
    )  # fmt: skip
    axes.axvline(0, color="#444", linewidth=0.8)
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("permutation importance: loss of R² when the field is shuffled", fontsize=9)
    axes.set_title(title, fontsize=10)
    return figure


def parallel_coordinates(
    rows: Sequence[Mapping[str, Any]], fields: Sequence[str], metric: str, smaller_is_better: bool
) -> Figure:
    """Every trial a line from field to field to its metric; the better, the darker and the further in front.

    Args:
        rows: a trial's fields and its metric.
        fields: what varied; an axis each.
        metric: the last axis.
        smaller_is_better: the sense of the metric.
    """
    figure = Figure(figsize=(7.5, 3.6), layout="constrained")
    axes = figure.add_subplot()
    names = [*fields, metric]
    places = np.zeros((len(rows), len(names)))
    for column, name in enumerate(names):
        values = [row[name] for row in rows]
        places[:, column], ticks = _scaled(values)
        axes.axvline(column, color="#888", linewidth=0.8)
        for place, text in ticks:
            box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 1}
            axes.text(column + 0.03, place, text, fontsize=7, va="center", color="#222", bbox=box, zorder=9)
    quality = 1 - places[:, -1] if smaller_is_better else places[:, -1]
    from matplotlib import colormaps

    for row in np.argsort(quality):
        colour = colormaps["viridis_r"](0.1 + 0.9 * quality[row])
        axes.plot(
            range(len(names)), places[row], color=colour, alpha=0.75, linewidth=1.1, zorder=1 + quality[row]
        )
    axes.set_xticks(range(len(names)), names, fontsize=8)
    axes.set_yticks([])
    axes.set_xlim(-0.1, len(names) - 0.6)
    axes.spines[:].set_visible(False)
    return figure


def is_logarithmic(values: Sequence[Any]) -> bool:
    """Whether numbers are better seen by their logarithm: positive, over more than a factor of ten."""
    return all(isinstance(v, (int, float)) and v > 0 for v in values) and max(values) > 10 * min(values)


def _scaled(values: Sequence[Any]) -> tuple[np.ndarray, list[tuple[float, str]]]:
    """Heights between 0 and 1, and where to write what."""
    if not all(isinstance(value, (int, float)) for value in values):
        kinds = sorted({str(value) for value in values})
        heights = {kind: (k + 0.5) / len(kinds) for k, kind in enumerate(kinds)}
        return np.array([heights[str(value)] for value in values]), [(h, k) for k, h in heights.items()]
    scaled = np.log(values) if is_logarithmic(values) else np.asarray(values, float)
    span = scaled.max() - scaled.min()
    heights = (scaled - scaled.min()) / span if span else np.full(len(scaled), 0.5)
    shown = sorted(set(values))
    if len(shown) > 6:
        shown = [shown[0], shown[-1]]
    return heights, [(float(heights[list(values).index(value)]), f"{value:.4g}") for value in shown]
