"""Recipes that do more than train one network go on after a kill as if it had not been."""

import importlib

import keras
import pytest

from recipes.engine import launch, programs, tracking
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
    ("ntk_width", {"epochs": 20, "widths": "4,8"}, [(Part, "once", 4), (Part, "flush", 3)]),
]


@pytest.fixture(autouse=True, scope="module")
def compiled_once():
    programs.keep()
    yield
    programs._kept = None


@pytest.mark.parametrize(("name", "fields", "kills"), CASES, ids=[case[0] for case in CASES])
def test_killed_runs_end_with_the_same_bits(tmp_path, monkeypatch, name, fields, kills):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tracking.Run, "figure", lambda *arguments: None)  # drawing takes longest
    recipe = importlib.import_module(f"recipes.{name}")

    def run(**more):
        keras.utils.clear_session(free_memory=False)
        launch.run_recipe(recipe.Config.small(**fields, **more), recipe.train)
        return curves(last_run(name))

    whole, resume = run(), None
    for kill in kills:
        with monkeypatch.context() as patch:
            killing(patch, *kill)
            with pytest.raises(Killed):
                run(resume=resume)
        resume = killed_run(name)
    assert run(resume=resume) == whole
    checkpoints = tmp_path.glob("mlruns/checkpoints/*/**/*.npz")
    assert {path.name.split("-")[0] for path in checkpoints} <= {"best"}
