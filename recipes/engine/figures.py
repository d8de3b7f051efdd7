"""Arrays in, matplotlib figures out."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

History = Mapping[str, Sequence[tuple[int, float]]]

CROWDED = 60  # points of a curve that a marker each would hide


def learning_curves(history: History, title: str = "") -> Figure:
    """Every metric that has a training or validation curve, and the learning rate, over optimizer steps.

    Args:
        history: `(step, value)` pairs by metric name, as a run keeps them.
        title: what was trained.
    """
    families = sorted({name.split("/", 1)[1] for name in history if name.startswith(("train/", "val/"))})
    panels = [*families, "lr"] if "lr" in history else families
    # A run that failed at once has no panels, but a title.
    figure = Figure(figsize=(4.2 * max(1, len(panels)), 3.4), layout="constrained")
    for index, family in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), index + 1)
        for name, style in ((f"train/{family}", "-"), (f"val/{family}", "o-"), (family, "-")):
            if name in history:
                steps, values = zip(*history[name], strict=True)
                if len(steps) > CROWDED:
                    style = "-"
                axes.plot(steps, values, style, label=name, markersize=4, linewidth=1.2)
        axes.set_xlabel("optimizer step")
        axes.set_title(family)
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    figure.suptitle(title)
    return figure


def confusion_matrix(truth: np.ndarray, predicted: np.ndarray, labels: Sequence[str]) -> Figure:
    """How often each class (row) was called each class (column), in per cent of the row."""
    counts = np.zeros((len(labels), len(labels)), int)
    np.add.at(counts, (truth, predicted), 1)
    share = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    figure = Figure(figsize=(1.8 + 0.55 * len(labels), 1.4 + 0.5 * len(labels)), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(share, cmap="Blues", vmin=0, vmax=100)
    for row, column in np.ndindex(*share.shape):
        if counts[row, column]:
            colour = "white" if share[row, column] > 55 else "black"
            axes.text(
                column, row, f"{share[row, column]:.0f}", ha="center", va="center", color=colour, fontsize=8
            )
    axes.set_xticks(range(len(labels)), labels, rotation=45, ha="right")
    axes.set_yticks(range(len(labels)), labels)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    axes.set_title(f"accuracy {np.mean(truth == predicted):.2%} of {len(truth)}")
    figure.colorbar(image, label="% of the true class", shrink=0.8)
    return figure


def image_grid(images: np.ndarray, captions: Sequence[str] = (), columns: int = 8, title: str = "") -> Figure:
    """Images side by side.

    Args:
        images: (n, height, width, channels), channels 1 or 3; bytes are shown as they are, floats between
            the smallest and the largest of their image.
        captions: one text an image.
        columns: images in a row.
        title: of the whole figure.
    """
    rows = -(-len(images) // columns)
    height = 1.35 if captions else 1.05
    figure = Figure(figsize=(1.25 * columns, height * rows + 0.5), layout="constrained")
    for index, image in enumerate(images):
        axes = figure.add_subplot(rows, columns, index + 1)
        if image.dtype != np.uint8:
            low, high = image.min(), image.max()
            image = (image - low) / (high - low if high > low else 1)
        axes.imshow(image.squeeze(), cmap="gray" if image.shape[-1] == 1 else None)
        axes.axis("off")
        if captions:
            axes.set_title(captions[index], fontsize=7)
    figure.suptitle(title, fontsize="medium")
    return figure


def mosaic(
    images: np.ndarray, rows: Sequence[str] = (), columns: Sequence[str] = (), title: str = ""
) -> Figure:
    """A table of grey images, in one picture: quick where there are hundreds.

    Args:
        images: (rows, columns, height, width, 1), brightness from 0 to 1.
        rows: one text a row.
        columns: one text a column.
        title: of the whole figure.
    """
    down, across, height, width, _ = images.shape
    framed = np.pad(images[..., 0], ((0, 0), (0, 0), (0, 1), (0, 1)), constant_values=0.4)
    picture = framed.transpose(0, 2, 1, 3).reshape(down * (height + 1), across * (width + 1))
    side = 0.62 if max(down, across) <= 12 else 0.45  # inches an image
    figure = Figure(figsize=(side * across + 0.9, side * down + 0.7), layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(picture, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes.set_yticks([(height + 1) * (row + 0.5) for row in range(len(rows))], rows, fontsize=7)
    axes.set_xticks([(width + 1) * (column + 0.5) for column in range(len(columns))], columns, fontsize=7)
    axes.tick_params(length=0)
    axes.set_title(title, fontsize="medium")
    return figure


def feature_maps(image: np.ndarray, stages: Mapping[str, np.ndarray], most: int = 12) -> Figure:
    """One image and, row by row, the maps of its strongest channels in each stage of a network.

    Args:
        image: (height, width, channels).
        stages: (height, width, channels) activations by the stage's name.
        most: channels shown of a stage.
    """
    figure = Figure(figsize=(1.1 * (most + 1), 1.25 * len(stages)), layout="constrained")
    for row, (name, maps) in enumerate(stages.items()):
        strongest = np.argsort(-np.abs(maps).mean(axis=(0, 1)))[:most]
        tiles = [image.squeeze(), *(maps[..., channel] for channel in strongest)]
        for column, tile in enumerate(tiles):
            axes = figure.add_subplot(len(stages), most + 1, row * (most + 1) + column + 1)
            axes.imshow(tile, cmap="gray" if column == 0 else "viridis")
            axes.set_xticks([])
            axes.set_yticks([])
            if column == 0:
                axes.set_ylabel(f"{name}\n{maps.shape[0]}x{maps.shape[1]}x{maps.shape[2]}", fontsize=7)
    figure.suptitle("one image and its strongest feature maps, stage by stage", fontsize="medium")
    return figure


def heatmap(
    table: np.ndarray, rows: Sequence[str], steps: Sequence[int], title: str, logarithmic: bool = False
) -> Figure:
    """A number for each row (a layer) at each of some steps, as colours.

    Args:
        table: (rows, steps); NaN where there is none.
        rows: names, the first at the top.
        steps: optimizer steps, in order.
        title: what the number is.
        logarithmic: whether colours are spread by orders of magnitude.
    """
    from matplotlib.colors import LogNorm

    positive = table[np.isfinite(table) & (table > 0)]
    norm = LogNorm(positive.min(), positive.max()) if logarithmic and len(positive) else None
    figure = Figure(figsize=(8, 1.4 + 0.24 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(table, aspect="auto", interpolation="nearest", cmap="viridis", norm=norm)
    axes.set_yticks(range(len(rows)), rows, fontsize=8)
    ticks = np.unique(np.linspace(0, len(steps) - 1, min(len(steps), 9)).astype(int))
    axes.set_xticks(ticks, [steps[tick] for tick in ticks])
    axes.set_xlabel("optimizer step")
    axes.set_title(title)
    figure.colorbar(image)
    return figure


def scatter(
    panels: Mapping[str, np.ndarray], classes: np.ndarray, labels: Sequence[str], title: str
) -> Figure:
    """The same points in several planes side by side, coloured by class.

    Args:
        panels: coordinates (n, 2) by the panel's title.
        classes: (n,) integers.
        labels: names of the classes.
        title: of the whole figure.
    """
    columns = min(len(panels), 3)
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(4.4 * columns + 1.6, 4.3 * rows), layout="constrained")
    colours = [f"C{label}" for label in range(10)]
    for index, (name, points) in enumerate(panels.items()):
        axes = figure.add_subplot(rows, columns, index + 1)
        for label, text in enumerate(labels):
            mine = points[classes == label]
            axes.scatter(*mine.T, s=7, color=colours[label % 10], label=text, linewidths=0)
        axes.set_title(name, fontsize="medium")
        axes.set_xticks([])
        axes.set_yticks([])
    handles, names = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside right center", markerscale=2.5, fontsize="small")
    figure.suptitle(title)
    return figure


def range_test(
    rates: np.ndarray, losses: np.ndarray, smooth: np.ndarray, steepest: float, lowest: float
) -> Figure:
    """The loss over the learning rate, with the rates that are suggested.

    Args:
        rates: the learning rate of each step.
        losses: the loss of its batch.
        smooth: the same, smoothed.
        steepest, lowest: the rates where that falls steepest, and where it is lowest.
    """
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    axes.semilogx(rates, losses, color="tab:blue", alpha=0.3, label="loss of the batch")
    axes.semilogx(rates, smooth, color="tab:blue", label="smoothed")
    axes.axvline(steepest, color="tab:green", linestyle="--", label=f"steepest: {steepest:.2g}")
    axes.axvline(lowest, color="tab:red", linestyle=":", label=f"lowest: {lowest:.2g}")
    low, high = smooth.min(), smooth[: max(1, len(smooth) // 2)].max()
    axes.set_ylim(low - 0.2 * (high - low), high + 0.5 * (high - low))
    axes.set_xlabel("learning rate")
    axes.set_ylabel("training loss")
    axes.grid(alpha=0.3)
    axes.legend()
    return figure
