"""A sweep or a study as a page to read and a paper to print.

    python -m tuning.report RUN_ID                        # writes report-RUN_ID.html and report-RUN_ID.pdf
    python -m tuning.report RUN_ID --folder results/report --metric val/loss

The question, the setting, means with confidence intervals and tests, learning curves, which hyperparameters
matter, what failed, and the commands that repeat it. Both files are also kept with the run.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from recipes.engine import store
from recipes.engine.errors import RecipeError, usage_error
from tuning.comparison import smaller_is_better

if TYPE_CHECKING:
    from tuning.document import Block, Section
    from tuning.records import Record, Trial

CROWDED = 8  # settings whose curves are still told apart
LISTED = 60  # rows of a table, as a thousand trials are not read one by one


def main(words: Sequence[str] | None = None) -> None:
    """The command: parse, write, say where; the exit codes are those of a recipe."""
    try:
        options = _parsed(sys.argv[1:] if words is None else list(words))
        for path in write(options.run_id, options.tracking_uri, options.folder, options.metric):
            print(path)
    except RecipeError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


def write(run_id: str, uri: str | None, folder: Path, metric: str | None = None) -> tuple[Path, Path]:
    """Write both files, and keep them with the run.

    Args:
        run_id: of a sweep or a study.
        uri: the MLflow store.
        folder: where to.
        metric: what to compare trials by; default: what the sweep compared.

    Returns:
        The paths of the page and the paper.

    Raises:
        RecipeError: no such run, or one that is neither sweep nor study.
    """
    from tuning import paper, records, web_page

    record = records.read(uri, run_id, metric)
    told = sections(record)
    subtitle = f"run {record.id} · {record.status.lower()} · {record.title}"  # a footer cuts its end
    page, printed = (folder / f"report-{run_id}.{kind}" for kind in ("html", "pdf"))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        page.write_text(web_page.page(record.question, subtitle, told), encoding="utf-8")
        paper.write(printed, record.question, subtitle, told)
    except OSError as error:
        raise RecipeError(f"cannot write to {folder}: {error.strerror}") from None
    client, _ = store.connect(uri)
    for path in (page, printed):
        client.log_artifact(run_id, str(path), "report")
    return page, printed


def sections(record: Record) -> list[Section]:
    """All that is told of a sweep or a study, in order; parts with nothing to tell are left out."""
    from tuning.document import Section

    parts = {
        "In short": in_short(record),
        "Results": results(record),
        "What was seen": pictures(record),
        "Learning curves": curves(record),
        "Which fields matter": importance(record),
        "Failures": failures(record),
        "Repeat it": repeat(record),
    }
    return [Section(title, blocks) for title, blocks in parts.items() if blocks]


def in_short(record: Record) -> list[Block]:
    """The answer, and under which settings it was found."""
    from tuning.document import Table, Text
    from tuning.statistics import verdict

    conclusions = [record.conclusion] if record.conclusion else [
        f"{verdict(name, values, smaller)}." for name, (values, smaller) in record.quantities.items()
    ]  # fmt: skip
    fixed = [
        (name, value)
        for name, value in sorted(record.params.items())
        if value not in ("None", "") and name not in record.varied and not name.endswith(("_dir", "_uri"))
    ]
    half = -(-len(fixed) // 2)
    empty = [("", "")] * (2 * half - len(fixed))
    pairs = zip(fixed[:half], fixed[half:] + empty, strict=True)
    trials = f"{len(record.trials)} training runs" + (
        f", varied: {', '.join(record.varied)}" if record.varied else ""
    )
    return [
        *(Text(text, strong=True) for text in conclusions),
        Text(f"{trials}; {_duration(record.duration)}."),
        Table(("setting", "value", "setting", "value"), [(*a, *b) for a, b in pairs], numeric=False),
    ]


def results(record: Record) -> list[Block]:
    """Every quantity: a table with uncertainty, which settings differ, and a picture."""
    from tuning import figures
    from tuning.document import Table, Text, picture
    from tuning.statistics import compare, interval, ranked

    blocks: list[Block] = []
    for name, (values, smaller) in record.quantities.items():
        order = ranked(values, smaller)
        rows = []
        for label in order:
            found = interval(values[label])
            bounds = "" if math.isnan(found.low) else f"{found.low:.4g} ... {found.high:.4g}"
            spread = "" if math.isnan(found.std) else f"{found.std:.2g}"
            rows.append((label, f"{found.mean:.4g}", spread, bounds, str(found.n)))
        header = ("setting", "mean", "std", "95 % interval", "seeds")
        blocks.append(Table(header, rows[:LISTED], f"{name} ({'lowest' if smaller else 'highest'} first)"))
        if len(rows) > LISTED:
            blocks.append(Text(f"{len(rows) - LISTED} more settings follow, down to {rows[-1][1]}."))
        tests = compare(values)
        apart = [each for each in tests if each.significant]
        apart = sorted(apart, key=lambda each: each.adjusted)
        listed = "; ".join(f"{t.first} and {t.second} (p = {t.adjusted:.2g})" for t in apart[:6])
        more = f"; and {len(apart) - 6} more pairs" if len(apart) > 6 else ""
        if tests and not all(math.isnan(each.p) for each in tests):
            blocks.append(
                Text(
                    f"Different after Holm's correction for {len(tests)} tests: "
                    f"{listed or 'no two settings'}{more}."
                )
            )
        if 1 < len(values) <= 20:
            caption = f"{name}, the {'lowest' if smaller else 'highest'} mean at the top."
            blocks.append(
                picture(figures.intervals({label: values[label] for label in order}, name), caption)
            )
    return blocks


def pictures(record: Record) -> list[Block]:
    """The figures that a study has drawn itself."""
    from tuning.document import Picture

    return [Picture(png, name.replace("_", " ").capitalize() + ".") for name, png in record.figures.items()]


def trained(record: Record) -> list[Trial]:
    """The finished trials of a recipe that have the metric: not a study's own small networks."""
    return [
        trial
        for trial in record.trials
        if trial.status == "FINISHED" and record.metric in trial.metrics and "setting" not in trial.params
    ]


def curves(record: Record) -> list[Block]:
    """Mean and standard deviation over seeds of the metric and the losses, of the best settings."""
    from tuning import figures
    from tuning.document import picture
    from tuning.statistics import ranked

    blocks: list[Block] = []
    trials = trained(record)
    finals: dict[str, list[float]] = {}
    for trial in trials:
        finals.setdefault(trial.setting, []).append(trial.metrics[record.metric])
    shown = ranked(finals, smaller_is_better(record.metric))[:CROWDED]
    for name in dict.fromkeys((record.metric, "train/loss", "val/loss")):
        found = {
            label: [t.curves[name] for t in trials if t.setting == label and name in t.curves]
            for label in shown
        }
        found = {label: each for label, each in found.items() if each}
        if found:
            best = (
                f"the best {len(found)} of {len(finals)} settings"
                if len(finals) > len(found)
                else "all settings"
            )
            caption = f"{name}: mean over seeds and one standard deviation to either side, {best}."
            blocks.append(picture(figures.bands(found, name), caption))
    return blocks


def importance(record: Record) -> list[Block]:
    """Permutation importance of every varied field, and all trials in parallel coordinates."""
    from tuning import figures
    from tuning.document import Text, picture
    from tuning.importance import LEAST, number, permutation_importance, settings

    trials = trained(record)
    fields = [name for name in record.varied if len({trial.params.get(name) for trial in trials}) > 1]
    if not fields:
        return []
    rows: list[dict[str, Any]] = [
        {**{name: number(trial.params[name]) for name in fields}, record.metric: trial.metrics[record.metric]}
        for trial in trials
    ]
    blocks: list[Block] = []
    count = len(set(settings(rows, fields)))
    if len(fields) > 1 and count >= LEAST:
        found, fit = permutation_importance(rows, fields, record.metric)
        blocks.append(
            Text(
                f"A random forest that has seen three quarters of the {count} settings predicts "
                f"{record.metric} of the others with R² = {fit:.2f}. A field matters as much as this falls "
                "when its values are shuffled"
                + (": here it does not predict, and nothing falls." if fit <= 0 else ".")
            )
        )
        if fit > 0:
            caption = "Permutation importance on settings that the forest has not seen; standard deviation."
            blocks.append(picture(figures.importances(found, record.metric), caption))
    else:
        blocks.append(
            Text(
                f"Varied in {len(rows)} trials: {', '.join(fields)}. "
                f"It takes two fields and {LEAST} settings to weigh fields against each other."
            )
        )
    caption = f"Every trial from field to field to its {record.metric}: dark lines are the better ones."
    smaller = smaller_is_better(record.metric)
    blocks.append(picture(figures.parallel_coordinates(rows, fields, record.metric, smaller), caption))
    return blocks


def failures(record: Record) -> list[Block]:
    """The training runs that did not finish, and why."""
    from tuning.document import Table, Text

    told = [Text(f"The {record.kind}: {record.tags['error']}")] if "error" in record.tags else []
    failed = [trial for trial in record.trials if trial.status != "FINISHED"]
    if not failed:
        return told or (
            [Text(f"None: all {len(record.trials)} training runs finished.")] if record.trials else []
        )
    rows = [(trial.setting, trial.seed, trial.status, trial.error or "no word") for trial in failed[:LISTED]]
    first = f" The first {LISTED}:" if len(failed) > LISTED else ""
    return [
        *told,
        Text(f"{len(failed)} of {len(record.trials)} training runs did not finish.{first}"),
        Table(("setting", "seed", "state", "error"), rows, numeric=False),
    ]


def repeat(record: Record) -> list[Block]:
    """Commands, and the circumstances under which they were given."""
    from tuning.document import Command, Table
    from tuning.statistics import ranked

    tags = record.tags
    commit = tags.get("mlflow.source.git.commit", "")
    lines = [f"git checkout {commit}"] if commit else []
    given = tags.get("command", "")
    if given and "--backend" not in given:  # it came from the environment
        given = f"KERAS_BACKEND={tags.get('backend')} {given}"
    lines += [given, f"python -m tuning.report {record.id}"]
    trials = trained(record)
    members = [name for trial in trials for name in trial.metrics if name.startswith("pbt/")]
    if trials and not members:  # a member of a population took weights that others trained
        finals = {trial.id: [trial.metrics[record.metric]] for trial in trials}
        lines.append(f"python -m recipes.rerun {ranked(finals, smaller_is_better(record.metric))[0]}")
    known = [
        ("backend", tags.get("backend", "")),
        ("device", tags.get("device", "")),
        *(
            (name, tags.get(f"version.{name}", ""))
            for name in ("python", "keras", "numpy", tags.get("backend", ""))
        ),
        ("git commit", commit + (" with changes" if tags.get("git.dirty") == "True" else "")),
        ("duration", "" if math.isnan(record.duration) else _duration(record.duration)),
        ("data", tags.get("dataset.fingerprint", "")),
    ]
    rows = [each for each in known if each[1]]
    return [
        Command([line for line in lines if line]),
        Table(("circumstance", ""), rows, numeric=False),
    ]


def _duration(seconds: float) -> str:
    if math.isnan(seconds):
        return "duration unknown"
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.1f} min"


def _parsed(words: list[str]) -> argparse.Namespace:
    parser = _Parser(
        prog="python -m tuning.report",
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run_id", help="MLflow run of a sweep or a study: the first line that it prints")
    parser.add_argument("--folder", type=Path, default=Path(), help="where to write; default: here")
    parser.add_argument("--metric", help="what to compare trials by; default: what the sweep compared")
    parser.add_argument("--tracking-uri", default=os.environ.get("MLFLOW_TRACKING_URI"), help="MLflow store")
    return parser.parse_args(words)


class _Parser(argparse.ArgumentParser):
    """argparse whose errors are this project's."""

    def error(self, message: str) -> NoReturn:
        raise usage_error(message)


if __name__ == "__main__":
    main()
