"""The first recipe: it learns, its networks are the published ones, its backends agree."""

import collections
import os
import shutil
import subprocess
import sys

import keras
import mlflow
import numpy as np
import pytest

import layers
from recipes import cnn_cifar
from recipes.engine import data, launch, models
from recipes.engine.data import Dataset, Split
from recipes.engine.errors import RecipeError
from tests.recipes import agreement


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


LEARNS = {"epochs": 3, "learning_rate": 0.1}


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """A run on digits: (its folder, its final metrics)."""
    folder, before = tmp_path_factory.mktemp("learned"), os.getcwd()
    os.chdir(folder)
    try:
        keras.utils.set_random_seed(0)
        return folder, launch.run_recipe(cnn_cifar.Config.small(**LEARNS), cnn_cifar.train)
    finally:
        os.chdir(before)


@pytest.fixture
def in_learned(learned, monkeypatch):
    monkeypatch.chdir(learned[0])
    return learned


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    split = Split(rng.integers(0, 256, (4, 32, 32, 3), dtype=np.uint8), np.arange(4, dtype=np.int32))
    return Dataset("random", split, split, split, tuple("0123456789"))


def command(cwd, *arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "recipes.cnn_cifar", *arguments],
        capture_output=True, text=True, cwd=cwd, timeout=300,
        env={**os.environ, "PYTHONPATH": os.getcwd(), **environment},
    )  # fmt: skip


def test_it_learns_and_leaves_everything_in_mlflow(in_learned):
    """Three epochs on digits: far above the tenth that guessing gives."""
    here, metrics = in_learned
    assert metrics["test/accuracy"] > 0.7
    client = mlflow.MlflowClient(f"sqlite:///{here}/mlruns/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("cnn_cifar").experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.params["activation"] == "relu" and run.data.params["dataset"] == "digits"
    assert run.data.tags["backend"] == keras.backend.backend()
    assert {"dataset.fingerprint", "version.keras", "device", "command"} <= set(run.data.tags)
    assert run.data.metrics["test/accuracy"] == metrics["test/accuracy"]
    lr = client.get_metric_history(run.info.run_id, "lr")
    assert len(lr) > 10 and max(m.value for m in lr) > 5 * lr[-1].value
    assert {"train/loss", "val/loss", "val/accuracy", "images_per_second"} <= set(run.data.metrics)
    figures = {f.path for f in client.list_artifacts(run.info.run_id, "figures")}
    assert figures == {
        f"figures/{name}.png"
        for name in (
            "learning_curves",
            "confusion_matrix",
            "first_layer_filters",
            "feature_maps",
            "confident_mistakes",
        )
    }
    # The stored model gives the accuracy that was reported.
    model = models.load(f"runs:/{run.info.run_id}/model")
    test = data.load("digits").test
    predicted = model.predict(test.x, verbose=0).argmax(axis=-1)
    assert np.mean(predicted == test.y) == pytest.approx(metrics["test/accuracy"])


def test_a_second_run_gives_the_same_bits(learned, here):
    def losses(folder):
        client = mlflow.MlflowClient(f"sqlite:///{folder}/mlruns/mlflow.db")
        (run,) = client.search_runs([client.get_experiment_by_name("cnn_cifar").experiment_id])
        names = ("val/loss", "val/accuracy")  # of a run that is only compared, other losses are averaged
        return [[m.value for m in client.get_metric_history(run.info.run_id, name)] for name in names]

    launch.run_recipe(cnn_cifar.Config.small(**LEARNS), cnn_cifar.train, only_training=True)
    assert losses(here) == losses(learned[0])


@pytest.mark.parametrize(
    ("model", "parameters"),
    # He et al., table 6: 0.27, 0.46, 0.66 and 0.85 million; ResNet-18 without ImageNet's stem and head.
    [("resnet20", 269_722), ("resnet32", 464_154), ("resnet44", 658_586), ("resnet56", 853_018),
     ("resnet18", 11_173_962)],
)  # fmt: skip
def test_networks_are_the_published_ones(model, parameters, images):
    network = cnn_cifar.build_model(cnn_cifar.Config(model=model), images)
    assert sum(int(np.prod(v.shape)) for v in network.trainable_variables) == parameters
    convolutions = [v for v in network.trainable_variables if v.name == "kernel" and v.shape[:2] == (3, 3)]
    assert len(convolutions) == int(model.removeprefix("resnet")) - 1


def test_without_shortcuts_the_network_is_plain(images):
    """With every branch scaled to zero, only shortcuts carry the image to the logits."""

    def spread(shortcut):
        network = cnn_cifar.build_model(cnn_cifar.Config(model="resnet20", shortcut=shortcut), images)
        for block in (layer for layer in network.layers if isinstance(layer, layers.BasicBlock)):
            for variable in block.trainable_variables:
                if variable.name == "gamma":
                    variable.assign(np.zeros(variable.shape))
        return np.ptp(network.predict(images.test.x, verbose=0), axis=0).max()

    assert spread("none") < 1e-6
    assert spread("residual") > 1e-3


def test_activation_and_initializer_reach_every_convolution(images):
    config = cnn_cifar.Config(model="resnet20", activation="gelu", initializer="orthogonal")
    network = cnn_cifar.build_model(config, images)
    blocks = [layer for layer in network.layers if "block" in layer.name or layer.name.startswith("stage")]
    assert len(blocks) == 9
    assert {block.activation.__name__ for block in blocks} == {"gelu"}
    for variable in network.trainable_variables:
        if variable.name == "kernel" and len(variable.shape) == 4:
            matrix = keras.ops.convert_to_numpy(variable.value).reshape(-1, variable.shape[-1])
            np.testing.assert_allclose(matrix.T @ matrix, np.eye(matrix.shape[1]), atol=1e-4)


@pytest.mark.once
def test_remat_recomputes_the_residual_blocks(images, monkeypatch):
    calls, remat = [], keras.remat
    monkeypatch.setattr(keras, "remat", lambda function: calls.append(1) or remat(function))
    for asked, count in ((False, 0), (True, 9)):
        network = cnn_cifar.build_model(cnn_cifar.Config(model="resnet20", remat=asked), images)
        network(images.train.x, training=True)
        assert len(calls) == count
    with pytest.raises(RecipeError, match="--model small has none: choose a resnet"):
        cnn_cifar.Config(remat=True)


@pytest.mark.parametrize("optimizer", cnn_cifar.LEARNING_RATES)
def test_every_optimizer_takes_a_step(optimizer, images):
    config = cnn_cifar.Config(optimizer=optimizer, schedule="constant")
    made = cnn_cifar.build_optimizer(config, cnn_cifar.build_schedule(config, 10))
    variable, bias = (
        keras.Variable(np.ones((2, 2), "float32"), name="kernel"),
        keras.Variable(np.ones(2, "float32"), name="bias"),
    )
    made.build([variable, bias])
    made.apply([keras.ops.zeros((2, 2)), keras.ops.zeros(2)], [variable, bias])
    decayed = float(keras.ops.convert_to_numpy(variable.value)[0, 0])
    assert decayed == 1 if optimizer == "adam" else decayed < 1
    assert keras.ops.convert_to_numpy(bias.value)[0] == 1
    made.apply([keras.ops.ones((2, 2)), keras.ops.ones(2)], [variable, bias])
    assert keras.ops.convert_to_numpy(bias.value)[0] < 1


@pytest.mark.parametrize("schedule", ["constant", "step", "cosine", "one_cycle"])
def test_schedules_peak_at_the_learning_rate_and_end_as_named(schedule):
    made = cnn_cifar.build_schedule(cnn_cifar.Config(schedule=schedule, learning_rate=0.5), 100)
    rates = np.array([float(made(step)) for step in range(100)])
    assert rates.max() == pytest.approx(0.5, rel=0.06)
    assert rates[-1] / rates.max() == pytest.approx(
        {"constant": 1, "step": 0.01, "cosine": 0, "one_cycle": 0}[schedule], abs=0.002
    )


def test_a_diverging_loss_stops_the_run_and_says_where(here):
    with pytest.raises(RecipeError, match=r"the loss is (nan|inf) at step \d+ \(epoch \d\)") as error:
        launch.run_recipe(cnn_cifar.Config.small(learning_rate=1e30, optimizer="sgd"), cnn_cifar.train)
    assert error.value.exit_code == 1
    client = mlflow.MlflowClient(f"sqlite:///{here}/mlruns/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("cnn_cifar").experiment_id])
    assert run.info.status == "FAILED" and "at step" in run.data.tags["error"]


def test_low_precision_trains(here):
    policy = keras.config.dtype_policy()
    try:
        metrics = launch.run_recipe(
            cnn_cifar.Config.small(**LEARNS, precision="mixed_bfloat16"),
            cnn_cifar.train,
            only_training=True,
        )
    finally:
        keras.config.set_dtype_policy(policy)
    assert metrics["val/accuracy"] > 0.6


def test_first_filters_put_the_blocks_back(images):
    """The kernel that picks one channel of one place of a block shows as one lit pixel."""
    network = cnn_cifar.build_model(cnn_cifar.Config(), images)
    kernel = np.zeros(network.get_layer("stem").kernel.shape, "float32")
    kernel[1, 2, (1 * 2 + 0) * 3 + 2, 7] = 1  # row 1, column 2; within the block row 1, column 0; channel 2
    network.get_layer("stem").kernel.assign(kernel)
    filters = cnn_cifar.first_filters(network, 3)
    assert filters.shape == (48, 6, 6, 3)
    assert filters[7, 1 * 2 + 1, 2 * 2 + 0, 2] == 1 and filters.sum() == 1


KINDS = {
    "none": keras.layers.Identity,
    "batch": layers.BatchNormalization,
    "layer": layers.LayerNormalization,
    "group": layers.GroupNormalization,
    "rms": layers.RMSNormalization,
}


@pytest.mark.parametrize("normalization", KINDS)
@pytest.mark.parametrize(("model", "count"), [("small", 4), ("resnet20", 19)])
def test_normalization_follows_every_convolution(model, count, normalization, images):
    config = cnn_cifar.Config(model=model, normalization=normalization)
    network = cnn_cifar.build_model(config, images)
    found = collections.Counter(type(layer) for layer in network._flatten_layers())
    for name, kind in KINDS.items():
        if name not in (normalization, "none"):
            assert not found[kind], name
    # The stages of `small` have names, which are identities.
    assert found[KINDS[normalization]] == count + 4 * (model == "small" and normalization == "none")
    # A bias for every convolution where nothing else moves its outputs, beside that of the logits.
    biases = sum(variable.name == "bias" for variable in network.trainable_variables)
    assert biases == 1 + count * (normalization in ("none", "rms"))
    # Decay would pull scales to zero.
    optimizer = cnn_cifar.build_optimizer(config, 0.1)
    optimizer.build(network.trainable_variables)
    decayed = {v.name for v in network.trainable_variables if optimizer._use_weight_decay(v)}
    assert decayed == {"kernel"}


@pytest.mark.parametrize("normalization", KINDS)
def test_it_learns_with_every_normalization(normalization, here):
    config = cnn_cifar.Config.small(epochs=6, learning_rate=0.05, normalization=normalization)
    metrics = launch.run_recipe(config, cnn_cifar.train, only_training=True)
    assert metrics["val/accuracy"] > 0.8  # 0.93 to 0.98


@pytest.mark.parametrize(
    ("model", "normalization"), [("resnet20", "batch"), *(("small", kind) for kind in KINDS)]
)
def test_backends_agree(model, normalization, meeting_place):
    """Same weights, same images: logits, loss and every gradient, to 1e-5 of the largest."""
    rng = np.random.default_rng(0)
    split = Split(
        rng.integers(0, 256, (8, 32, 32, 3), dtype=np.uint8), rng.integers(0, 10, 8).astype("int32")
    )
    config = cnn_cifar.Config(model=model, activation="silu", normalization=normalization)
    network = cnn_cifar.build_model(config, Dataset("random", split, split, split, tuple("0123456789")))
    agreement.set_weights_from_numpy(network, rng)
    loss_of = cnn_cifar.smoothed_cross_entropy(config, 10)
    results = agreement.outputs_loss_and_gradient(network, split.x, lambda logits: loss_of(split.y, logits))
    agreement.assert_backends_agree(meeting_place, f"cnn_cifar {model} {normalization}", results)


def test_a_stored_model_predicts_the_same_on_every_other_backend(in_learned, meeting_place):
    """Each backend's process loads what the others have stored before it came."""
    folder, _ = in_learned
    (stored,) = folder.glob("mlruns/artifacts/cnn_cifar/models/*/artifacts")
    images = data.load("digits").test.x
    logits = models.load(str(stored)).predict(images, verbose=0)
    if meeting_place is None:
        pytest.skip("other backends' processes do not run beside this one: make test")
    place = meeting_place / "stored"
    place.mkdir(parents=True, exist_ok=True)
    copied = place / f".{keras.backend.backend()}"
    shutil.copytree(stored, copied)
    np.save(copied / "logits.npy", logits)
    copied.rename(place / keras.backend.backend())
    for other in place.glob("[!.]*"):
        predicted = models.load(str(other)).predict(images, verbose=0)
        np.testing.assert_allclose(predicted, np.load(other / "logits.npy"), rtol=1e-4, atol=1e-4)


@pytest.mark.once
@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["--backend", "jaxx"], 2, "unknown backend 'jaxx': did you mean 'jax'?"),
        (["--optimizr", "adam"], 2, "unknown flag '--optimizr': did you mean '--optimizer'?"),
        (["--activation", "rellu"], 2, "unknown value of --activation 'rellu': did you mean 'relu'?"),
        (["--dataset", "cifar"], 2, "unknown value of --dataset 'cifar'"),
        (["--epochs", "many"], 2, "--epochs takes a whole number, not 'many'"),
        (["--epochs", "0"], 2, "--epochs must be at least 1, not 0"),
        (["--resume", "abc"], 2, "there is no run 'abc'"),
        (["--tracking-uri", "http://127.0.0.1:9"], 1, "no tracking server answers at http://127.0.0.1:9"),
    ],
)
def test_bad_input_gets_one_sentence(folder_with_store, arguments, code, sentence):
    done = command(folder_with_store, *arguments)
    assert done.returncode == code, done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert errors and errors[0].removeprefix("error: ").startswith(sentence)
    assert "Traceback" not in done.stderr and len(done.stderr.splitlines()) == 1


@pytest.mark.once
def test_a_folder_that_cannot_be_written_is_told_in_one_sentence(folder_with_store):
    """The learning curves of a run that has none are drawn without a word."""
    (folder_with_store / "a-file").touch()
    flags = ["--dataset", "digits", "--checkpoint-dir", "a-file/checkpoints"]
    done = command(folder_with_store, *flags)
    assert done.returncode == 1
    assert done.stderr.startswith("error: cannot write checkpoints to") and done.stderr.count("\n") == 1


@pytest.mark.once
def test_an_absent_dataset_is_told_within_seconds(folder_with_store):
    done = command(folder_with_store, "--dataset", "mnist", "--data-dir", str(folder_with_store / "none"))
    assert done.returncode == 1
    assert (
        "dataset 'mnist'" in done.stderr and "--data-dir" in done.stderr and "--dataset shapes" in done.stderr
    )
    assert "Traceback" not in done.stderr


@pytest.mark.once
def test_an_unknown_recipe_names_the_nearest(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "recipes.cnn_cifra"], capture_output=True, text=True, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.getcwd()},
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith("error: unknown recipe 'cnn_cifra': did you mean 'cnn_cifar'?")
