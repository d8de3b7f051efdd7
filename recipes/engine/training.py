"""`model.fit` with what every recipe wants around it: metrics by step, progress, a stop at the first NaN."""

import math
import sys
import time
from collections.abc import Callable
from typing import Any

import keras

from recipes.engine.data.batches import Batches
from recipes.engine.data.datasets import Split
from recipes.engine.errors import RecipeError
from recipes.engine.tracking import Run

POINTS = 200  # points of a learning curve within a run


def fit(
    model: keras.Model,
    batches: Batches,
    validation: Split,
    epochs: int,
    run: Run,
    schedule: Callable[[int], Any],
    validation_batch_size: int = 500,
) -> None:
    """Train a compiled model and record its curves.

    Args:
        model: compiled, with the metric `accuracy` or others.
        batches: training data.
        validation: looked at after every epoch.
        epochs: passes over the data.
        run: where `train/*` (means over the steps since the last point), `val/*`, `lr` and
            `images_per_second` go; the x-axis is the optimizer step.
        schedule: the learning rate at a step.
        validation_batch_size: examples evaluated at once.

    Raises:
        RecipeError: the loss stopped being a number; the message names the step.
    """
    model.fit(
        batches,
        epochs=epochs,
        validation_data=(validation.x, validation.y),
        validation_batch_size=validation_batch_size,
        shuffle=False,
        verbose=0,
        callbacks=[Curves(run, schedule, len(batches), epochs, batches.batch_size)],
    )


class Curves(keras.callbacks.Callback):
    """Writes curves to a run and a line an epoch to the terminal; refuses to go on with a NaN."""

    def __init__(
        self, run: Run, schedule: Callable[[int], Any], steps_per_epoch: int, epochs: int, batch_size: int
    ) -> None:
        super().__init__()
        self.run = run
        self.schedule = schedule
        self.steps_per_epoch = steps_per_epoch
        self.total = steps_per_epoch * epochs
        self.epochs = epochs
        self.batch_size = batch_size
        self.interval = max(1, self.total // POINTS)
        self.step = 0
        self.on_screen = sys.stdout.isatty()
        self.last_line = 0.0

    def on_train_begin(self, logs: dict | None = None) -> None:
        """Start the clock."""
        self.begin = time.perf_counter()

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        """Keras' metrics start anew, and so do the means taken from them."""
        self.epoch = epoch
        self.epoch_begin = time.perf_counter()
        self.seen, self.sums = 0, {}

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        """Look at the loss of every step; record a point now and then."""
        self.step += 1
        loss = float(logs["loss"])
        if not math.isfinite(loss):
            raise RecipeError(
                f"the loss is {loss} at step {self.step} (epoch {self.epoch + 1}): "
                "the run stops here; try a smaller --learning-rate, or --precision float32"
            )
        if self.step % self.interval == 0 or batch + 1 == self.steps_per_epoch:
            self._point(batch + 1, logs)
        now = time.perf_counter()
        if self.on_screen and now - self.last_line > 0.5:
            self.last_line = now
            done = self.step / self.total
            left = (now - self.begin) * (1 - done) / done
            print(
                f"\repoch {self.epoch + 1}/{self.epochs}  step {self.step}/{self.total}  loss {loss:.4f}  "
                f"{self._speed(batch + 1, now):.0f} images/s  {left:.0f} s left ",
                end="",
                flush=True,
            )

    def on_test_begin(self, logs: dict | None = None) -> None:
        """Training stops: hold the clock."""
        self.train_end = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Record validation metrics and speed, and say so."""
        values = {f"val/{name[4:]}": value for name, value in logs.items() if name.startswith("val_")}
        values["images_per_second"] = self._speed(
            self.steps_per_epoch, getattr(self, "train_end", time.perf_counter())
        )
        self.run.metrics(values, self.step)
        shown = {
            f"train/{name}": value for name, value in logs.items() if not name.startswith("val_")
        } | values
        line = "  ".join(f"{name} {value:.4g}" for name, value in shown.items())
        print(
            f"{chr(13) if self.on_screen else ''}epoch {epoch + 1}/{self.epochs}  step {self.step}  {line}",
            flush=True,
        )

    def _point(self, seen: int, logs: dict) -> None:
        """Means over the steps since the last point, out of Keras' means since the epoch began."""
        values = {}
        for name, mean in logs.items():
            total = float(mean) * seen
            values[f"train/{name}"] = (total - self.sums.get(name, 0.0)) / (seen - self.seen)
            self.sums[name] = total
        self.seen = seen
        values["lr"] = float(self.schedule(self.step))
        self.run.metrics(values, self.step)

    def _speed(self, batches: int, now: float) -> float:
        return batches * self.batch_size / (now - self.epoch_begin)
