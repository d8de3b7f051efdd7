"""A run that is killed and resumed ends with the same bits as one that was not."""

import contextlib
import dataclasses
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

from recipes.engine import backend, checkpoints, launch, programs, training
from recipes.engine.errors import RecipeError
from recipes.engine.parts import Part
from recipes.engine.progress import Progress
from tests.recipes import killable
from tests.recipes import killing as stopped
from tests.recipes.killing import Killed, client, curves, killing
from tests.recipes.recorded import Recorded

ROOT = Path(__file__).parents[2]
KILLS = int(os.environ.get("KILLS", "1"))  # 20 in the recorded run: results/training.md


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One store for all: making one takes longer than a run."""
    return tmp_path_factory.mktemp("resume")


@pytest.fixture
def here(folder, monkeypatch):
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture(scope="module", autouse=True)
def compiled_once():
    """The runs of this file share their programs: compiling took most of their time."""
    programs.keep()
    yield
    programs._kept = None


@pytest.fixture(scope="module")
def whole(folder):
    """The run that nothing interrupts: (curves, final state)."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        run(out="whole.npz")
        return curves(last_run()), dict(np.load("whole.npz"))
    finally:
        os.chdir(before)


def run(**fields):
    config = killable.Config(**{**killable.CONFIG, "backend": keras.backend.backend(), **fields})
    keras.utils.clear_session(free_memory=False)
    return launch.run_recipe(config, killable.train)


def last_run():
    return stopped.last_run("killable")


def checkpoints_of(found):
    return Path("mlruns/checkpoints", found.info.run_id)


def assert_same(whole, path):
    """The run in this folder has the curves and the final state of the whole one, bit for bit."""
    found = last_run()
    assert found.info.status == "FINISHED"
    assert curves(found) == whole[0]
    state = dict(np.load(path))
    assert state.keys() == whole[1].keys()
    for name, value in state.items():
        np.testing.assert_array_equal(value, whole[1][name], err_msg=name)


@pytest.mark.parametrize(
    ("owner", "name", "call"),
    [
        (Progress, "after_step", 3),  # before the first checkpoint
        (Progress, "after_step", 60),  # in the middle of an epoch
        (Progress, "_end_epoch", 2),
        (training, "averaged", 3),  # in validation
        (checkpoints.os, "fsync", 5),  # in the middle of writing a checkpoint
        (checkpoints.os, "replace", 4),
        (checkpoints, "prune", 6),
        (Progress, "finish", 1),  # after the last step
    ],
)
def test_resume_gives_the_same_bits(here, monkeypatch, whole, owner, name, call):
    with monkeypatch.context() as patch:
        killing(patch, owner, name, call)
        with pytest.raises(Killed):
            run()
    client().update_run(last_run().info.run_id, status="RUNNING")  # what a kill leaves
    run(out="resumed.npz", resume=last_run().info.run_id)
    assert_same(whole, "resumed.npz")


def test_kill_minus_nine_at_random_moments(here, whole):
    """Runs are killed and resumed until they finish, as many as it takes for the number of kills."""
    moments = random.Random()  # other moments each time: that is the point
    killed = runs = 0
    while killed < KILLS:
        resume, runs = [], runs + 1
        while not resume or last_run().info.status != "FINISHED":
            delay = moments.uniform(0, 4) if killed < KILLS else None
            killed += killed_after(delay, resume)
            resume = ["--resume", last_run().info.run_id]
        assert_same(whole, here / "state.npz")
    print(f"{killed} kills of {runs} runs")


@pytest.mark.once
def test_resume_on_another_backend_carries_on(here, monkeypatch):
    """Weights, optimizer, averages and data go along: the next epochs are no worse than the last."""
    other = "jax" if keras.backend.backend() != "jax" else "torch"
    if other not in backend.installed():
        pytest.skip(f"needs {other} beside {keras.backend.backend()}")
    with monkeypatch.context() as patch:
        killing(patch, Progress, "_end_epoch", 3)
        with pytest.raises(Killed):
            run()
    before = [value for _, value in curves(last_run())["val/loss"]]
    monkeypatch.setenv("KERAS_BACKEND", other)
    with pytest.raises(AssertionError, match=f"is still running, as process {os.getpid()}: stop it first"):
        killed_after(None, ["--resume", last_run().info.run_id])
    client().update_run(last_run().info.run_id, status="KILLED")
    assert not killed_after(None, ["--resume", last_run().info.run_id])
    assert last_run().info.status == "FINISHED"
    after = [value for _, value in curves(last_run())["val/loss"]]
    assert after[: len(before)] == before and len(after) == killable.CONFIG["epochs"]
    assert max(after[len(before) :]) < before[-1] + 0.1


def killed_after(delay, resume):
    """Train in another process, killed `delay` seconds after training began; whether it was."""
    store = f"sqlite:///{Path('mlruns/mlflow.db').absolute()}"
    words = ["-m", "tests.recipes.killable", "state.npz", "--tracking-uri", store, *resume]
    process = subprocess.Popen(
        [sys.executable, *words],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    if delay is not None:
        for line in process.stdout:
            if line.startswith("training"):
                break
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(delay)
        process.kill()
    _, errors = process.communicate()
    assert process.returncode in (0, -signal.SIGKILL), errors
    return process.returncode == -signal.SIGKILL


def test_damaged_checkpoint_is_left_out(here, monkeypatch, whole, capsys):
    with monkeypatch.context() as patch:
        killing(patch, Progress, "after_step", 60)
        with pytest.raises(Killed):
            run()
    newest = max(checkpoints_of(last_run()).glob("step-*.npz"))
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    run(out="resumed.npz", resume=last_run().info.run_id)
    assert f"{newest.name} is damaged: taking the one before it" in capsys.readouterr().err
    assert_same(whole, "resumed.npz")


@pytest.mark.once
def test_damage_with_nothing_before_it_is_said(tmp_path, capsys):
    path = checkpoints.save(tmp_path, "step-1", {}, {})
    path.write_bytes(path.read_bytes()[:-1])
    assert checkpoints.newest(tmp_path, "step") is None
    assert "is damaged, and there is none before it" in capsys.readouterr().err


def test_full_disk_costs_a_warning_and_no_checkpoint(here, monkeypatch, whole, capsys):
    original, calls = checkpoints.os.fsync, []

    def full(handle):
        calls.append(1)
        if 5 < len(calls) < 30:
            raise OSError(28, "No space left on device")
        return original(handle)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints.os, "fsync", full)
        run(out="state.npz")
    assert "No space left on device): the run goes on" in capsys.readouterr().err
    assert not list(checkpoints_of(last_run()).glob("*.part"))
    assert_same(whole, "state.npz")


def full_disk(handle):
    raise OSError(28, "No space left on device")


@pytest.mark.once
def test_a_full_disk_promises_no_resume_from_what_is_not_there(tmp_path, monkeypatch, capsys):
    def told():
        with monkeypatch.context() as patch:
            patch.setattr(checkpoints.os, "fsync", full_disk)
            assert checkpoints.attempt(tmp_path, "step-2", {}, {}, "at step 2") is None
        return capsys.readouterr().err

    assert "the run goes on, but cannot be resumed" in told()
    checkpoints.save(tmp_path, "best", {}, {})
    assert "the run goes on, but cannot be resumed" in told()
    checkpoints.save(tmp_path, "step-1", {}, {})
    assert "the run goes on, and could be resumed from the one before" in told()


@pytest.mark.once
def test_what_a_part_gave_is_not_computed_again(tmp_path):
    config = killable.Config(checkpoint_dir=tmp_path)
    Part(Recorded(), config, "fold1").once(lambda: {"x": np.ones(2)})
    resumed = dataclasses.replace(config, resume=Recorded.id)
    np.testing.assert_equal(Part(Recorded(), resumed, "fold1").once(pytest.fail), {"x": np.ones(2)})


@pytest.mark.once
def test_a_full_disk_leaves_a_part_its_steps(tmp_path, monkeypatch):
    """They are all there is to go on with, until what the part gave is written."""
    part = Part(Recorded(), killable.Config(checkpoint_dir=tmp_path), "fold1")
    steps = tmp_path / part.id
    steps.mkdir(parents=True)
    checkpoints.save(steps, "step-1", {}, {})
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints.os, "fsync", full_disk)
        part.once(dict)
    assert len(list(steps.glob("step-*.npz"))) == 1
    part.once(dict)
    assert not list(steps.glob("step-*.npz"))


def test_finished_run_keeps_only_its_best_checkpoint(here):
    run()
    names = [path.name for path in checkpoints_of(last_run()).iterdir()]
    assert [name.split("-")[0] for name in names] == ["best"]
    arrays, facts = checkpoints.newest(checkpoints_of(last_run()), "best")
    losses = [value for _, value in curves(last_run())["val/loss"]]
    assert facts["best"] == min(losses)
    assert len(arrays) == len(facts["variables"])


def test_early_stopping_takes_the_best_weights(here):
    """A huge learning rate at once spoils what was learned: validation never gets better than at first."""
    metrics = run(out="state.npz", epochs=30, early_stopping=2, ema=None, clip_norm=None)
    losses = [value for _, value in curves(last_run())["val/loss"]]
    assert len(losses) < 30
    assert len(losses) - 1 - int(np.argmin(losses)) == 2
    # What the run reports is theirs, too.
    accuracies = [value for _, value in curves(last_run())["val/accuracy"]][: len(losses)]
    assert metrics["val/accuracy"] == accuracies[-3] != accuracies[-1]
    arrays, _ = checkpoints.newest(checkpoints_of(last_run()), "best")
    state = np.load("state.npz")
    np.testing.assert_array_equal(state["0"], arrays["model/0000"])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"resume": "no-such-run"}, "there is no run 'no-such-run'"),
        ({"checkpoint_dir": Path("a-file/checkpoints")}, "choose another --checkpoint-dir"),
    ],
)
def test_bad_input(here, fields, message):
    Path("a-file").touch()
    with pytest.raises(RecipeError, match=message):
        run(**fields)


def test_a_finished_run_cannot_be_resumed(here):
    run(epochs=1)
    with pytest.raises(RecipeError, match="is finished"):
        run(resume=last_run().info.run_id)


def test_a_changed_architecture_is_refused(here, monkeypatch):
    with monkeypatch.context() as patch:
        killing(patch, Progress, "after_step", 20)
        with pytest.raises(Killed):
            run()
    original = killable.build_model
    monkeypatch.setattr(
        killable, "build_model", lambda: keras.Sequential([original(), keras.layers.Dense(10)])
    )
    with pytest.raises(RecipeError, match="its model was another one"):
        run(resume=last_run().info.run_id)
