"""One trial of a sweep: a recipe run in a Ray worker that keeps its backend for the next trial.

This module imports no framework: a worker reads it before its backend is chosen.
"""

import contextlib
import dataclasses
import functools
import gc
import importlib
import time
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from recipes.engine import backend, launch, outage, packs, recorder, store, tracking
from recipes.engine.config import RunConfig, TrainingConfig
from recipes.engine.errors import RecipeError, Stopped, unknown
from recipes.engine.outage import Away
from tuning import nodes
from tuning.space import Space, label

AGAIN = "again"  # in a sample: not for the first time


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


@functools.cache
def spare_libraries(uri: str) -> None:
    """What is loaded by now stays: a search through it takes longer than a small trial, and finds nothing.

    Args:
        uri: the trials' tracking store; most of MLflow is loaded when one is opened.
    """
    with contextlib.suppress(RecipeError):  # the run itself may wait for it
        recorder.store(uri)
    gc.freeze()


def run_trial(
    sample: dict[str, Any],
    base: dict[str, Any],
    recipe: str,
    parent: str,
    tags: dict[str, str],
    patience: float,
    axes: Space,
    seeds: list[int],
    worst: dict[str, float],
    pack: int,
    full: bool,
    epochwise: bool,
) -> None:
    """Run a recipe with some of its fields changed, as children of an MLflow run; report to Ray Tune.

    A worker keeps its backend, its data and its compiled programs for the trials to come. The last report has
    all runs under `runs`: the `setting` and `seed` of each, with its `metrics` or the `error` that ended it,
    and, by its identifier, what was `unsent` if that was the tracking store's absence.
    A trial that its scheduler stops has none.

    Args:
        sample: what Ray Tune drew: under `trial`, the `runs` to make, or a `setting` to make with all seeds;
            and `AGAIN`, if a worker that was to make them died.
        base: the recipe's fields that all trials share.
        recipe: the recipe's name.
        parent: identifier of the sweep's MLflow run.
        tags: MLflow tags of every trial's run.
        patience: seconds to wait for a tracking store that does not answer.
        axes: what the sweep varies.
        seeds: those of every setting.
        worst: what a failed trial reports as its metric, for schedulers and searches.
        pack: how many runs to train side by side in one program.
        full: whether a run goes on after its training: test data, figures, the stored model.
        epochwise: whether to report after every epoch, for a scheduler.
    """
    from ray import tune

    nodes.require_store(base["tracking_uri"])
    begin = time.perf_counter()
    epoch = 0
    trial = sample["trial"]
    # A worker that died may have finished runs without saying so.
    before = finished(base, parent, patience) if sample.get(AGAIN) else {}
    if "runs" not in trial:
        setting = axes.applicable(trial["setting"])
        trial = {"runs": [{"setting": setting, "seed": seed} for seed in seeds]}
    backend.choose(["--backend", base["backend"]])  # before the recipe is imported, and with it JAX

    def watch(run: tracking.Run, values: dict[str, float]) -> None:
        nonlocal epoch
        require_metrics(worst, values)
        epoch = values["epoch"]
        if epoch == trial["runs"][0]["setting"].get("epochs", base["epochs"]):
            return  # there is nothing left to stop; the last report follows
        try:
            tune.report(values)
        except SystemExit:  # how Ray stops a trial
            run.tags({"stopped": f"by the scheduler after epoch {epoch}"})
            with contextlib.suppress(Away):
                run.end("KILLED")
            raise

    runs = make_runs(
        trial["runs"],
        base,
        recipe,
        parent,
        {**tags, "node": nodes.here()},
        patience,
        pack,
        full,
        before=before,
        watch=watch if epochwise else None,
    )
    good = [run["metrics"] for run in runs if "metrics" in run]
    means = worst
    if len(good) == len(runs):
        shared = set.intersection(*map(set, good))
        means = {name: sum(metrics[name] for metrics in good) / len(good) for name in shared}
    # A search is told of every metric that it asks for; that one has no such name is said in the end.
    tune.report({**worst, **means, "runs": runs, "epoch": epoch, "seconds": time.perf_counter() - begin})


def make_runs(
    runs: Sequence[dict[str, Any]],
    base: dict[str, Any],
    recipe: str,
    parent: str,
    tags: dict[str, str],
    patience: float,
    pack: int,
    full: bool,
    before: Mapping[tuple[str, str], dict] = types.MappingProxyType({}),
    watch: Callable[[tracking.Run, dict[str, float]], None] | None = None,
) -> list[dict[str, Any]]:
    """Run a recipe in this process, alone or in packs, which keeps what the next ones can use.

    Args:
        runs: what to run, a `setting` and a `seed` each.
        base, recipe, parent, tags, patience, pack, full: as of `run_trial`.
        before: metrics of runs that are finished, by setting and seed.
        watch: called after every epoch with the run and the epoch's metrics.

    Returns:
        The runs, each with its `metrics`, or with the `error` that ended it, what was `unsent`, and whether
        it was `stopped` by a signal.
    """
    backend.choose(["--backend", base["backend"]])  # before the recipe is imported, and with it JAX
    config_class, train = load_recipe(recipe)

    def run(setting: dict[str, Any], seed: int) -> dict[str, float]:
        if (label(setting), str(seed)) in before:
            return before[label(setting), str(seed)]
        config = dataclasses.replace(config_class(**base), **setting, seed=seed)
        if pack > 1 and isinstance(config, TrainingConfig):
            config = dataclasses.replace(config, checkpoint_every="0")  # each would stop by itself
        return launch.run_recipe(
            config,
            train,
            run_name=f"{label(setting)} seed={seed}",
            tags={**tags, "mlflow.parentRunId": parent, "setting": label(setting)},
            only_training=not full,
            watch=watch,
            patience=patience,
        )

    ended: list[dict[str, Any]] = []
    for first in range(0, len(runs), pack):
        warm_up(base["backend"])
        spare_libraries(base["tracking_uri"])
        group, start = runs[first : first + pack], time.perf_counter()
        results = _together([functools.partial(run, **one) for one in group])
        seconds = (time.perf_counter() - start) / len(group)
        for one, result in zip(group, results, strict=True):
            failed = isinstance(result, Exception)
            ended.append(
                {**one, **(ended_by(result) if failed else {"metrics": {"seconds": seconds, **result}})}
            )
    return ended


def finished(base: dict[str, Any], parent: str, patience: float = 0.0) -> dict[tuple[str, str], dict]:
    """The metrics of a sweep's finished runs by setting and seed, as MLflow has them: of each, one run's.

    Args:
        base: the recipe's fields that all trials share.
        parent: identifier of the sweep's MLflow run.
        patience: seconds to wait for a tracking store that does not answer.
    """
    uri = base["tracking_uri"]
    children = outage.insist(
        uri, patience, lambda: store.children(uri, base["experiment"], parent, "FINISHED")
    )
    return {
        (child.data.tags["setting"], child.data.tags["seed"]): told_by(child)
        for child in children
        if "stopped" not in child.data.tags
    }


def told_by(child: Any) -> dict[str, float]:
    """The metrics of a run as MLflow has it, as a trial reports them."""
    return {**child.data.metrics, "seconds": child.data.metrics.get("duration_seconds", 0.0)}


def require_metrics(asked: Iterable[str], measured: Iterable[str]) -> None:
    """A scheduler's metric is measured after every epoch.

    Args:
        asked: names of metrics.
        measured: names of those after an epoch.

    Raises:
        RecipeError: one is not.
    """
    for name in asked:
        if name not in measured:
            raise unknown("value of --metric", name, measured)


def _together(jobs: list[Callable[[], dict[str, float]]]) -> list[dict[str, float] | Exception]:
    """The result of each run, or what ended it: a failure is the setting's own, and costs no other one."""
    if len(jobs) > 1:
        return packs.Pack().run(jobs)
    try:
        return [jobs[0]()]
    except Exception as error:
        return [error]


def ended_by(error: Exception) -> dict[str, Any]:
    """What is reported of a run that failed: why, and what the tracking store did not take of it."""
    told: dict[str, Any] = {"error": _sentence(error)}
    if isinstance(error, Stopped):
        told["stopped"] = True
    if isinstance(error, Away):  # the file lies in the trial's folder, perhaps on another machine
        told["unsent"] = {error.kept.stem: error.kept.read_text()} if error.kept else {}
    return told


def _sentence(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return lines[0] if isinstance(error, RecipeError) else f"{type(error).__name__}: {lines[0]}"
