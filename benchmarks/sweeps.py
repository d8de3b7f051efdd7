"""Trials a minute: a process per trial, warm workers, packed trials, and the bare loop without any sweep.

    python -m benchmarks.sweeps --backend jax                       # 64 trials of a perceptron
    python -m benchmarks.sweeps --backend jax --network cnn         # 16 of a convolutional network
    python -m benchmarks.sweeps --backend jax --trivial 1000        # what trials cost by themselves

Every side is a command of its own, timed from its start to its end, in turns (`--rounds`). `plain` is Ray
Tune as it comes: every trial in a new process, which imports, opens its run and compiles. `warm` is
`python -m tuning.sweep`, `packed` the same with --pack, `again` that once more, where it finds on disk what
JAX compiled the first time, `many` the same with eight seeds of every setting; `alone` is a sweep with
--no-ray, all trials in one pack, and `alone-again` that once more; the others find nothing on disk.
`bare` trains the same networks by `model.fit` one after another in one process, without Ray and MLflow, on
one thread as each worker has. `start` is Ray with a task that loads Keras and nothing else: no sweep takes
less.

A sweep's start (Python, Ray, its workers) takes as long for one trial as for a thousand: the second half of
the table counts from the moment when the first trial opens its run in MLflow.
"""

import argparse
import dataclasses
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

NETWORKS = {
    "mlp": (
        "mlp_fashion",
        ["--dataset", "digits", "--units", "64", "--projected", "0", "--epochs", "5", "--batch-size", "64"],
        {
            "learning_rate": [1e-4 * 1.4**power for power in range(16)],
            "dropout": [0.0, 0.1, 0.2, 0.3],
        },
    ),
    "cnn": (
        "cnn_cifar",
        ["--dataset", "shapes", "--epochs", "1"],
        {"learning_rate": [0.05, 0.1, 0.2, 0.4], "weight_decay": [1e-3, 2e-3, 5e-3, 1e-2]},
    ),
}
SIDES = ("plain", "warm", "packed", "again", "many", "alone", "alone-again", "bare", "start")
CACHES = {"again": "packed", "alone-again": "alone"}  # of whom they find the programs
SEEDS = 8  # of each setting, where there are many trials


def main() -> None:
    """The command: a table of seconds and trials a minute."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--backend", default="jax")
    parser.add_argument("--network", choices=sorted(NETWORKS), default="mlp")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=SIDES)
    parser.add_argument("--pack", type=int, default=32)
    parser.add_argument("--trivial", type=int, help="a sweep of so many trials of next to nothing")
    parser.add_argument("--child", choices=("plain", "bare", "start"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        {"plain": _plain, "bare": _bare, "start": _start}[options.child](options.network, options.backend)
    elif options.trivial:
        _trivial(options.backend, options.trivial, options.pack)
    else:
        _compare(options)


def _compare(options: argparse.Namespace) -> None:
    recipe, words, axes = NETWORKS[options.network]
    count = len(_settings(options.network))
    grid = [f"--grid={name}={','.join(map(str, values))}" for name, values in axes.items()]
    sweep = ["-m", "tuning.sweep", recipe, "--backend", options.backend, *words, *grid]
    again = ["-m", "benchmarks.sweeps", "--backend", options.backend, "--network", options.network]
    packed = [*sweep, "--pack", str(options.pack)]
    commands = {
        "plain": [*again, "--child", "plain"],
        "warm": sweep,
        "packed": packed,
        "again": packed,
        "many": [*packed, "--seeds", str(SEEDS)],
        "alone": (alone := [*sweep, "--pack", str(count), "--no-ray"]),
        "alone-again": alone,
        "bare": [*again, "--child", "bare"],
        "start": [*again, "--child", "start"],
    }
    measured: dict[str, list[Measured]] = {side: [] for side in options.sides}
    for _ in range(options.rounds):
        with tempfile.TemporaryDirectory() as caches:
            for side in options.sides:
                cache = Path(caches, CACHES.get(side, side))
                measured[side].append(_measure(commands[side], cache))
                print(f"{side}: {measured[side][-1]}", file=sys.stderr, flush=True)
    print(f"{count} trials of {recipe} on {options.backend}, {os.cpu_count()} cores\n")
    print("| side | trials | seconds | a minute | times plain | from the first on | a minute | times plain |")
    print("|---|---|---|---|---|---|---|---|")
    rates: dict[str, list[float]] = {}
    started = measured.pop("start", [])
    for side, found in measured.items():
        trials = count * SEEDS if side == "many" else count
        cells, rates[side] = [side, str(trials)], []
        for part, name in enumerate(("seconds", "running")):
            value = statistics.median(getattr(one, name) for one in found)
            rates[side].append(60 * trials / value)
            times = f"{rates[side][part] / rates['plain'][part]:.1f}" if "plain" in rates else ""
            cells += [f"{value:.1f}", f"{rates[side][part]:.0f}", times]
        print(f"| {' | '.join(cells)} |")
    if started:
        seconds = statistics.median(one.seconds for one in started)
        print(f"\nRay, with a task that loads Keras and nothing else: {seconds:.1f} s")


@dataclasses.dataclass(frozen=True)
class Measured:
    """What a command took.

    Args:
        seconds: from its start to its end.
        running: seconds from the start of the first MLflow run but the sweep's own; all, where there is none.
        memory: most that the process itself held, in GiB.
    """

    seconds: float
    running: float
    memory: float


def _measure(words: Sequence[str], cache: Path) -> Measured:
    """Run a command in an empty folder, with what it keeps for later in `cache`."""
    here = str(Path(__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": here, "XDG_CACHE_HOME": str(cache)}
    environment |= {"OMP_NUM_THREADS": "1", "NPROC": "1"}
    with tempfile.TemporaryDirectory() as folder:
        # The store exists, as it does for all sweeps but the first.
        subprocess.run(
            [sys.executable, "-c", "from recipes.engine import store; store.connect(None)"],
            cwd=folder, env=environment, check=True,
        )  # fmt: skip
        with open(Path(folder, "out.txt"), "w") as out:
            begin = time.time()
            started = subprocess.Popen(
                [sys.executable, *words], cwd=folder, env=environment, stdout=out, stderr=subprocess.STDOUT
            )
            _, status, usage = os.wait4(started.pid, 0)
            end = time.time()
        if status:
            sys.exit(Path(folder, "out.txt").read_text()[-3000:])
        first = _first_trial(f"sqlite:///{folder}/mlruns/mlflow.db") or begin
    return Measured(end - begin, end - first, usage.ru_maxrss / 2**20)


def _first_trial(uri: str) -> float | None:
    """When the first trial of a store opened its run, in seconds of the clock; None where there is none."""
    from recipes.engine import tracking

    client, _ = tracking.connect(uri)
    experiments = [found.experiment_id for found in client.search_experiments()]
    runs = client.search_runs(experiments, order_by=["attributes.start_time ASC"], max_results=2)
    starts = [run.info.start_time / 1000 for run in runs if "kind" not in run.data.tags]
    return min(starts, default=None)


def _settings(network: str) -> list[dict[str, Any]]:
    axes = NETWORKS[network][2]
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def _config(network: str, backend: str, setting: dict[str, Any]) -> Any:
    from recipes.engine.config import check_words
    from tuning.trainable import load_recipe

    recipe, words, _ = NETWORKS[network]
    config_class, _ = load_recipe(recipe)
    return config_class(**{**check_words(config_class, words), **setting, "backend": backend})


def _plain(network: str, backend: str) -> None:
    """Ray Tune as it comes, around the recipe."""
    os.environ["KERAS_BACKEND"] = backend
    import ray
    from ray import tune

    folder = Path.cwd()

    def trial(setting: dict[str, Any]) -> None:
        from recipes.engine import launch
        from tuning.trainable import load_recipe

        config = dataclasses.replace(
            _config(network, backend, setting), tracking_uri=f"sqlite:///{folder}/mlruns/mlflow.db"
        )
        _, train = load_recipe(NETWORKS[network][0])
        tune.report(launch.run_recipe(config, train, only_training=True))

    ray.init(address="local", include_dashboard=False, log_to_driver=False)
    results = tune.Tuner(
        tune.with_resources(trial, {"cpu": 1}),
        param_space=tune.grid_search(_settings(network)),
        tune_config=tune.TuneConfig(reuse_actors=False),
        run_config=tune.RunConfig(storage_path=str(folder / "ray"), verbose=0),
    ).fit()
    if results.errors:
        sys.exit(str(results.errors[0]))


def _start(network: str, backend: str) -> None:
    """Ray alone, with one worker that loads what every trial needs."""
    import ray

    def load() -> None:
        import keras  # noqa: F401

    environment = {"env_vars": {"KERAS_BACKEND": backend}}
    ray.init(address="local", include_dashboard=False, log_to_driver=False, runtime_env=environment)
    ray.get(ray.remote(load).remote())
    ray.shutdown()


def _bare(network: str, backend: str) -> None:
    """The trainings alone, one after another."""
    os.environ["KERAS_BACKEND"] = backend
    import importlib

    import keras

    from recipes import engine

    recipe = importlib.import_module(f"recipes.{NETWORKS[network][0]}")
    for setting in _settings(network):
        config = _config(network, backend, setting)
        keras.utils.clear_session()
        keras.utils.set_random_seed(config.seed)
        data = engine.data.load(config.dataset, config.data_dir)
        augment = "crop_flip" if getattr(config, "augment", False) else "none"
        batches = engine.data.Batches(data.train, config.batch_size, config.seed, augment=augment)
        model = recipe.build_model(config, data)
        model.compile(
            recipe.build_optimizer(config, config.learning_rate),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=["accuracy"],
        )
        model.fit(
            batches.between(0, batches.steps_per_epoch * config.epochs),
            validation_data=(data.validation.x, data.validation.y), shuffle=False, verbose=0,
        )  # fmt: skip


def _trivial(backend: str, count: int, pack: int) -> None:
    """A thousand trials of next to nothing: what the sweep itself costs."""
    words = ["-m", "tuning.sweep", "mlp_fashion", "--backend", backend, "--dataset", "digits", "--units", "8",
             "--projected", "0", "--epochs", "1", "--batch-size", "1024", "--grid", "dropout=0.1,0.2",
             "--seeds", str(count // 2)]  # fmt: skip
    print(f"{count} trials of one step on {backend}\n")
    print("| | seconds | seconds a trial | the driver's memory, GiB |\n|---|---|---|---|")
    for name, command in {"warm": words, f"pack {pack}": [*words, "--pack", str(pack)]}.items():
        with tempfile.TemporaryDirectory() as cache:
            took = _measure(command, Path(cache))
        print(f"| {name} | {took.seconds:.1f} | {took.seconds / count:.3f} | {took.memory:.2f} |", flush=True)
    seconds = _tracked(count)
    print(f"| MLflow alone, one process | {seconds:.1f} | {seconds / count:.3f} | |")


def _tracked(count: int) -> float:
    """Seconds to record as many runs, with as much in each, and nothing else."""
    from recipes.engine import tracking
    from recipes.engine.config import TrainingConfig

    params = {field.name: "a value" for field in dataclasses.fields(TrainingConfig)}
    with tempfile.TemporaryDirectory() as folder:
        uri = f"sqlite:///{folder}/mlflow.db"
        tracking.start(uri, "trials", "first", {}, {}).end("FINISHED")
        begin = time.perf_counter()
        for number in range(count):
            run = tracking.start(uri, "trials", str(number), params, {f"tag{k}": "value" for k in range(20)})
            for step in range(2):
                run.metrics({f"metric{k}": 1.0 for k in range(8)}, step)
            run.end("FINISHED")
        return time.perf_counter() - begin


if __name__ == "__main__":
    main()
