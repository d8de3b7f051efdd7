"""A sweep without Ray: its trials one after another in this process, MLflow in another one beside it.

For networks so small that all of them are trained before Ray and its workers have started.
"""

import argparse
import contextlib
import gc
import os
import time
from typing import Any

from recipes.engine import backend, interruption
from recipes.engine.errors import usage_error
from tuning.execution import Lines, Outcome, packed
from tuning.trainable import load_recipe, make_runs, warm_up


def check(options: argparse.Namespace) -> None:
    """Refuse what only Ray can do.

    Raises:
        RecipeError: a flag asks for it.
    """
    asked = {
        "--search optuna": options.search == "optuna",
        f"--scheduler {options.scheduler}": options.scheduler != "none",
        f"--address {options.address}": options.address != "local",
        "--max-concurrent": options.max_concurrent not in (None, 1),
        "--gpus-per-trial": options.gpus_per_trial > 0,
        "--storage": options.storage is not None,
    }
    for flag, given in asked.items():
        if given:
            raise usage_error(f"{flag} is Ray's to do: leave it or --no-ray away")


def get_ready(options: argparse.Namespace, base: dict[str, Any]) -> None:
    """Load what the trials need, and what their comparison does; meanwhile MLflow is loaded beside.

    Args:
        options: the sweep's own options.
        base: the recipe's fields that all trials share.
    """
    gc.disable()  # until the first run begins: nothing that is imported is garbage
    os.environ.update(backend.thread_environment(options.cpus_per_trial))
    warm_up(base["backend"])
    import matplotlib.figure  # noqa: F401


def run_trials(
    options: argparse.Namespace,
    trials: list[dict[str, Any]],
    base: dict[str, Any],
    parent: str,
    tags: dict[str, str],
) -> Outcome:
    """Run the trials; arguments and result as of `execution.run_trials`.

    Raises:
        KeyboardInterrupt: the sweep is to stop.
    """
    outcome, lines = Outcome(), Lines(len(trials), options.metrics)
    values = load_recipe(options.recipe)[0].VALUES - {"epochs"}
    begin = time.perf_counter()
    handlers = interruption.listen()
    try:
        for trial in packed(trials, options.pack, values, workers=1):
            if options.time_budget and time.perf_counter() - begin >= options.time_budget:
                outcome.interrupted = True
                break
            # A recipe's own lines are for who runs it alone.
            with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
                runs = make_runs(
                    trial["runs"],
                    base,
                    options.recipe,
                    parent,
                    tags,
                    options.patience,
                    options.pack,
                    options.full,
                )
            if any("stopped" in run for run in runs):
                raise KeyboardInterrupt
            outcome.take(runs)
            for run in runs:
                lines.run(run)
    finally:
        interruption.restore(handlers)
    return outcome
