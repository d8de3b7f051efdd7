"""The perceptron recipe: the rule's own mathematics, and the tracked run."""

import numpy as np
import pytest

from recipes import numpy_perceptron as recipe
from recipes import rerun
from recipes.engine import tracking
from recipes.engine.errors import RecipeError
from recipes.engine.launch import run_recipe
from tests.recipes.killing import last_run

pytestmark = pytest.mark.once


@pytest.mark.parametrize("seed", range(5))
def test_rule_stays_within_novikoffs_bound(seed):
    x, y = recipe.clouds(60, 0.2, seed)
    w, mistakes, path = recipe.perceptron(x, y)
    assert recipe.accuracy(w, x, y) == 1.0
    assert mistakes[-1] == 0 and sum(mistakes) == len(path)
    assert len(path) <= recipe.novikoff_bound(x, y)


def test_corrections_by_hand():
    # (1, 0) of class 1 and (-1, 0) of class 0. w = 0 is wrong on both: first w += (1, 0, 1), which has the
    # second point's sum at 0, still wrong: w -= (-1, 0, 1), giving (2, 0, 0), right on both.
    w, mistakes, path = recipe.perceptron(np.array([[1.0, 0.0], [-1.0, 0.0]]), np.array([1, 0]))
    np.testing.assert_array_equal(path, [[1, 0, 1], [2, 0, 0]])
    assert mistakes == [2, 0]
    np.testing.assert_array_equal(w, [2, 0, 0])


def test_no_line_has_xor_right():
    corners = np.c_[recipe.CORNERS, np.ones(4)]
    lines = np.random.default_rng(0).normal(size=(20_000, 3))
    right = ((lines @ corners.T > 0) == recipe.GATES["XOR"]).sum(axis=1)
    assert right.max() == 3


def test_weights_chosen_by_hand_compute_xor():
    hidden, output = recipe.xor_by_hand(recipe.CORNERS)
    np.testing.assert_array_equal(hidden, np.c_[recipe.GATES["OR"], recipe.GATES["AND"]])
    np.testing.assert_array_equal(output, recipe.GATES["XOR"])


def test_a_run_learns_and_draws(tmp_path):
    config = recipe.Config.small(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
    metrics = run_recipe(config, recipe.train)
    assert metrics["or/accuracy"] == metrics["and/accuracy"] == metrics["clouds/accuracy"] == 1.0
    assert metrics["xor/best_accuracy"] <= 0.75
    assert metrics["network/accuracy"] == 1.0
    drawn = {path.stem for path in tmp_path.rglob("*.png")}
    assert drawn == {"perceptron", "boundaries", "forward_pass", "hidden_space"}


def test_a_run_repeats(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tracking.Run, "figure", lambda *arguments: None)
    run_recipe(recipe.Config.small(epochs=50, points=20), recipe.train)
    assert rerun.rerun(last_run("numpy_perceptron").info.run_id)


def test_early_stopping_is_refused():
    with pytest.raises(RecipeError, match="--early-stopping is refused"):
        recipe.Config(early_stopping=1)
