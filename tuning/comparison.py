"""Settings compared by a metric over seeds: rows, a table, a figure."""

import statistics
from typing import Any

from recipes.engine.errors import unknown
from tuning.space import label


def summarize(finished: list[tuple[dict, dict]], settings: list[dict], metric: str) -> list[dict[str, Any]]:
    """Mean and standard deviation over seeds of each setting, best first.

    Args:
        finished: pairs of a trial and its final metrics.
        settings: all settings of the sweep.
        metric: what to compare; the sense follows from its name (losses and errors are better small).

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
            raise unknown("value of --metric", metric, (name for name in results[0] if "/" in name))
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
    """Whether a metric is a loss or an error."""
    return any(word in metric for word in ("loss", "error", "rmse", "mae", "mse", "perplexity"))


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


def comparison(rows: list[dict[str, Any]], metric: str) -> Any:
    """The comparison as a figure: every seed a dot, every setting a mean with one standard deviation."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 1.2 + 0.32 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    for place, row in enumerate(reversed(rows)):
        spread = row["std"] if len(row["values"]) > 1 else 0
        axes.errorbar(row["mean"], place, xerr=spread, fmt="s", color="tab:blue", capsize=4, markersize=5)
        axes.plot(
            row["values"], [place] * len(row["values"]), "o", color="tab:orange", markersize=3.5, alpha=0.8
        )
    axes.set_yticks(range(len(rows)), [row["label"] for row in reversed(rows)], fontsize=8)
    axes.set_xlabel(f"{metric}: seeds (dots), mean and standard deviation (squares)")
    axes.grid(alpha=0.3)
    return figure
