"""Where a training run stands: its curves, its line on the terminal, its checkpoints, and when it ends.

`training.fit` drives it with a step of its own; a loop written out in a recipe drives it itself:

    progress = Progress(config, run, batches, state={"model": model.variables, ...}, evaluate=...)
    for x, y in progress.batches():      # from where a killed run stopped
        progress.after_step(train_step(x, y))
    progress.finish()
"""

from __future__ import annotations

import contextlib
import functools
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from recipes.engine import checkpoints, interruption
from recipes.engine.config import ResumableConfig
from recipes.engine.errors import Finished, RecipeError, usage_error

if TYPE_CHECKING:
    from recipes.engine.data.batches import Batches
    from recipes.engine.parts import Part
    from recipes.engine.probes import Probe
    from recipes.engine.tracking import Run

STRETCH = 100  # most steps at once: their batches are in memory together
POINTS = 100  # points of a learning curve within a run
TRIAL_POINTS = 25  # of a trial, which is one curve among many: most of what it costs is to store them


class Progress:
    """Counts a run's steps and does what is due after each.

    A checkpoint holds the variables, the number of batches done and what curves and early stopping have
    gathered; batches are a function of their number. That is all there is: a run that goes on from it goes
    the same way, bit for bit.

    Args:
        config: epochs, checkpoints, early stopping.
        run: the run, or a part of it; where metrics go: `train/*` (means over the steps since the last
            point), `val/*`, `lr` and `images_per_second` (or what the batches count); the x-axis is the
            optimizer step.
        batches: training data.
        state: all that training changes, by group: Keras' variables, or arrays that are changed in place.
        evaluate: validation metrics, called after every epoch.
        schedule: the learning rate at an optimizer step; None where there is no one such rate.
        probe: looks inside the model now and then.
        monitor: what early stopping and the best checkpoint go by; the less, the better.

    Attributes:
        step: batches done.
        total: batches in all.
        stopped: whether training is to end before `total`.
    """

    def __init__(
        self,
        config: ResumableConfig,
        run: Run | Part,
        batches: Batches,
        state: Mapping[str, Sequence[keras.Variable | np.ndarray]],
        evaluate: Callable[[], Mapping[str, float]],
        schedule: Callable[[int], Any] | None = None,
        probe: Probe | None = None,
        monitor: str = "val/loss",
    ) -> None:
        self.run = run
        self.data = batches
        self.state = state
        self.evaluate = evaluate
        self.schedule = schedule
        self.probe = probe
        self.monitor = monitor
        self.backend = "numpy" if config.backend == "numpy" else keras.backend.backend()
        self.epochs = config.epochs
        self.total = batches.steps_per_epoch * config.epochs
        points = TRIAL_POINTS if run.only_training else POINTS
        self.interval = max(1, self.total // batches.accumulate // points) * batches.accumulate
        self.step = 0
        self.stopped = False
        self.patience = config.early_stopping
        self.best, self.epochs_since_best, self.best_update = math.inf, 0, 0
        self.epoch_sums: dict[str, float] = {}
        self.epoch_steps = 0
        self.sums: dict[str, float] = {}
        self.steps_since_point = 0
        steps, self.seconds_between = config.checkpoint_interval()
        self.steps_between = steps * batches.accumulate
        self.saves = bool(steps or self.seconds_between)
        self.checkpoint_dir = config.checkpoint_dir.absolute()
        self.keep = config.keep_checkpoints
        self.best_in_memory: dict[str, np.ndarray] | None = None
        if self.saves:
            checkpoints.require_writable(self.checkpoint_dir)
            run.save = self.save
        if config.resume:
            self._resume(config)
        self.begin = self.last_save = time.perf_counter()
        self.first_step = self.step
        self.on_screen = sys.stdout.isatty()
        self.last_line = self.last_epoch_line = 0.0
        self._start_clock()

    @functools.cached_property
    def folder(self) -> Path:
        """Where checkpoints are; known when the run is open, for which no step waits."""
        folder = self.checkpoint_dir / self.run.id
        if self.saves:
            with contextlib.suppress(RecipeError):  # the disk is full by now: the checkpoint says so
                checkpoints.prepare(folder)
            self.run.checkpoints = folder
        return folder

    @property
    def update(self) -> int:
        """Optimizer steps done: the x-axis of every curve."""
        return self.step // self.data.accumulate

    @property
    def steps_ahead(self) -> int:
        """Steps until the network itself is looked at: at the end of an epoch, or by a checkpoint."""
        if self.seconds_between or self.probe is not None:  # it may be at any moment
            return 1
        looks = [every for every in (self.data.steps_per_epoch, self.steps_between) if every]
        ahead = min(every - self.step % every for every in looks)
        return math.ceil(ahead / math.ceil(ahead / STRETCH))

    def batches(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The batches that are left, until training is to end."""
        while self.step < self.total and not self.stopped:
            yield self.data[self.step]

    def after_step(self, values: Mapping[str, Any]) -> None:
        """Count a step whose `values` (with `loss`) are this batch's own.

        Raises:
            RecipeError: the loss is not a number; the message names the step.
        """
        interruption.check()
        self.step += 1
        self.steps_since_point += 1
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + float(value)
        loss = float(values["loss"])
        if not math.isfinite(loss):
            raise RecipeError(
                f"the loss is {loss} at step {self.update} (epoch {self._epoch + 1}): "
                "the run stops here; try a smaller --learning-rate, or --precision float32"
            )
        if self.probe is not None:
            self.probe.after_step(self.step)
        epoch_ends = self.step % self.data.steps_per_epoch == 0
        if self.step % self.interval == 0 or epoch_ends:
            self._point()
        if epoch_ends:
            self._end_epoch()
        if self._save_is_due():
            self.save()
        self._show(loss)

    def finish(self) -> dict[str, float]:
        """End training: take the best weights if it was stopped early, and clear away what is not needed.

        Returns:
            The metrics of the last epoch, or of the one whose weights were taken.

        Raises:
            Finished: the run was asked for no more than this.
        """
        if self.stopped:
            best = self.best_in_memory or (checkpoints.newest(self.folder, "best") or [None])[0]
            if best is not None:
                self._load(best)
        elif self.saves and self.step > self.first_step:
            self.save()  # a kill while the run is evaluated and drawn costs no training
        if self.probe is not None:
            self.probe.finish()
        if self.run.only_training:
            raise Finished(self._last())
        return self._last()

    def _last(self) -> dict[str, float]:
        values = {}
        for name, points in self.run.history.items():
            if name.startswith(("train/", "val/")) or name == "parameters":
                chosen = [value for step, value in points if step <= self.best_update or not self.stopped]
                values[name] = (chosen or [points[-1][1]])[-1]
        return values

    @property
    def _epoch(self) -> int:
        return max(0, self.step - 1) // self.data.steps_per_epoch

    def _point(self) -> None:
        values = {}
        for name, total in self.sums.items():
            values[f"train/{name}"] = total / self.steps_since_point
            self.epoch_sums[name] = self.epoch_sums.get(name, 0.0) + total
        self.epoch_steps += self.steps_since_point
        self.sums, self.steps_since_point = {}, 0
        if self.schedule is not None:
            values["lr"] = float(self.schedule(self.update))
        self.run.metrics(values, self.update)

    def _end_epoch(self) -> None:
        self.run.open()  # its line comes first
        shown = {f"train/{name}": total / self.epoch_steps for name, total in self.epoch_sums.items()}
        speed = self._speed()
        values = {f"val/{name}": float(value) for name, value in self.evaluate().items()}
        values[f"{self.data.unit}_per_second"] = speed
        self.run.metrics(values, self.update)
        self.epoch_sums, self.epoch_steps = {}, 0
        # Epochs of a few milliseconds (a graph is one batch) share a line: one a second, and the last.
        if self.step == self.total or time.perf_counter() - self.last_epoch_line >= 1:
            self.last_epoch_line = time.perf_counter()
            line = "  ".join(f"{name} {value:.4g}" for name, value in {**shown, **values}.items())
            print(
                f"{chr(13) if self.on_screen else ''}epoch {self._epoch + 1}/{self.epochs}  "
                f"step {self.update}  {line}",
                flush=True,
            )
        self._start_clock()
        if values.get(self.monitor, math.inf) < self.best:
            self.best, self.epochs_since_best = values[self.monitor], 0
            self.best_update = self.update
            self._save_best()
        else:
            self.epochs_since_best += 1
            if 0 < self.patience <= self.epochs_since_best:
                self.stopped = True
                print(
                    f"stopped early: {self.monitor} was best {self.patience} epochs ago, at {self.best:.4g}"
                )
        if self.run.watch is not None:
            self.run.watch(self.run, {**values, "epoch": self._epoch + 1})

    # Checkpoints

    def _save_is_due(self) -> bool:
        if self.steps_between:
            return self.step % self.steps_between == 0
        return self.saves and time.perf_counter() - self.last_save >= self.seconds_between

    def save(self) -> Path | None:
        """Write a checkpoint now, due or not: its file, or None if it could not be written."""
        path = self._write(f"step-{self.step:09d}")
        checkpoints.prune(self.folder, "step", self.keep)
        self.last_save = time.perf_counter()
        return path

    def _save_best(self) -> None:
        if self.patience and not self.saves:
            self.best_in_memory = self._arrays()
        elif self.saves:
            self._write("best")
            checkpoints.prune(self.folder, "best", keep=1)

    def _write(self, label: str) -> Path | None:
        self.run.flush()  # what a checkpoint has passed is never recorded again
        facts = {
            "backend": self.backend,
            "step": self.step,
            "best": self.best,
            "best_update": self.best_update,
            "epochs_since_best": self.epochs_since_best,
            "stopped": self.stopped,
            "sums": self.sums,
            "steps_since_point": self.steps_since_point,
            "epoch_sums": self.epoch_sums,
            "epoch_steps": self.epoch_steps,
            "variables": self._description(),
        }
        return checkpoints.attempt(self.folder, label, self._arrays(), facts, f"at step {self.update}")

    def _arrays(self) -> dict[str, np.ndarray]:
        return {
            f"{group}/{index:04d}": np.array(
                variable if isinstance(variable, np.ndarray) else keras.ops.convert_to_numpy(variable)
            )
            for group, variables in self.state.items()
            for index, variable in enumerate(variables)
        }

    def _description(self) -> dict[str, str]:
        """Every variable by its name in a checkpoint: what it is called and its shape."""
        return {
            f"{group}/{index:04d}": f"{getattr(variable, 'name', 'array')} {tuple(variable.shape)}"
            for group, variables in self.state.items()
            for index, variable in enumerate(variables)
        }

    def _resume(self, config: ResumableConfig) -> None:
        found = checkpoints.newest(self.folder, "step")
        if found is None:
            print(f"run {self.run.id} has no whole checkpoint in {self.folder}: it starts at step 0")
            self.run.rewind(-1)
            return
        arrays, facts = found
        here = self._description()
        for name in [*facts["variables"], *here]:
            was, is_now = facts["variables"].get(name, "absent"), here.get(name, "absent")
            if was != is_now:
                raise usage_error(
                    f"run {self.run.id} cannot be resumed: its model was another one "
                    f"(variable {name} was '{was}', now '{is_now}'); go back to its code and flags"
                )
        self._load(arrays)
        self.step = facts["step"]
        self.best = facts["best"]
        self.best_update = facts["best_update"]
        self.epochs_since_best = facts["epochs_since_best"]
        self.stopped = facts["stopped"]
        self.sums = facts["sums"]
        self.steps_since_point = facts["steps_since_point"]
        self.epoch_sums = facts["epoch_sums"]
        self.epoch_steps = facts["epoch_steps"]
        self.run.rewind(self.update)
        note = "bit for bit as if it had not stopped"
        if facts["backend"] != self.backend:
            note = (
                f"from {facts['backend']} to {self.backend}: weights, optimizer and data carry over, "
                "random numbers and rounding do not"
            )
        print(f"resumed at step {self.update} of {self.total // self.data.accumulate}, {note}", flush=True)

    def _load(self, arrays: Mapping[str, np.ndarray]) -> None:
        for group, variables in self.state.items():
            for index, variable in enumerate(variables):
                value = arrays[f"{group}/{index:04d}"].astype(variable.dtype)
                if isinstance(variable, np.ndarray):
                    variable[...] = value
                else:
                    variable.assign(value)

    # The terminal

    def _start_clock(self) -> None:
        self.clock, self.clock_step = time.perf_counter(), self.step

    def _speed(self) -> float:
        steps = self.step - self.clock_step
        return steps * self.data.units / (time.perf_counter() - self.clock)

    def _show(self, loss: float) -> None:
        now = time.perf_counter()
        if not self.run.is_open() or not self.on_screen or now - self.last_line < 0.5:
            return
        if self.step % self.data.steps_per_epoch == 0:
            return
        self.last_line = now
        left = (now - self.begin) * (self.total - self.step) / (self.step - self.first_step)
        print(
            f"\repoch {self._epoch + 1}/{self.epochs}  "
            f"step {self.update}/{self.total // self.data.accumulate}  "
            f"loss {loss:.4f}  {self._speed():.0f} {self.data.unit}/s  {left:.0f} s left ",
            end="",
            flush=True,
        )
