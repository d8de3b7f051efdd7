"""Population-based training: members train side by side, and those behind go on from those ahead.

After every `--interval` epochs all members wait for each other. A member of the lower quarter then takes the
weights, the optimizer's state and the position of one of the upper quarter, and that one's values of the
axes, changed a little (Jaderberg et al., 2017, arXiv:1711.09846). It stays the same run in MLflow:
`pbt/FIELD` is its curve of an axis' value (of words: their place in the axis), and the tag
`exploited/epoch_N` is the run whose weights it took.

A member whose loss stops being a number counts as the last one, and goes on with another one's weights.
Ray may begin every stretch in a new worker: an interval should take longer than a worker's start.
"""

import argparse
import dataclasses
import random
import shutil
import time
from typing import Any

import numpy as np

from recipes.engine import launch, store, tracking
from recipes.engine.config import RunConfig, TrainingConfig
from recipes.engine.errors import RecipeError, usage_error
from tuning import nodes
from tuning.space import Setting, Space, label
from tuning.trainable import ended_by, load_recipe, require_metrics, spare_libraries, told_by, warm_up

# Values that say how long training takes, which members cannot differ in, or that are nothing to learn from.
NEVER = {"epochs", "steps", *TrainingConfig.VALUES} - {"learning_rate"}


def check(options: argparse.Namespace, config: RunConfig, axes: Space) -> None:
    """Refuse what cannot be done with a population.

    Raises:
        RecipeError: an option, an axis or a recipe that does not go with it.
    """
    mutable = sorted(config.VALUES - NEVER)
    for name in axes.fields:
        if name in config.VALUES and name in NEVER:
            raise usage_error(
                f"--scheduler pbt cannot vary '{name}': members train for the same time in the same way; "
                f"it varies {', '.join(mutable)}"
            )
        if name not in config.VALUES:
            raise usage_error(
                f"--scheduler pbt cannot vary '{name}': with another {name} the weights of one member mean "
                f"nothing to another; it varies {', '.join(mutable)}"
            )
    if axes.conditions:
        raise usage_error(f"--scheduler pbt takes no '@': every member has a value of {min(axes.conditions)}")
    if options.max_concurrent:  # of Ray's trials that have not ended: those left out would never compare
        raise usage_error("--scheduler pbt needs all members: say --cpus-per-trial, not --max-concurrent")
    if options.time_budget:
        raise usage_error("--scheduler pbt ends with all members at once: leave --time-budget away")
    if options.search != "all" or options.seeds > 1:
        raise usage_error(
            "--scheduler pbt draws --trials members of one seed: leave --search and --seeds away"
        )
    if not isinstance(config, TrainingConfig) or config.PARTS or config.checkpoint_interval() == (0, 0):
        raise usage_error(
            "--scheduler pbt needs a recipe that trains one network and writes checkpoints, and no "
            "--checkpoint-every 0"
        )
    if config.early_stopping or config.find_lr:
        raise usage_error("--scheduler pbt trains for all epochs: leave --early-stopping and --find-lr away")
    if not options.interval < config.epochs:
        raise usage_error(f"--interval {options.interval} must be less than --epochs {config.epochs}")


def members(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The runs that a population begins with, numbered: their values may become the same."""
    return [{**run, "member": number} for number, run in enumerate(runs, start=1)]


def scheduler(axes: Space, interval: int, seed: int, metric: str, mode: str, time_attr: str) -> Any:
    """Ray Tune's PopulationBasedTraining on the axes; what it does is printed.

    Args:
        axes: what varies. Listed values move to a neighbour in the list, numbers by a fifth and within their
            bounds; every fourth time a value is drawn anew.
        interval: epochs between exploitations.
        seed: fixes what is drawn.
        metric, mode, time_attr: as everywhere in Ray.
    """
    from ray import tune
    from ray.tune.schedulers import PopulationBasedTraining

    listed = {**axes.grid, **axes.choices}
    drawn = {name: tune.uniform(*bounds) for name, bounds in axes.uniform.items()}
    drawn |= {name: tune.loguniform(*bounds) for name, bounds in axes.loguniform.items()}
    bounds = {**axes.uniform, **axes.loguniform}

    class Population(PopulationBasedTraining):
        def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
            """Ray's, which compares when the last member reports, and draws as everybody does."""
            random.seed(f"{seed} {result['epoch']}")
            np.random.seed((seed + result["epoch"]) % 2**32)
            return super().on_trial_result(tune_controller, trial, result)

        def _get_new_config(self, trial: Any, trial_to_clone: Any) -> tuple[dict, dict]:
            """Ray's, within the bounds; a member stays who it is."""
            config, operations = super()._get_new_config(trial, trial_to_clone)
            setting = config["trial"]["setting"]
            for name, (low, high) in bounds.items():
                setting[name] = min(max(setting[name], low), high)
            old, donor = trial.config["trial"], trial_to_clone.config["trial"]
            config["trial"]["member"] = old["member"]
            print(
                f"member {old['member']} ({label(old['setting'])}) goes on with the weights of member "
                f"{donor['member']} ({label(donor['setting'])}) and {label(setting)}",
                flush=True,
            )
            return config, operations

        def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
            """Nobody waits for a member whose worker has died once too often: Ray's own would, for ever."""
            if trial.should_recover():
                return
            live = tune_controller.get_live_trials()
            live.discard(trial)
            if all(self._trial_state[t].last_train_time >= self._next_perturbation_sync for t in live):
                self._next_perturbation_sync += self._perturbation_interval

    return Population(
        time_attr=time_attr,
        metric=metric,
        mode=mode,
        perturbation_interval=interval,
        hyperparam_mutations={"trial": {"setting": {**listed, **drawn}}},
        synch=True,
        log_config=False,
    )


def run_member(
    sample: dict[str, Any],
    base: dict[str, Any],
    recipe: str,
    parent: str,
    tags: dict[str, str],
    patience: float,
    axes: Space,
    interval: int,
    worst: dict[str, float],
    full: bool,
) -> None:
    """Train a member until Ray Tune pauses it or to its end; a paused one is begun again by another call.

    Args:
        sample: under `trial`, the number of the `member`, its `setting` now and its `seed`.
        interval: epochs between exploitations.
        base, recipe, parent, tags, patience, axes, worst, full: as for `trainable.run_trial`.
    """
    from ray import tune

    trial = sample["trial"]
    setting, seed = trial["setting"], trial["seed"]
    begin = time.perf_counter()
    warm_up(base["backend"])
    spare_libraries(base["tracking_uri"])
    config_class, train = load_recipe(recipe)
    config = dataclasses.replace(config_class(**base), **setting, seed=seed)
    checkpoint = tune.get_checkpoint()
    before = {"epoch": 0, "seconds": 0.0, **(checkpoint.get_metadata() if checkpoint else {})}
    epoch = before["epoch"]
    found = _run_of(trial["member"], config, parent)
    if found is not None and found.info.status != "FINISHED":
        _go_on(found.info.run_id, config, setting, checkpoint, before)
        config = dataclasses.replace(config, resume=found.info.run_id)

    def seconds() -> float:
        return before["seconds"] + time.perf_counter() - begin

    def watch(run: tracking.Run, values: dict[str, float]) -> None:
        nonlocal epoch
        require_metrics(worst, values)
        epoch = values["epoch"]
        run.metrics({f"pbt/{name}": _number(axes, name, setting[name]) for name in setting}, run.last_step)
        if epoch % interval or epoch == config.epochs:
            return
        if run.save() is None:
            raise RecipeError("a population cannot go on without checkpoints")
        told = tune.Checkpoint.from_directory(run.checkpoints)
        told.set_metadata({"run": run.id, "epoch": epoch, "seconds": seconds()})
        run.tags({"process": ""})  # whoever goes on with it may be another process
        run.flush()
        tune.report(values, checkpoint=told)
        run.tags(tracking.process_tags())

    def go_on() -> dict[str, float]:
        if found is not None and found.info.status == "FINISHED":  # by a worker that died before it said so
            return told_by(found)
        return launch.run_recipe(
            config,
            train,
            run_name=f"member {trial['member']} seed={seed}",
            tags={
                **tags,
                "mlflow.parentRunId": parent,
                "member": trial["member"],
                "setting": label(setting),
                "node": nodes.here(),
            },
            only_training=not full,
            watch=watch,
            patience=patience,
        )

    try:
        metrics = go_on()
    except RecipeError as error:
        # The others wait for it; the scheduler ends this call where it is to go on, with what weights ever.
        for due in range(epoch - epoch % interval + interval, config.epochs, interval):
            tune.report({**worst, "epoch": due})
        end, told = worst, ended_by(error)
    else:
        end, told = metrics, {"metrics": {"seconds": seconds(), **metrics}}
    run = {"setting": {"member": trial["member"], **setting}, "seed": seed, **told}
    # Done: not to be paused once more.
    tune.report({**end, "runs": [run], "epoch": config.epochs, "done": True})


def _run_of(member: int, config: RunConfig, parent: str) -> Any:
    """The MLflow run of a member that was begun before."""
    children = store.children(config.tracking_uri, config.experiment, parent)
    mine = [child for child in children if child.data.tags.get("member") == str(member)]
    return mine[0] if mine else None


def _go_on(run_id: str, config: Any, setting: Setting, checkpoint: Any, told: dict[str, Any]) -> None:
    """Put a checkpoint, which may be another member's, where the member's run looks for its own."""
    tags = {"setting": label(setting)}
    folder = config.checkpoint_dir / run_id
    # What a worker that died had not told Ray is done again: beyond it, a member would miss a comparison.
    shutil.rmtree(folder, ignore_errors=True)
    if checkpoint is not None:
        checkpoint.to_directory(folder)
        if told["run"] != run_id:
            tags[f"exploited/epoch_{told['epoch']}"] = told["run"]
    client, _ = store.connect(config.tracking_uri)
    for name, value in tags.items():
        client.set_tag(run_id, name, value)


def _number(axes: Space, name: str, value: Any) -> float:
    """A value as a point of a curve."""
    if isinstance(value, int | float):
        return float(value)
    return float({**axes.grid, **axes.choices}[name].index(value))
