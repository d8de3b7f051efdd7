"""The command: one run with its children, an answer from the numbers, and what it refuses."""

import json
import types
from pathlib import Path

import mlflow
import pytest
from matplotlib.figure import Figure

from recipes.engine.errors import RecipeError
from tuning import records, report, studies, study, sweep
from tuning.evidence import Evidence, Quantity, Trial
from tuning.execution import Outcome

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
    def run_sweep(*arguments, **named):
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

    def run_trials(options, axes, trials, base, parent, tags):
        """A tanh that wants the small rate and a relu that wants the large one."""
        calls.append(([trial["setting"] for trial in trials], base["seed"], options.seeds, base["epochs"]))
        finished = []
        for trial in trials:
            setting, seed = trial["setting"], trial["seed"]
            fits = (setting["activation"] == "relu") == (setting["learning_rate"] == 0.1)
            values = {"val/accuracy": 0.5 + 0.4 * fits + 0.01 * seed, "seconds": 1.0}
            finished.append(({"setting": setting, "seed": seed}, values))
        return Outcome(finished)

    monkeypatch.setattr(sweep, "run_trials", run_trials)
    study.main(
        ["activations", "--recipe", "mlp_fashion", "--seeds", "2", "--dataset", "digits", "--epochs", "7"]
    )
    (tuning, seed, seeds, epochs), (settings, other, more, _) = calls
    assert len(tuning) == 4 and (seed, seeds, epochs) == (2, 1, 7)
    assert (other, more) == (0, 2) and len(settings) == 4
    assert {(s["activation"], s["learning_rate"]) for s in settings} == {("relu", 0.1), ("tanh", 0.01)}
    _, found = runs_of("study-activations")
    (parent,) = [run for run in found if run.data.tags.get("kind") == "study"]
    sweeps = [run for run in found if run.data.tags.get("kind") == "sweep"]
    assert [run.data.tags["mlflow.parentRunId"] for run in sweeps] == [parent.info.run_id] * 2
    assert not {"activation", "learning_rate"} & {name for run in sweeps for name in run.data.params}
    assert "mlp_fashion val/accuracy is best with" in parent.data.tags["conclusion"]


def test_a_studys_sweep_that_is_killed_goes_on_with_the_settings_it_had(made_up, monkeypatch, capsys):
    """Its command line has a grid of all activations and no learning rate."""
    made_up.TUNED = {"learning_rate": [0.1, 1e-05]}
    calls = []

    def run_trials(options, axes, trials, base, parent, tags):
        calls.append(trials)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return Outcome(
            [(trial, {"val/accuracy": trial["setting"]["learning_rate"], "seconds": 1.0}) for trial in trials]
        )

    monkeypatch.setattr(sweep, "run_trials", run_trials)
    with pytest.raises(SystemExit):
        study.main(["activations", "--recipe", "mlp_fashion", "--seeds", "2", "--dataset", "digits"])
    _, found = runs_of("study-activations")
    (killed,) = [run for run in found if run.info.status == "KILLED" and run.data.tags.get("kind") == "sweep"]
    sweep.main(["--resume", killed.info.run_id])
    assert calls[2] == calls[1] and len(calls[1]) == 4
    assert {trial["setting"]["learning_rate"] for trial in calls[1]} == {0.1}
    _, found = runs_of("study-activations")
    (resumed,) = [run for run in found if run.info.run_id == killed.info.run_id]
    assert resumed.info.status == "FINISHED" and "learning_rate=0.1" in resumed.data.tags["best"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["activation"], "unknown study 'activation': did you mean 'activations'?"),
        (
            ["losses", "--recipe", "cnn_cifar"],
            "study losses varies 'loss', which cnn_cifar lacks; these have: mlp_fashion",
        ),
        (
            ["initializers", "--recipe", "mlp_fashion"],
            "study initializers varies 'initializer', which mlp_fashion",
        ),
        (
            ["normalization", "--recipe", "gcn_cora"],
            "study normalization varies 'normalization', which gcn_cora lacks; these have: cnn_cifar, mlp_",
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
