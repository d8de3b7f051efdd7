"""LeNet in NumPy: shapes, and the tracked run."""

import numpy as np
import pytest

from recipes import numpy_cnn as recipe
from recipes.engine.launch import run_recipe

pytestmark = pytest.mark.once


def test_the_network_is_lenet():
    model = recipe.build_model(recipe.Config(), (28, 28, 1), 10)
    x, shapes = np.zeros((2, 28, 28, 1), np.float32), []
    for layer in model.layers:
        x = layer(x)
        shapes.append(x.shape[1:])
    assert shapes == [
        (28, 28, 6),
        (14, 14, 6),
        (10, 10, 16),
        (5, 5, 16),
        (400,),
        (120,),
        (84,),
        (10,),
    ]
    # LeNet-5's own count is 60,000, with a second convolution that sees only a part of the maps.
    assert sum(w.size for w in model.weights) == 61_706


def test_small_images_are_enlarged():
    split = recipe.prepared(recipe.Split(np.arange(64).reshape(1, 8, 8, 1), np.zeros(1, int)), 0.0, 1.0)
    assert split.x.shape == (1, 16, 16, 1)
    np.testing.assert_array_equal(split.x[0, :2, :2, 0], 0)
    np.testing.assert_array_equal(split.x[0, :2, 2:4, 0], 1)


def test_a_run_learns_and_draws(tmp_path):
    config = recipe.Config.small(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
    metrics = run_recipe(config, recipe.train)
    assert metrics["test/accuracy"] > 0.85  # guessing has 0.1
    assert np.isfinite(metrics["test/loss"])
    drawn = {path.stem for path in tmp_path.rglob("*.png")}
    assert drawn == {"learning_curves", "filters", "feature_maps", "errors"}
