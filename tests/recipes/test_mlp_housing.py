"""Cross-validation that does not leak, models that learn, a network that is the same on every backend."""

import os
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import ops

from recipes import mlp_housing as recipe
from recipes.engine.data import tables
from recipes.engine.errors import RecipeError
from recipes.engine.launch import run_recipe
from tests.recipes.agreement import (
    assert_backends_agree,
    outputs_loss_and_gradient,
    set_weights_from_numpy,
)
from tests.recipes.recorded import Recorded

DATA = Path(os.environ.get("TFDS_DATA_DIR", "absent"))

QUICK = {"epochs": 1, "units": 4, "trees": 3, "checkpoint_every": "0"}


@pytest.fixture(scope="module")
def diabetes():
    return tables.load("diabetes")


def test_models_beat_the_mean_and_are_drawn(tmp_path, diabetes):
    config = recipe.Config.small(
        tracking_uri=f"sqlite:///{tmp_path}/mlflow.db", backend=keras.backend.backend()
    )
    metrics = run_recipe(config, recipe.train)
    # The mean alone errs by the standard deviation, 77; the best linear models by 55.
    for name in ("mlp", "ridge", "lasso", "forest"):
        assert 45 < metrics[f"{name}/rmse"] < 0.85 * diabetes.y.std(), name
        assert 0 < metrics[f"{name}/rmse_std"] < 15
    assert 0.25 < metrics["mlp/r2"] < 0.6
    assert {path.stem for path in tmp_path.rglob("*.png")} == {"learning_curves", "rmse", "residuals"}


@pytest.mark.once
def test_every_row_is_held_out_once_and_never_trained_on():
    folds = recipe.folds_of(23, 5, seed=1)
    assert sorted(np.concatenate([held_out for _, held_out in folds])) == list(range(23))
    for rows, held_out in folds:
        assert sorted([*rows, *held_out]) == list(range(23))
    again = recipe.folds_of(23, 5, seed=2)
    assert not np.array_equal(again[0][1], folds[0][1])
    with pytest.raises(RecipeError, match="--folds 5 is more than the table's 4 rows"):
        recipe.folds_of(4, 5, seed=0)


@pytest.mark.parametrize("scaling", ["standard", "quantile"])
def test_held_out_rows_tell_nothing(diabetes, scaling):
    """Whatever stands in other held-out rows, a row's predictions are the same to the bit.

    A scaling fitted to all rows fails this: a mean or a quantile would move.
    """
    config = recipe.Config.small(scaling=scaling, **QUICK)
    rows, held_out = recipe.folds_of(len(diabetes), 3, 0)[0]

    def predicted(others):
        keras.utils.set_random_seed(0)
        return recipe.predictions(config, diabetes.x[rows], diabetes.y[rows], others, Recorded())

    others = diabetes.x[held_out].copy()
    before = predicted(others)
    others[1:] = 1000 * others[1:] + 7
    after = predicted(others)
    for name, values in before.items():
        assert after[name][0] == values[0], name
        assert np.any(after[name][1:] != values[1:]), name


@pytest.mark.once
def test_a_leaking_scaling_would_be_caught(diabetes, monkeypatch):
    """The same check, with a scaling fitted to training and held-out rows together, must fail."""
    rows, held_out = recipe.folds_of(len(diabetes), 3, 0)[0]
    seen = []
    honest = recipe.fitted_scaling

    def leaking(kind, x):
        return honest(kind, np.concatenate([x, seen[-1]]))

    monkeypatch.setattr(recipe, "fitted_scaling", leaking)
    monkeypatch.setattr(recipe, "fit_network", lambda config, x, y, run: Linear())
    config = recipe.Config.small(**QUICK)

    def predicted(others):
        seen.append(others)
        return recipe.predictions(config, diabetes.x[rows], diabetes.y[rows], others, Recorded())

    others = diabetes.x[held_out].copy()
    before = predicted(others)
    others[1:] = 1000 * others[1:] + 7
    assert predicted(others)["mlp"][0] != before["mlp"][0]


class Linear:
    """Stands for a network: the sum of the features."""

    def predict(self, x, **options):
        return x.sum(axis=1, keepdims=True)


@pytest.mark.once
def test_scalings_are_those_of_the_rows_they_were_fitted_to(rng):
    rows = rng.exponential(size=(500, 2))
    rows[:, 1] = 3  # the same everywhere
    scaled = recipe.fitted_scaling("standard", rows)(rows)
    np.testing.assert_allclose(scaled.mean(axis=0), [0, 0], atol=1e-9)
    np.testing.assert_allclose(scaled.std(axis=0), [1, 0], atol=1e-9)
    np.testing.assert_allclose(
        recipe.fitted_scaling("standard", rows)(np.array([[rows[:, 0].mean() + rows[:, 0].std(), 4]])),
        [[1, 1]],
    )
    ranks = recipe.fitted_scaling("quantile", rows)(rows)[:, 0]
    assert np.median(ranks) == pytest.approx(0, abs=0.02)
    assert np.quantile(ranks, 0.8413) == pytest.approx(1, abs=0.05)


@pytest.mark.once
def test_root_mean_square_error():
    assert recipe.rmse(np.array([1.0, 2.0]), np.array([1.0, 4.0])) == pytest.approx(2**0.5)


def test_backends_agree(meeting_place):
    model = recipe.build_model(recipe.Config(units=6, depth=2, dropout=0.0), 4)
    set_weights_from_numpy(model, np.random.default_rng(0))
    rng = np.random.default_rng(1)
    x, y = (rng.normal(size=(9, size)).astype("float32") for size in (4, 1))
    target = ops.convert_to_tensor(y)
    arrays = outputs_loss_and_gradient(model, x, lambda outputs: ops.square(outputs - target))
    assert_backends_agree(meeting_place, "mlp_housing", arrays)


def test_the_network_fits_a_curve(rng):
    """y = x^2 cannot be had from a line."""
    x = rng.uniform(-2, 2, (512, 1))
    y = (x[:, 0] ** 2 - 4 / 3) / 1.2
    run = Recorded()
    shape = {"batch_size": 64, "units": 16, "depth": 2, "dropout": 0.0}
    recipe.fit_network(recipe.Config(epochs=30, learning_rate=0.01, checkpoint_every="0", **shape), x, y, run)
    seen = run.history["train/loss"]
    assert seen[-1][0] == 30 * 8 and seen[0][1] > 0.4**2
    assert seen[-1][1] < 0.1**2


def test_early_stopping_watches_rows_that_are_not_trained_on(rng, monkeypatch):
    """Targets are noise: what is learned of some rows is wrong of others, the first epochs are the best."""
    seen = []
    fit = recipe.engine.training.fit

    def watched(model, batches, validation, *others):
        seen.extend((batches.split, validation))
        return fit(model, batches, validation, *others)

    monkeypatch.setattr(recipe.engine.training, "fit", watched)
    x, y = rng.normal(size=(100, 3)), rng.normal(size=100)
    config = recipe.Config.small(
        early_stopping=3, epochs=200, units=64, dropout=0.0, learning_rate=0.02, checkpoint_every="0"
    )
    run = Recorded()
    model = recipe.fit_network(config, x, y, run)
    training, validation = seen
    assert len(training) == 90 and len(validation) == 10
    rows = {tuple(row) for row in np.concatenate([training.x, validation.x])}
    assert rows == {tuple(row) for row in x.astype("float32")}
    losses = [loss for _, loss in run.history["val/loss"]]
    assert len(losses) < 200 and np.argmin(losses) == len(losses) - 4
    left = model.predict(validation.x, verbose=0)
    assert np.mean((left - validation.y) ** 2) == pytest.approx(min(losses), rel=1e-4)


def test_divergence_is_told(rng):
    x = rng.normal(size=(64, 3))
    config = recipe.Config.small(learning_rate=1e30, checkpoint_every="0")
    with pytest.raises(RecipeError, match=r"the loss is (nan|inf) at step \d+ .* try a smaller"):
        recipe.fit_network(config, x, x[:, 0], Recorded())


@pytest.mark.once
@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"folds": 1}, "--folds must be at least 2, not 1"),
        ({"dropout": -0.1}, "--dropout must lie in 0 ... 1, not -0.1"),
        ({"trees": 0}, "--trees must be at least 1, not 0"),
    ],
)
def test_impossible_configurations(changes, sentence):
    with pytest.raises(RecipeError, match=sentence) as error:
        recipe.Config(**changes)
    assert error.value.exit_code == 2


@pytest.mark.once
def test_absent_and_unknown_tables(tmp_path, monkeypatch):
    import sklearn.datasets

    def offline(**options):
        raise OSError("no network")

    monkeypatch.setattr(sklearn.datasets, "fetch_california_housing", offline)
    with pytest.raises(RecipeError, match=r"not there .* \(no network\).*--data-dir.*--dataset diabetes"):
        tables.load("california_housing", tmp_path)
    with pytest.raises(RecipeError, match="did you mean 'diabetes'"):
        tables.load("diabetis")


@pytest.mark.once
@pytest.mark.skipif(
    not (DATA / "california_housing/california_housing.csv").exists(),
    reason="TFDS_DATA_DIR holds no california_housing/california_housing.csv",
)
def test_california_is_the_census_of_1990():
    table = tables.load("california_housing", DATA)
    assert table.x.shape == (20_640, 8)
    assert table.features[0] == "MedInc" and table.features[-2:] == ("Latitude", "Longitude")
    # The first district, in Berkeley; prices are cut off at 500,001 $.
    np.testing.assert_allclose(table.x[0, [0, 1, 6, 7]], [8.3252, 41, 37.88, -122.23])
    assert table.y[0] == pytest.approx(4.526) and table.y.max() == pytest.approx(5.00001)
