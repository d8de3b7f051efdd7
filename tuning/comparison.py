"""Settings compared by a metric over seeds: rows, a table, a figure."""

import csv
import io
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from recipes.engine.errors import unknown
from tuning.space import label


def once(finished: list[tuple[dict, dict]]) -> list[tuple[dict, dict]]:
    """Each setting and seed once: a search may draw a setting again, and gets the same numbers."""
    trials = [trial for trial, _ in finished]
    return [pair for place, pair in enumerate(finished) if pair[0] not in trials[:place]]


def summarize(finished: list[tuple[dict, dict]], settings: list[dict], metric: str) -> list[dict[str, Any]]:
    """Mean and standard deviation over seeds of each setting, best first.

    Args:
        finished: pairs of a trial and its final metrics.
        settings: all settings of the sweep.
        metric: what to compare; the sense follows from its name (`smaller_is_better`).

    Returns:
        Rows for the settings of which a seed finished.

    Raises:
        RecipeError: the recipe does not report the metric.
    """
    rows = []
    for setting in settings:
        results = [metrics for trial, metrics in finished if trial["setting"] == setting]
        if not results:
            continue
        if metric not in results[0]:
            raise unknown("value of --metric", metric, results[0])
        values = [result[metric] for result in results]
        rows.append(
            {
                "label": label(setting),
                "setting": setting,
                "values": values,
                "mean": statistics.fmean(values),
                "std": statistics.stdev(values) if len(values) > 1 else float("nan"),
                "seconds": statistics.fmean(result["seconds"] for result in results),
            }
        )
    return sorted(rows, key=lambda row: row["mean"], reverse=not smaller_is_better(metric))


def smaller_is_better(metric: str) -> bool:
    """Whether a metric is a loss, an error or a cost: speeds, as `images_per_second`, are none."""
    words = ("loss", "error", "rmse", "mae", "mse", "perplexity", "parameters", "seconds")
    return any(word in metric for word in words)


def table(rows: list[dict[str, Any]], metric: str) -> str:
    """The comparison as text: Markdown that also reads well on a terminal."""
    width = max(len("setting"), *(len(row["label"]) for row in rows))
    lines = [
        f"| {'setting':<{width}} | {metric:^19} | seeds | seconds |",
        f"|{'-' * (width + 2)}|{'-' * 21}|------:|--------:|",
    ]
    for row in rows:
        spread = f"{row['mean']:.4f} +/- {row['std']:.4f}" if len(row["values"]) > 1 else f"{row['mean']:.4f}"
        lines.append(
            f"| {row['label']:<{width}} | {spread:^19} | {len(row['values']):>5} | {row['seconds']:>7.1f} |"
        )
    return "\n".join(lines)


def sheet(rows: list[dict[str, Any]]) -> str:
    """The comparison as comma-separated values: a column a field, and one a seed."""
    most = max(len(row["values"]) for row in rows)
    columns = ["mean", "std", *(f"seed {number}" for number in range(most))]
    return separated(rows, columns, ([row["mean"], row["std"], *row["values"]] for row in rows))


def separated(rows: list[dict[str, Any]], columns: Sequence[str], cells: Iterable[Sequence]) -> str:
    """Comma-separated values: the fields of each row's setting, then its cells in these columns."""
    fields = list({name: None for row in rows for name in row["setting"]})
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow([*fields, *columns])
    for row, own in zip(rows, cells, strict=True):
        writer.writerow([*(row["setting"].get(name, "") for name in fields), *own])
    return text.getvalue()


def comparison(rows: list[dict[str, Any]], metric: str) -> Any:
    """The comparison as a figure: every seed a dot, every setting a mean with one standard deviation."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 1.2 + 0.32 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    upwards = rows[::-1]
    means = [row["mean"] for row in upwards]
    spreads = [row["std"] if len(row["values"]) > 1 else 0 for row in upwards]
    axes.errorbar(means, range(len(rows)), xerr=spreads, fmt="s", color="tab:blue", capsize=4, markersize=5)
    dots = [(value, place) for place, row in enumerate(upwards) for value in row["values"]]
    axes.plot(*zip(*dots, strict=True), "o", color="tab:orange", markersize=3.5, alpha=0.8)
    axes.set_yticks(range(len(rows)), [row["label"] for row in upwards], fontsize=8)
    axes.set_xlabel(f"{metric}: seeds (dots), mean and standard deviation (squares)")
    axes.grid(alpha=0.3)
    return figure
