"""A run ends in a true state and loses nothing, whatever the store does."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import keras
import mlflow
import numpy as np
import pytest

from recipes.engine import interruption, outage, recorder, tracking
from recipes.engine import store as stores
from recipes.engine.errors import RecipeError

pytestmark = pytest.mark.once

create_store = stores._create_store  # as it is outside the tests, see conftest.py


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return f"sqlite:///{tmp_path}/mlflow.db"


def begin(store, **changes):
    return tracking.start(
        store, **{"experiment": "e", "run_name": "r", "params": {"a": 1}, "tags": {"b": "2"}, **changes}
    )


def test_what_a_run_records(store):
    run = begin(store)
    run.metrics({"train/loss": 2.0}, step=1)
    run.metrics({"train/loss": 1.0, "val/loss": 3.0}, step=5)
    run.text("notes.txt", "hello")
    run.end("FINISHED")
    client = mlflow.MlflowClient(store)
    stored = client.get_run(run.id)
    assert (
        stored.info.status == "FINISHED" and stored.data.params == {"a": "1"} and stored.data.tags["b"] == "2"
    )
    history = client.get_metric_history(run.id, "train/loss")
    assert [(m.step, m.value) for m in history] == [(1, 2.0), (5, 1.0)]
    assert run.history["train/loss"] == [(1, 2.0), (5, 1.0)] and run.last_step == 5
    assert [f.path for f in client.list_artifacts(run.id)] == ["notes.txt"]


def test_the_default_store_lies_under_mlruns(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    begin(None).end("FINISHED")
    assert (tmp_path / "mlruns/mlflow.db").exists()


def test_a_server_that_does_not_answer_is_found_out_within_seconds():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start = time.perf_counter()
    with pytest.raises(RecipeError, match=f"no tracking server answers at http://127.0.0.1:{port}"):
        begin(f"http://127.0.0.1:{port}")
    assert time.perf_counter() - start < 10


def test_a_store_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RecipeError, match="cannot make the tracking store's folder"):
        begin(f"sqlite:///{tmp_path}/file/mlflow.db")


def test_an_unknown_kind_of_store():
    with pytest.raises(RecipeError, match="cannot be used"):
        begin("ftpx://nowhere")


def test_metrics_wait_for_a_store_that_is_away(store, monkeypatch, capsys):
    monkeypatch.setattr(tracking, "AT_LEAST", 0.0)
    run = begin(store)
    answering = run._store.client.log_batch

    def away(*args, **kwargs):
        raise mlflow.exceptions.MlflowException("away")

    monkeypatch.setattr(run._store.client, "log_batch", away)
    run.metrics({"loss": 1.0}, step=1)
    assert "metrics not stored (away)" in capsys.readouterr().err
    monkeypatch.setattr(run._store.client, "log_batch", answering)
    run.metrics({"loss": 0.5}, step=2)
    run.end("FINISHED")
    assert len(mlflow.MlflowClient(store).get_metric_history(run.id, "loss")) == 2


def test_calls_to_a_slow_store_are_few(store, monkeypatch):
    """Steps that take no time share calls; none is lost, and `flush` does not wait."""
    monkeypatch.setattr(tracking, "AT_LEAST", 0.0)
    run, calls = begin(store), []
    answering = run._store.client.log_batch

    def slow(*args, **kwargs):
        calls.append(1)
        time.sleep(0.05)
        return answering(*args, **kwargs)

    monkeypatch.setattr(run._store.client, "log_batch", slow)
    for step in range(100):
        run.metrics({"loss": 1 / (step + 1)}, step)
    assert len(calls) <= 3
    run.flush()
    stored = mlflow.MlflowClient(store).get_metric_history(run.id, "loss")
    assert [(point.step, point.value) for point in stored] == run.history["loss"]
    run.end("FINISHED")


def test_a_short_run_sends_all_at_once(store, monkeypatch):
    run, calls = begin(store), []
    answering = run._store.client.log_batch
    monkeypatch.setattr(
        run._store.client, "log_batch", lambda *args, **kwargs: (calls.append(1), answering(*args, **kwargs))
    )
    run.tags({"colour": "blue"})
    for step in range(1000):  # more than MLflow takes in one call
        run.metrics({"loss": 1 / (step + 1)}, step)
    run.end("FINISHED")
    stored = mlflow.MlflowClient(store)
    assert len(calls) == 2 and len(stored.get_metric_history(run.id, "loss")) == 1000
    assert stored.get_run(run.id).data.tags["colour"] == "blue"


def test_metrics_of_a_store_that_stays_away_are_kept_in_a_file(store, monkeypatch):
    run = begin(store)

    def away(*args, **kwargs):
        raise mlflow.exceptions.MlflowException("away")

    monkeypatch.setattr(run._store.client, "log_batch", away)
    run.metrics({"loss": 1.0}, step=1)
    with pytest.raises(outage.Away, match="1 metric values and the state FINISHED are kept") as lost:
        run.end("FINISHED")
    assert lost.value.kept == outage.UNSENT / f"{run.id}.json"
    kept = json.loads(lost.value.kept.read_text())
    assert kept["metrics"][0][:2] == ["loss", 1.0] and kept["metrics"][0][3] == 1
    assert kept["status"] == "FINISHED"


def test_a_full_disk_loses_what_it_must_and_says_so(store, monkeypatch, capsys):
    """Neither the model, nor the run's end, nor the file that would keep it has room."""
    run = begin(store)

    def full(*args, **kwargs):
        told = ["(raised as a result of Query-invoked autoflush)", "database or disk is full", "[SQL: ...]"]
        raise mlflow.exceptions.MlflowException("\n".join(told))

    def unwritable(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(mlflow.MlflowClient, "create_logged_model", full)
    run.model(keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)]), np.zeros((1, 2)))
    assert capsys.readouterr().err.endswith("model model not stored (database or disk is full)\n")
    monkeypatch.setattr(run._store.client, "log_batch", full)
    monkeypatch.setattr(tracking, "keep", unwritable)
    run.metrics({"loss": 1.0}, step=1)
    with pytest.raises(outage.Away, match=r"1 metric values .* kept .*No space left.*: they are lost"):
        run.end("FINISHED")


def test_what_is_kept_of_a_run_is_sent_by_the_next_one(store, tmp_path, monkeypatch, capsys):
    run = begin(store)

    def away(*args, **kwargs):
        raise mlflow.exceptions.MlflowException("away")

    for call in ("log_batch", "set_tag", "set_terminated"):
        monkeypatch.setattr(run._store.client, call, away)
    run.tags({"colour": "blue"})
    run.metrics({"loss": 1.0}, step=1)
    with pytest.raises(outage.Away):
        run.end("FAILED", "it broke")
    theirs = outage.keep("0" * 32, json.dumps({"status": "FINISHED", "tags": {}, "metrics": []}))
    begin(f"sqlite:///{tmp_path}/other.db").end("FINISHED")  # it knows neither of them
    assert len([*outage.UNSENT.iterdir()]) == 2
    begin(store).end("FINISHED")
    assert f"run {run.id}: 1 metric values and its end, FAILED, are delivered" in capsys.readouterr().out
    stored = mlflow.MlflowClient(store).get_run(run.id)
    assert stored.info.status == "FAILED" and stored.data.metrics == {"loss": 1.0}
    assert stored.data.tags["colour"] == "blue" and stored.data.tags["error"] == "it broke"
    assert [*outage.UNSENT.iterdir()] == [theirs]


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(outage, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(outage, "_given_up", set())


def failing(times, error):
    """A call that fails some times, then answers how often it was called."""
    calls = []

    def call():
        calls.append(1)
        if len(calls) <= times:
            raise error
        return len(calls)

    return call


def test_a_run_begins_and_ends_when_the_store_is_back(store, monkeypatch, impatient):
    fail = failing(2, outage.Away("away"))
    monkeypatch.setattr(stores, "probe", lambda uri: fail())
    run = begin(store, patience=30)
    for call in ("log_batch", "set_terminated", "log_artifact"):
        original, fail = (
            getattr(run._store.client, call),
            failing(2, mlflow.exceptions.MlflowException("away")),
        )
        monkeypatch.setattr(
            run._store.client,
            call,
            lambda *words, fail=fail, original=original, **named: (fail(), original(*words, **named)),
        )
    run.metrics({"loss": 1.0}, step=1)
    (outage.UNSENT.parent).mkdir()
    note = outage.UNSENT.parent / "note.txt"
    note.write_text("hello")
    run.file(note)
    run.end("FINISHED")
    client = mlflow.MlflowClient(store)
    assert client.get_run(run.id).info.status == "FINISHED"
    assert len(client.get_metric_history(run.id, "loss")) == 1
    assert [f.path for f in client.list_artifacts(run.id)] == ["note.txt"]


def test_who_waited_in_vain_does_not_wait_again(store, impatient):
    away = outage.Away("away")
    begin = time.perf_counter()
    with pytest.raises(outage.Away):
        outage.insist(store, 0.3, failing(10**6, away))
    assert 0.1 < time.perf_counter() - begin < 5  # asked again in between
    call = failing(1, away)
    with pytest.raises(outage.Away):
        outage.insist(store, 30, call)
    assert outage.insist(store, 0, call) == 2  # it answers: from now on, it is waited for
    assert outage.insist(store, 30, failing(3, away)) == 4


def test_an_error_of_the_caller_is_not_waited_for(impatient):
    call = failing(1, mlflow.exceptions.MlflowException.invalid_parameter_value("no"))
    with pytest.raises(mlflow.exceptions.MlflowException):
        outage.insist("file:x", 30, call)
    assert call() == 2


def test_children_that_nobody_runs_are_ended(store):
    parent = begin(store)
    orphan = begin(store, tags={"mlflow.parentRunId": parent.id})
    done = begin(store, tags={"mlflow.parentRunId": parent.id})
    done.end("FINISHED")
    assert stores.Store(store).end_children("e", parent.id) == 1
    client = mlflow.MlflowClient(store)
    assert client.get_run(orphan.id).info.status == "KILLED"
    assert client.get_run(done.id).info.status == "FINISHED"


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_command_is_marked_killed_and_keeps_its_metrics(folder_with_store, sent):
    process = subprocess.Popen(
        [sys.executable, "-m", "recipes.cnn_cifar", "--dataset", "digits", "--epochs", "999", "--no-augment"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=folder_with_store,
        env={**os.environ, "PYTHONPATH": os.getcwd(), "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    for line in process.stdout:
        if line.startswith("epoch ") and not line.startswith("epoch 1/"):  # not every epoch has a line
            break
    process.send_signal(sent)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1, err
    assert "error: stopped at step" in err and "KILLED" in err and "Traceback" not in err
    client = mlflow.MlflowClient(f"sqlite:///{folder_with_store}/mlruns/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("cnn_cifar").experiment_id])
    assert run.info.status == "KILLED"
    assert len(client.get_metric_history(run.info.run_id, "val/accuracy")) >= 2
    assert any("learning_curves" in f.path for f in client.list_artifacts(run.info.run_id, "figures"))


def test_ctrl_c_waits_for_the_store_but_not_twice():
    """A transaction that it breaks would keep the store locked."""
    handlers = interruption.listen()
    done = []

    def call():
        os.kill(os.getpid(), signal.SIGINT)
        done.append("sent")

    try:
        with pytest.raises(KeyboardInterrupt):
            outage.insist("file:x", 0, call)
        assert done == ["sent"]
        outage.insist("file:x", 0, lambda: done.append("ended"))  # its end is sent after the wish
        with pytest.raises(KeyboardInterrupt):
            outage.insist("file:x", 0, call)
        assert done == ["sent", "ended"]
    finally:
        interruption.restore(handlers)


def test_a_kill_while_the_store_is_made_leaves_none(tmp_path, monkeypatch):
    """MLflow cannot mend a store whose tables are half made: it is there whole, or not at all."""
    from mlflow import MlflowClient

    monkeypatch.setattr(stores, "_create_store", create_store)

    class Killed(BaseException):
        pass

    def killed(*arguments, **named):
        raise Killed

    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "search_experiments", killed)
        with pytest.raises(Killed):
            stores.connect(uri)
    assert not (tmp_path / "mlflow.db").exists()
    client, _ = stores.connect(uri)
    assert client.search_experiments()


def test_ctrl_c_in_a_finalizer_is_not_lost(capsys):
    """Python prints and drops what a finalizer raises; the next step asks again, and nothing is printed."""

    class Unlucky:
        def __del__(self):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.1)

    before = signal.getsignal(signal.SIGINT)
    handlers = interruption.listen()
    try:
        interruption.check()
        unlucky = Unlucky()
        del unlucky
        with pytest.raises(KeyboardInterrupt):
            interruption.check()
    finally:
        interruption.restore(handlers)
    interruption.check()  # the next training in this process starts anew
    assert signal.getsignal(signal.SIGINT) is before
    assert "Traceback" not in capsys.readouterr().err


def test_a_process_of_its_own_records_a_run(store, tmp_path, monkeypatch):
    """The same calls, answers and errors as in this process, which does not import MLflow for them."""
    with recorder.beside(store):
        run = begin(store)
        assert isinstance(run._store, recorder.Recorder)
        run.metrics({"loss": 1.0}, step=3)
        run.text("notes.txt", "hello")
        run.end("KILLED")
        with pytest.raises(RecipeError, match=r"there is no run 'abc' in .*mlflow.db") as error:
            tracking.resume(store, "abc")
        assert error.value.exit_code == 2
        again = tracking.resume(store, run.id)
        assert again._stored == {"loss": [(3, 1.0)]} and again.experiment == "e"
        assert again._store._here is None
        again._store._process.kill()  # the run goes on without
        again.metrics({"loss": 0.5}, step=4)
        again.end("FINISHED")
        assert again._store._here is not None
    client = mlflow.MlflowClient(store)
    assert client.get_run(run.id).info.status == "FINISHED"
    assert [(m.step, m.value) for m in client.get_metric_history(run.id, "loss")] == [(3, 1.0), (4, 0.5)]
    assert [f.path for f in client.list_artifacts(run.id)] == ["notes.txt"]


def test_a_broken_call_leaves_no_answer_for_the_next(store, monkeypatch):
    with recorder.beside(store):
        run = begin(store)
        with monkeypatch.context() as patch:
            patch.setattr(recorder.pickle, "load", lambda file: signal.raise_signal(signal.SIGINT))
            with pytest.raises(KeyboardInterrupt):
                run._store.look_up(run.id)
        assert run._store.look_up(run.id).params == {"a": "1"}
        run.end("KILLED")
    assert mlflow.MlflowClient(store).get_run(run.id).info.status == "KILLED"


def test_a_run_that_its_process_did_not_end_was_killed(store):
    with recorder.beside(store):
        ended, left = begin(store), begin(store)
        ended.end("FAILED")
        left.metrics({"loss": 1.0}, step=1)
        left.flush()
    client = mlflow.MlflowClient(store)
    assert client.get_run(ended.id).info.status == "FAILED"
    assert client.get_run(left.id).info.status == "KILLED"


def test_a_store_that_cannot_be_opened_is_said_when_the_run_is_needed(tmp_path):
    (tmp_path / "file").write_text("")
    uri = f"sqlite:///{tmp_path}/file/mlflow.db"
    with recorder.beside(uri):
        run = begin(uri)
        for _ in range(2):  # the run's own end says so again
            with pytest.raises(RecipeError, match="cannot make the tracking store's folder"):
                run.end("FAILED")


def test_a_killed_run_is_resumed_after_its_recorder_ended(store, monkeypatch):
    run = begin(store)
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as busy:
        run.tags({**tracking.process_tags(), "recorder": busy.pid})
        run.end("KILLED")
        monkeypatch.setattr(tracking, "LAST_CALL", 0.2)
        with pytest.raises(RecipeError, match=f"process {busy.pid} still records"):
            tracking.resume(store, run.id)
    tracking.resume(store, run.id).end("FINISHED")


def test_a_local_store_does_not_wait_for_the_disk(tmp_path):
    client, _ = stores.connect(f"sqlite:///{tmp_path / 'mlflow.db'}")
    client.search_experiments()
    with client._tracking_client.store.engine.connect() as connection:
        ask = connection.exec_driver_sql
        assert ask("PRAGMA journal_mode").scalar() == "wal"
        assert ask("PRAGMA synchronous").scalar() == 1  # NORMAL


def test_a_store_made_by_mlflow_alone_keeps_its_journal(tmp_path):
    from mlflow import MlflowClient

    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    MlflowClient(uri).search_experiments()
    client, _ = stores.connect(uri)
    with client._tracking_client.store.engine.connect() as connection:
        ask = connection.exec_driver_sql
        assert (ask("PRAGMA journal_mode").scalar(), ask("PRAGMA synchronous").scalar()) == ("delete", 2)
