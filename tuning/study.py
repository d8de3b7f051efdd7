"""A study: a question with a measured answer, from several seeds and with a test of what differs.

    python -m tuning.study                                        # which studies there are
    python -m tuning.study initializers --backend torch           # its own measurements and small trainings
    python -m tuning.study activations --recipe mlp_fashion --dataset digits --epochs 3 --seeds 5

With a recipe, the study also trains it with every value of the field in question, as a sweep. Flags that are
not the study's own go to the recipe. All is kept in one MLflow run: `python -m tuning.report RUN_ID`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import time
import typing
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any, NoReturn

from recipes.engine import catalogue, launch, tracking
from recipes.engine.config import RunConfig, field_types
from recipes.engine.errors import RecipeError, usage_error
from tuning import studies
from tuning.statistics import verdict

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from tuning.evidence import Quantity, Trial


def main(words: Sequence[str] | None = None) -> None:
    """The command: parse, investigate, print; the exit codes are those of a recipe."""
    launch.leave_at_once()
    try:
        options, rest = _parsed(sys.argv[1:] if words is None else list(words))
        if options.study is None:
            for name in studies.names():
                print(f"{name:<16}{studies.question(name)}")
        else:
            run_study(options, rest)
    except RecipeError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


def run_study(options: argparse.Namespace, rest: Sequence[str] = ()) -> str:
    """Investigate, train the recipe if there is one, and record everything.

    Args:
        options: the study's own options.
        rest: words for the recipe.

    Returns:
        The identifier of the study's MLflow run.

    Raises:
        RecipeError: a part could not be carried out; the MLflow run ends FAILED or KILLED.
    """
    import keras

    backend = keras.backend.backend()
    study = studies.load(options.study)
    # What the command line can get wrong is found before anything starts.
    sweeps = _plan(study, options, ["--backend", backend, *rest]) if options.recipe else []
    tags = {
        **launch.circumstances(f"tuning.study {options.study}", backend, options.seed),
        "device": launch.device(backend),
    }
    if options.recipe:
        tags["recipe"] = options.recipe
    run = tracking.start(
        options.tracking_uri,
        options.experiment or f"study-{options.study}",
        run_name=f"study {options.study} {backend}",
        params={
            "study": options.study,
            "recipe": options.recipe,
            "recipe_flags": " ".join(rest),
            "seed": options.seed,
            "seeds": options.seeds,
        },
        tags={
            **tags,
            **tracking.process_tags(),
            "kind": "study",
            "study": options.study,
            "question": studies.question(options.study),
        },
    )
    print(f"study {run.id}  experiment '{run.experiment}'  {run.uri}", flush=True)
    begin = time.perf_counter()
    try:
        evidence = study.investigate(range(options.seed, options.seed + options.seeds))
        _keep_trials(run, evidence.trials, tags)
        quantities, conclusion = [*evidence.quantities], evidence.conclusion
        if sweeps:
            trained = _train(run, sweeps)
            quantities.append(trained)
            conclusion += f"; {verdict(trained.name, trained.values, trained.smaller_is_better)}"
        _keep(run, quantities, evidence.figures, f"{conclusion}.")
        run.metrics({"duration_seconds": time.perf_counter() - begin}, step=0)
        run.end("FINISHED")
    except KeyboardInterrupt:
        run.end("KILLED")
        raise RecipeError(f"stopped: run {run.id} is marked KILLED and keeps what it logged") from None
    except Exception as error:
        stopped = isinstance(error.__context__, KeyboardInterrupt)  # within the sweep, which says so itself
        run.end("KILLED" if stopped else "FAILED", error=str(error) or type(error).__name__)
        raise
    print(f"{conclusion}.\n\n`python -m tuning.report {run.id}` writes the report")
    return run.id


def arms(study: ModuleType, name: str, config_class: type[RunConfig]) -> dict[str, list[Any]]:
    """The values by field that a study varies of a recipe: those of its own that the recipe knows.

    Args:
        study: the study's module.
        name: its name.
        config_class: the recipe's Config.

    Raises:
        RecipeError: the recipe lacks its fields.
    """
    recipe = config_class.__module__.rsplit(".", 1)[-1]
    kinds = field_types(config_class)
    missing = [field for field in study.FIELDS if field not in kinds]
    if missing:
        having = [other for other in catalogue.names() if _has(other, study.FIELDS)]
        others = f"; these have: {', '.join(having)}" if having else ""
        raise usage_error(f"study {name} varies '{missing[0]}', which {recipe} lacks{others}")
    known = {
        field: [value for value in values if _accepts(kinds[field], value)]
        for field, values in study.FIELDS.items()
    }
    if all(len(values) < 2 for values in known.values()):
        raise usage_error(f"study {name} finds nothing to compare in {recipe}: it knows {known}")
    return known


def _has(recipe: str, fields: Mapping[str, Any]) -> bool:
    """Whether a recipe's Config has all fields, read without importing the recipe."""
    source = (catalogue.FOLDER / f"{recipe}.py").read_text(encoding="utf-8")
    return all(f"\n    {field}: " in source or field in field_types(RunConfig) for field in fields)


def _accepts(kind: Any, value: Any) -> bool:
    return typing.get_origin(kind) is not typing.Literal or value in typing.get_args(kind)


def _plan(study: ModuleType, options: argparse.Namespace, rest: Sequence[str]) -> list[tuple]:
    """The sweeps, ready to run: for tuning, with a seed that the comparison does not use, and to compare."""
    from tuning import sweep
    from tuning.trainable import load_recipe

    catalogue.require(options.recipe)
    config_class, _ = load_recipe(options.recipe)
    compared = arms(study, options.study, config_class)
    common = [
        options.recipe, "--metric", options.metric, "--address", options.address, "--study", options.study,
        "--cpus-per-trial", str(options.cpus_per_trial),
        *(["--max-concurrent", str(options.max_concurrent)] if options.max_concurrent else []),
        "--experiment", options.experiment or f"study-{options.study}",
        *(["--tracking-uri", options.tracking_uri] if options.tracking_uri else []),
        *rest,
    ]  # fmt: skip

    def planned(fields: Mapping[str, Sequence], seed: int, seeds: int) -> tuple:
        words = [f"{field}={','.join(map(str, values))}" for field, values in fields.items()]
        grid = [part for word in words for part in ("--grid", word)]
        return sweep._parsed([*common, "--seed", str(seed), "--seeds", str(seeds), *grid])

    comparison = planned(compared, options.seed, options.seeds)
    tuned = getattr(study, "TUNED", {})
    if not tuned:
        return [comparison]
    return [planned({**compared, **tuned}, options.seed + options.seeds, 1), comparison]


def _train(run: tracking.Run, sweeps: list[tuple]) -> Quantity:
    """Run the sweeps under the study's run: the values of the last one, by setting and seed."""
    from tuning import sweep
    from tuning.comparison import smaller_is_better
    from tuning.evidence import Quantity

    *tuning, (options, config, axes) = sweeps
    settings = None
    for each in tuning:
        rows = sweep.run_sweep(*each, parent_id=run.id)
        best = {}
        for row in rows:  # the best first
            best.setdefault(tuple(row["setting"][field] for field in axes.grid), row["setting"])
        settings = list(best.values())
    rows = sweep.run_sweep(options, config, axes, settings, run.id)
    return Quantity(
        f"{options.recipe} {options.metric}",
        {row["label"]: row["values"] for row in rows},
        smaller_is_better(options.metric),
    )


def _keep_trials(run: tracking.Run, trials: Sequence[Trial], tags: Mapping[str, str]) -> None:
    """The study's own training runs, each as a child."""
    for trial in trials:
        child = tracking.start(
            run.uri,
            run.experiment,
            f"{trial.setting} seed={trial.seed}",
            params={"setting": trial.setting, "seed": trial.seed},
            tags={**tags, "mlflow.parentRunId": run.id, "setting": trial.setting, "seed": str(trial.seed)},
        )
        for name, curve in trial.curves.items():
            for step, value in curve:
                child.metrics({name: value}, step)
        child.metrics(trial.metrics, child.last_step)
        child.end("FINISHED")


def _keep(
    run: tracking.Run, quantities: Sequence[Quantity], figures: Mapping[str, Figure], conclusion: str
) -> None:
    """What was found, as text, as data for the report, and as figures."""
    tables = "\n".join(table(quantity) for quantity in quantities)
    print(f"\n{tables}")
    run.text("study.md", f"{conclusion}\n\n{tables}")
    found = {
        "conclusion": conclusion,
        "figures": list(figures),
        "quantities": [dataclasses.asdict(quantity) for quantity in quantities],
    }
    run.text("study.json", json.dumps(found, indent=1))
    for name, figure in figures.items():
        run.figure(name, figure)
    run.tags({"conclusion": conclusion})


def table(quantity: Quantity) -> str:
    """Mean, deviation and confidence interval of each setting, best first, and the tests, as Markdown."""
    from tuning.statistics import compare, interval, ranked

    width = max(map(len, [*quantity.values, "setting"]))
    lines = [
        f"{quantity.name} (mean +/- standard deviation)\n",
        f"| {'setting':<{width}} | {'mean':>20} | {'95 % interval':>24} | seeds |",
        f"|{'-' * (width + 2)}|{'-' * 21}:|{'-' * 25}:|------:|",
    ]
    for name in ranked(quantity.values, quantity.smaller_is_better):
        found = interval(quantity.values[name])
        bounds = f"{found.low:.4g} ... {found.high:.4g}" if found.n > 1 else "one seed"
        lines.append(f"| {name:<{width}} | {found!s:>20} | {bounds:>24} | {found.n:>5} |")
    tests = compare(quantity.values)
    apart = [f"{each.first} - {each.second} (p = {each.adjusted:.2g})" for each in tests if each.significant]
    lines.append(f"\ndiffer, of {len(tests)} pairs, after Holm: {', '.join(apart) or 'none'}\n")
    return "\n".join(lines)


def _parsed(words: list[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = _Parser(
        prog="python -m tuning.study",
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("study", nargs="?", help="the study; without one, all are listed")
    parser.add_argument("--recipe", help="train this recipe, too, with the study's field varied")
    parser.add_argument("--seeds", type=int, default=5, help="runs of each setting")
    parser.add_argument("--seed", type=int, default=0, help="the first of the seeds")
    parser.add_argument("--backend", help="framework that computes; default: KERAS_BACKEND, else jax")
    parser.add_argument("--metric", default="val/accuracy", help="the recipe's final metric to compare")
    parser.add_argument("--experiment", default="", help="MLflow experiment; default: study-NAME")
    parser.add_argument("--tracking-uri", default=os.environ.get("MLFLOW_TRACKING_URI"), help="MLflow store")
    parser.add_argument("--address", default="local", help="Ray cluster of the recipe's trials")
    parser.add_argument("--cpus-per-trial", type=int, default=1, help="cores, and threads, of a trial")
    parser.add_argument("--max-concurrent", type=int, default=None, help="trials at a time")
    options, rest = parser.parse_known_args(words)
    if options.study is not None:
        studies.require(options.study)
    if rest and not options.recipe:
        raise usage_error(
            f"unknown flag '{rest[0]}': a study without --recipe takes none of a recipe's flags"
        )
    for name in ("seeds", "cpus_per_trial", "max_concurrent"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            raise usage_error(f"--{name.replace('_', '-')} must be at least 1")
    if options.seeds < 2:
        raise usage_error("--seeds must be at least 2: one says nothing about the spread")
    if "," in options.metric:
        raise usage_error(f"--metric of a study is one metric, not '{options.metric}'")
    if options.seed < 0:
        raise usage_error(f"--seed must not be negative, not {options.seed}")
    return options, rest


class _Parser(argparse.ArgumentParser):
    """argparse whose errors are this project's."""

    def error(self, message: str) -> NoReturn:
        raise usage_error(message)


if __name__ == "__main__":
    main()
