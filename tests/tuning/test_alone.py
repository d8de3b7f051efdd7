"""Sweeps without Ray: the same trials, and the same ends, in one process."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from recipes.engine import packs
from tests.tuning.sweeping import DIGITS, finished, records, started, until
from tuning import alone, sweep

pytestmark = pytest.mark.once

RATES = "learning_rate=0.01,0.001"


def run(folder, *words):
    """A sweep as a command, where Ray cannot be imported."""
    (folder / "ray").mkdir(exist_ok=True)
    (folder / "ray" / "__init__.py").write_text("raise AssertionError('Ray is loaded')\n")
    command = [sys.executable, "-m", "tuning.sweep", *words, "--no-ray"]
    environment = {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{os.getcwd()}"}
    return subprocess.run(command, cwd=folder, env=environment, text=True, capture_output=True)


def accuracies(folder):
    return {
        (child.data.tags["setting"], child.data.tags["seed"]): child.data.metrics["val/loss"]
        for child in records(folder)
        if child.info.status == "FINISHED"
    }


def test_trials_packed_or_not_end_as_on_ray(folder_with_store, tmp_path_factory):
    words = ["mlp_fashion", *DIGITS, "--epochs", "2", "--grid", RATES, "--seeds", "2"]
    single = run(folder_with_store, *words)
    assert single.returncode == 0, single.stderr
    assert "[  4/4] learning_rate=0.001 seed=1  val/accuracy" in single.stdout
    assert "epoch" not in single.stdout  # the trials' own lines
    assert sorted(finished(folder_with_store).values()) == [1] * 4
    (own,) = records(folder_with_store, "sweep")
    assert own.info.status == "FINISHED" and own.data.metrics["failed_trials"] == 0
    alone = accuracies(folder_with_store)

    other = tmp_path_factory.mktemp("packed")
    packed = run(other, *words, "--pack", "4")
    assert packed.returncode == 0, packed.stderr
    assert accuracies(other) == pytest.approx(alone, abs=1e-4)

    ray = tmp_path_factory.mktemp("ray")
    command = [sys.executable, "-m", "tuning.sweep", *words, "--max-concurrent", "1"]
    subprocess.run(
        command, cwd=ray, env={**os.environ, "PYTHONPATH": os.getcwd()}, check=True, capture_output=True
    )
    assert accuracies(ray) == alone  # bit for bit


def test_a_broken_setting_costs_no_other(folder_with_store):
    done = run(
        folder_with_store, "mlp_fashion", *DIGITS, "--epochs", "1", "--grid", "learning_rate=0.01,1e30"
    )
    assert done.returncode == 0 and "failed: learning_rate=1e+30 seed=0: " in done.stderr
    assert sorted(run.info.status for run in records(folder_with_store)) == ["FAILED", "FINISHED"]


@pytest.mark.parametrize("pack", ["1", "4"])
def test_a_stopped_sweep_leaves_no_run_running_and_goes_on(pack, folder_with_store):
    words = ["mlp_fashion", *DIGITS, "--epochs", "60", "--grid", RATES, "--seeds", "2", "--pack", pack]
    process = started(folder_with_store, *words, "--no-ray")
    until(lambda: records(folder_with_store), process)
    os.kill(process.pid, signal.SIGINT)
    assert process.wait(120) == 1, process.out.read_text()
    text = process.out.read_text()
    assert "Traceback" not in text
    (own,) = records(folder_with_store, "sweep")
    assert f"stopped: run {own.info.run_id} is marked KILLED" in text and own.info.status == "KILLED"
    assert "RUNNING" not in {run.info.status for run in records(folder_with_store)}
    again = started(folder_with_store, "--resume", own.info.run_id)
    assert again.wait(600) == 0, again.out.read_text()
    assert sorted(finished(folder_with_store).values()) == [1] * 4


def test_a_killed_sweep_goes_on(folder_with_store):
    words = ["mlp_fashion", *DIGITS, "--epochs", "60", "--grid", RATES, "--seeds", "2", "--no-ray"]
    process = started(folder_with_store, *words)
    until(lambda: finished(folder_with_store), process)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    until(lambda: records(folder_with_store, "sweep")[0].info.status == "KILLED", ended(process))
    (own,) = records(folder_with_store, "sweep")
    again = started(folder_with_store, "--resume", own.info.run_id)
    assert again.wait(600) == 0, again.out.read_text()
    assert sorted(finished(folder_with_store).values()) == [1] * 4
    assert {run.info.status for run in records(folder_with_store)} <= {"FINISHED", "KILLED"}


def test_a_sweep_that_goes_on_gets_ready_too(folder_with_store, monkeypatch):
    """Else its trials have more threads than the others, and other bits."""
    ready = []

    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.chdir(folder_with_store)
    monkeypatch.setattr(alone, "get_ready", lambda options, base: ready.append(options.resume))
    monkeypatch.setattr(alone, "run_trials", interrupted)
    with pytest.raises(SystemExit):
        sweep.main(["mlp_fashion", *DIGITS, "--grid", RATES, "--no-ray"])
    (own,) = records(folder_with_store, "sweep")
    with pytest.raises(SystemExit):
        sweep.main(["--resume", own.info.run_id])
    assert ready == [None, own.info.run_id]


def ended(process):
    """What `until` asks a process, of one that is not there any more."""

    class Ended:
        out = process.out

        @staticmethod
        def poll():
            return None

    return Ended


def test_a_time_budget_ends_it_between_trials(folder_with_store):
    done = run(
        folder_with_store, "mlp_fashion", *DIGITS, "--epochs", "1", "--grid", RATES, "--time-budget", "0.05"
    )
    assert done.returncode == 0 and "the time budget of 0 s is used up" in done.stdout, done.stderr
    assert len(finished(folder_with_store)) == len(records(folder_with_store)) == 1


@pytest.mark.parametrize(
    "words",
    [
        ["--search", "optuna", "--uniform", "dropout=0,0.5"],
        ["--scheduler", "asha", "--grid", RATES],
        ["--address", "auto", "--grid", RATES],
        ["--max-concurrent", "2", "--grid", RATES],
        ["--gpus-per-trial", "0.5", "--grid", RATES],
        ["--storage", "there", "--grid", RATES],
    ],
    ids=lambda words: words[0],
)
def test_what_only_ray_can_do_is_refused(words, capsys):
    with pytest.raises(SystemExit) as stopped:
        sweep.main(["mlp_fashion", *DIGITS, *words, "--no-ray"])
    assert stopped.value.code == 2
    assert f"{words[0]}" in (text := capsys.readouterr().err) and "--no-ray away" in text


def test_an_interrupted_pack_does_not_go_on(monkeypatch):
    began, going, done = threading.Event(), threading.Event(), []
    pack = packs.Pack()

    def job():
        began.set()
        while not going.is_set():
            pack._turn.wait(0.01)  # as a run waits for the others
        done.append("went on")

    def interrupted(thread):
        began.wait(60)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "join", interrupted)
        with pytest.raises(KeyboardInterrupt):
            pack.run([job, job])
    going.set()
    time.sleep(0.2)
    assert not done
    pack._turn.release()  # this test's threads are to end
    time.sleep(0.2)
    assert done == ["went on"] * 2
