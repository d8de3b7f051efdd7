"""A sweep on a local Ray: one parent, a true child a trial, means over seeds."""

import os
import statistics
import subprocess
import sys

import keras
import mlflow
import pytest

from recipes.engine.errors import RecipeError
from tuning import comparison, sweep

DIGITS = ["--dataset", "digits", "--epochs", "1", "--no-augment", "--batch-size", "128"]


def command(cwd, *words):
    return subprocess.run(
        [sys.executable, "-m", "tuning.sweep", "cnn_cifar", *words], capture_output=True, text=True, cwd=cwd,
        timeout=500, env={**os.environ, "PYTHONPATH": os.getcwd()},
    )  # fmt: skip


@pytest.mark.once
def test_a_sweep_compares_settings_over_seeds_and_survives_a_broken_one(folder_with_store):
    """One of the two settings diverges at once: its trials fail, the others do not."""
    backend, folder = keras.backend.backend(), folder_with_store
    done = command(
        folder, "--backend", backend, *DIGITS, "--grid", "learning_rate=0.1,1e30", "--seeds", "2",
        "--optimizer", "sgd", "--max-concurrent", "1",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    client = mlflow.MlflowClient(f"sqlite:///{folder}/mlruns/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("cnn_cifar").experiment_id])
    parents = [run for run in runs if run.data.tags.get("kind") == "sweep"]
    children = [run for run in runs if "mlflow.parentRunId" in run.data.tags]
    assert len(parents) == 1 and len(children) == 4 == len(runs) - 1
    (parent,) = parents
    assert {child.data.tags["mlflow.parentRunId"] for child in children} == {parent.info.run_id}
    good = [child for child in children if child.data.params["learning_rate"] == "0.1"]
    broken = [child for child in children if child not in good]
    assert {child.data.params["seed"] for child in good} == {"0", "1"}
    assert {child.info.status for child in good} == {"FINISHED"}
    assert {child.info.status for child in broken} == {"FAILED"} and len(broken) == 2
    assert all("at step" in child.data.tags["error"] for child in broken)
    assert {child.data.tags["backend"] for child in children} == {backend}
    # The table's mean and standard deviation are those of the children's own metrics.
    values = [child.data.metrics["val/accuracy"] for child in good]
    expected = f"{statistics.fmean(values):.4f} +/- {statistics.stdev(values):.4f}"
    assert expected in done.stdout
    assert parent.info.status == "FINISHED"
    assert parent.data.metrics["best/val/accuracy"] == pytest.approx(statistics.fmean(values))
    assert parent.data.metrics["failed_trials"] == 2
    assert {"sweep.md", "sweep.csv", "figures"} <= {f.path for f in client.list_artifacts(parent.info.run_id)}
    kept = {path.parent.name for path in (folder / "mlruns/checkpoints").rglob("best-*.npz")}
    assert {child.info.run_id for child in good} <= kept  # here, not in a worker's own folder
    assert "[  4/4]" in done.stdout and "Traceback" not in done.stderr


@pytest.mark.once
@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["cnn_cifra", "--grid", "optimizer=sgd"], "unknown recipe 'cnn_cifra': did you mean 'cnn_cifar'?"),
        (["cnn_cifar", "--grid", "optimzer=sgd"], "unknown field 'optimzer': did you mean 'optimizer'?"),
        (
            ["cnn_cifar", "--grid", "optimizer=sgdd"],
            "unknown value of --optimizer 'sgdd': did you mean 'sgd'?",
        ),
        (["cnn_cifar", "--grid", "optimizer=sgd", "--epoch", "3"], "unknown flag '--epoch': did you mean"),
        (["cnn_cifar", "--grid", "optimizer=sgd", "--seeds", "0"], "--seeds must be at least 1"),
        (["cnn_cifar", "--grid", "epochs=1,0"], "--epochs must be at least 1, not 0"),
        (["cnn_cifar"], "nothing varies"),
        (["cnn_cifar", "--gpus-per-trial", "nan"], "--gpus-per-trial must not be negative, not nan"),
        (["cnn_cifar", "--time-budget", "nan"], "--time-budget must be positive, not nan"),
        (["cnn_cifar", "--patience", "nan"], "--patience must not be negative, not nan"),
    ],
)
def test_bad_input_is_refused_before_anything_starts(words, sentence, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        sweep.main(words)
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith(f"error: {sentence}")
    assert not (tmp_path / "mlruns").exists()


@pytest.mark.once
def test_settings_are_ranked_in_the_sense_of_the_metric():
    settings = [{"a": 1}, {"a": 2}]
    finished = [
        ({"setting": setting}, {"val/loss": loss, "val/accuracy": 1 - loss, "seconds": 1.0})
        for setting, losses in zip(settings, ((0.1, 0.3), (0.5, 0.5)), strict=True)
        for loss in losses
    ]
    rows = comparison.summarize(finished, settings, "val/loss")
    assert [row["label"] for row in rows] == ["a=1", "a=2"]
    assert rows[0]["mean"] == pytest.approx(0.2) and rows[0]["std"] == pytest.approx(0.1 * 2**0.5)
    assert [row["label"] for row in comparison.summarize(finished, settings, "val/accuracy")] == [
        "a=1",
        "a=2",
    ]
    with pytest.raises(RecipeError, match="'val/acuracy': did you mean 'val/accuracy'"):
        comparison.summarize(finished, settings, "val/acuracy")


@pytest.mark.once
def test_a_setting_that_a_search_draws_again_counts_once():
    pair = ({"setting": {"units": 16}, "seed": 0}, {"val/accuracy": 0.5, "seconds": 1.0})
    other = ({"setting": {"units": 16}, "seed": 1}, {"val/accuracy": 0.7, "seconds": 1.0})
    (row,) = comparison.summarize(comparison.once([pair, other, pair]), [{"units": 16}], "val/accuracy")
    assert row["values"] == [0.5, 0.7]


@pytest.mark.once
def test_one_seed_has_no_standard_deviation():
    rows = comparison.summarize(
        [({"setting": {}}, {"val/accuracy": 0.5, "seconds": 2.0})], [{}], "val/accuracy"
    )
    assert "+/-" not in comparison.table(rows, "val/accuracy") and "0.5000" in comparison.table(
        rows, "val/accuracy"
    )
