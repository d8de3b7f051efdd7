"""Datasets that need no download, and say honestly what they are.

`digits`: scikit-learn's 1,797 handwritten digits of 8x8 pixels. `shapes`: drawn here, ten kinds of figure
in random colours, places, sizes and rotations, with shading and noise, so that no pixel tells the class.
"""

import importlib.util
from collections.abc import Callable
from pathlib import Path

import numpy as np

from recipes.engine.data.tfds import Arrays

SIDE = 32
COUNTS = {"train": 12_000, "validation": 2_000, "test": 2_000}


def digits() -> tuple[Arrays, list[str]]:
    """Handwritten digits, (n, 8, 8, 1): 1,297 for training and validation, 500 for the test."""
    # The file alone: importing scikit-learn takes longer than a small network trains.
    (folder,) = importlib.util.find_spec("sklearn").submodule_search_locations
    table = np.loadtxt(Path(folder, "datasets/data/digits.csv.gz"), delimiter=",")
    x = np.round(table[:, :-1].reshape(-1, 8, 8, 1) * (255 / 16)).astype(np.uint8)
    y = table[:, -1].astype(np.int32)
    # The file's order is by writer: the last 500 digits come from people not seen in training.
    return {"train": (x[:-500], y[:-500]), "test": (x[-500:], y[-500:])}, [str(d) for d in range(10)]


def shapes() -> tuple[Arrays, list[str]]:
    """Drawn figures, (n, 32, 32, 3), in ten classes."""
    rng = np.random.default_rng(2026)
    return {split: _drawn(rng, count) for split, count in COUNTS.items()}, list(FIGURES)


def _disc(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.hypot(u, v) - 1


def _ring(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.abs(np.hypot(u, v) - 0.75) - 0.25


def _square(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.maximum(np.abs(u), np.abs(v)) - 0.85


def _frame(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.abs(np.maximum(np.abs(u), np.abs(v)) - 0.7) - 0.2


def _triangle(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.maximum(0.866 * np.abs(u) + 0.5 * v, -v) - 0.55


def _plus(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.maximum(np.minimum(np.abs(u), np.abs(v)) - 0.3, np.maximum(np.abs(u), np.abs(v)) - 1)


def _bars(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.maximum(np.abs(np.abs(u) - 0.6) - 0.25, np.abs(v) - 0.9)


def _crescent(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.maximum(np.hypot(u, v) - 1, 0.8 - np.hypot(u - 0.5, v))


def _star(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    angle = np.mod(np.arctan2(u, v), 2 * np.pi / 5) - np.pi / 5
    return np.hypot(u, v) * (1 + 1.1 * np.abs(angle) ** 1.0) * 0.9 - 0.75 * (1 + 0.2)


def _half(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.maximum(np.hypot(u, v) - 1, v)


# Each figure as a function that is negative inside, in coordinates where the figure fills the unit disc.
FIGURES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "disc": _disc,
    "ring": _ring,
    "square": _square,
    "frame": _frame,
    "triangle": _triangle,
    "plus": _plus,
    "bars": _bars,
    "crescent": _crescent,
    "star": _star,
    "half disc": _half,
}

DATASETS: dict[str, Callable[[], tuple[Arrays, list[str]]]] = {"digits": digits, "shapes": shapes}


def _drawn(rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    """`count` images, every class equally often."""
    labels = rng.permutation(np.arange(count) % len(FIGURES)).astype(np.int32)
    images = np.empty((count, SIDE, SIDE, 3), np.uint8)
    for label, figure in enumerate(FIGURES.values()):
        members = np.flatnonzero(labels == label)
        images[members] = _images_of(rng, figure, len(members))
    return images, labels


def _images_of(rng: np.random.Generator, figure: Callable, n: int) -> np.ndarray:
    def uniform(low: float, high: float, *shape: int) -> np.ndarray:
        return rng.uniform(low, high, (n, *shape)).astype(np.float32)

    rows, columns = np.mgrid[:SIDE, :SIDE].astype(np.float32)
    radius = uniform(6, 11, 1, 1)
    centre_x, centre_y = (uniform(0, 1, 1, 1) * (SIDE - 2 * radius) + radius for _ in range(2))
    angle = uniform(0, 2 * np.pi, 1, 1)
    x, y = (columns - centre_x) / radius, (rows - centre_y) / radius
    u, v = np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x
    inside = np.clip(0.5 - figure(u, v) * radius, 0, 1)[..., None]  # one pixel of soft edge
    # Figure and ground differ in one direction of colour space by a set contrast, in either sense.
    ground = uniform(40, 215, 1, 1, 3)
    direction = rng.normal(size=(n, 1, 1, 3)).astype(np.float32)
    direction /= np.linalg.norm(direction, axis=-1, keepdims=True)
    contrast = uniform(60, 140, 1, 1, 1)
    slope_x, slope_y = uniform(-1, 1, 1, 1, 1), uniform(-1, 1, 1, 1, 1)
    shading = slope_x * (columns[..., None] - SIDE / 2) + slope_y * (rows[..., None] - SIDE / 2)
    noise = rng.normal(scale=14, size=(n, SIDE, SIDE, 3)).astype(np.float32)
    return np.clip(ground + inside * contrast * direction + shading + noise, 0, 255).astype(np.uint8)
