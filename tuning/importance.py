"""Which hyperparameters matter: permutation importance of a random forest that predicts a trial's metric."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tuning.figures import is_logarithmic

LEAST = 8  # settings; below, a forest has nothing to learn from
FOLDS = 4
REPEATS = 20


def number(word: str) -> Any:
    """A parameter as MLflow keeps it, as a number where it is one."""
    try:
        return int(word)
    except ValueError:
        pass
    try:
        return float(word)
    except ValueError:
        return word


def permutation_importance(
    rows: Sequence[Mapping[str, Any]], fields: Sequence[str], metric: str, seed: int = 0
) -> tuple[dict[str, tuple[float, float]], float]:
    """By how much a forest's R² on settings it has not seen falls when a field's values are shuffled.

    Args:
        rows: a trial's fields and its metric; those of one setting, with other seeds, are seen together or
            not at all.
        fields: what varied.
        metric: what the forest predicts.
        seed: of the forest, the folds and the shuffles.

    Returns:
        Mean and standard deviation by field, over folds and shuffles; and the forest's R² itself: near 0 or
        below, it has not understood the trials, and the importances say nothing.

    Reference:
        Breiman 2001, "Random forests".
    """
    from sklearn.ensemble import RandomForestRegressor
    from sklearn.model_selection import GroupKFold

    rng = np.random.default_rng(seed)
    columns, owner = _encoded(rows, fields)
    y = np.array([row[metric] for row in rows], float)
    spread = max(float(np.var(y)), 1e-30)
    drops: dict[str, list[float]] = {field: [] for field in fields}
    errors = np.zeros(len(y))
    folds = GroupKFold(FOLDS, shuffle=True, random_state=seed)
    for train, test in folds.split(columns, groups=settings(rows, fields)):
        forest = RandomForestRegressor(100, random_state=seed).fit(columns[train], y[train])
        errors[test] = (forest.predict(columns[test]) - y[test]) ** 2
        shuffled = []
        for field in fields:
            mine = [place for place, name in enumerate(owner) if name == field]
            for _ in range(REPEATS):
                changed = columns[test].copy()
                changed[:, mine] = changed[rng.permutation(len(test))][:, mine]
                shuffled.append(changed)
        # One call for all shuffles: a forest takes as long for one row as for a thousand.
        predicted = forest.predict(np.concatenate(shuffled)).reshape(len(fields), REPEATS, len(test))
        worse = ((predicted - y[test]) ** 2).mean(axis=2) - errors[test].mean()
        for field, values in zip(fields, worse / spread, strict=True):
            drops[field].extend(values)
    found = {field: (float(np.mean(values)), float(np.std(values))) for field, values in drops.items()}
    return found, float(1 - errors.mean() / spread)


def settings(rows: Sequence[Mapping[str, Any]], fields: Sequence[str]) -> list[int]:
    """The number of every trial's setting."""
    points = [tuple(row[field] for field in fields) for row in rows]
    numbers = {point: number for number, point in enumerate(dict.fromkeys(points))}
    return [numbers[point] for point in points]


def _encoded(rows: Sequence[Mapping[str, Any]], fields: Sequence[str]) -> tuple[np.ndarray, list[str]]:
    """Numbers as they are or as logarithms, names as one column each; and which field a column belongs to."""
    columns, owner = [], []
    for field in fields:
        values = [row[field] for row in rows]
        if all(isinstance(value, (int, float)) for value in values):
            columns.append(np.log(values) if is_logarithmic(values) else np.array(values, float))
            owner.append(field)
        else:
            for kind in sorted({str(value) for value in values}):
                columns.append(np.array([str(value) == kind for value in values], float))
                owner.append(field)
    return np.stack(columns, axis=1), owner
