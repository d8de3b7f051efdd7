"""Universal approximation: the construction's error, and the tracked run."""

import numpy as np
import pytest

from recipes import universal_approximation as recipe
from recipes.engine.errors import RecipeError
from recipes.engine.launch import run_recipe

pytestmark = pytest.mark.once


def test_a_steep_bump_is_the_indicator_of_its_interval():
    x = np.array([0.1, 0.4, 0.5, 0.9])
    np.testing.assert_allclose(recipe.bump(x, 0.3, 0.6, 1000), [0, 1, 1, 0], atol=1e-12)


def test_error_of_the_staircase_is_at_most_the_change_over_an_interval():
    # |d/dx (2 |x - 0.4|)| = 2: over a whole interval of 1/n the function changes by at most 2/n.
    x = np.linspace(0, 1, 1001)
    for intervals in (4, 16, 64):
        error = np.abs(
            recipe.staircase(recipe.ONE_D["corner"], x, intervals) - recipe.ONE_D["corner"](x[:, None])
        )
        assert error.max() <= 2 / intervals


@pytest.mark.parametrize("name", recipe.ONE_D)
def test_the_staircase_converges(name):
    errors = [recipe.stair_error(name, n) for n in (8, 32, 128)]
    assert errors[0] > 1.5 * errors[1] > 1.5 * 1.5 * errors[2]


def test_construction_is_a_network_with_one_hidden_layer():
    """The sum of bumps equals sum_i v_i sigmoid(k (x - b_i)) with one sigmoid a border."""
    x, n = np.linspace(0, 1, 50), 5
    function = recipe.ONE_D["waves"]
    heights = function(((np.arange(n) + 0.5) / n)[:, None])
    borders = np.concatenate([[-1.0], np.arange(1, n) / n, [2.0]])
    outer = np.diff(np.concatenate([[0.0], heights, [0.0]]))  # v_i: the step at each border
    network = (1 / (1 + np.exp(-20 * n * (x[:, None] - borders)))) @ outer
    np.testing.assert_allclose(network, recipe.staircase(function, x, n), atol=1e-9)


def test_a_run_learns_and_draws(tmp_path):
    config = recipe.Config.small(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
    metrics = run_recipe(config, recipe.train)
    for name in recipe.FUNCTIONS:
        key = f"rmse/{name.replace(' ', '_')}"
        assert metrics[f"{key}/widest"] < 0.9 * metrics[f"{key}/narrowest"]
    drawn = {path.stem for path in tmp_path.rglob("*.png")}
    assert drawn == {"construction", "fits", "error_by_width", "surfaces"}


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"largest": 0}, "--largest and --seeds must be at least 1"),
        ({"early_stopping": 1}, "--early-stopping is refused"),
    ],
)
def test_impossible_configurations(fields, sentence):
    with pytest.raises(RecipeError, match=sentence):
        recipe.Config(**fields)
