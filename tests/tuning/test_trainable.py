"""Warm workers: a trial after others in one process, with programs they compiled, equals a run of its own."""

import dataclasses
import subprocess
import sys

import keras
import pytest

from recipes import cnn_cifar, mlp_fashion
from recipes.engine import gradients, launch, programs
from recipes.engine.outage import Away
from tuning import trainable

CLOCKED = ("duration_seconds", "images_per_second")
MLP = mlp_fashion.Config.small(epochs=1, projected=0)
CNN = cnn_cifar.Config.small(epochs=1)


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(programs, "_kept", None)


def trial(module, config):
    config = dataclasses.replace(config, backend=keras.backend.backend())
    metrics = launch.run_recipe(config, module.train, only_training=True)
    return {name: value for name, value in metrics.items() if name not in CLOCKED}


@pytest.mark.parametrize(
    ("module", "first", "changes"),
    [
        (mlp_fashion, MLP, {"learning_rate": 3e-4, "dropout": 0.0, "seed": 5, "epochs": 2}),
        (
            cnn_cifar,
            CNN,
            {"label_smoothing": 0.0, "weight_decay": 0.1, "seed": 7, "initializer": "lecun_normal"},
        ),
    ],
)
def test_a_warm_trial_compiles_nothing_and_gives_the_bits_of_a_cold_one(
    module, first, changes, here, monkeypatch
):
    second = dataclasses.replace(first, **changes)
    keras.utils.clear_session()
    cold = trial(module, second)
    trainable.warm_up(keras.backend.backend())
    trial(module, first)
    trainable.warm_up(keras.backend.backend())
    monkeypatch.setattr(gradients, "program", lambda *arguments: pytest.fail("compiled again"))
    assert trial(module, second) == cold
    assert any(name.startswith("val/") for name in cold) and "test/accuracy" not in cold


def test_what_changes_the_program_compiles_a_new_one(here):
    cold = {}
    settings = [{"activation": "tanh"}, {"optimizer": "sgd"}]
    for number, changes in enumerate(settings):
        keras.utils.clear_session()
        cold[number] = trial(mlp_fashion, dataclasses.replace(MLP, **changes))
    for number, changes in enumerate(settings):
        trainable.warm_up(keras.backend.backend())
        assert trial(mlp_fashion, dataclasses.replace(MLP, **changes)) == cold[number]
    assert len(programs._kept) == 4  # of each, one for training and one for validation


@pytest.mark.once
def test_a_search_for_garbage_leaves_out_what_an_open_store_has_loaded(monkeypatch):
    done = []

    def connect(uri):
        done.append(uri)
        raise Away("nobody there")

    monkeypatch.setattr(trainable.store, "connect", connect)
    monkeypatch.setattr(trainable.gc, "freeze", lambda: done.append("spared"))
    for _ in range(2):
        trainable.spare_libraries("http://127.0.0.1:1")
    assert done == ["http://127.0.0.1:1", "spared"]


@pytest.mark.once
def test_a_worker_reads_what_it_runs_before_it_has_a_backend():
    """Else JAX would be there before it is told where compiled programs are kept."""
    code = (
        "import sys, tuning.trainable\n"
        "print(*{'jax', 'torch', 'tensorflow', 'keras.src', 'mlflow'} & set(sys.modules))"
    )
    read = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert read.stdout.split() == []
