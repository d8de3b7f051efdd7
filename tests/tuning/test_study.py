"""The command: one run with its children, an answer from the numbers, and what it refuses."""

import json
import types
from pathlib import Path

import mlflow
import pytest
from matplotlib.figure import Figure

from recipes.engine import launch, tracking
from recipes.engine.errors import RecipeError
from tuning import records, report, studies, study, sweep
from tuning.evidence import Evidence, Quantity, Trial

pytestmark = pytest.mark.once

VALUES = {"good": [0.9, 0.91], "bad": [0.1, 0.12]}


def investigate(seeds):
    trials = [
        Trial(name, seed, {"test/accuracy": [(0, 0.1), (5, value)]}, {"test/accuracy": value})
        for name, values in VALUES.items()
        for seed, value in zip(seeds, values, strict=True)
    ]
    return Evidence([Quantity("accuracy", VALUES)], {"empty": Figure()}, "good is better", trials)


@pytest.fixture
def made_up(monkeypatch, tmp_path):
    """A study of this file's in the place of `activations`, and a working directory of its own."""
    module = types.SimpleNamespace(
        investigate=investigate, FIELDS={"activation": ["relu", "tanh", "none such"]}
    )
    monkeypatch.setattr(studies, "load", lambda name: module)
    monkeypatch.chdir(tmp_path)
    return module


def runs_of(experiment):
    client = mlflow.MlflowClient(f"sqlite:///{Path.cwd()}/mlruns/mlflow.db")
    return client, client.search_runs([client.get_experiment_by_name(experiment).experiment_id])


def test_a_study_is_one_run_with_a_child_for_each_training(made_up, capsys):
    study.main(["activations", "--seeds", "2"])
    client, found = runs_of("study-activations")
    (parent,) = [run for run in found if run.data.tags.get("kind") == "study"]
    children = [run for run in found if run is not parent]
    assert parent.info.status == "FINISHED" and parent.data.tags["study"] == "activations"
    assert parent.data.tags["conclusion"] == "good is better."
    assert parent.data.tags["question"].endswith("?") and "version.keras" in parent.data.tags
    assert len(children) == 4 and {run.info.status for run in children} == {"FINISHED"}
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parent.info.run_id}
    ends = {(r.data.tags["setting"], r.data.tags["seed"]): r.data.metrics["test/accuracy"] for r in children}
    assert ends == {("good", "0"): 0.9, ("good", "1"): 0.91, ("bad", "0"): 0.1, ("bad", "1"): 0.12}
    path = client.download_artifacts(parent.info.run_id, "study.json", str(Path.cwd()))
    kept = json.loads(Path(path).read_text())
    assert kept["quantities"][0]["values"] == VALUES and kept["figures"] == ["empty"]
    told = {
        section.title: section.blocks for section in report.sections(records.read(None, parent.info.run_id))
    }
    assert list(told) == ["In short", "Results", "What was seen", "Failures", "Repeat it"]
    assert told["In short"][0].text == "good is better." and told["What was seen"][0].png[1:4] == b"PNG"
    assert told["Results"][0].rows[0] == ("good", "0.905", "0.0071", "0.8415 ... 0.9685", "2")
    out = capsys.readouterr().out
    assert "good is better." in out and "0.905 +/- 0.0071" in out and parent.info.run_id in out


def test_a_study_that_breaks_ends_failed(made_up):
    def broken(seeds):
        raise RecipeError("no digits today")

    made_up.investigate = broken
    with pytest.raises(SystemExit) as stop:
        study.main(["activations"])
    assert stop.value.code == 1
    _, (run,) = runs_of("study-activations")
    assert run.info.status == "FAILED" and run.data.tags["error"] == "no digits today"


@pytest.mark.parametrize(("cause", "status"), [(KeyboardInterrupt(), "KILLED"), (ValueError(), "FAILED")])
def test_a_sweep_that_stops_or_breaks_ends_the_study_so(cause, status, made_up, monkeypatch):
    def run_sweep(options, config, axes):
        try:
            raise cause
        except BaseException:
            raise RecipeError("not finished") from None

    monkeypatch.setattr(sweep, "run_sweep", run_sweep)
    with pytest.raises(SystemExit) as stop:
        study.main(["activations", "--recipe", "mlp_fashion", "--seeds", "2", "--dataset", "digits"])
    assert stop.value.code == 1
    _, found = runs_of("study-activations")
    assert [run.info.status for run in found if run.data.tags.get("kind") == "study"] == [status]


def test_a_recipe_is_tuned_with_one_seed_and_compared_with_others(made_up, monkeypatch):
    made_up.TUNED = {"learning_rate": [0.1, 0.01]}
    calls = []

    def run_sweep(options, config, axes):
        """A tanh that wants the small rate and a relu that wants the large one."""
        tags = {"kind": "sweep", "command": launch.command()}
        for theirs in ("somebody else's", tags["command"]):
            run = tracking.start(config.tracking_uri, config.experiment, "", {}, {**tags, "command": theirs})
            run.end("FINISHED")
        settings = axes.settings(options.trials, config.seed)
        calls.append((settings, config.seed, options.seeds, config.epochs))
        rows = []
        for setting in settings:
            fits = (setting["activation"] == "relu") == (setting["learning_rate"] == 0.1)
            values = [0.5 + 0.4 * fits + 0.01 * k for k in range(options.seeds)]
            label = f"{setting['activation']} {setting['learning_rate']}"
            rows.append({"label": label, "setting": setting, "values": values, "mean": sum(values)})
        return sorted(rows, key=lambda row: -row["mean"])

    monkeypatch.setattr(sweep, "run_sweep", run_sweep)
    study.main(
        ["activations", "--recipe", "mlp_fashion", "--seeds", "2", "--dataset", "digits", "--epochs", "7"]
    )
    (tuning, seed, seeds, epochs), (settings, other, more, _) = calls
    assert len(tuning) == 4 and (seed, seeds, epochs) == (2, 1, 7)
    assert (other, more) == (0, 2)
    assert {(s["activation"], s["learning_rate"]) for s in settings} == {("relu", 0.1), ("tanh", 0.01)}
    _, found = runs_of("study-activations")
    (parent,) = [run for run in found if run.data.tags.get("kind") == "study"]
    sweeps = [run for run in found if run.data.tags.get("kind") == "sweep"]
    adopted = [run.data.tags["command"] for run in sweeps if "mlflow.parentRunId" in run.data.tags]
    assert adopted == [launch.command()] * 2 and len(sweeps) == 4
    assert {run.data.tags.get("mlflow.parentRunId") for run in sweeps} == {None, parent.info.run_id}
    assert "mlp_fashion val/accuracy is best with" in parent.data.tags["conclusion"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["activation"], "unknown study 'activation': did you mean 'activations'?"),
        (["losses", "--recipe", "mlp_fashion"], "study losses varies no field of a recipe"),
        (
            ["initializers", "--recipe", "mlp_fashion"],
            "study initializers varies 'initializer', which mlp_fashion",
        ),
        (
            ["normalization", "--recipe", "cnn_cifar"],
            "study normalization varies 'normalization', which cnn_cifar",
        ),
        (
            ["activations", "--recipe", "mlp_fashoin"],
            "unknown recipe 'mlp_fashoin': did you mean 'mlp_fashion'?",
        ),
        (["activations", "--recipe", "mlp_fashion", "--epoch", "2"], "unknown flag '--epoch': did you mean"),
        (["activations", "--epochs", "2"], "unknown flag '--epochs': a study without --recipe"),
        (["activations", "--seeds", "1"], "--seeds must be at least 2"),
        (["activations", "--seeds", "two"], "argument --seeds: invalid int value"),
    ],
)
def test_bad_input_is_refused_before_anything_starts(words, sentence, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        study.main(words)
    assert stop.value.code == 2 and capsys.readouterr().err.startswith(f"error: {sentence}")
    assert not (tmp_path / "mlruns").exists()


def test_without_a_name_all_studies_are_listed_with_their_questions(capsys):
    study.main([])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == studies.names() and all(
        line.endswith("?") for line in lines
    )
