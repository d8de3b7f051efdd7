"""The two-layer network: gradients by hand against recorded ones, and the tracked run."""

import os
import subprocess
import sys

import numpy as np
import pytest

from layers.autograd import grad
from layers.autograd.nn.losses import sparse_categorical_crossentropy
from recipes import numpy_mlp as recipe
from recipes.engine.errors import RecipeError
from recipes.engine.launch import run_recipe

pytestmark = pytest.mark.once


def test_gradients_by_hand_equal_recorded_ones(rng):
    model = recipe.build_model(recipe.Config.small(hidden=7), 5, 3)
    for weight in model.weights:
        weight.data = weight.data.astype(np.float64) + 0.1
    x, y = rng.normal(size=(6, 5)), rng.integers(0, 3, 6)
    loss, derived = recipe.manual_gradients([w.data for w in model.weights], x, y)
    recorded_loss = sparse_categorical_crossentropy(y, model(x), from_logits=True).mean()
    assert loss == pytest.approx(recorded_loss.item(), rel=1e-12)
    for mine, other in zip(derived, grad(recorded_loss, model.weights), strict=True):
        np.testing.assert_allclose(mine, other.data, rtol=1e-10, atol=1e-13)


def test_a_run_learns_and_draws(tmp_path):
    config = recipe.Config.small(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
    metrics = run_recipe(config, recipe.train)
    # One class always guessed has 10 %; scikit-learn's logistic regression has 0.91 on this split.
    assert metrics["test/accuracy"] > 0.85
    assert metrics["manual/test_accuracy"] == pytest.approx(metrics["test/accuracy"], abs=0.01)
    assert metrics["manual/distance"] < 1e-3
    drawn = {path.stem for path in tmp_path.rglob("*.png")}
    assert drawn == {"learning_curves", "predictions", "errors", "confusion", "features"}


def test_same_seed_same_result(tmp_path):
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    config = recipe.Config.small(tracking_uri=uri, epochs=1, manual=False)
    first, second = (run_recipe(config, recipe.train) for _ in range(2))
    assert first["test/loss"] == second["test/loss"]


def test_other_backends_are_refused():
    with pytest.raises(RecipeError, match="unknown value of --backend 'torch'"):
        recipe.Config(backend="torch")


def test_command(folder_with_store):
    """The literal command, small, in a process of its own."""
    words = "-X importtime -m recipes.numpy_mlp --backend numpy --dataset digits --epochs 1 --hidden 8"
    done = subprocess.run(
        [sys.executable, *words.split()],
        capture_output=True,
        text=True,
        env={**os.environ, "MLFLOW_TRACKING_URI": f"sqlite:///{folder_with_store}/mlruns/mlflow.db"},
    )
    assert done.returncode == 0, done.stderr
    assert "test/accuracy" in done.stdout
    imported = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines()}
    assert "numpy" in imported and not imported & {"keras.src", "jax", "torch", "tensorflow"}
