"""Runs in parts: networks that are trained one after the other (folds, cells, widths).

    for number, (rows, held_out) in enumerate(folds, start=1):
        part = Part(run, config, f"fold{number}")
        results = part.once(lambda: ...)  # which gives the part to `training.fit` or `Progress` as its run

What a part gave, arrays by name, is kept in a checkpoint, so that a killed run goes on in the part that it
was in. A part must not depend on random numbers that another one drew.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from recipes.engine import checkpoints, interruption
from recipes.engine.config import ResumableConfig
from recipes.engine.tracking import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Part:
    """A run as one of its parts sees it: metrics, figures and checkpoints have names of their own there.

    Args:
        run: the whole run.
        config: its settings.
        name: the part's name; metrics are called `NAME/...`, figures `NAME_...`.
    """

    only_training = False  # a run does not end with one of its parts
    watch = None  # nor can what a part's epoch gave be compared with other runs'

    def __init__(self, run: Run, config: ResumableConfig, name: str) -> None:
        self.run = run
        self.config = config
        self.name = name
        self.id = f"{run.id}/{name}"
        self.checkpoints: Path | None = None
        self.save: Callable[[], Path | None] | None = None

    def open(self) -> None:
        """Nothing is left to wait for: the part's name needed the run's."""

    def is_open(self) -> bool:
        """Whether the run is open."""
        return True

    def once(self, compute: Callable[[], Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
        """What this part gives: computed now, or by the killed run that this one goes on with.

        Args:
            compute: trains and measures; what it returns is kept.
        """
        interruption.check()
        folder, label = self.config.checkpoint_dir.absolute() / self.run.id, f"done-{self.name}"
        saves = self.config.checkpoint_interval() != (0, 0)
        if saves:
            checkpoints.prepare(folder)
            self.run.checkpoints = folder
        done = checkpoints.newest(folder, label) if self.config.resume else None
        if done is not None:
            arrays, facts = done
            for name, points in facts["history"].items():
                for step, value in points:
                    self.metrics({name: value}, step)
            return arrays
        arrays = dict(compute())
        if saves:
            self.flush()
            facts = {"history": self.history}
            if checkpoints.attempt(folder, label, arrays, facts, f"of {self.name}"):
                checkpoints.prune(folder / self.name, "step", keep=0)
        return arrays

    @property
    def history(self) -> dict[str, list[tuple[int, float]]]:
        """The points of the part's metrics."""
        mine = f"{self.name}/"
        return {
            name.removeprefix(mine): points
            for name, points in self.run.history.items()
            if name.startswith(mine)
        }

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Record metrics at a step of this part."""
        self.run.metrics({f"{self.name}/{name}": value for name, value in values.items()}, step)

    def rewind(self, step: int) -> None:
        """Begin this part again at a step."""
        self.run.rewind(step, f"{self.name}/")

    def flush(self) -> None:
        """Send what was recorded."""
        self.run.flush()

    def tags(self, values: Mapping[str, Any]) -> None:
        """Set tags."""
        self.run.tags({f"{self.name}.{name}": value for name, value in values.items()})

    def figure(self, name: str, figure: "Figure | Callable[[], Figure]") -> None:
        """Store a figure."""
        self.run.figure(f"{self.name}_{name}", figure)
