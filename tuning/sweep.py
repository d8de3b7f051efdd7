"""Run a recipe many times with some of its fields varied, on Ray Tune, compared in MLflow.

    python -m tuning.sweep cnn_cifar --backend jax --dataset shapes --epochs 2 \\
        --grid optimizer=sgd,adam,adamw --grid activation=relu,gelu --seeds 2

Flags that are not the sweep's own go to the recipe: they hold for all trials.
"""

import argparse
import csv
import dataclasses
import io
import logging
import os
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from recipes.engine import backend, catalogue, tracking
from recipes.engine.config import check_words
from recipes.engine.errors import RecipeError, unknown, usage_error
from tuning import space
from tuning.trainable import load_recipe, run_trial


def main(words: Sequence[str] | None = None) -> None:
    """The command: parse, run, print; the exit codes are those of a recipe."""
    try:
        run_sweep(*_parsed(sys.argv[1:] if words is None else list(words)))
    except RecipeError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


def run_sweep(options: argparse.Namespace, config: Any, axes: space.Space) -> list[dict[str, Any]]:
    """Run every setting with every seed and compare.

    Args:
        options: the sweep's own options.
        config: the recipe's configuration that all trials share.
        axes: what varies.

    Returns:
        One row a setting, best first: its label, values, the metric of each seed, mean and std.

    Raises:
        RecipeError: no trial finished, or the sweep was stopped; the MLflow run ends FAILED or KILLED.
    """
    # Workers have other working directories: what is relative to this one is made absolute.
    uri = tracking.absolute(config.tracking_uri)
    folders = {
        field.name: value.absolute()
        for field in dataclasses.fields(config)
        if isinstance(value := getattr(config, field.name), Path)
    }
    config = dataclasses.replace(config, tracking_uri=uri, **folders)
    settings = axes.settings(options.trials, config.seed)
    trials = [
        {"setting": setting, "seed": config.seed + k, "label": _label(setting)}
        for setting in settings
        for k in range(options.seeds)
    ]
    # Checked here, not in the last trial after hours.
    for trial in trials:
        dataclasses.replace(config, **trial["setting"], seed=trial["seed"])
    base = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    base["experiment"] = config.experiment or options.recipe
    parent = tracking.start(
        uri,
        base["experiment"],
        run_name=f"sweep {options.recipe} {config.backend}: {', '.join(axes.fields)}",
        params={
            **{name: value for name, value in base.items() if name not in axes.fields},
            "seeds": options.seeds,
        },
        tags={"recipe": options.recipe, "kind": "sweep", "backend": config.backend, "command": _command()},
    )
    print(
        f"sweep {parent.id}: {len(settings)} settings x {options.seeds} seeds = {len(trials)} trials",
        flush=True,
    )
    begin = time.perf_counter()
    status, error = "FAILED", None
    try:
        finished, failures = _run_trials(options, trials, base, parent.id)
        rows = summarize(finished, settings, options.metric)
        if rows:
            _report(parent, rows, failures, options.metric, time.perf_counter() - begin)
        if len(finished) + len(failures) < len(trials):  # Ray takes Ctrl-C as the wish to stop early
            raise KeyboardInterrupt
        if not rows:
            raise RecipeError(f"none of {len(trials)} trials finished; the first error: {failures[0]}")
        status = "FINISHED"
        return rows
    except KeyboardInterrupt:
        status = "KILLED"
        raise RecipeError(
            f"stopped: run {parent.id} is marked KILLED and keeps the trials that finished"
        ) from None
    except Exception as failure:
        error = str(failure)
        raise
    finally:
        tracking.end_children(uri, base["experiment"], parent.id)
        parent.end(status, error)


def summarize(finished: list[tuple[dict, dict]], settings: list[dict], metric: str) -> list[dict[str, Any]]:
    """Mean and standard deviation over seeds of each setting, best first.

    Args:
        finished: pairs of a trial and its final metrics.
        settings: all settings of the sweep.
        metric: what to compare; the sense follows from its name (losses and errors are better small).

    Returns:
        Rows for the settings of which a seed finished.

    Raises:
        RecipeError: the recipe does not report the metric.
    """
    rows = []
    for setting in settings:
        results = [metrics for trial, metrics in finished if trial["setting"] == setting]
        if not results:
            continue
        if metric not in results[0]:
            raise unknown("value of --metric", metric, (name for name in results[0] if "/" in name))
        values = [result[metric] for result in results]
        rows.append(
            {
                "label": _label(setting),
                "setting": setting,
                "values": values,
                "mean": statistics.fmean(values),
                "std": statistics.stdev(values) if len(values) > 1 else float("nan"),
                "seconds": statistics.fmean(result["seconds"] for result in results),
            }
        )
    return sorted(rows, key=lambda row: row["mean"], reverse=not smaller_is_better(metric))


def smaller_is_better(metric: str) -> bool:
    """Whether a metric is a loss or an error."""
    return any(word in metric for word in ("loss", "error", "rmse", "mae", "mse", "perplexity"))


def table(rows: list[dict[str, Any]], metric: str) -> str:
    """The comparison as text: Markdown that also reads well on a terminal."""
    width = max(len("setting"), *(len(row["label"]) for row in rows))
    lines = [
        f"| {'setting':<{width}} | {metric:^19} | seeds | seconds |",
        f"|{'-' * (width + 2)}|{'-' * 21}|------:|--------:|",
    ]
    for row in rows:
        spread = f"{row['mean']:.4f} +/- {row['std']:.4f}" if len(row["values"]) > 1 else f"{row['mean']:.4f}"
        lines.append(
            f"| {row['label']:<{width}} | {spread:^19} | {len(row['values']):>5} | {row['seconds']:>7.1f} |"
        )
    return "\n".join(lines)


def comparison(rows: list[dict[str, Any]], metric: str) -> Any:
    """The comparison as a figure: every seed a dot, every setting a mean with one standard deviation."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 1.2 + 0.32 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    for place, row in enumerate(reversed(rows)):
        spread = row["std"] if len(row["values"]) > 1 else 0
        axes.errorbar(row["mean"], place, xerr=spread, fmt="s", color="tab:blue", capsize=4, markersize=5)
        axes.plot(
            row["values"], [place] * len(row["values"]), "o", color="tab:orange", markersize=3.5, alpha=0.8
        )
    axes.set_yticks(range(len(rows)), [row["label"] for row in reversed(rows)], fontsize=8)
    axes.set_xlabel(f"{metric}: seeds (dots), mean and standard deviation (squares)")
    axes.grid(alpha=0.3)
    return figure


def _parsed(words: list[str]) -> tuple[argparse.Namespace, Any, space.Space]:
    parser = _Parser(
        prog="python -m tuning.sweep",
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("recipe", help="the recipe to run; `python -m recipes` lists them")
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
    parser.add_argument("--trials", type=int, default=1, help="draws for each point of the grid")
    parser.add_argument(
        "--seeds", type=int, default=1, help="runs of each setting, with seeds --seed, --seed + 1, ..."
    )
    parser.add_argument("--metric", default="val/accuracy", help="final metric to compare")
    parser.add_argument(
        "--address", default="local", help="Ray cluster: an address, or auto; default: this machine"
    )
    parser.add_argument("--cpus-per-trial", type=int, default=1, help="cores, and threads, of a trial")
    parser.add_argument(
        "--max-concurrent", type=int, default=None, help="trials at a time; default: what fits"
    )
    parser.add_argument(
        "--full", action="store_true", help="let trials go on after training: test data, figures, model"
    )
    options, rest = parser.parse_known_args(words)
    catalogue.require(options.recipe)
    for name in ("trials", "seeds", "cpus_per_trial", "max_concurrent"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            raise usage_error(f"--{name.replace('_', '-')} must be at least 1")
    config_class, _ = load_recipe(options.recipe)
    axes = space.parse(config_class, options.grid, options.choice, options.uniform, options.loguniform)
    check_words(config_class, rest)
    import tyro

    return options, tyro.cli(config_class, args=rest, prog=f"python -m tuning.sweep {options.recipe}"), axes


class _Parser(argparse.ArgumentParser):
    """argparse whose errors are this project's."""

    def error(self, message: str) -> Any:
        raise usage_error(message)


def _run_trials(
    options: argparse.Namespace, trials: list[dict], base: dict[str, Any], parent: str
) -> tuple[list[tuple[dict, dict]], list[str]]:
    """Run the trials on Ray; the finished ones with their metrics, and the errors of the others."""
    # MLflow has it all; Ray's own loggers would write it again, and TensorBoard's would load TensorFlow.
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"  # prints a panel even where verbose is 0
    os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"  # else Ray warns of its own next release
    import ray
    from ray import tune

    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # a failed trial is told in a line, below
    environment = {
        **backend.thread_environment(options.cpus_per_trial),
        "KERAS_BACKEND": base["backend"],
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]),
    }
    try:
        ray.init(
            address=options.address,
            runtime_env={"env_vars": environment},
            log_to_driver=False,
            logging_level=logging.ERROR,
            include_dashboard=False if options.address == "local" else None,
        )
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise RecipeError(
            f"no Ray cluster at --address {options.address}: {str(error).splitlines()[0]}"
        ) from error
    try:
        results = tune.Tuner(
            tune.with_resources(
                tune.with_parameters(
                    run_trial, base=base, recipe=options.recipe, parent=parent, full=options.full
                ),
                {"cpu": options.cpus_per_trial},
            ),
            param_space={"trial": tune.grid_search(trials)},
            tune_config=tune.TuneConfig(reuse_actors=True, max_concurrent_trials=options.max_concurrent),
            run_config=tune.RunConfig(
                name=parent,
                storage_path=str(Path("mlruns/ray").absolute()),
                verbose=0,
                callbacks=[_progress(len(trials), options.metric)],
            ),
        ).fit()
    finally:
        ray.shutdown()
    finished, failures = [], []
    for result in results:
        if result.error is not None:
            failures.append(f"{_name(result.config['trial'])}: {_last_line(result.error)}")
        elif result.metrics and "seconds" in result.metrics:
            finished.append((result.config["trial"], result.metrics))
    return finished, failures


def _progress(total: int, metric: str) -> Any:
    """A line on the terminal for every trial that ends."""
    from ray import tune

    class Progress(tune.Callback):
        def __init__(self) -> None:
            self.ended = 0
            self.begin = time.perf_counter()

        def _line(self, trial: Any, text: str) -> None:
            self.ended += 1
            left = (time.perf_counter() - self.begin) / self.ended * (total - self.ended)
            print(
                f"[{self.ended:>3}/{total}] {_name(trial.config['trial'])}  {text}  {left:.0f} s left",
                flush=True,
            )

        def on_trial_complete(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
            result = trial.last_result
            self._line(
                trial, f"{metric} {result.get(metric, float('nan')):.4f}  {result.get('seconds', 0):.1f} s"
            )

        def on_trial_error(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
            self._line(trial, "FAILED")

    return Progress()


def _report(run: tracking.Run, rows: list[dict], failures: list[str], metric: str, seconds: float) -> None:
    text = table(rows, metric)
    print(f"\n{text}\n")
    for failure in failures:
        print(f"failed: {failure}", file=sys.stderr)
    run.text("sweep.md", text + "\n" + "".join(f"\nfailed: {failure}\n" for failure in failures))
    sheet = io.StringIO()
    writer = csv.writer(sheet)
    writer.writerow(
        [
            *rows[0]["setting"],
            "mean",
            "std",
            *(f"seed {k}" for k in range(max(len(r["values"]) for r in rows))),
        ]
    )
    for row in rows:
        writer.writerow([*row["setting"].values(), row["mean"], row["std"], *row["values"]])
    run.text("sweep.csv", sheet.getvalue())
    run.figure("comparison", comparison(rows, metric))
    run.metrics(
        {f"best/{metric}": rows[0]["mean"], "failed_trials": len(failures), "duration_seconds": seconds},
        step=0,
    )
    run.tags({"best": rows[0]["label"]})


def _label(setting: dict[str, Any]) -> str:
    return " ".join(
        f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value}"
        for name, value in setting.items()
    )


def _name(trial: dict[str, Any]) -> str:
    return f"{trial['label']} seed={trial['seed']}"


def _last_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[-1]


def _command() -> str:
    return " ".join(["python", *sys.orig_argv[1:]])


if __name__ == "__main__":
    main()
