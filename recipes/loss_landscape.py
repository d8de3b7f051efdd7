"""The loss around a trained network: slices along filter-normalized directions, and the way there.

Question: what do shortcuts do to the landscape? A network has as many dimensions as weights; one sees two.
Along a random direction d whose every filter is as long as the network's own filter, the slice

    f(a) = L(w + a d),    and with a second direction    f(a, b) = L(w + a d + b e)

can be compared between networks, for weights scaled up or down in front of a batch normalization, which
change nothing, no longer make a minimum look flat or sharp. The path of training is drawn in the plane of
its own two principal components: in random directions it would not be seen to move at all.

    python -m recipes.loss_landscape --backend jax                    # a residual network of 20 layers
    python -m recipes.loss_landscape --shortcut none                  # the same without shortcuts
    python -m recipes.loss_landscape --depth 32 --shortcut none       # deeper: the landscape has changed

Expected: 32 layers without shortcuts are 2.3 times as sharp as with them, on JAX in 54 to 87 s
(results/loss_landscape.md). `sharpness/train` is the mean increase of the loss at |a| = 1/2 over
the random directions, `sharpness/train_error` that of the share of errors. With 20 layers shortcuts make no
difference that three seeds could show; with 32 the plain network is two to three times as sharp.

Figures: learning curves, slices (1-D, training and test loss, one line a direction), surface (2-D, as relief
and contours), trajectory (the path over the contours of its plane).

References:
    Li, Xu, Taylor, Studer and Goldstein, 2018, Visualizing the loss landscape of neural nets,
    arXiv:1712.09913.
    Goodfellow, Vinyals and Saxe, 2015, Qualitatively characterizing neural network optimization problems,
    arXiv:1412.6544 (slices along a line).

Differences from Li et al.:
    1. Networks of the same family, but narrower, on small images; the default data are 8x8 digits.
    2. Losses are means over `--examples` images of each set, not over all 50,000.
    3. Losses are measured as theirs: batch normalization applies the trained network's running statistics
       everywhere, and its scales and offsets and all biases stay where they are. So the contours at the
       beginning of the path are the loss of those weights with the final statistics, not the loss that
       training saw; `trajectory` shows both beside each other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Self

import keras
import numpy as np
from keras import ops

import layers
from recipes import engine
from recipes.engine import gradients, launch
from recipes.engine.config import TrainingConfig
from recipes.engine.errors import usage_error

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# A network's loss and share of errors at each of n points: (n, weights) -> (n, 2).
Measure = Callable[[np.ndarray], np.ndarray]

# Of the running statistics, which every measurement uses. With Keras' 0.99 they lagged so far behind after
# some hundred steps that a plain network of 32 layers, at 0.04 in training, had a loss of 0.34.
MOMENTUM = 0.9
BATCH = 256  # images at once in a measurement
SMALLEST = 1e-7  # loss that has a place on a logarithmic scale: in float32 it can end at 0


@dataclass(frozen=True)
class Config(TrainingConfig):
    """What can be varied."""

    dataset: Literal["digits", "shapes", "cifar10", "mnist", "fashion_mnist"] = "digits"
    """Images to classify; digits and shapes are built in."""
    epochs: int = 20
    """Passes over the training data; the weights are kept after each."""
    batch_size: int = 64
    """Examples in one optimizer step."""
    learning_rate: float = 0.1
    """Peak step size of SGD with Nesterov's momentum 0.9; it falls to 0 along a cosine."""
    weight_decay: float = 5e-3
    """Share of the weights taken off a step, in units of the learning rate."""
    depth: int = 20
    """Layers with weights, 6 n + 2: n blocks of two convolutions in each of three stages."""
    filters: int = 8
    """Filters of the first stage; the others have twice and four times as many."""
    shortcut: Literal["residual", "none"] = "residual"
    """none takes the shortcuts out."""
    directions: int = 5
    """Random directions of the 1-D slices."""
    points: int = 21
    """Points a side of the 2-D slices; the 1-D slices have twice as many."""
    examples: int = 512
    """Images of the training and of the test set that losses are measured on."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.depth < 8 or self.depth % 6 != 2:
            raise usage_error(f"--depth must be 8, 14, 20, ... (6 n + 2), not {self.depth}")
        if self.points < 5 or self.points % 2 == 0:
            raise usage_error(
                f"--points must be odd, so that the middle is one, and at least 5, not {self.points}"
            )
        if min(self.filters, self.directions, self.examples) < 1:
            raise usage_error("--filters, --directions and --examples must be at least 1")

    @classmethod
    def small(cls, **changes: Any) -> Self:
        """A shallow network and coarse slices."""
        return cls(**{"depth": 8, "epochs": 6, "directions": 2, "points": 5, "examples": 256, **changes})


def build_model(config: Config, data: engine.data.Dataset) -> keras.Model:
    """He et al.'s network for small images, (depth - 2) / 6 basic blocks in each of three stages.

    Args:
        config: depth, filters and shortcut.
        data: gives the images' shape and colours, and the number of classes.

    Returns:
        uint8 images (batch, height, width, channels) to logits (batch, classes).
    """
    inputs = keras.Input(data.shape, dtype="uint8", name="image")
    pixels = data.train.x.reshape(-1, data.shape[-1])
    x = layers.ImageStandardization(pixels.mean(axis=0), pixels.std(axis=0))(inputs)
    x = layers.Conv2D(
        config.filters, 3, padding="same", use_bias=False, kernel_initializer=layers.initializers.HeNormal()
    )(x)
    x = layers.BatchNormalization(momentum=MOMENTUM)(x)
    x = ops.relu(x)
    for stage in range(3):
        for block in range((config.depth - 2) // 6):
            basic = layers.BasicBlock(
                config.filters * 2**stage,
                strides=2 if stage and block == 0 else 1,
                kernel_initializer=layers.initializers.HeNormal(),
                shortcut="identity" if config.shortcut == "residual" else "none",
            )
            x = basic(x)
            for layer in basic.branch:
                if isinstance(layer, layers.BatchNormalization):
                    layer.momentum = MOMENTUM
    x = layers.GlobalAveragePooling2D()(x)  # (batch, 4 filters)
    logits = layers.Dense(len(data.labels), dtype="float32")(x)
    return keras.Model(inputs, logits, name=f"{config.shortcut}_{config.depth}")


def flattened(weights: Sequence[Any]) -> np.ndarray:
    """All weights in one row, (weights,)."""
    return np.concatenate([np.ravel(ops.convert_to_numpy(w)) for w in weights])


def unflattened(row: Any, shapes: Sequence[tuple[int, ...]], reshape: Callable = np.reshape) -> list:
    """The reverse of `flattened`: an array of each shape; `reshape` says for arrays of which library."""
    sizes = [int(np.prod(shape)) for shape in shapes]
    ends = np.cumsum(sizes)
    return [
        reshape(row[end - size : end], shape) for end, size, shape in zip(ends, sizes, shapes, strict=True)
    ]


def shapes_of(model: keras.Model) -> list[tuple[int, ...]]:
    """Shapes of the trainable variables."""
    return [tuple(variable.shape) for variable in model.trainable_variables]


def compiled_sums(model: keras.Model) -> Callable:
    """A model's loss as a compiled, pure function of all its weights in one row.

    Args:
        model: gives logits.

    Returns:
        `sums(row, state, x, y, counted) -> (2,)`: cross-entropy and errors of a batch, summed over the
        examples with `counted` 1 (others fill the batch up); batch normalization applies the running
        statistics in `state`.
    """
    apply, shapes = gradients.functional(model), shapes_of(model)

    def sums(row: Any, state: list, x: Any, y: Any, counted: Any) -> Any:
        logits, _ = apply(unflattened(row, shapes, ops.reshape), state, x, training=False)  # (batch, classes)
        loss = layers.losses.sparse_categorical_crossentropy(y, logits, from_logits=True)  # (batch,)
        wrong = ops.cast(ops.not_equal(ops.cast(ops.argmax(logits, axis=-1), y.dtype), y), loss.dtype)
        return ops.stack([ops.sum(loss * counted), ops.sum(wrong * counted)])

    return gradients.compiled(sums)


def measure_on(sums: Callable, state: list, split: engine.data.Split, examples: int) -> Measure:
    """A function that measures loss and error at points of weight space.

    Args:
        sums: what `compiled_sums` gives.
        state: the model's other variables, the same at every point: running statistics.
        split: images and labels; the first `examples` are taken.
        examples: how many.
    """
    x, y = split.x[:examples], split.y[:examples]
    missing = -len(x) % BATCH
    counted = np.pad(np.ones(len(x), "float32"), (0, missing)).reshape(-1, BATCH)
    # Batches of one size, so that one program serves all sets; what fills the last one does not count.
    padded = (np.resize(a, (len(x) + missing, *a.shape[1:])).reshape(-1, BATCH, *a.shape[1:]) for a in (x, y))
    batches = [
        [ops.convert_to_tensor(part) for part in batch] for batch in zip(*padded, counted, strict=True)
    ]

    def measure(points: np.ndarray) -> np.ndarray:
        result = np.empty((len(points), 2))
        for i, point in enumerate(points):
            row = ops.convert_to_tensor(point.astype("float32"))
            totals = [ops.convert_to_numpy(sums(row, state, *batch)) for batch in batches]
            result[i] = np.sum(totals, axis=0, dtype="float64") / len(x)
        return result

    return measure


def filter_normalized(weights: Sequence[np.ndarray], rng: np.random.Generator) -> list[np.ndarray]:
    """A random direction in which every filter is as long as the network's.

        d_j <- d_j |w_j| / |d_j|

    A filter is what feeds one output: the last axis of a kernel counts them, for convolutions and dense
    layers alike. Biases and the scales and offsets of normalizations have no direction: zeros.

    Args:
        weights: the trained weights, an array a variable.
        rng: the randomness.

    Returns:
        Arrays of the same shapes.
    """
    return [
        normal * (filter_norms(w) / filter_norms(normal)) if w.ndim > 1 else np.zeros_like(w)
        for w, normal in ((w, rng.normal(size=w.shape).astype(w.dtype)) for w in weights)
    ]


def filter_norms(kernel: np.ndarray) -> np.ndarray:
    """Euclidean length of each filter of a kernel (..., filters)."""
    return np.sqrt(np.sum(kernel**2, axis=tuple(range(kernel.ndim - 1))))


def principal_plane(snapshots: np.ndarray, final: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The plane through the final weights in which the path of training spreads most.

    Args:
        snapshots: (n, weights), rows along the path.
        final: (weights,), the origin of the plane.

    Returns:
        The two directions (2, weights), orthonormal; the path's coordinates (n, 2); the share of the
        path's variance along each principal component, (n,), in falling order.
    """
    away = (snapshots - final).astype("float64")
    _, lengths, components = np.linalg.svd(away - away.mean(axis=0), full_matrices=False)
    plane = components[:2]
    # A component's sign is arbitrary: let the path start on the right of and above where it ends.
    plane = plane * np.where(plane @ away[0] < 0, -1, 1)[:, None]
    return plane, away @ plane.T, lengths**2 / np.sum(lengths**2)


def train(config: Config, run: engine.tracking.Run) -> dict[str, float]:
    """Train, slice the landscape, project the path, draw; returns the final metrics."""
    data = engine.data.load(config.dataset, config.data_dir)
    run.tags({"dataset.fingerprint": lambda: data.fingerprint})
    model = build_model(config, data)
    snapshots, ends = fit(config, model, data, run)
    sums = compiled_sums(model)
    final, state = snapshots[-1], gradients.variables_of(model)[1]
    on_train = measure_on(sums, state, data.train, config.examples)
    on_test = measure_on(sums, state, data.test, config.examples)
    weights = unflattened(final, shapes_of(model))

    ticks = np.linspace(-1, 1, 2 * config.points - 1)
    rngs = [np.random.default_rng((config.seed, i)) for i in range(config.directions + 2)]
    directions = np.stack([flattened(filter_normalized(weights, rng)) for rng in rngs])
    slices = {"train": [], "test": []}
    for direction in directions[: config.directions]:
        line = final + ticks[:, None] * direction
        slices["train"].append(on_train(line))
        slices["test"].append(on_test(line))
    slices = {name: np.stack(rows) for name, rows in slices.items()}  # (directions, ticks, 2)
    print(f"measured {config.directions} slices", flush=True)

    side = np.linspace(-1, 1, config.points)
    surface = grid(on_train, final, directions[config.directions :], side, side)
    print("measured the surface", flush=True)

    plane, path, explained = principal_plane(
        np.stack([kernels_alone(row, shapes_of(model), final) for row in snapshots]), final
    )
    sides = [around(path[:, axis], config.points) for axis in (0, 1)]
    valley = grid(on_train, final, plane, *sides)
    projected = on_train(final + path @ plane)
    points = dict(run.history["train/loss"])
    seen = np.array([points[step] for step in ends])

    title = f"{config.depth} layers, shortcuts: {config.shortcut}, {data.name}"
    run.figure("learning_curves", engine.figures.learning_curves(run.history, title))
    run.figure("slices", slices_figure(ticks, slices, title))
    run.figure("surface", surface_figure(side, surface[..., 0], title))
    run.figure(
        "trajectory",
        trajectory_figure(sides, valley[..., 0], path, explained, seen, projected[:, 0], title),
    )
    (test_loss, test_error), (train_loss, _) = (on(final[None])[0] for on in (on_test, on_train))
    return {
        "sharpness/train": sharpness(ticks, slices["train"][..., 0]),
        "sharpness/test": sharpness(ticks, slices["test"][..., 0]),
        "sharpness/train_error": sharpness(ticks, slices["train"][..., 1]),
        "explained/first": float(explained[0]),
        "explained/second": float(explained[1]),
        "train/final_loss": float(train_loss),
        "test/loss": float(test_loss),
        "test/accuracy": float(1 - test_error),
        "parameters": len(final),
    }


def fit(
    config: Config, model: keras.Model, data: engine.data.Dataset, run: engine.tracking.Run
) -> tuple[np.ndarray, list[int]]:
    """Train by SGD.

    Returns:
        The weights at the start and after every epoch, (epochs + 1, weights), and the steps at which those
        ended.
    """
    batches = engine.data.Batches(data.train, config.batch_size, config.seed, accumulate=config.accumulate)
    updates = batches.steps_per_epoch // config.accumulate
    schedule = layers.schedules.CosineDecay(config.learning_rate, updates * config.epochs)
    optimizer = layers.optimizers.SGD(
        schedule,
        momentum=0.9,
        nesterov=True,
        weight_decay=config.weight_decay or None,
        **engine.training.optimizer_options(config),
    )
    if config.weight_decay:
        optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    model.compile(
        optimizer,
        lambda labels, logits: layers.losses.sparse_categorical_crossentropy(
            labels, logits, from_logits=True
        ),
        metrics=["accuracy"],
    )
    start = flattened(gradients.variables_of(model)[0])
    snapshots = np.full((config.epochs + 1, len(start)), np.nan, start.dtype)  # nan: not there yet
    snapshots[0] = start

    def keep_weights() -> None:
        snapshots[taken(snapshots)] = flattened(gradients.variables_of(model)[0])

    engine.training.fit(
        model, batches, data.validation, config, run, schedule, each_epoch=keep_weights, kept=[snapshots]
    )
    count = taken(snapshots)  # fewer than there could be, after an early stop
    return snapshots[:count], [updates * epoch for epoch in range(1, count)]


def taken(snapshots: np.ndarray) -> int:
    """How many rows hold weights."""
    return int(np.sum(~np.isnan(snapshots[:, 0])))


def kernels_alone(row: np.ndarray, shapes: Sequence[tuple[int, ...]], final: np.ndarray) -> np.ndarray:
    """A row whose biases, scales and offsets are the final ones: the path of the kernels alone."""
    parts = zip(unflattened(row, shapes), unflattened(final, shapes), strict=True)
    return flattened([own if own.ndim > 1 else last for own, last in parts])


def grid(
    measure: Measure, origin: np.ndarray, plane: np.ndarray, xs: np.ndarray, ys: np.ndarray
) -> np.ndarray:
    """Loss and error over a plane.

    Args:
        measure: what is measured.
        origin: (weights,), the point with coordinates 0, 0.
        plane: (2, weights), the directions of x and y.
        xs: (columns,) coordinates.
        ys: (rows,) coordinates.

    Returns:
        (rows, columns, 2).
    """
    return np.stack([measure(origin + y * plane[1] + xs[:, None] * plane[0]) for y in ys])


def around(coordinates: np.ndarray, points: int, margin: float = 0.2) -> np.ndarray:
    """Evenly spaced points over the range of some coordinates and a margin on both sides."""
    low, high = coordinates.min(), coordinates.max()
    return np.linspace(low - margin * (high - low), high + margin * (high - low), points)


def sharpness(ticks: np.ndarray, losses: np.ndarray, distance: float = 0.5) -> float:
    """Mean increase of the loss at `distance` on both sides of the middle of each slice.

        (1/2D) sum_d (L(w + a d) + L(w - a d)) - L(w),    a = distance

    Args:
        ticks: (points,) places, symmetric about 0.
        losses: (directions, points).
        distance: in lengths of the filters; the nearest tick is taken.
    """
    sides = [np.argmin(np.abs(ticks - place)) for place in (-distance, distance)]
    return float(np.mean(losses[:, sides]) - np.mean(losses[:, len(ticks) // 2]))


def slices_figure(ticks: np.ndarray, slices: dict[str, np.ndarray], title: str) -> Figure:
    """Loss and share of errors along random directions, a thin line each, and their means."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    for which, (axis, label) in enumerate(
        zip(figure.subplots(1, 2), ("cross-entropy", "errors, %"), strict=True)
    ):
        for name, colour in (("train", "C0"), ("test", "C3")):
            values = slices[name][..., which] * (100 if which else 1)
            axis.plot(ticks, values.T, color=colour, lw=0.7, alpha=0.4)
            axis.plot(ticks, values.mean(axis=0), color=colour, lw=2, label=f"{name}, mean of {len(values)}")
        axis.set(xlabel="a, in lengths of the filters", ylabel=label)
        axis.grid(alpha=0.3)
        axis.legend(fontsize="small")
    figure.axes[0].set_yscale("log")
    figure.suptitle(f"Along filter-normalized random directions: {title}")
    return figure


def surface_figure(side: np.ndarray, losses: np.ndarray, title: str) -> Figure:
    """The training loss over two random directions, as relief and as contours."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.6), layout="constrained")
    relief = figure.add_subplot(1, 2, 1, projection="3d")
    x, y = np.meshgrid(side, side)
    losses = np.maximum(losses, SMALLEST)
    relief.plot_surface(x, y, np.log10(losses), cmap="viridis", rstride=1, cstride=1, lw=0.2, edgecolor="0.3")
    relief.set(
        xlabel="a", ylabel="b", zlabel="log10 of the training loss", xticks=(-1, 0, 1), yticks=(-1, 0, 1)
    )
    relief.view_init(elev=35, azim=-60)
    flat = figure.add_subplot(1, 2, 2)
    contour_panel(figure, flat, side, side, losses)
    flat.plot(0, 0, "r+", ms=10)
    ticks = (-1, -0.5, 0, 0.5, 1)
    flat.set(xlabel="a", ylabel="b", aspect="equal", xticks=ticks, yticks=ticks)
    figure.suptitle(f"Over two filter-normalized random directions: {title}")
    return figure


def trajectory_figure(
    sides: list[np.ndarray],
    losses: np.ndarray,
    path: np.ndarray,
    explained: np.ndarray,
    seen: np.ndarray,
    projected: np.ndarray,
    title: str,
) -> Figure:
    """The path of training over its plane's contours, and the loss along it.

    Args:
        sides: coordinates of the columns and of the rows.
        losses: (rows, columns), over the plane.
        path: (n, 2), coordinates of the snapshots.
        explained: share of the variance by principal component.
        seen: (n - 1,), loss of training at the end of each epoch.
        projected: (n,), the loss of their projections to the plane.
        title: what was trained.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    contour_panel(figure, left, *sides, losses)
    left.plot(*path.T, "w.-", lw=1.2, ms=6, mec="k", mew=0.5)
    left.plot(*path[0], "o", color="w", mec="k", ms=8, label="start")
    left.plot(*path[-1], "*", color="r", mec="k", ms=13, label="end")
    left.legend(loc="best")
    names = [
        f"principal component {i + 1} ({share:.0%} of the path's variance)"
        for i, share in enumerate(explained[:2])
    ]
    left.set(xlabel=names[0], ylabel=names[1])
    right.semilogy(range(1, len(path)), seen, ".-", label="seen in training")
    right.semilogy(projected, ".-", label="on the plane, final statistics")
    right.set(xlabel="epoch", title="Training loss along the path")
    right.grid(alpha=0.3)
    right.legend(fontsize="small", loc="upper right")
    figure.suptitle(f"The path of training in its principal plane: {title}")
    return figure


def contour_panel(figure: Figure, axis: Axes, xs: np.ndarray, ys: np.ndarray, losses: np.ndarray) -> None:
    """Contours of the training loss at 1, 2, 5, 10, 20, ... and the powers of ten below."""
    losses = np.maximum(losses, SMALLEST)
    decades = 10.0 ** np.arange(np.floor(np.log10(losses.min())), np.ceil(np.log10(losses.max())))
    levels = np.append(np.outer(decades, (1, 2, 5)), 10 * decades[-1])
    first, last = np.searchsorted(levels, losses.min(), "right") - 1, np.searchsorted(levels, losses.max())
    levels = levels[first : last + 1]
    filled = axis.contourf(xs, ys, losses, levels, cmap="viridis", norm="log")
    axis.contour(xs, ys, losses, levels, colors="k", linewidths=0.4, alpha=0.6)
    figure.colorbar(
        filled, ax=axis, ticks=levels[:: 1 + len(levels) // 12], format="%g", label="training loss"
    )


if __name__ == "__main__":
    launch.main(Config, train)
