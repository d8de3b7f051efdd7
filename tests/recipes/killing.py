"""Stopping runs in the middle, and looking at what MLflow has of them."""

from pathlib import Path

from mlflow import MlflowClient

CLOCKED = ("duration_seconds", "per_second")  # parts of names of metrics that are about time


class Killed(BaseException):
    """Stands for SIGKILL within a process: nothing catches it but the test."""


def killing(monkeypatch, owner, name, call):
    """Make the `call`-th call of a function the last thing that the run does."""
    calls, original = [], getattr(owner, name)

    def counted(*args, **kwargs):
        calls.append(1)
        if len(calls) == call:
            raise Killed
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, counted)


def client():
    return MlflowClient(f"sqlite:///{Path('mlruns/mlflow.db').absolute()}")


def last_run(experiment):
    """The newest run of an experiment in this folder's store."""
    number = client().get_experiment_by_name(experiment).experiment_id
    return client().search_runs([number], order_by=["attributes.start_time DESC"], max_results=1)[0]


def killed_run(experiment):
    """The identifier of the newest run, in the state that a kill leaves it in."""
    found = last_run(experiment)
    client().update_run(found.info.run_id, status="RUNNING")
    return found.info.run_id


def curves(found):
    """All points of a run's metrics, time apart."""
    return {
        name: [(point.step, point.value) for point in client().get_metric_history(found.info.run_id, name)]
        for name in found.data.metrics
        if not any(word in name for word in CLOCKED)
    }
