"""Recipes that do more than train one network go on after a kill as if it had not been."""

import importlib

import keras
import numpy as np
import pytest

from layers.autograd.optim import Adam
from recipes.engine import launch, parts, programs, tracking
from recipes.engine.parts import Part
from recipes.engine.progress import Progress
from tests.recipes.killing import Killed, curves, killed_run, killing, last_run

pytestmark = pytest.mark.once

# Recipe, what is changed in its small configuration, and the calls during which its runs are killed, one run
# after the other.
CASES = [
    (
        "mlp_housing",
        {"folds": 2, "epochs": 3, "trees": 5, "checkpoint_every": "10"},
        [(Progress, "after_step", 32), (Progress, "finish", 1)],
    ),
    (
        "loss_landscape",
        {"epochs": 3, "filters": 2, "checkpoint_every": "7"},
        [(Progress, "after_step", 25)],
    ),
    (
        "numpy_mlp",
        {"epochs": 2, "checkpoint_every": "10", "early_stopping": 2},
        [(Progress, "after_step", 50)],
    ),
    ("numpy_cnn", {"epochs": 2, "checkpoint_every": "10"}, [(Progress, "_end_epoch", 2)]),
    (
        "numpy_rnn",  # with a state that is carried from batch to batch
        {"epochs": 2, "checkpoint_every": "10"},
        [(Progress, "after_step", 150), (Part, "flush", 20)],
    ),
    (
        "rnn_shakespeare",  # every part of a batch with its own
        {"batch_size": 128, "accumulate": 4, "units": 8, "checkpoint_every": "10"},
        [(Progress, "after_step", 150)],
    ),
    ("ntk_width", {"epochs": 20, "widths": "4,8"}, [(Part, "once", 4), (Part, "flush", 3)]),
    (
        "universal_approximation",
        {"epochs": 20, "largest": 2, "seeds": 2},
        [(Adam, "step", 30), (Part, "flush", 3), (parts.checkpoints, "prune", 5)],
    ),
    (
        "numpy_perceptron",
        {"epochs": 100, "points": 20},
        [(Part, "metrics", 20), (parts.checkpoints, "prune", 1)],
    ),
]


@pytest.fixture(autouse=True, scope="module")
def compiled_once():
    programs.keep()
    yield
    programs._kept = None


def remembered(monkeypatch):
    """What training ends with: what parts give, and weights and optimizer state of a run without parts."""
    ended, once, finish = {}, Part.once, Progress.finish

    def of_part(part, compute):
        ended[part.name] = once(part, compute)
        return ended[part.name]

    def of_run(progress):
        last = finish(progress)
        if not isinstance(progress.run, Part):
            ended["run"] = progress._arrays()
        return last

    monkeypatch.setattr(Part, "once", of_part)
    monkeypatch.setattr(Progress, "finish", of_run)
    return ended


@pytest.mark.parametrize(("name", "fields", "kills"), CASES, ids=[case[0] for case in CASES])
def test_killed_runs_end_with_the_same_bits(tmp_path, monkeypatch, name, fields, kills):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tracking.Run, "figure", lambda *arguments: None)  # drawing takes longest
    recipe = importlib.import_module(f"recipes.{name}")
    ended = remembered(monkeypatch)

    def run(**more):
        keras.utils.clear_session(free_memory=False)
        ended.clear()
        launch.run_recipe(recipe.Config.small(**fields, **more), recipe.train)
        return curves(last_run(name)), dict(ended)

    (whole, whole_ended), resume = run(), None
    for kill in kills:
        with monkeypatch.context() as patch:
            killing(patch, *kill)
            with pytest.raises(Killed):
                run(resume=resume)
        resume = killed_run(name)
    resumed, resumed_ended = run(resume=resume)
    assert resumed == whole
    assert whole_ended
    np.testing.assert_equal(resumed_ended, whole_ended)
    checkpoints = tmp_path.glob("mlruns/checkpoints/*/**/*.npz")
    assert {path.name.split("-")[0] for path in checkpoints} <= {"best"}
