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


def run_trial(sample: dict[str, Any], base: dict[str, Any], recipe: str, parent: str) -> None:
    """Run a recipe with some of its fields changed, as a child of an MLflow run; report to Ray Tune.

    Args:
        sample: what Ray Tune drew: under `trial`, fields and values of a `setting`, its `label`, a `seed`.
        base: the recipe's fields that all trials share.
        recipe: the recipe's name.
        parent: identifier of the sweep's MLflow run.
    """
    from ray import tune

    backend.choose(["--backend", base["backend"]])
    if base["backend"] != "numpy":
        import keras

        keras.utils.clear_session()  # a reused worker has the last trial's layer names and graphs
    trial = sample["trial"]
    config_class, train = load_recipe(recipe)
    config = dataclasses.replace(config_class(**base), **trial["setting"], seed=trial["seed"])
    start = time.perf_counter()
    metrics = launch.run_recipe(
        config,
        train,
        run_name=f"{trial['label']} seed={trial['seed']}",
        tags={"mlflow.parentRunId": parent, "setting": trial["label"]},
    )
    tune.report({**metrics, "seconds": time.perf_counter() - start})
