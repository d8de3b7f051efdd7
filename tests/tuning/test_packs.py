"""Packs: runs that train in one program equal runs by themselves, and do not hold each other up."""

import dataclasses
import functools
from pathlib import Path

import keras
import mlflow
import pytest

from recipes import cnn_cifar, mlp_fashion
from recipes.engine import launch, packs
from recipes.engine.errors import RecipeError
from tuning.execution import packed
from tuning.trainable import warm_up

MLP = mlp_fashion.Config.small(epochs=2, projected=0, checkpoint_every="0")
CNN = cnn_cifar.Config.small(epochs=1, checkpoint_every="0")
CLOCKED = ("duration_seconds", "images_per_second")


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run a recipe in an empty folder; returns its final metrics."""
    monkeypatch.chdir(tmp_path)

    def run(module, config):
        config = dataclasses.replace(config, backend=keras.backend.backend())
        return launch.run_recipe(config, module.train, only_training=True)

    return run


def curves(experiment):
    """Every run's curves, by its learning rate and seed."""
    client = mlflow.MlflowClient(f"sqlite:///{Path.cwd()}/mlruns/mlflow.db")
    found = {}
    for record in client.search_runs([client.get_experiment_by_name(experiment).experiment_id]):
        found[record.data.params["learning_rate"], record.data.params["seed"]] = {
            name: [(point.step, point.value) for point in client.get_metric_history(record.info.run_id, name)]
            for name in record.data.metrics
            if name not in CLOCKED
        }
    return found


@pytest.mark.parametrize(
    ("module", "configs"),
    [
        (
            mlp_fashion,
            [
                dataclasses.replace(MLP, learning_rate=3e-3),
                dataclasses.replace(MLP, learning_rate=1e-3, dropout=0.0, seed=1),
                dataclasses.replace(MLP, learning_rate=1e-3, seed=2),
            ],
        ),
        pytest.param(
            cnn_cifar,
            [
                dataclasses.replace(CNN, learning_rate=0.1),
                dataclasses.replace(CNN, learning_rate=0.2, label_smoothing=0.0, weight_decay=0.1, seed=1),
            ],
            marks=pytest.mark.skipif(
                keras.backend.backend() != "jax", reason="only on JAX do convolutions make a difference"
            ),
        ),
    ],
)
def test_members_equal_runs_by_themselves(module, configs, run, tmp_path, monkeypatch):
    """To the bit, but on JAX, where a program for several networks rounds otherwise: 1e-4 of each value."""
    name = module.__name__.removeprefix("recipes.")
    for config in configs:
        warm_up(keras.backend.backend())
        run(module, config)
    alone = curves(name)
    (tmp_path / "packed").mkdir()
    monkeypatch.chdir(tmp_path / "packed")
    warm_up(keras.backend.backend())
    results = packs.Pack().run([functools.partial(run, module, config) for config in configs])
    assert all(isinstance(result, dict) for result in results), results
    together = curves(name)
    assert set(together) == set(alone) and len(alone) == len(configs)
    bits = keras.backend.backend() != "jax" or module is cnn_cifar
    for key, metrics in alone.items():
        assert set(metrics) == set(together[key])
        for name, points in metrics.items():
            steps, values = zip(*points, strict=True)
            others, packed_values = zip(*together[key][name], strict=True)
            assert others == steps
            assert packed_values == values if bits else packed_values == pytest.approx(values, rel=1e-4)


def test_a_member_that_ends_does_not_hold_up_the_others(run):
    configs = [
        MLP,
        dataclasses.replace(MLP, learning_rate=1e30, seed=1),
        dataclasses.replace(MLP, epochs=1, seed=2),
    ]
    warm_up(keras.backend.backend())
    good, broken, short = packs.Pack().run([functools.partial(run, mlp_fashion, one) for one in configs])
    assert isinstance(broken, RecipeError) and "at step" in str(broken)
    for config, result in ((configs[0], good), (configs[2], short)):
        warm_up(keras.backend.backend())
        assert result["val/loss"] == pytest.approx(run(mlp_fashion, config)["val/loss"], rel=1e-4)


@pytest.mark.once
def test_runs_come_together_where_they_train():
    calls = []

    def program(members, *arguments):
        calls.append((members, [argument.tolist() for argument in arguments]))
        return [{"doubled": 2 * argument} for argument in arguments[0]]

    def job(number, rounds):
        pack = packs.current()
        return [pack.call(program, [number], keras.ops.convert_to_numpy([number]))["doubled"][0]
                for _ in range(rounds)]  # fmt: skip

    assert packs.current() is None
    results = packs.Pack().run([functools.partial(job, 1, 2), functools.partial(job, 2, 1)])
    assert results == [[2, 2], [4]]
    assert len(calls) == 2
    assert sorted(members[0] for members in calls[0][0]) == [1, 2]
    assert calls[1][0] == [[1]]


@pytest.mark.once
def test_an_error_of_a_program_reaches_every_member():
    def program(members, *arguments):
        raise MemoryError("too large")

    def job():
        packs.current().call(program, [], keras.ops.convert_to_numpy([1.0]))

    results = packs.Pack().run([job, job])
    assert [str(result) for result in results] == ["too large", "too large"]


@pytest.mark.once
def test_trials_share_what_decides_the_program():
    runs = [
        {"setting": {"optimizer": optimizer, "learning_rate": rate}, "seed": seed}
        for seed in (0, 1)
        for optimizer in ("sgd", "adam")
        for rate in (0.1, 0.2, 0.3)
    ]
    trials = packed(runs, 4, mlp_fashion.Config.VALUES, workers=2)
    assert [len(trial["runs"]) for trial in trials] == [3, 3, 3, 3]
    for trial in trials:
        assert len({run["setting"]["optimizer"] for run in trial["runs"]}) == 1
    assert sorted(map(str, (run for trial in trials for run in trial["runs"]))) == sorted(map(str, runs))
    alone = packed(runs, 1, mlp_fashion.Config.VALUES, workers=2)
    assert alone == [{"runs": [run]} for run in _by_optimizer(runs)]


@pytest.mark.once
@pytest.mark.parametrize(("workers", "sizes"), [(1, [10]), (2, [5, 5]), (3, [4, 4, 2]), (20, [1] * 10)])
def test_no_worker_waits_for_the_pack_of_another(workers, sizes):
    runs = [{"setting": {"learning_rate": rate}, "seed": 0} for rate in range(1, 11)]
    trials = packed(runs, 32, mlp_fashion.Config.VALUES, workers)
    assert [len(trial["runs"]) for trial in trials] == sizes


def _by_optimizer(runs):
    return sorted(runs, key=lambda run: run["setting"]["optimizer"] != "sgd")
