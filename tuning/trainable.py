"""One trial of a sweep: a recipe run in a Ray worker that keeps its backend for the next trial.

This module imports no framework: a worker reads it before its backend is chosen.
"""

import dataclasses
import importlib
import time
from typing import Any

from recipes.engine import backend, launch, tracking
from recipes.engine.config import RunConfig
from recipes.engine.errors import RecipeError
from tuning.space import Space, label


def load_recipe(name: str) -> tuple[type[RunConfig], launch.Train]:
    """The Config and the train function of a recipe."""
    module = importlib.import_module(f"recipes.{name}")
    return module.Config, module.train


def warm_up(name: str) -> None:
    """Make this process ready for one more run on a backend: what earlier runs compiled is kept."""
    backend.choose(["--backend", name])
    if name == "numpy":
        return
    import keras

    from recipes.engine import programs

    # Layers are named as in a new process. To free memory, Keras would search all that is loaded for garbage,
    # for longer than a small trial takes; Python does so when it is due.
    keras.utils.clear_session(free_memory=False)
    programs.keep()


def run_trial(
    sample: dict[str, Any],
    base: dict[str, Any],
    recipe: str,
    parent: str,
    axes: Space,
    seeds: list[int],
    worst: dict[str, float],
    full: bool,
    epochwise: bool,
) -> None:
    """Run a recipe with some of its fields changed, as children of an MLflow run; report to Ray Tune.

    A worker keeps its backend, its data and its compiled programs for the trials to come. The last report has
    the metrics of each run under `runs`, or the error that ended one; a trial that its scheduler stops has
    none.

    Args:
        sample: what Ray Tune drew: under `trial`, values of a `setting`, and perhaps the `seeds` for it.
        base: the recipe's fields that all trials share.
        recipe: the recipe's name.
        parent: identifier of the sweep's MLflow run.
        axes: what the sweep varies.
        seeds: those of every setting.
        worst: what a failed trial reports as its metric, for schedulers and searches.
        full: whether a trial goes on after its training: test data, figures, the stored model.
        epochwise: whether to report after every epoch, for a scheduler.
    """
    from ray import tune

    setting = axes.applicable(sample["trial"]["setting"])
    runs, begin = {}, time.perf_counter()
    epoch = 0

    def watch(run: tracking.Run, values: dict[str, float]) -> None:
        nonlocal epoch
        epoch = values["epoch"]
        if epoch == config.epochs:  # there is nothing left to stop; the last report follows
            return
        try:
            tune.report(values)
        except SystemExit:  # how Ray stops a trial
            run.tags({"stopped": f"by the scheduler after epoch {epoch}"})
            run.end("KILLED")
            raise

    config_class, train = load_recipe(recipe)
    for seed in sample["trial"].get("seeds", seeds):
        warm_up(base["backend"])
        config = dataclasses.replace(config_class(**base), **setting, seed=seed)
        start = time.perf_counter()
        try:
            metrics = launch.run_recipe(
                config,
                train,
                run_name=f"{label(setting)} seed={seed}",
                tags={"mlflow.parentRunId": parent, "setting": label(setting)},
                only_training=not full,
                watch=watch if epochwise else None,
            )
        except RecipeError as error:  # the setting's own: another worker would come to the same
            seconds = time.perf_counter() - begin
            tune.report({**worst, "failed": str(error), "runs": runs, "epoch": epoch, "seconds": seconds})
            return
        runs[seed] = {**metrics, "seconds": time.perf_counter() - start}
    shared = set.intersection(*(set(metrics) for metrics in runs.values()))
    means = {name: sum(metrics[name] for metrics in runs.values()) / len(runs) for name in shared}
    tune.report({**means, "runs": runs, "epoch": epoch, "seconds": time.perf_counter() - begin})
