"""What happens to a sweep when its parts die or its trials do not promise much: no trial lost, none twice."""

import argparse
import collections
import os
import re
import signal

import mlflow
import pytest

from tests.tuning.sweeping import DIGITS, finished, output_of, records, shared_ray, started, until
from tuning import execution

pytestmark = pytest.mark.once


def test_a_killed_worker_and_a_killed_driver_cost_no_trial(folder_with_store):
    # Trials of a second: of shorter ones the sweep is over before two are seen to be finished.
    words = ["mlp_fashion", *DIGITS, "--epochs", "200", "--grid", "learning_rate=0.01,0.001", "--seeds", "2",
             "--max-concurrent", "1", "--address", shared_ray()]  # fmt: skip
    driver = started(folder_with_store, *words)
    until(lambda: [run for run in records(folder_with_store) if run.data.metrics], driver)
    (running,) = [run for run in records(folder_with_store) if run.info.status == "RUNNING"]
    os.kill(int(running.data.tags["process"]), signal.SIGKILL)
    # The killed trial was begun anew, and another one is done.
    until(lambda: len(finished(folder_with_store)) >= 2, driver)
    os.killpg(driver.pid, signal.SIGKILL)
    driver.wait()
    (sweep,) = records(folder_with_store, "sweep")
    again = started(folder_with_store, "--resume", sweep.info.run_id)
    assert again.wait(600) == 0, again.out.read_text()
    text = again.out.read_text()
    assert re.search(rf"sweep {sweep.info.run_id} goes on: [2-4] of 4 trials are finished", text)
    assert sorted(finished(folder_with_store).values()) == [1] * 4
    assert {run.info.status for run in records(folder_with_store)} == {"FINISHED", "KILLED"}
    (sweep,) = records(folder_with_store, "sweep")
    assert sweep.info.status == "FINISHED" and sweep.data.metrics["failed_trials"] == 0
    for row in text[text.rindex("| setting") :].splitlines()[2:4]:
        assert "+/-" in row and row.split("|")[3].strip() == "2", row


def test_a_worker_that_dies_before_it_reports_what_it_finished(folder_with_store, monkeypatch):
    marker = folder_with_store / "died"

    def run_trial(sample, **shared):
        """Dies once, when all runs of the trial have ended."""
        from ray import tune

        from tuning import trainable

        def report(metrics):
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)

        if not marker.exists():
            tune.report = report
        trainable.run_trial(sample, **shared)

    monkeypatch.setattr(execution, "run_trial", run_trial)
    text = output_of(
        folder_with_store, "mlp_fashion", *DIGITS, "--epochs", "1", "--grid", "learning_rate=0.01,0.001",
        "--max-concurrent", "1", "--pack", "2",
    )  # fmt: skip
    assert marker.exists()
    assert "[  2/2]" in text and "FAILED" not in text, text
    runs = records(folder_with_store)
    assert (
        [run.info.status for run in runs]
        == ["FINISHED"] * 2
        == ["FINISHED"] * len(finished(folder_with_store))
    )
    for run in runs:
        row = next(line for line in text.splitlines() if line.startswith(f"| {run.data.tags['setting']} "))
        assert f" {run.data.metrics['val/accuracy']:.4f} " in row


@pytest.mark.parametrize("last", ["a stretch", "the end"])
def test_a_member_that_dies_before_it_reports_what_it_finished(last, folder_with_store, monkeypatch):
    marker = folder_with_store / "died"

    def run_member(sample, **shared):
        """Dies once, when MLflow has all of a member's stretch and Ray has not."""
        from ray import tune

        from tuning import population

        tell = tune.report

        def report(metrics, **more):
            if ("done" in metrics) == (last == "the end") and not marker.exists():
                marker.write_text(str(sample["trial"]["member"]))
                os.kill(os.getpid(), signal.SIGKILL)
            tell(metrics, **more)

        tune.report = report
        try:
            population.run_member(sample, **shared)
        finally:
            tune.report = tell

    monkeypatch.setattr(execution.population, "run_member", run_member)
    text = output_of(
        folder_with_store, "mlp_fashion", *DIGITS, "--epochs", "3", "--scheduler", "pbt", "--interval", "2",
        "--trials", "2", "--loguniform", "learning_rate=0.001,0.01",
    )  # fmt: skip
    assert marker.exists()
    assert "[  2/2]" in text and "FAILED" not in text, text
    runs = records(folder_with_store)
    assert sorted(run.data.tags["member"] for run in runs) == ["1", "2"]
    assert {run.info.status for run in runs} == {"FINISHED"}
    (sweep,) = records(folder_with_store, "sweep")
    assert sweep.info.status == "FINISHED" and sweep.data.metrics["failed_trials"] == 0
    client = mlflow.MlflowClient(f"sqlite:///{folder_with_store}/mlruns/mlflow.db")
    for run in runs:
        curve = client.get_metric_history(run.info.run_id, "val/accuracy")
        assert len({point.step for point in curve}) == len(curve) == 3, [point.step for point in curve]
        (row,) = [r for r in text.splitlines() if r.startswith(f"| member={run.data.tags['member']} ")]
        assert f" {run.data.metrics['val/accuracy']:.4f} " in row


def test_a_stopped_sweep_has_trials_that_never_began():
    run = {"setting": {"epochs": 1}, "seed": 0}
    results = [
        argparse.Namespace(config={"trial": run}, metrics={"runs": [{**run, "metrics": {}}]}, error=None),
        argparse.Namespace(config={"trial": run}, metrics={}, error=None),
        argparse.Namespace(config=None, metrics={}, error=None),
        argparse.Namespace(config=None, metrics=None, error="no worker came"),
    ]
    outcome = execution.outcome_of(results, interrupted=True)
    assert outcome.finished == [(run, {})] and not outcome.stopped
    assert outcome.failures == ["a trial without a worker: no worker came"]


@pytest.mark.parametrize("scheduler", ["asha", "median"])
def test_a_scheduler_stops_a_trial_that_is_behind(scheduler, folder_with_store):
    text = output_of(
        folder_with_store, "mlp_fashion", *DIGITS, "--epochs", "6", "--grid", "learning_rate=0.005,0.01,1e-7",
        "--scheduler", scheduler, "--grace", "2", "--metric", "val/loss", "--max-concurrent", "1",
    )  # fmt: skip
    assert "stopped early: learning_rate=1e-07 seed=0" in text
    assert "| learning_rate=1e-07" not in text
    stopped = [run for run in records(folder_with_store) if "stopped" in run.data.tags]
    assert [run.data.params["learning_rate"] for run in stopped] == ["1e-07"]
    assert stopped[0].info.status == "KILLED"
    client = mlflow.MlflowClient(f"sqlite:///{folder_with_store}/mlruns/mlflow.db")
    epochs = {
        run.data.params["learning_rate"]: len(client.get_metric_history(run.info.run_id, "val/accuracy"))
        for run in records(folder_with_store)
    }
    assert epochs == {"0.01": 6, "0.005": 6, "1e-07": 2 if scheduler == "asha" else epochs["1e-07"]}
    assert 2 <= epochs["1e-07"] < 6


def test_optuna_searches_where_it_was_good(folder_with_store):
    text = output_of(
        folder_with_store, "mlp_fashion", *DIGITS, "--epochs", "1", "--search", "optuna", "--trials", "6",
        "--loguniform", "learning_rate=1e-5,1e-1", "--choice", "optimizer=adamw,sgd",
        "--uniform", "dropout=0,0.5@optimizer=adamw", "--seeds", "2", "--max-concurrent", "1",
    )  # fmt: skip
    runs = records(folder_with_store)
    assert len(runs) == 12 and {run.info.status for run in runs} == {"FINISHED"}
    assert set(collections.Counter(run.data.tags["setting"] for run in runs).values()) == {2}
    for run in runs:
        assert 1e-5 <= float(run.data.params["learning_rate"]) <= 0.1
        assert ("dropout=" in run.data.tags["setting"]) == (run.data.params["optimizer"] == "adamw")
    assert "[ 12/12]" in text


def test_a_sweep_without_memory_or_that_is_none_is_not_resumed(tmp_path, monkeypatch, capsys):
    from recipes.engine import tracking
    from tuning import sweep

    monkeypatch.chdir(tmp_path)
    run = tracking.start(None, "mlp_fashion", "a run", {}, {"recipe": "mlp_fashion"})
    with pytest.raises(SystemExit) as stop:
        sweep.main(["--resume", run.id])
    assert stop.value.code == 2 and f"run {run.id} is no sweep" in capsys.readouterr().err
