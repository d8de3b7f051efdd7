"""Populations whose members go on from each other, and searches by several metrics at once."""

import csv
import itertools
import json
import math
import random
import shutil
from pathlib import Path

import mlflow
import numpy as np
import pytest

from recipes.engine import checkpoints, programs, store, tracking
from recipes.engine.errors import RecipeError
from recipes.engine.progress import Progress
from tests.tuning.sweeping import DIGITS, output_of
from tuning import comparison, pareto, population, space, sweep, trainable
from tuning.comparison import smaller_is_better

pytestmark = pytest.mark.once


def swept(cwd, *words):
    """What a sweep prints; the records of its own run and of its trials, in the order they were begun."""
    text = output_of(cwd, "mlp_fashion", *DIGITS, *words)
    client = mlflow.MlflowClient(f"sqlite:///{cwd}/mlruns/mlflow.db")
    experiment = client.get_experiment_by_name("mlp_fashion").experiment_id
    runs = client.search_runs([experiment], order_by=["attributes.start_time ASC"])
    trials = [run for run in runs if "mlflow.parentRunId" in run.data.tags]
    (parent,) = [run for run in runs if run not in trials]
    assert {run.info.status for run in runs} == {"FINISHED"}
    return text, client, parent, trials


def curve(client, run, name):
    return [point.value for point in client.get_metric_history(run.info.run_id, name)]


# Populations


def test_a_hopeless_member_goes_on_from_the_good_one(folder_with_store):
    """Seed 43 draws learning rates of 1.8e-7, which learns nothing, and 0.011, which learns."""
    text, client, parent, (one, two) = swept(
        folder_with_store, "--epochs", "4", "--seed", "43", "--scheduler", "pbt", "--interval", "2",
        "--trials", "2", "--loguniform", "learning_rate=1e-7,0.1", "--uniform", "dropout=0,0.3",
    )  # fmt: skip
    hopeless, good = sorted((one, two), key=lambda run: float(run.data.params["learning_rate"]))
    assert float(hopeless.data.params["learning_rate"]) < 1e-6
    assert hopeless.data.tags["exploited/epoch_2"] == good.info.run_id
    assert not [name for name in good.data.tags if name == "exploited/epoch_2"]
    # Its values change after the second epoch, by a fifth of the donor's or anew, and its accuracy is there.
    rates, donors = (curve(client, run, "pbt/learning_rate") for run in (hopeless, good))
    assert len(rates) == len(donors) == 4 and len(curve(client, hopeless, "pbt/dropout")) == 4
    assert rates[0] == rates[1] == pytest.approx(float(hopeless.data.params["learning_rate"]))
    assert rates[2] != rates[1] and rates[2] != donors[2]
    accuracy, best = (curve(client, run, "val/accuracy") for run in (hopeless, good))
    assert max(accuracy[:2]) < 0.3 < best[1] and len(accuracy) == 4
    assert accuracy[2] > best[1] - 0.1 and accuracy[3] > best[1]
    steps = [point.step for point in client.get_metric_history(hopeless.info.run_id, "val/accuracy")]
    assert steps == [steps[0] * epoch for epoch in range(1, 5)]
    assert "goes on with the weights of member" in text
    # The table has the members' last values.
    last = {run.info.run_id: curve(client, run, "pbt/learning_rate")[-1] for run in (one, two)}
    rows = [line for line in text.splitlines() if line.startswith("| member=")]
    assert len(rows) == 2
    for run in (one, two):
        row = next(row for row in rows if f"member={run.data.tags['member']} " in row)
        assert f"learning_rate={last[run.info.run_id]:.4g}" in row
        assert row.split("|")[1].strip() == f"member={run.data.tags['member']} {run.data.tags['setting']}"
        assert f"{run.data.metrics['val/accuracy']:.4f}" in row
    assert parent.data.metrics["best/val/accuracy"] == max(r.data.metrics["val/accuracy"] for r in (one, two))


class Ray:
    """What a member sees of Ray: a checkpoint to begin with, and reports, of which those with `epoch` in
    `pauses` end it, as a scheduler that pauses it does."""

    def __init__(self, monkeypatch, folder):
        from ray import tune

        self.folder, self.given, self.pauses, self.reports = folder, None, (), []
        monkeypatch.setattr(tune, "get_checkpoint", lambda: self.given)
        monkeypatch.setattr(tune, "report", self.report)

    def report(self, values, checkpoint=None):
        self.reports.append(values)
        if checkpoint is not None:
            self.handed = self.folder / f"handed-{len(self.reports)}"
            shutil.copytree(checkpoint.path, self.handed)
        if values["epoch"] in self.pauses and "done" not in values:
            raise SystemExit


@pytest.fixture
def ray(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(programs, "_kept", None)
    return Ray(monkeypatch, tmp_path)


def base_of(**fields):
    return {
        "backend": "torch", "dataset": "digits", "units": 16, "epochs": 4, "experiment": "members",
        "tracking_uri": store.absolute(None), "checkpoint_dir": Path("checkpoints").absolute(), **fields,
    }  # fmt: skip


@pytest.mark.parametrize("epochwise", [False, True], ids=["search", "scheduler"])
def test_a_metric_that_nobody_measures(ray, epochwise):
    """A search hears the worst and the sweep ends with the sentence; a scheduler's trials say it at once."""
    base, worst = base_of(epochs=2), {"val/acuracy": -math.inf}
    store.connect(base["tracking_uri"])
    sample = {"trial": {"runs": [{"setting": {}, "seed": 0}]}}
    axes = space.Space({}, {}, {}, {})
    trainable.run_trial(sample, base, "mlp_fashion", "parent", {}, 0.0, axes, [0], worst, 1, False, epochwise)
    (report,) = ray.reports
    assert report["val/acuracy"] == -math.inf
    (run,) = report["runs"]
    if epochwise:
        assert "unknown value of --metric 'val/acuracy': did you mean 'val/accuracy'?" in run["error"]
    else:
        assert run["metrics"]["val/accuracy"] > 0.1
        with pytest.raises(RecipeError, match="did you mean 'val/accuracy'"):
            comparison.summarize([(run, run["metrics"])], [{}], "val/acuracy")


def call(member, setting, interval=2, **fields):
    base = base_of(**fields)
    axes = space.Space({}, {}, {"dropout": (0.0, 0.5)}, {"learning_rate": (1e-7, 1e-1)})
    population.run_member(
        {"trial": {"member": member, "setting": setting, "seed": 0}}, base, "mlp_fashion", "parent", {}, 0.0,
        axes, interval, {"val/accuracy": -math.inf}, False,
    )  # fmt: skip


def members():
    _, uri = store.connect(None)
    return {run.data.tags["member"]: run for run in store.children(uri, "members", "parent")}


def test_weights_right_after_an_exploitation_are_the_donors_bit_for_bit(ray, monkeypatch):
    from ray import tune

    from layers.regularization import Dropout

    ray.pauses = (2,)
    for member, setting in (
        (1, {"learning_rate": 1e-7, "dropout": 0.4}),
        (2, {"learning_rate": 0.01, "dropout": 0.1}),
    ):
        with pytest.raises(SystemExit):
            call(member, setting)
    before = {name: run.info.run_id for name, run in members().items()}
    assert {run.info.status for run in members().values()} == {"RUNNING"}
    arrays, facts = checkpoints.newest(ray.handed, "step")
    seen, rates = {}, []
    resume, drop = Progress._resume, Dropout.call

    def resumed(self, config):
        resume(self, config)
        seen.update(self._arrays(), step=self.step)

    def dropped(self, x, training=False):
        if training:
            rates.append(self.rate)
        return drop(self, x, training)

    monkeypatch.setattr(Progress, "_resume", resumed)
    monkeypatch.setattr(Dropout, "call", dropped)
    ray.given, ray.pauses = tune.Checkpoint.from_directory(ray.handed), ()
    call(1, {"learning_rate": 0.012, "dropout": 0.12})
    assert seen.pop("step") == facts["step"]
    assert set(seen) == set(arrays) and len(arrays) > 15
    for name, array in arrays.items():
        np.testing.assert_array_equal(seen[name], array, err_msg=name)
    assert {round(rate, 6) for rate in rates} == {
        0.12
    }  # a rate of dropout lies in a variable, too, which is not the donor's
    run = members()["1"]
    assert run.info.run_id == before["1"] and run.info.status == "FINISHED"
    assert run.data.tags["exploited/epoch_2"] == before["2"]
    assert run.data.tags["setting"] == "learning_rate=0.012 dropout=0.12"
    end = ray.reports[-1]
    assert end["done"] and end["epoch"] == 4 and end["val/accuracy"] > 0.5
    (told,) = end["runs"]
    assert told["setting"] == {"member": 1, "learning_rate": 0.012, "dropout": 0.12}
    assert told["metrics"]["val/accuracy"] == end["val/accuracy"] and told["metrics"]["seconds"] > 0


def test_a_member_that_only_waited_goes_on_as_if_it_had_not(ray):
    from ray import tune

    setting = {"learning_rate": 0.01, "dropout": 0.1}
    call(1, setting)
    ray.pauses = (2,)
    with pytest.raises(SystemExit):
        call(2, setting)
    ray.given, ray.pauses = tune.Checkpoint.from_directory(ray.handed), ()
    call(2, setting)
    one, two = members()["1"], members()["2"]
    assert not [name for name in two.data.tags if name.startswith("exploited")]
    for name in ("val/loss", "train/loss", "pbt/dropout", "lr"):
        client, _ = store.connect(None)
        assert curve(client, one, name) == curve(client, two, name)


def test_a_member_that_diverges_counts_as_the_last_and_may_go_on(ray):
    from ray import tune

    ray.pauses = (2,)
    with pytest.raises(SystemExit):
        call(2, {"learning_rate": 0.01, "dropout": 0.1})
    fields = {"optimizer": "sgd", "epochs": 6}
    with pytest.raises(SystemExit):
        call(1, {"learning_rate": 1e30, "dropout": 0.1}, **fields)
    assert ray.reports[-1] == {"val/accuracy": -math.inf, "epoch": 2}
    assert members()["1"].info.status == "FAILED"
    ray.pauses = ()
    call(1, {"learning_rate": 1e30, "dropout": 0.1}, **fields)
    assert [values["epoch"] for values in ray.reports[-3:]] == [2, 4, 6]
    assert "at step" in ray.reports[-1]["runs"][0]["error"] and ray.reports[-1]["done"]
    ray.given = tune.Checkpoint.from_directory(ray.handed)
    call(1, {"learning_rate": 0.012, "dropout": 0.1})
    assert members()["1"].info.status == "FINISHED" and "error" not in members()["1"].data.tags


def test_values_stay_within_their_bounds_and_members_who_they_are():
    """A few hundred explorations from the edges; Ray's own would leave them."""

    class Trial:
        def __init__(self, member, setting):
            self.config = {"trial": {"member": member, "setting": setting, "seed": 0}}

    axes = space.Space({}, {"depth": [1, 2, 4]}, {"dropout": (0.0, 0.5)}, {"learning_rate": (1e-3, 1e-1)})
    scheduler = population.scheduler(axes, 2, 0, metric="val/loss", mode="min", time_attr="epoch")
    old = Trial(1, {"depth": 1, "dropout": 0.2, "learning_rate": 0.01})
    found = []
    for rate, depth in ((1e-3, 1), (1e-1, 4)):
        donor = Trial(2, {"depth": depth, "dropout": 0.5, "learning_rate": rate})
        for _ in range(150):
            config, _ = scheduler._get_new_config(old, donor)
            assert config["trial"]["member"] == 1 and donor.config["trial"]["member"] == 2
            found.append(config["trial"]["setting"])
    assert {setting["depth"] for setting in found} == {1, 2, 4}
    for name, low, high in (("dropout", 0, 0.5), ("learning_rate", 1e-3, 1e-1)):
        values = [setting[name] for setting in found]
        assert min(values) >= low and max(values) == high and len(set(values)) > 20
    random.seed()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--grid", "optimizer=sgd,adam"], "--scheduler pbt cannot vary 'optimizer': with another optimizer"),
        (["--grid", "epochs=4,5"], "--scheduler pbt cannot vary 'epochs': members train for the same time"),
        (["--grid", "probe=0,5"], "--scheduler pbt cannot vary 'probe'"),
        (
            ["--choice", "projected=0,1", "--uniform", "dropout=0,0.5@projected=1"],
            "--scheduler pbt takes no '@': every member has a value of dropout",
        ),
        (["--uniform", "dropout=0,0.5"], "--scheduler pbt needs two members at least"),
        (["--uniform", "dropout=0,0.5", "--seeds", "2"], "--scheduler pbt draws --trials members of one"),
        (["--uniform", "dropout=0,0.5", "--interval", "3"], "--interval 3 must be less than --epochs 3"),
        (["--uniform", "dropout=0,0.5", "--interval", "0"], "--interval must be at least 1"),
        (["--uniform", "dropout=0,0.5", "--max-concurrent", "1"], "--scheduler pbt needs all members"),
        (["--uniform", "dropout=0,0.5", "--time-budget", "9"], "--scheduler pbt ends with all members"),
        (["--uniform", "dropout=0,0.5", "--early-stopping", "1"], "--scheduler pbt trains for all epochs"),
        (["--uniform", "dropout=0,0.5", "--checkpoint-every", "0"], "--scheduler pbt needs a recipe that"),
        (["--uniform", "dropout=0,0.5", "--metric", "train/loss"], "--scheduler compares what every epoch"),
        (["--uniform", "dropout=0,0.5", "--metric", "val/loss,parameters"], "--scheduler compares trials by"),
    ],
)  # fmt: skip
def test_what_a_population_cannot_do_is_refused(words, sentence, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        sweep.main(["mlp_fashion", "--scheduler", "pbt", "--epochs", "3", *words])
    assert stop.value.code == 2 and capsys.readouterr().err.startswith(f"error: {sentence}")
    assert not (tmp_path / "mlruns").exists()


@pytest.mark.parametrize(("flag", "name"), [("--scheduler", "pbt"), ("--search", "optuna")])
def test_a_sweep_whose_memory_is_gone_is_not_resumed(flag, name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["mlp_fashion", "--trials", "2", "--uniform", "dropout=0,0.5", flag, name]
    run = tracking.start(None, "mlp_fashion", "", {}, {"kind": "sweep", "words": json.dumps(words)})
    run.end("KILLED")
    with pytest.raises(SystemExit) as stop:
        sweep.main(["--resume", run.id])
    assert stop.value.code == 2 and "whose memory is gone: start it anew" in capsys.readouterr().err


# Several metrics


def test_each_metric_has_its_own_sense():
    small = ("val/loss", "parameters", "duration_seconds", "seconds", "val/rmse", "test/perplexity")
    large = ("val/accuracy", "images_per_second", "characters_per_second/cached", "test/bleu")
    assert all(map(smaller_is_better, small)) and not any(map(smaller_is_better, large))


def points(*pairs):
    return [{"val/accuracy": accuracy, "parameters": size} for accuracy, size in pairs]


def test_the_front_is_what_nothing_beats():
    assert pareto.front(points((0.9, 100), (0.8, 50), (0.85, 120), (0.7, 60))) == [True, True, False, False]
    assert pareto.front(points((0.9, 100), (0.9, 100))) == [True, True]  # equals do not beat each other
    assert pareto.front(points((0.9, 100), (0.9, 90), (0.9, 90))) == [False, True, True]
    assert pareto.front(points((math.nan, 10), (0.5, 10), (math.nan, 5))) == [False, True, True]
    assert pareto.front(points((0.1, 10))) == [True] and pareto.front([]) == []
    lines = [{"val/accuracy": x, "val/loss": -x, "parameters": x} for x in range(5)]
    assert pareto.front(lines) == [True] * 5  # of three metrics one is always better
    assert pareto.front([{**point, "parameters": 1} for point in lines]) == [False] * 4 + [True]


def rows_of(results, metrics):
    settings = [{"units": units} for units in results]
    finished = [
        ({"setting": setting, "seed": seed}, {**dict(zip(metrics, values, strict=True)), "seconds": 1.0})
        for setting, seeds in zip(settings, results.values(), strict=True)
        for seed, values in enumerate(seeds)
    ]
    return pareto.summarize(finished, settings, metrics)


def test_means_over_seeds_are_compared_and_shown():
    metrics = ["val/accuracy", "parameters"]
    results = {
        8: [(0.5, 100.0), (0.7, 100.0)],
        16: [(0.9, 200.0), (0.92, 200.0)],
        32: [(0.88, 400.0), (0.90, 400.0)],
        64: [(0.95, 800.0), (0.93, 800.0)],
    }
    rows = rows_of(results, metrics)
    assert [(row["setting"]["units"], row["front"]) for row in rows] == [
        (64, True), (16, True), (8, True), (32, False)
    ]  # fmt: skip
    cells = [
        [cell.strip() for cell in line.split("|")[1:4]] for line in pareto.table(rows, metrics).splitlines()
    ]
    assert [cell[0] for cell in cells[2:]] == ["1", "2", "3", ""]
    assert cells[2][1:] == ["units=64", "0.9400 +/- 0.0141"]
    read = list(csv.DictReader(pareto.sheet(rows, metrics).splitlines()))
    assert [row["front"] for row in read] == ["True", "True", "True", "False"]
    assert float(read[0]["parameters mean"]) == 800 and float(read[1]["val/accuracy std"]) > 0


def test_the_figure_draws_what_the_front_attains():
    """The line is never better than a setting of the front, and never worse than one that it is right of."""
    results = {8: [(0.6, 100.0)], 16: [(0.9, 200.0)], 32: [(0.89, 400.0)], 64: [(0.95, 800.0)]}
    metrics = ["val/accuracy", "parameters"]
    drawn = pareto.figure(rows_of(results, metrics), metrics)
    (axes,) = drawn.axes
    beaten, line, front = axes.lines
    assert (*beaten.get_xdata(),) == (400,) and sorted(front.get_xdata()) == [100, 200, 800]
    assert line.get_drawstyle() == "steps-post" and (*line.get_ydata(),) == (0.6, 0.9, 0.95)
    assert axes.get_xlabel() == "parameters (less is better)" and "val/accuracy" in axes.get_ylabel()
    assert sorted(text.get_text() for text in axes.texts) == ["1", "2", "3"]
    equal = pareto.figure(rows_of({1: [(0.5, 9.0)], 2: [(0.5, 9.0)]}, metrics), metrics)
    assert [text.get_text() for text in equal.axes[0].texts] == ["1, 2"]
    three = ["val/accuracy", "parameters", "val/loss"]
    some = {n: [(0.9 - 0.1 * n, 10.0 + n, 1.0 + n)] for n in range(3)}
    assert [
        axes.get_xlabel().split()[0] for axes in pareto.figure(rows_of(some, three), three).axes
    ] == three[1:]


def test_a_search_by_accuracy_and_size_ends_with_their_front(folder_with_store):
    text, client, parent, trials = swept(
        folder_with_store, "--epochs", "2", "--search", "optuna", "--trials", "6",
        "--choice", "units=2,16,64", "--loguniform", "learning_rate=1e-3,3e-2",
        "--metric", "val/accuracy,parameters", "--max-concurrent", "1",
    )  # fmt: skip
    assert len(trials) == 6
    reached = [{name: run.data.metrics[name] for name in ("val/accuracy", "parameters")} for run in trials]
    for run, values in zip(trials, reached, strict=True):
        units = int(run.data.params["units"])
        assert values["parameters"] == 65 * units + (units + 1) * units + (units + 1) * 10
    front = {
        run.data.tags["setting"]
        for run, mine in zip(trials, reached, strict=True)
        if not any(
            its["val/accuracy"] >= mine["val/accuracy"]
            and its["parameters"] <= mine["parameters"]
            and its != mine
            for its in reached
        )
    }
    listed = [
        [cell.strip() for cell in line.split("|")[1:3]] for line in text.splitlines() if "| units=" in line
    ]
    assert len(listed) == 6 and {setting for number, setting in listed if number} == front
    assert [number for number, _ in listed if number] == [str(n) for n in range(1, len(front) + 1)]
    assert parent.data.metrics["best/parameters"] == min(values["parameters"] for values in reached)
    assert parent.data.metrics["best/val/accuracy"] == max(values["val/accuracy"] for values in reached)
    kept = itertools.chain.from_iterable(
        client.list_artifacts(parent.info.run_id, folder) for folder in (None, "figures")
    )
    assert {"figures/pareto_front.png", "sweep.md", "sweep.csv"} <= {artifact.path for artifact in kept}
