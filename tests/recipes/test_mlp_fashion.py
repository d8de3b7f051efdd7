"""The perceptron on clothes: it learns, its flags do what they say, classic models get the same split."""

import dataclasses

import keras
import numpy as np
import pytest
from keras import ops
from mlflow import MlflowClient

from recipes import mlp_fashion as recipe
from recipes.engine import data
from recipes.engine.data import Dataset, Split
from recipes.engine.errors import RecipeError
from recipes.engine.launch import run_recipe
from recipes.engine.progress import Progress
from tests.recipes.agreement import (
    assert_backends_agree,
    outputs_loss_and_gradient,
    set_weights_from_numpy,
)


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    split = Split(rng.integers(0, 256, (20, 4, 4, 1), dtype=np.uint8), rng.integers(0, 3, 20).astype("int32"))
    return Dataset("random", split, split, split, ("a", "b", "c"))


def config_in(folder, **changes):
    return recipe.Config.small(
        tracking_uri=f"sqlite:///{folder}/mlflow.db",
        backend=keras.backend.backend(),
        checkpoint_dir=folder / "checkpoints",
        **changes,
    )


def recorded(folder):
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    experiment = client.get_experiment_by_name("mlp_fashion").experiment_id
    return client.search_runs([experiment], order_by=["attributes.start_time DESC"])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run on digits: (metrics, folder)."""
    folder = tmp_path_factory.mktemp("mlp")
    return run_recipe(config_in(folder), recipe.train), folder


def test_hidden_layers_learn_and_are_drawn(trained):
    metrics, folder = trained
    assert metrics["test/accuracy"] > 0.85  # guessing gives 0.1
    drawn = {path.stem for path in folder.rglob("*.png")}
    assert drawn == {"learning_curves", "confusion_matrix", "features", "pca", "tsne"}
    (run,) = recorded(folder)
    assert run.info.status == "FINISHED" and run.data.metrics["test/accuracy"] == metrics["test/accuracy"]


@pytest.mark.once  # that it is so on every backend is tested with the engine
def test_a_killed_run_goes_on(trained, monkeypatch):
    metrics, folder = trained
    config, calls, after = config_in(folder, checkpoint_every="30"), [], Progress.after_step

    def stopping(self, values):
        calls.append(1)
        if len(calls) > 50:
            raise KeyboardInterrupt
        return after(self, values)

    keras.utils.clear_session()
    with monkeypatch.context() as patch, pytest.raises(RecipeError, match="--resume"):
        patch.setattr(Progress, "after_step", stopping)
        run_recipe(config, recipe.train)
    keras.utils.clear_session()
    resume = recorded(folder)[0].info.run_id
    resumed = run_recipe(dataclasses.replace(config, resume=resume), recipe.train)
    assert {**resumed, "duration_seconds": 0} == {**metrics, "duration_seconds": 0}


@pytest.mark.parametrize("model", ["logistic", "boosting"])
@pytest.mark.once
def test_classic_models_take_the_same_split(model, tmp_path):
    metrics = run_recipe(config_in(tmp_path, model=model, rounds=5, strength=1.0), recipe.train)
    assert metrics["test/accuracy"] > 0.75 and metrics["val/accuracy"] > 0.75
    (run,) = recorded(tmp_path)
    assert run.data.tags["dataset.fingerprint"] == data.load("digits").fingerprint
    assert run.data.params["model"] == model


def test_the_network_is_what_the_flags_say(images):
    config = recipe.Config(units=7, depth=3, activation="tanh", dropout=0.25)
    model = recipe.build_model(config, images)
    assert [tuple(v.shape) for v in model.trainable_variables if v.name == "kernel"] == [
        (16, 7), (7, 7), (7, 7), (7, 3)
    ]  # fmt: skip
    dropped = [layer.rate for layer in model.layers if hasattr(layer, "rate")]
    assert dropped == [0.25] * 3
    assert {model.get_layer(f"hidden{n}").activation.__name__ for n in (1, 2, 3)} == {"tanh"}


def test_the_network_is_its_formula(images):
    """Standardize, then tanh(x W + b) twice, then a linear map."""
    config = recipe.Config(units=5, depth=2, activation="tanh")
    model = set_weights_from_numpy(recipe.build_model(config, images), np.random.default_rng(0))
    x = images.train.x.astype("float64").reshape(20, -1)
    x = (x - x.mean()) / x.std()
    w = model.get_weights()
    expected = np.tanh(np.tanh(x @ w[0] + w[1]) @ w[2] + w[3]) @ w[4] + w[5]
    np.testing.assert_allclose(model.predict(images.train.x, verbose=0), expected, atol=1e-4)


def test_squared_error_is_of_probabilities():
    logits = np.random.default_rng(0).normal(size=(4, 3)).astype("float32")
    labels = np.array([2, 0, 1, 1])
    wrong = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True) - np.eye(3)[labels]
    found = ops.convert_to_numpy(recipe.squared_error(labels, ops.convert_to_tensor(logits)))
    np.testing.assert_allclose(found, np.mean(wrong**2, axis=-1), rtol=1e-5)


@pytest.mark.parametrize("normalization", ["none", "batch", "layer", "group", "rms"])
def test_backends_agree(images, meeting_place, normalization):
    config = recipe.Config(units=6, depth=2, activation="gelu", dropout=0.0, normalization=normalization)
    model = set_weights_from_numpy(recipe.build_model(config, images), np.random.default_rng(0))
    labels = ops.convert_to_tensor(images.train.y)
    arrays = outputs_loss_and_gradient(
        model, images.train.x, lambda logits: recipe.cross_entropy(labels, logits)
    )
    assert_backends_agree(meeting_place, f"mlp_fashion_{normalization}", arrays)


def test_normalization_comes_before_the_activation(images):
    """With a scale of -1, relu sees -x / rms(x)."""
    config = recipe.Config(units=6, depth=1, normalization="rms", dropout=0.0)
    model = recipe.build_model(config, images)
    (scale,) = (v for v in model.trainable_variables if v.name == "scale")
    scale.assign(-np.ones(6))
    x = images.train.x.astype("float64").reshape(20, -1)
    x = (x - x.mean()) / x.std() @ model.get_weights()[0]
    expected = np.maximum(-x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True)), 0)
    hidden = keras.Model(model.input, model.get_layer("hidden1").output)
    np.testing.assert_allclose(hidden.predict(images.train.x, verbose=0), expected, atol=1e-4)


@pytest.mark.once
def test_features_are_changes_of_columns_as_images():
    change = np.zeros((16, 6))
    change[6, 4] = 3  # unit 4 has come to look at row 1, column 2
    change[0, 1] = -1
    features = recipe.learned_features(change, (4, 4, 1), most=2)
    assert features.shape == (2, 4, 4, 1)
    assert features[0, 1, 2, 0] == 3 and features[1, 0, 0, 0] == -1 and np.abs(features).sum() == 4


@pytest.mark.parametrize("optimizer", recipe.LEARNING_RATES)
def test_every_optimizer_takes_a_step(optimizer):
    made = recipe.build_optimizer(recipe.Config(optimizer=optimizer), 0.1)
    variable = keras.Variable(np.ones(3, "float32"), name="kernel")
    made.build([variable])
    made.apply([ops.ones((3,))], [variable])
    assert np.all(ops.convert_to_numpy(variable.value) < 1)


@pytest.mark.once
@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"dropout": 1.0}, "--dropout must lie in 0 ... 1, not 1.0"),
        ({"depth": 0}, "--depth must be at least 1, not 0"),
        ({"activation": "rellu"}, "unknown value of --activation 'rellu': did you mean 'relu'"),
        ({"model": "boosting", "resume": "abc"}, "--resume is refused: --model boosting is fitted by scikit"),
        ({"model": "logistic", "ema": 0.9}, "--ema is refused: --model logistic is fitted by scikit-learn"),
    ],
)
def test_impossible_configurations(changes, sentence):
    with pytest.raises(RecipeError, match=sentence) as error:
        recipe.Config(**changes)
    assert error.value.exit_code == 2
