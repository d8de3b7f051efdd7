"""A sweep's trials on Ray Tune: on this machine or a cluster, in workers that are used again."""

import argparse
import logging
import math
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from recipes.engine import backend
from recipes.engine.errors import RecipeError
from tuning.comparison import smaller_is_better
from tuning.space import Space, label
from tuning.trainable import load_recipe, run_trial

RETRIES = 3  # of a trial whose worker or node died


@dataclass
class Outcome:
    """What became of a sweep's trials.

    Attributes:
        finished: pairs of a trial, with its `setting` and `seed`, and its final metrics.
        failures: a sentence for each trial that failed.
        stopped: names of the trials that the scheduler stopped.
        interrupted: whether trials are missing, as the sweep was stopped (or its time was up).
    """

    finished: list[tuple[dict[str, Any], dict[str, float]]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    stopped: list[str] = field(default_factory=list)
    interrupted: bool = False


def run_trials(
    options: argparse.Namespace, axes: Space, trials: list[dict], base: dict[str, Any], parent: str
) -> Outcome:
    """Run the trials.

    Args:
        options: the sweep's own options.
        axes: what varies.
        trials: runs to make, each a `setting` and a `seed`; none for a search, which draws settings itself.
        base: the recipe's fields that all trials share.
        parent: identifier of the sweep's MLflow run.

    Raises:
        RecipeError: there is no Ray at the address.
    """
    # MLflow has it all; Ray's own loggers would write it again, and TensorBoard's would load TensorFlow.
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"  # prints a panel even where verbose is 0
    os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"  # else Ray warns of its own next release
    import ray
    from ray import tune

    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # a failed trial is told in a line, below
    try:
        ray.init(
            address=options.address,
            runtime_env={"env_vars": worker_environment(options, base["backend"])},
            log_to_driver=False,
            logging_level=logging.ERROR,
            include_dashboard=False if options.address == "local" else None,
        )
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise RecipeError(
            f"no Ray cluster at --address {options.address}: {str(error).splitlines()[0]}"
        ) from error
    searches = options.search == "optuna"
    total = options.trials * options.seeds if searches else len(trials)
    progress = _progress(total, options.metric)
    # Runs of a pack train as long as each other.
    values = load_recipe(options.recipe)[0].VALUES - {"epochs"}
    try:
        results = tune.Tuner(
            tune.with_resources(
                tune.with_parameters(
                    run_trial,
                    base=base,
                    recipe=options.recipe,
                    parent=parent,
                    axes=axes,
                    seeds=[base["seed"] + number for number in range(options.seeds)],
                    worst={options.metric: math.inf if smaller_is_better(options.metric) else -math.inf},
                    pack=options.pack,
                    full=options.full,
                    epochwise=options.scheduler != "none",
                ),
                {"cpu": options.cpus_per_trial, "gpu": options.gpus_per_trial},
            ),
            param_space={
                "trial": {"setting": axes.domains()}
                if searches
                else tune.grid_search(packed(trials, options.pack, values))
            },
            tune_config=tune.TuneConfig(
                reuse_actors=True,
                max_concurrent_trials=options.max_concurrent,
                time_budget_s=options.time_budget,
                num_samples=options.trials if searches else 1,
                search_alg=_optuna(options.metric, base["seed"]) if searches else None,
                scheduler=_scheduler(options, base["epochs"]),
            ),
            run_config=tune.RunConfig(
                name=parent,
                storage_path=str(Path("mlruns/ray").absolute()),
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=RETRIES),
                callbacks=[progress],
            ),
        ).fit()
    finally:
        ray.shutdown()
    outcome = Outcome(interrupted=progress.ended < total)
    for result in results:
        trial, metrics = result.config["trial"], result.metrics or {}
        for run in metrics.get("runs", []):
            if "error" in run:
                outcome.failures.append(f"{_name(run)}: {run['error']}")
            else:
                outcome.finished.append(({"setting": run["setting"], "seed": run["seed"]}, run["metrics"]))
        if result.error is not None:
            outcome.failures.append(f"{_names(trial)}: {str(result.error).strip().splitlines()[-1]}")
        elif "runs" not in metrics and not outcome.interrupted:
            outcome.stopped.append(_names(trial))
    return outcome


def worker_environment(options: argparse.Namespace, name: str) -> dict[str, str]:
    """What a worker's environment has before it loads its backend: threads, and its share of a GPU."""
    environment = {
        **backend.thread_environment(options.cpus_per_trial),
        "KERAS_BACKEND": name,
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]),
        # The end of a stopped trial: its run is closed in MLflow.
        "TUNE_FUNCTION_THREAD_TIMEOUT_S": "60",
    }
    if options.gpus_per_trial:
        # JAX takes most of the memory at its start, TensorFlow all of it: neighbours would find none.
        environment["XLA_PYTHON_CLIENT_MEM_FRACTION"] = f"{0.9 * min(1.0, options.gpus_per_trial):.3f}"
        environment["TF_FORCE_GPU_ALLOW_GROWTH"] = "true"
    return environment


def _mode(metric: str) -> str:
    return "min" if smaller_is_better(metric) else "max"


def _optuna(metric: str, seed: int) -> Any:
    from ray.tune.search.optuna import OptunaSearch

    logging.getLogger("optuna").setLevel(logging.WARNING)
    return OptunaSearch(metric=metric, mode=_mode(metric), seed=seed)


def _scheduler(options: argparse.Namespace, epochs: int) -> Any:
    """What stops trials that do not promise much."""
    from ray.tune import schedulers

    if options.scheduler == "none":
        return None
    common = {"metric": options.metric, "mode": _mode(options.metric), "time_attr": "epoch"}
    if options.scheduler == "median":
        return schedulers.MedianStoppingRule(
            grace_period=options.grace, min_samples_required=2, hard_stop=True, **common
        )
    return schedulers.ASHAScheduler(
        max_t=max(epochs, options.grace + 1), grace_period=options.grace, reduction_factor=3, **common
    )


def packed(runs: list[dict[str, Any]], pack: int, values: frozenset[str]) -> list[dict[str, Any]]:
    """Runs in trials: alone, or up to `pack` of those that one program can train.

    Args:
        runs: each a `setting` and a `seed`.
        pack: the most runs in a trial.
        values: fields that a program takes as numbers: in the others a trial's runs agree.
    """
    groups: dict[str, list[dict[str, Any]]] = {}
    for run in runs:
        program = label({name: value for name, value in run["setting"].items() if name not in values})
        groups.setdefault(program, []).append(run)
    return [
        {"runs": group[first : first + pack]}
        for group in groups.values()
        for first in range(0, len(group), pack)
    ]


def _name(run: dict[str, Any]) -> str:
    return f"{label(run['setting'])} seed={run['seed']}"


def _names(trial: dict[str, Any]) -> str:
    return ", ".join(map(_name, trial["runs"])) if "runs" in trial else label(trial["setting"])


def _progress(total: int, metric: str) -> Any:
    """A line on the terminal for every run that ends."""
    from ray import tune

    class Progress(tune.Callback):
        def __init__(self) -> None:
            self.ended = 0
            self.begin = time.perf_counter()

        def _line(self, name: str, text: str, count: int = 1) -> None:
            self.ended += count
            left = (time.perf_counter() - self.begin) / self.ended * (total - self.ended)
            print(f"[{self.ended:>3}/{total}] {name}  {text}  {left:.0f} s left", flush=True)

        def on_trial_complete(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
            result = trial.last_result
            for run in result.get("runs", []):
                metrics = run.get("metrics", {})
                done = f"{metric} {metrics.get(metric, math.nan):.4f}  {metrics.get('seconds', 0.0):.1f} s"
                self._line(_name(run), "FAILED" if "error" in run else done)
            if "runs" not in result:
                reached = f"{metric} {result.get(metric, math.nan):.4f}  stopped at {result.get('epoch')}"
                self._line(_names(trial.config["trial"]), reached)

        def on_trial_error(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
            runs = trial.config["trial"].get("runs", [None])
            self._line(_names(trial.config["trial"]), "FAILED", len(runs))

    return Progress()
