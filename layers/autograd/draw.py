"""The recorded graph as a picture: values and gradients in every box, operations above them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from layers.autograd.tensor import Tensor, grad, topological_order

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw(output: Tensor, gradients: bool = True, title: str = "") -> Figure:
    """Draw the graph behind a tensor, inputs on the left, the output on the right.

    Only recorded tensors have a box: constants and inputs that require no gradient do not. The graph stays
    usable.

    Args:
        output: the end of the graph; a single number if gradients are wanted.
        gradients: show d(output)/d(tensor) in every box.
        title: above the picture.

    Returns:
        A matplotlib figure.
    """
    from matplotlib.figure import Figure

    nodes = topological_order(output)
    slopes = grad(output, nodes, retain_graph=True) if gradients else [None] * len(nodes)
    places = layout(nodes)
    columns = 1 + max(x for x, _ in places.values())
    rows = 1 + max(y for _, y in places.values()) - min(y for _, y in places.values())
    figure = Figure(figsize=(1.9 * columns + 0.6, 1.35 * rows + 0.8), layout="constrained")
    axes = figure.subplots()
    for node in nodes:
        for parent in node.parents:
            axes.annotate(
                "",
                xy=places[id(node)],
                xytext=places[id(parent)],
                arrowprops={"arrowstyle": "-|>", "color": "0.45", "shrinkA": 34, "shrinkB": 36, "lw": 1.2},
            )
    for node, slope in zip(nodes, slopes, strict=True):
        leaf = node.operation is None
        axes.text(
            *places[id(node)],
            _label(node, slope),
            ha="center",
            va="center",
            fontsize=8.5,
            family="monospace",
            bbox={
                "boxstyle": "round,pad=0.45",
                "facecolor": "#e3f0ff" if leaf else "#ffffff" if node is not output else "#fff0d9",
                "edgecolor": "#3a6ea5" if leaf else "0.3",
            },
        )
    xs, ys = zip(*places.values(), strict=True)
    axes.set(xlim=(min(xs) - 0.6, max(xs) + 0.6), ylim=(min(ys) - 0.6, max(ys) + 0.6), title=title)
    axes.axis("off")
    return figure


def layout(nodes: list[Tensor]) -> dict[int, tuple[float, float]]:
    """A place (column, row) for every tensor, by identity, parents left of their children.

    The column of a tensor is its distance from the output, so that an input stands just before its first
    use; the order in a column follows the mean row of the children, which keeps most edges from crossing.
    """
    distance = {id(node): 0 for node in nodes}
    children: dict[int, list[Tensor]] = {id(node): [] for node in nodes}
    for node in reversed(nodes):
        for parent in node.parents:
            distance[id(parent)] = max(distance[id(parent)], distance[id(node)] + 1)
            children[id(parent)].append(node)
    deepest = max(distance.values())
    places: dict[int, tuple[float, float]] = {}
    for column in range(deepest, -1, -1):
        members = [node for node in reversed(nodes) if distance[id(node)] == deepest - column]

        def wish(node: Tensor) -> float:
            rows = [places[id(child)][1] for child in children[id(node)]]
            return float(np.mean(rows)) if rows else 0.0

        members.sort(key=wish, reverse=True)
        for row, node in enumerate(members):
            places[id(node)] = (column, (len(members) - 1) / 2 - row)
    return places


def _label(node: Tensor, slope: Any) -> str:
    head = " ".join(part for part in (node.name, node.operation and f"[{node.operation}]") if part) or "leaf"
    lines = [head, f"value {_short(node.data)}"]
    if slope is not None:
        lines.append(f"grad  {_short(slope.data)}")
    return "\n".join(lines)


def _short(values: np.ndarray) -> str:
    """A number, a short vector, or the shape of what is too large to print."""
    if values.size == 1:
        return f"{values.item():.4g}"
    if values.ndim == 1 and values.size <= 3:
        return "[" + " ".join(f"{v:.3g}" for v in values) + "]"
    return "x".join(map(str, values.shape)) + f", norm {np.linalg.norm(values):.3g}"
