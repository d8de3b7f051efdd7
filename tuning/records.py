"""What MLflow has of a sweep or a study, gathered for a report."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recipes.engine import store
from recipes.engine.errors import unknown, usage_error
from tuning.comparison import smaller_is_better
from tuning.evidence import Curve

if TYPE_CHECKING:
    from mlflow import MlflowClient

# Parameters that differ between trials without being varied.
NOT_VARIED = ("seed", "setting", "resume", "checkpoint_dir", "data_dir", "tracking_uri", "experiment")


@dataclass(frozen=True)
class Trial:
    """One training run: how it was set, how it ended, what it measured."""

    id: str
    setting: str
    seed: str
    status: str
    error: str
    params: Mapping[str, str]
    metrics: Mapping[str, float]
    curves: Mapping[str, Curve]


@dataclass(frozen=True)
class Record:
    """A sweep or a study.

    Args:
        id: of its MLflow run.
        kind: "sweep" or "study".
        title: what it was.
        question: what was asked.
        conclusion: the answer; empty where none was drawn.
        status: of the run.
        tags, params: as MLflow has them.
        duration: seconds; NaN if it was never said.
        metric: what the recipe's trials are compared by.
        quantities: values by setting and seed by name, each with its sense: (values, smaller is better).
        trials: all training runs beneath it.
        figures: PNG files by name.
    """

    id: str
    kind: str
    title: str
    question: str
    conclusion: str
    status: str
    tags: Mapping[str, str]
    params: Mapping[str, str]
    duration: float
    metric: str
    quantities: Mapping[str, tuple[dict[str, list[float]], bool]]
    trials: Sequence[Trial]
    figures: Mapping[str, bytes]

    @property
    def varied(self) -> list[str]:
        """The parameters that have more than one value among the trials of a recipe."""
        values: dict[str, set[str]] = {}
        for trial in self.trials:
            for name, value in trial.params.items():
                values.setdefault(name, set()).add(value)
        return [name for name, found in values.items() if len(found) > 1 and name not in NOT_VARIED]


def read(uri: str | None, run_id: str, metric: str | None = None) -> Record:
    """Gather a sweep or a study.

    Args:
        uri: the MLflow store; None for `sqlite:///mlruns/mlflow.db`.
        run_id: of the sweep's or the study's run.
        metric: what to compare trials by; default: what the sweep compared.

    Returns:
        All that a report tells.

    Raises:
        RecipeError: there is no such run, it is neither sweep nor study, or no trial has the metric.
    """
    client, uri = store.connect(uri)
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    run = store.find(client, uri, run_id)
    tags = run.data.tags
    kind = tags.get("kind")
    if kind not in ("sweep", "study"):
        raise usage_error(f"run {run_id} is neither a sweep nor a study: a report compares several runs")
    children, sweeps = _below(client, run)
    best = [name for each in (run, *sweeps) for name in each.data.metrics if name.startswith("best/")]
    # One that is under way, or failed, has no best yet.
    asked = [each.data.tags["metric"] for each in (run, *sweeps) if "metric" in each.data.tags]
    chosen = metric or next(iter([*asked, *(name.removeprefix("best/") for name in best)]), "")
    trials = [_trial(client, child, (chosen, "train/loss", "val/loss")) for child in children]
    with tempfile.TemporaryDirectory() as folder:
        kept = {}
        for artifact in client.list_artifacts(run_id):
            if artifact.path == "study.json" or artifact.path == "figures":
                path = Path(client.download_artifacts(run_id, artifact.path, folder))
                kept |= {
                    file.name: file.read_bytes() for file in ([path] if path.is_file() else path.iterdir())
                }
    study = json.loads(kept.pop("study.json")) if "study.json" in kept else {}
    quantities = {q["name"]: (q["values"], q["smaller_is_better"]) for q in study.get("quantities", ())}
    if kind == "sweep":
        quantities |= _compared(trials, chosen)
    order = study.get("figures") or [Path(name).stem for name in sorted(kept) if name != "comparison.png"]
    return Record(
        run_id,
        kind,
        run.info.run_name,
        tags.get("question", f"How does {chosen} of {tags.get('recipe')} depend on what was varied?"),
        tags.get("conclusion", ""),
        run.info.status,
        _circumstances(client, tags, trials),
        run.data.params,
        run.data.metrics.get("duration_seconds", _seconds(run)),
        chosen,
        quantities,
        trials,
        {name: kept[f"{name}.png"] for name in order if f"{name}.png" in kept},
    )


def _below(client: MlflowClient, run: Any) -> tuple[list[Any], list[Any]]:
    """The runs of the trials beneath a run, whatever lies between, and those of the sweeps that do."""
    trials, sweeps, token = [], [], None
    while True:
        page = client.search_runs(
            [run.info.experiment_id],
            f"tags.`mlflow.parentRunId` = '{run.info.run_id}'",
            order_by=["attributes.start_time ASC"],
            page_token=token,
        )
        for child in page:
            if child.data.tags.get("kind") == "sweep":
                below, inner = _below(client, child)
                trials += below
                sweeps += [child, *inner]
            else:
                trials.append(child)
        token = page.token
        if not token:
            return trials, sweeps


def _trial(client: MlflowClient, run: Any, curved: Sequence[str]) -> Trial:
    """A training run, with the curves of a few metrics: each takes a question to the store."""
    curves = {}
    for name in curved if "setting" not in run.data.params else ():
        if name in run.data.metrics:
            history = client.get_metric_history(run.info.run_id, name)
            points = {point.step: point.value for point in history}
            if len(points) > 1:
                curves[name] = sorted(points.items())
    tags = run.data.tags
    # What a population varies changes in training: the last value counts.
    last = {
        name.removeprefix("pbt/"): str(value)
        for name, value in run.data.metrics.items()
        if name.startswith("pbt/")
    }
    return Trial(
        run.info.run_id,
        tags.get("setting", run.info.run_name),
        run.data.params.get("seed", tags.get("seed", "")),
        run.info.status,
        tags.get("error", ""),
        {**run.data.params, **last},
        run.data.metrics,
        curves,
    )


def _seconds(run: Any) -> float:
    """From the beginning of a run to its end; NaN while there is none."""
    return (run.info.end_time - run.info.start_time) / 1000 if run.info.end_time else float("nan")


def _compared(trials: Sequence[Trial], metric: str) -> dict[str, tuple[dict[str, list[float]], bool]]:
    finished = [trial for trial in trials if trial.status == "FINISHED"]
    if finished and not any(metric in trial.metrics for trial in finished):
        raise unknown("value of --metric", metric, (name for name in finished[0].metrics if "/" in name))
    values: dict[str, dict[str, float]] = {}  # by seed: none counts twice, whatever died and was begun again
    for trial in sorted(finished, key=lambda each: int(each.seed or 0)):
        if metric in trial.metrics:
            values.setdefault(trial.setting, {})[trial.seed] = trial.metrics[metric]
    lists = {setting: [*by_seed.values()] for setting, by_seed in values.items()}
    return {metric: (lists, smaller_is_better(metric))} if lists else {}


def _circumstances(client: MlflowClient, tags: Mapping[str, str], trials: Sequence[Trial]) -> dict[str, str]:
    """The run's tags and, as a sweep's own run does not compute, its first trial's versions and device."""
    told = dict(tags)
    if trials:
        told = {**client.get_run(trials[0].id).data.tags, **told}
    if "error" not in tags:  # the trial's own
        told.pop("error", None)
    return told
