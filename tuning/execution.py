"""A sweep's trials on Ray Tune: on this machine or a cluster, in workers that are used again."""

import argparse
import importlib
import logging
import math
import os
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tuning import nodes, population, searches
from tuning.space import Space, label
from tuning.trainable import AGAIN, load_recipe, run_trial

RETRIES = 3  # of a trial whose worker or node died


@dataclass
class Outcome:
    """What became of a sweep's trials.

    Attributes:
        finished: pairs of a trial, with its `setting` and `seed`, and its final metrics.
        failures: a sentence for each trial that failed.
        stopped: names of the trials that the scheduler stopped.
        interrupted: whether trials are missing, as the sweep was stopped (or its time was up).
        away: whether trials failed because the tracking store did not answer.
        unsent: by run, what the store did not take.
    """

    finished: list[tuple[dict[str, Any], dict[str, float]]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    stopped: list[str] = field(default_factory=list)
    interrupted: bool = False
    away: bool = False
    unsent: dict[str, str] = field(default_factory=dict)

    def take(self, runs: Iterable[dict[str, Any]]) -> None:
        """Add runs that ended, as `trainable.make_runs` says."""
        for run in runs:
            if "error" in run:
                self.failures.append(f"{_name(run)}: {run['error']}")
                self.away |= "unsent" in run
                self.unsent |= run.get("unsent", {})
            else:
                self.finished.append(({"setting": run["setting"], "seed": run["seed"]}, run["metrics"]))


def run_trials(
    options: argparse.Namespace,
    axes: Space,
    trials: list[dict],
    base: dict[str, Any],
    parent: str,
    tags: dict[str, str],
) -> Outcome:
    """Run the trials.

    Args:
        options: the sweep's own options.
        axes: what varies.
        trials: runs to make, each a `setting` and a `seed`; none for a search, which draws settings itself.
        base: the recipe's fields that all trials share.
        parent: identifier of the sweep's MLflow run.
        tags: MLflow tags of every trial's run.

    Raises:
        RecipeError: there is no Ray at the address, or its nodes cannot run trials.
    """
    if nodes.is_client(options):
        return nodes.at_the_head(
            run_trials, options, base, axes=axes, trials=trials, parent=parent, tags=tags
        )
    # MLflow has it all; Ray's own loggers would write it again, and TensorBoard's would load TensorFlow.
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"  # prints a panel even where verbose is 0
    os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"  # else Ray warns of its own next release
    from ray import tune

    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # a failed trial is told in a line, below
    search = searches.search(options, base["seed"])
    total = options.trials * options.seeds if search else len(trials)
    lines = Lines(total, options.metrics)
    with nodes.connected(options, base):
        results = tune.Tuner(
            tune.with_resources(
                _trainable(options, axes, base, parent, tags),
                {"cpu": options.cpus_per_trial, "gpu": options.gpus_per_trial},
            ),
            param_space={"trial": _samples(options, axes, trials)},
            tune_config=tune.TuneConfig(
                reuse_actors=True,
                max_concurrent_trials=options.max_concurrent,
                time_budget_s=options.time_budget,
                num_samples=options.trials if search else 1,
                search_alg=search,
                scheduler=searches.scheduler(options, base["epochs"], axes, base["seed"]),
            ),
            run_config=tune.RunConfig(
                name=parent,
                # Only the driver writes here, unless trials report checkpoints.
                storage_path=options.storage or str(Path("mlruns/ray").absolute()),
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=RETRIES),
                checkpoint_config=tune.CheckpointConfig(num_to_keep=3),  # of a population's members
                callbacks=[_callback(lines)],
            ),
        ).fit()
        # Ray takes a second to go: meanwhile, what the comparison is drawn with is loaded.
        threading.Thread(target=importlib.import_module, args=("matplotlib.figure",)).start()
    return outcome_of(results, interrupted=lines.ended < total)


def outcome_of(results: Iterable[Any], interrupted: bool) -> Outcome:
    """What Ray Tune's results say.

    Args:
        results: one a trial, also of those that it had no time to begin.
        interrupted: whether trials are missing.
    """
    outcome = Outcome(interrupted=interrupted)
    for result in results:
        metrics = result.metrics or {}
        outcome.take(metrics.get("runs", []))
        # Ray knows no configuration of a trial whose worker was never there.
        named = _names(result.config["trial"]) if result.config else "a trial without a worker"
        if result.error is not None:
            outcome.failures.append(f"{named}: {str(result.error).strip().splitlines()[-1]}")
        elif "runs" not in metrics and not interrupted:
            outcome.stopped.append(named)
    return outcome


def _trainable(
    options: argparse.Namespace, axes: Space, base: dict[str, Any], parent: str, tags: dict[str, str]
) -> Any:
    """What a worker calls: `run_trial`, or `run_member` of a population, with what all calls share."""
    from ray import tune

    shared = {
        "base": base,
        "recipe": options.recipe,
        "parent": parent,
        "tags": tags,
        "patience": options.patience,
        "axes": axes,
        "worst": {metric: searches.worst(metric) for metric in options.metrics},
        "full": options.full,
    }
    if options.scheduler == "pbt":
        return tune.with_parameters(population.run_member, interval=options.interval, **shared)
    return tune.with_parameters(
        run_trial,
        seeds=[base["seed"] + number for number in range(options.seeds)],
        pack=options.pack,
        epochwise=options.scheduler != "none",
        **shared,
    )


def _samples(options: argparse.Namespace, axes: Space, trials: list[dict[str, Any]]) -> Any:
    """What Ray gives to workers: settings that a search draws, members of a population, or packs of runs."""
    from ray import tune

    if options.search == "optuna":
        return {"setting": axes.domains()}
    if options.scheduler == "pbt":
        return tune.grid_search(population.members(trials))
    # Runs of a pack train as long as each other.
    values = load_recipe(options.recipe)[0].VALUES - {"epochs"}
    return tune.grid_search(packed(trials, options.pack, values, nodes.trials_at_a_time(options)))


def packed(
    runs: list[dict[str, Any]], pack: int, values: frozenset[str], workers: int
) -> list[dict[str, Any]]:
    """Runs in trials: alone, or up to `pack` of those that one program can train, in equal parts.

    There are no fewer trials than workers for the sake of larger ones.

    Args:
        runs: each a `setting` and a `seed`.
        pack: the most runs in a trial.
        values: fields that a program takes as numbers: in the others a trial's runs agree.
        workers: how many trials run at a time.
    """
    pack = min(pack, math.ceil(len(runs) / max(1, workers)))
    groups: dict[str, list[dict[str, Any]]] = {}
    for run in runs:
        program = label({name: value for name, value in run["setting"].items() if name not in values})
        groups.setdefault(program, []).append(run)
    trials = []
    for group in groups.values():
        size = math.ceil(len(group) / math.ceil(len(group) / pack))
        trials += [{"runs": group[first : first + size]} for first in range(0, len(group), size)]
    return trials


def _name(run: dict[str, Any]) -> str:
    return f"{label(run['setting'])} seed={run['seed']}"


def _names(trial: dict[str, Any]) -> str:
    return ", ".join(map(_name, trial["runs"])) if "runs" in trial else label(trial["setting"])


class Lines:
    """A line on the terminal for every run that ends.

    Args:
        total: how many will.
        metrics: names of the final metrics that are told.

    Attributes:
        ended: how many did.
    """

    def __init__(self, total: int, metrics: Sequence[str]) -> None:
        self.total, self.metrics = total, metrics
        self.ended = 0
        self._begin = time.perf_counter()

    def reached(self, metrics: Mapping[str, float]) -> str:
        """What of the metrics is told."""
        return "  ".join(f"{name} {metrics.get(name, math.nan):.6g}" for name in self.metrics)

    def line(self, name: str, text: str, count: int = 1) -> None:
        """So many runs ended."""
        self.ended += count
        left = (time.perf_counter() - self._begin) / self.ended * (self.total - self.ended)
        print(f"[{self.ended:>3}/{self.total}] {name}  {text}  {left:.0f} s left", flush=True)

    def run(self, run: Mapping[str, Any]) -> None:
        """A run ended, as `trainable.make_runs` says."""
        metrics = run.get("metrics", {})
        done = f"{self.reached(metrics)}  {metrics.get('seconds', 0.0):.1f} s"
        self.line(_name(run), "FAILED" if "error" in run else done)


def _callback(lines: Lines) -> Any:
    """Ray Tune tells when a trial ends; one that is begun again is told so itself."""
    from ray import tune

    class Callback(tune.Callback):
        def on_trial_complete(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
            result = trial.last_result
            for run in result.get("runs", []):
                lines.run(run)
            if "runs" not in result:
                text = f"{lines.reached(result)}  stopped at {result.get('epoch')}"
                lines.line(_names(trial.config["trial"]), text)

        def on_trial_recover(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
            trial.config[AGAIN] = True

        def on_trial_error(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
            runs = trial.config["trial"].get("runs", [None])
            lines.line(_names(trial.config["trial"]), "FAILED", len(runs))

    return Callback()
