"""A dataset is three splits of NumPy arrays; `load` gives one by name."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np

from recipes.engine.data import builtin, tfds
from recipes.engine.errors import unknown

SPLIT_SEED = 0  # one validation set for all runs, so that runs can be compared
VALIDATION_SHARE = 0.1


@dataclass(frozen=True)
class Split:
    """Inputs `x` and targets `y`, example by example along the first axis."""

    x: np.ndarray
    y: np.ndarray

    def __len__(self) -> int:
        return len(self.x)


@dataclass(frozen=True)
class Dataset:
    """A dataset by name: three splits and the names of its classes."""

    name: str
    train: Split
    validation: Split
    test: Split
    labels: tuple[str, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one input."""
        return self.train.x.shape[1:]

    @cached_property
    def fingerprint(self) -> str:
        """Sixteen hex digits that change when any value of any split does."""
        digest = hashlib.blake2b(digest_size=8)
        for array in self.arrays():
            digest.update(np.ascontiguousarray(array))
        return digest.hexdigest()

    def arrays(self) -> Iterator[np.ndarray]:
        """All data."""
        for split in (self.train, self.validation, self.test):
            yield from (split.x, split.y)


@lru_cache(maxsize=1)
def load(name: str, data_dir: Path | None = None) -> Dataset:
    """A dataset of labelled images, kept for the next run of this process: nobody may change its arrays.

    Args:
        name: `shapes` or `digits` (built in), or an image classification set of TensorFlow Datasets
            (`cifar10`, `mnist`, `fashion_mnist`, ...).
        data_dir: folder of TensorFlow Datasets; None for TFDS' own.

    Returns:
        uint8 images (n, height, width, channels) and int32 labels. Where the source has no validation
        split, a tenth of its training images, chosen once for all seeds, is set apart.

    Raises:
        RecipeError: unknown, or neither prepared nor downloadable.
    """
    if name in builtin.DATASETS:
        parts, labels = builtin.DATASETS[name]()
    elif name in tfds.IMAGES:
        parts, labels = tfds.images(name, data_dir)
    else:
        raise unknown("dataset", name, (*builtin.DATASETS, *tfds.IMAGES))
    if "validation" not in parts:
        order = np.random.default_rng(SPLIT_SEED).permutation(len(parts["train"][0]))
        held_out = int(len(order) * VALIDATION_SHARE)
        x, y = parts["train"]
        # Sorted, so that the examples of a split lie in their original order.
        chosen, rest = np.sort(order[:held_out]), np.sort(order[held_out:])
        parts = {**parts, "train": (x[rest], y[rest]), "validation": (x[chosen], y[chosen])}
    return Dataset(name, *(Split(*parts[split]) for split in ("train", "validation", "test")), tuple(labels))
