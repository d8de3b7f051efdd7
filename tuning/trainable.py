"""One trial of a sweep: a recipe run in a Ray worker that keeps its backend for the next trial.

This module imports no framework: a worker reads it before its backend is chosen.
"""

import dataclasses
import importlib
import time
from typing import Any

from recipes.engine import backend, launch
from recipes.engine.config import RunConfig


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

    keras.utils.clear_session()  # layers are named as in a new process
    programs.keep()


def run_trial(sample: dict[str, Any], base: dict[str, Any], recipe: str, parent: str, full: bool) -> None:
    """Run a recipe with some of its fields changed, as a child of an MLflow run; report to Ray Tune.

    A worker keeps its backend, its data and its compiled programs for the trials to come.

    Args:
        sample: what Ray Tune drew: under `trial`, fields and values of a `setting`, its `label`, a `seed`.
        base: the recipe's fields that all trials share.
        recipe: the recipe's name.
        parent: identifier of the sweep's MLflow run.
        full: whether a trial goes on after its training: test data, figures, the stored model.
    """
    from ray import tune

    warm_up(base["backend"])
    trial = sample["trial"]
    config_class, train = load_recipe(recipe)
    config = dataclasses.replace(config_class(**base), **trial["setting"], seed=trial["seed"])
    start = time.perf_counter()
    metrics = launch.run_recipe(
        config,
        train,
        run_name=f"{trial['label']} seed={trial['seed']}",
        tags={"mlflow.parentRunId": parent, "setting": trial["label"]},
        only_training=not full,
    )
    tune.report({**metrics, "seconds": time.perf_counter() - start})
