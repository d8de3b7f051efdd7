"""Run a recipe many times with some of its fields varied, on Ray Tune, compared in MLflow.

    python -m tuning.sweep cnn_cifar --backend jax --dataset shapes --epochs 2 \\
        --grid optimizer=sgd,adam,adamw --grid activation=relu,gelu --seeds 2
    python -m tuning.sweep mlp_fashion --search optuna --trials 30 --loguniform learning_rate=1e-4,1e-1 \\
        --choice optimizer=adamw,nesterov --uniform dropout=0,0.5 --scheduler asha
    python -m tuning.sweep mlp_fashion --loguniform learning_rate=1e-4,1e-1 --trials 16 --seeds 4 --pack 16
    python -m tuning.sweep mlp_fashion --loguniform learning_rate=1e-4,1e-1 --trials 64 --pack 64 --no-ray
    python -m tuning.sweep mlp_fashion --search optuna --trials 30 --metric val/accuracy,parameters \\
        --choice units=16,64,256 --choice depth=1,2,3
    python -m tuning.sweep mlp_fashion --scheduler pbt --interval 2 --trials 8 \\
        --loguniform learning_rate=1e-4,1e-1 --uniform dropout=0,0.6
    python -m tuning.sweep --resume RUN

Flags that are not the sweep's own go to the recipe: they hold for all trials. An axis that ends in
@optimizer=adamw varies only where the other axis has this value. Trials end after their training, with the
validation metrics of their last epoch: test data is not looked at (--full).

Ray takes seconds to start. With --no-ray trials are made in this process, one or one pack after another.

Several metrics, each better large or small as its name says, are compared by their Pareto front: the settings
that no other one is better than in everything. Beside what a recipe measures there are parameters and
duration_seconds. With --scheduler pbt the draws are a population: see tuning.population.
"""

import argparse
import contextlib
import dataclasses
import json
import math
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from recipes.engine import catalogue, launch, outage, recorder, store, tracking
from recipes.engine.config import RunConfig, check_words, value_of
from recipes.engine.errors import RecipeError, usage_error
from tuning import alone, comparison, nodes, pareto, population, space
from tuning.comparison import smaller_is_better
from tuning.execution import Outcome, run_trials
from tuning.trainable import finished, load_recipe

SETTINGS = "settings.json"  # artifact of a sweep's run
# Tags of a sweep that its trials' runs have, too.
SHARED = ("command", "mlflow.source.git.commit", "git.dirty")


def main(words: Sequence[str] | None = None) -> None:
    """The command: parse, run, print; the exit codes are those of a recipe."""
    launch.leave_at_once()
    try:
        run_sweep(*_parsed(sys.argv[1:] if words is None else list(words)))
    except RecipeError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


def run_sweep(
    options: argparse.Namespace,
    config: Any,
    axes: space.Space,
    settings: Sequence[space.Setting] | None = None,
    parent_id: str | None = None,
) -> list[dict[str, Any]]:
    """Run every setting with every seed and compare.

    Args:
        options: the sweep's own options.
        config: the recipe's configuration that all trials share.
        axes: what varies.
        settings: what to run; default: all that the axes give.
        parent_id: the MLflow run that the sweep's is a child of.

    Returns:
        One row a setting, best first: its label, values, the metric of each seed, mean and std.

    Raises:
        RecipeError: no trial finished, or the sweep was stopped; the MLflow run ends FAILED or KILLED.
    """
    if nodes.is_client(options):
        nodes.bring_token()
    if options.no_ray and recorder.process() is None:
        with recorder.beside(config.tracking_uri):
            return run_sweep(options, config, axes, settings, parent_id)
    # Workers have other working directories: what is relative to this one is made absolute. On other machines
    # such a folder may be impossible to make: there, checkpoints lie in the trial's own.
    uri = store.absolute(config.tracking_uri)
    folders = {
        field.name: value.absolute()
        for field in dataclasses.fields(config)
        if isinstance(value := getattr(config, field.name), Path)
        and (options.address == "local" or field.name == "data_dir")
    }
    config = dataclasses.replace(config, tracking_uri=uri, **folders)
    base = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    base["experiment"] = config.experiment or options.recipe
    if options.resume:
        settings = _settings_of(uri, options.resume, type(config))
    if options.search == "optuna":
        trials, count, fields = [], options.trials * options.seeds, axes.fields
    else:
        settings = axes.settings(options.trials, config.seed) if settings is None else list(settings)
        trials = _trials(options, config, settings)
        count, fields = len(trials), list({name: None for setting in settings for name in setting})
    done = Outcome()

    def end_children() -> None:
        with store.named(uri):
            recorder.store(uri).end_children(base["experiment"], parent.id)

    # Nodes have no git repository to ask, and a worker's command line says nothing.
    circumstances = launch.circumstances(f"tuning.sweep {options.recipe}", config.backend, config.seed)
    shared = {name: circumstances[name] for name in SHARED if name in circumstances}
    if options.study:
        shared["study"] = options.study
    if options.no_ray:
        alone.get_ready(options, base)
    if options.resume:
        parent = tracking.resume(uri, options.resume)
        end_children()  # the killed driver's
        done = _finished_before(uri, base["experiment"], parent.id, trials)
        print(f"sweep {parent.id} goes on: {len(done.finished)} of {count} trials are finished", flush=True)
    else:
        parent = tracking.start(
            uri,
            base["experiment"],
            run_name=f"sweep {options.recipe} {config.backend}: {', '.join(fields)}",
            params={
                **{name: value for name, value in base.items() if name not in fields},
                "seeds": options.seeds,
            },
            tags={
                **circumstances,
                **shared,
                "recipe": options.recipe,
                "kind": "sweep",
                "metric": options.metric,
                "words": json.dumps(options.words),
                **({"mlflow.parentRunId": parent_id} if parent_id else {}),
                **tracking.process_tags(),
            },
        )
        if trials:
            parent.text(SETTINGS, json.dumps(settings, default=str))
        print(f"sweep {parent.id}: {count} trials with {options.seeds} seeds a setting", flush=True)
    parent.patience = options.patience
    begin = time.perf_counter()
    status, error = "FAILED", None
    again = f"python -m tuning.sweep --resume {parent.id}"
    if uri != store.absolute(None):
        again += f" --tracking-uri {uri}"
    try:
        known = [trial for trial, _ in done.finished]
        left = [trial for trial in trials if trial not in known]
        outcome = Outcome()
        if left or not trials:
            if options.no_ray:
                outcome = alone.run_trials(options, left, base, parent.id, shared)
            else:
                outcome = run_trials(options, axes, left, base, parent.id, shared)
        for run_id, text in outcome.unsent.items():
            outage.keep(run_id, text)
        if outcome.away:  # the trials have waited
            parent.patience = 0.0
        outcome.finished = comparison.once([*outcome.finished, *done.finished])
        compared = space.distinct([trial["setting"] for trial, _ in outcome.finished])
        if len(options.metrics) == 1:
            rows = comparison.summarize(outcome.finished, compared, options.metric)
        else:
            rows = pareto.summarize(outcome.finished, compared, options.metrics)
        if rows:
            print(f"\n{_table(rows, options.metrics)}\n")
        # Only what the store has taken can be reported there: else `--resume` does it.
        outage.insist(uri, parent.patience, end_children)
        if rows:
            _report(parent, rows, outcome, options.metrics, time.perf_counter() - begin)
        if outcome.away:
            raise outage.Away(f"{len(outcome.failures)} trials are missing")
        if outcome.interrupted:  # Ray takes Ctrl-C as the wish to stop early
            if options.time_budget and time.perf_counter() - begin >= options.time_budget:
                print(f"the time budget of {options.time_budget:.0f} s is used up", flush=True)
            else:
                raise KeyboardInterrupt
        if not rows:
            first = f"the first error: {outcome.failures[0]}" if outcome.failures else "there was no time"
            raise RecipeError(f"none of {count} trials finished; {first}")
        status = "FINISHED"
        return rows
    except KeyboardInterrupt:
        status = "KILLED"
        others = "" if _memory(options) else f"; {again} does the others"
        raise RecipeError(
            f"stopped: run {parent.id} is marked KILLED and keeps the trials that finished{others}"
        ) from None
    except outage.Away:
        then = "the next run here sends it" if _memory(options) else f"{again} sends it and does the others"
        error = (
            f"the tracking server {uri} did not answer for {options.patience:g} s: what it did not take is "
            f"kept in {outage.UNSENT}, and when it is back, {then}"
        )
        raise RecipeError(error) from None
    except Exception as failure:
        error = str(failure)
        raise
    finally:
        parent.patience = 0.0  # who stops does not want to wait, and the others have waited
        with contextlib.suppress(outage.Away):  # `--resume` ends them
            end_children()
        try:
            parent.end(status, error)
        except outage.Away:
            if status == "FINISHED":  # else there is an error that says more
                raise


def _trials(
    options: argparse.Namespace, config: Any, settings: Sequence[space.Setting]
) -> list[dict[str, Any]]:
    """Every setting with every seed, each checked now and not in the last trial after hours."""
    trials: list[dict[str, Any]] = [
        {"setting": setting, "seed": config.seed + number}
        for setting in settings
        for number in range(options.seeds)
    ]
    for trial in trials:
        dataclasses.replace(config, **trial["setting"], seed=trial["seed"])
    if options.scheduler == "pbt" and len(trials) < 2:
        raise usage_error("--scheduler pbt needs two members at least: --trials 2, or more grid points")
    return trials


def _settings_of(uri: str, run_id: str, config_class: type[RunConfig]) -> list[space.Setting]:
    """The settings that a sweep was started with, which need not be all that its axes give."""
    _, text = store.read(uri, run_id, SETTINGS)
    if text is None:
        raise usage_error(f"sweep {run_id} was killed before it kept its settings: start it anew")
    return [
        {name: value_of(config_class, name, str(value)) for name, value in setting.items()}
        for setting in json.loads(text)
    ]


def _finished_before(uri: str, experiment: str, parent: str, trials: list[dict[str, Any]]) -> Outcome:
    """The trials that a killed driver had seen to their end, as MLflow has them."""
    before = finished({"tracking_uri": uri, "experiment": experiment}, parent)
    outcome = Outcome()
    for trial in trials:
        metrics = before.get((space.label(trial["setting"]), str(trial["seed"])))
        if metrics is not None:
            outcome.finished.append((trial, metrics))
    return outcome


def _parsed(words: list[str]) -> tuple[argparse.Namespace, Any, space.Space]:
    parser = _Parser(
        prog="python -m tuning.sweep",
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("recipe", nargs="?", help="the recipe to run; `python -m recipes` lists them")
    parser.add_argument(
        "--grid", action="append", default=[], metavar="FIELD=A,B", help="every value in turn"
    )
    parser.add_argument(
        "--choice", action="append", default=[], metavar="FIELD=A,B", help="draw among values"
    )
    parser.add_argument(
        "--uniform", action="append", default=[], metavar="FIELD=LOW,HIGH", help="draw between"
    )
    parser.add_argument(
        "--loguniform", action="append", default=[], metavar="FIELD=LOW,HIGH", help="draw between, log scale"
    )
    parser.add_argument(
        "--trials", type=int, default=1, help="draws for each point of the grid; settings that optuna tries"
    )
    parser.add_argument(
        "--seeds", type=int, default=1, help="runs of each setting, with seeds --seed, --seed + 1, ..."
    )
    parser.add_argument(
        "--metric",
        action="append",
        dest="metrics",
        metavar="METRIC[,METRIC]",
        help="final metric to compare, or several; default: val/accuracy",
    )
    parser.add_argument(
        "--search",
        choices=("all", "optuna"),
        default="all",
        help="all: every point and draw; optuna: settings near those that were good (TPE)",
    )
    parser.add_argument(
        "--scheduler",
        choices=("none", "asha", "median", "pbt"),
        default="none",
        help="asha, median: stop trials that are behind others at the same epoch; pbt: population-based "
        "training, they go on with the weights and nearly the values of others",
    )
    parser.add_argument("--interval", type=int, default=1, help="epochs after which a population compares")
    parser.add_argument("--grace", type=int, default=1, help="epochs before a scheduler may stop a trial")
    parser.add_argument(
        "--time-budget", type=float, default=None, metavar="SECONDS", help="end the sweep after this time"
    )
    parser.add_argument(
        "--gpus-per-trial", type=float, default=0.0, help="GPUs of a trial, or the share of one; 0: none"
    )
    parser.add_argument(
        "--resume",
        metavar="RUN",
        help="go on with a sweep that was killed; no other flags but --tracking-uri",
    )
    parser.add_argument(
        "--address",
        default="local",
        metavar="auto|HOST:PORT|ray://HOST:PORT",
        help="Ray cluster, see tuning/cluster; default: a Ray of its own on this machine",
    )
    parser.add_argument(
        "--no-ray",
        action="store_true",
        help="trials, or packs, one by one in this process: small ones are over before Ray has started",
    )
    parser.add_argument(
        "--storage", metavar="FOLDER|URI", help="Ray Tune's own records; default: mlruns/ray of the driver"
    )
    parser.add_argument(
        "--patience",
        type=float,
        default=600.0,
        metavar="SECONDS",
        help="how long trials wait for a tracking server that went away; default: 600",
    )
    parser.add_argument("--study", default="", metavar="NAME", help="tag the runs as parts of a study")
    parser.add_argument("--cpus-per-trial", type=int, default=1, help="cores, and threads, of a trial")
    parser.add_argument(
        "--max-concurrent", type=int, default=None, help="trials at a time; default: what fits"
    )
    parser.add_argument(
        "--pack", type=int, default=1, help="runs that differ in numbers only, side by side in one program"
    )
    parser.add_argument(
        "--full", action="store_true", help="let trials go on after training: test data, figures, model"
    )
    options, rest = parser.parse_known_args(words)
    if options.resume:
        return _parsed_again(words)
    if options.recipe is None:
        raise usage_error("which recipe? `python -m recipes` lists them")
    options.words = words
    options.metrics = [name for word in options.metrics or ["val/accuracy"] for name in word.split(",")]
    options.metric = options.metrics[0]
    catalogue.require(options.recipe)
    for name in ("trials", "seeds", "cpus_per_trial", "max_concurrent", "grace", "interval", "pack"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            raise usage_error(f"--{name.replace('_', '-')} must be at least 1")
    # Not a number is neither less nor more: each bound says what must hold.
    if not 0 <= options.gpus_per_trial < math.inf:
        raise usage_error(f"--gpus-per-trial must not be negative, not {options.gpus_per_trial:g}")
    if options.time_budget is not None and not options.time_budget > 0:
        raise usage_error(f"--time-budget must be positive, not {options.time_budget:g}")
    if options.scheduler != "none" and options.pack > 1:
        raise usage_error("--scheduler stops runs one by one, a pack ends together: leave --pack away")
    if not all(options.metrics) or len(set(options.metrics)) < len(options.metrics):
        raise usage_error(f"--metric takes different names, not '{','.join(options.metrics)}'")
    if options.scheduler != "none" and len(options.metrics) > 1:
        raise usage_error("--scheduler compares trials by one metric: leave it or the other metrics away")
    if options.scheduler != "none" and not options.metric.startswith("val/"):
        raise usage_error(f"--scheduler compares what every epoch measures: val/..., not {options.metric}")
    if options.storage and "://" not in options.storage:
        options.storage = str(Path(options.storage).absolute())
    if not options.patience >= 0:
        raise usage_error(f"--patience must not be negative, not {options.patience:g}")
    if options.scheduler != "none" and options.search == "optuna" and options.seeds > 1:
        raise usage_error("--scheduler compares runs, not means over seeds: leave --seeds or --search away")
    if options.no_ray:
        alone.check(options)
    config_class, _ = load_recipe(options.recipe)
    axes = space.parse(config_class, options.grid, options.choice, options.uniform, options.loguniform)
    check_words(config_class, rest)
    import tyro

    config = tyro.cli(config_class, args=rest, prog=f"python -m tuning.sweep {options.recipe}")
    if options.scheduler == "pbt":
        population.check(options, config, axes)
    return options, config, axes


def _parsed_again(words: list[str]) -> tuple[argparse.Namespace, Any, space.Space]:
    """The command line of a sweep that was started before."""
    parser = _Parser(allow_abbrev=False)
    parser.add_argument("--resume")
    parser.add_argument("--tracking-uri", default=os.environ.get("MLFLOW_TRACKING_URI"))
    again = parser.parse_args(words)
    run_id = again.resume
    client, uri = store.connect(again.tracking_uri)
    tags = store.find(client, uri, run_id).data.tags
    if "words" not in tags:
        raise usage_error(f"run {run_id} is no sweep; a recipe's run goes on with its own --resume")
    words = json.loads(tags["words"])
    options, config, axes = _parsed(words)
    if _memory(options):
        raise usage_error(f"sweep {run_id} had {_memory(options)}, whose memory is gone: start it anew")
    options.resume = run_id
    return options, dataclasses.replace(config, tracking_uri=uri), axes


def _memory(options: argparse.Namespace) -> str:
    """What of a sweep cannot go on without what it had in memory; empty where trials do not depend on it."""
    if options.search == "optuna":
        return "a search"
    return "a population" if options.scheduler == "pbt" else ""


class _Parser(argparse.ArgumentParser):
    """argparse whose errors are this project's."""

    def error(self, message: str) -> Any:
        raise usage_error(message)


def _table(rows: list[dict], metrics: Sequence[str]) -> str:
    return pareto.table(rows, metrics) if len(metrics) > 1 else comparison.table(rows, metrics[0])


def _report(
    run: tracking.Run, rows: list[dict], outcome: Outcome, metrics: Sequence[str], seconds: float
) -> None:
    several = len(metrics) > 1
    text = _table(rows, metrics)
    notes = [f"stopped early: {name}" for name in outcome.stopped]
    notes += [f"failed: {failure}" for failure in outcome.failures]
    for note in notes:
        print(note, file=sys.stderr)
    run.text("sweep.md", "\n\n".join([text, *notes]) + "\n")
    run.text("sweep.csv", pareto.sheet(rows, metrics) if several else comparison.sheet(rows))
    if several:
        run.figure("pareto_front", pareto.figure(rows, metrics))
    else:
        run.figure("comparison", comparison.comparison(rows, metrics[0]))
    means = {name: [row["means"][name] if several else row["mean"] for row in rows] for name in metrics}
    best = {f"best/{name}": (min if smaller_is_better(name) else max)(means[name]) for name in metrics}
    run.metrics({**best, "failed_trials": len(outcome.failures), "duration_seconds": seconds}, step=0)
    run.tags({"best": rows[0]["label"]})


if __name__ == "__main__":
    main()
