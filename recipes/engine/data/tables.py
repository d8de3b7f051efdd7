"""Tables of numbers with a number to predict.

`california_housing`: 20,640 districts of the census of 1990, 8 features, the median price of a house; from
`california_housing/california_housing.csv` in the data folder, else as scikit-learn downloads it. `diabetes`:
442 patients, 10 features, a measure of the disease a year later; comes with scikit-learn.
"""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from recipes.engine.errors import RecipeError, unknown

NAMES = ("california_housing", "diabetes")


@dataclass(frozen=True)
class Table:
    """A table by name; how it is split is the recipe's business.

    Attributes:
        name: as in `load`.
        x: (n, features).
        y: (n,), what is to be predicted.
        features: names of the columns of x.
        target: what y is, and its unit.
    """

    name: str
    x: np.ndarray
    y: np.ndarray
    features: tuple[str, ...]
    target: str

    def __len__(self) -> int:
        return len(self.x)

    @cached_property
    def fingerprint(self) -> str:
        """Sixteen hex digits that change when any value does."""
        digest = hashlib.blake2b(digest_size=8)
        for array in (self.x, self.y):
            digest.update(np.ascontiguousarray(array))
        return digest.hexdigest()


def load(name: str, data_dir: Path | None = None) -> Table:
    """A table by name.

    Args:
        name: `california_housing` or `diabetes`.
        data_dir: folder that holds `california_housing/`, or where scikit-learn keeps its download; None for
            scikit-learn's own.

    Returns:
        The table, float64.

    Raises:
        RecipeError: unknown, or neither there nor downloadable.
    """
    if name == "diabetes":
        from sklearn.datasets import load_diabetes

        data = load_diabetes(scaled=False)
        return Table(name, data.data, data.target, tuple(data.feature_names), "progression of the disease")
    if name != "california_housing":
        raise unknown("dataset", name, NAMES)
    path = (data_dir or Path()) / name / f"{name}.csv"
    target = "median price of a house, 100,000 $"
    if path.exists():
        with path.open(encoding="utf-8") as file:
            columns = tuple(file.readline().strip().split(","))
            table = np.loadtxt(file, delimiter=",")
        return Table(name, table[:, :-1], table[:, -1], columns[:-1], target)
    from sklearn.datasets import fetch_california_housing

    try:
        data = fetch_california_housing(data_home=data_dir, n_retries=0)
    except OSError as error:
        raise RecipeError(
            f"dataset '{name}' is not there ({path}) and cannot be downloaded ({error}): point --data-dir "
            f"(or TFDS_DATA_DIR) at a folder with {name}/{name}.csv, or take the built-in --dataset diabetes"
        ) from None
    return Table(name, data.data, data.target, tuple(data.feature_names), target)
