"""Seconds from a command to its first optimizer step, and where they go.

    python -m benchmarks.startup                                  # each backend, cold and warm
    python -m benchmarks.startup --backends jax --repeats 7 --dataset shapes

Every measurement is a process of its own that does what `python -m recipes.cnn_cifar` does until its first
step is done. Parts: imports (the interpreter, Keras, its backend), tracking (asking for a run, which MLflow
opens in another process meanwhile), data, model (building, and compiling in Keras' sense), first step (if the
run is not open yet, waiting; tracing, compilation, one step). `cold` has empty caches for programs and for
decoded data, `warm` what the runs before it left.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

PARTS = ("imports", "tracking", "data", "model", "first step", "total")


def main() -> None:
    """The command: a line a backend and state."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--backends", nargs="+", default=["jax", "torch", "tensorflow"])
    parser.add_argument("--dataset", default="cifar10")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        _child(options.child, options.dataset)
        return
    print("| backend | cache | " + " | ".join(PARTS) + " |\n|---|---|" + "---|" * len(PARTS))
    for name in options.backends:
        with tempfile.TemporaryDirectory() as home:
            environment = {**os.environ, "XDG_CACHE_HOME": home, "HOME": home}
            runs = [_measure(name, options.dataset, environment) for _ in range(options.repeats + 1)]
        _print(name, "cold", runs[:1])
        _print(name, "warm", runs[1:])


def _print(name: str, state: str, runs: list[dict[str, float]]) -> None:
    medians = (statistics.median(run[part] for run in runs) for part in PARTS)
    print(f"| {name} | {state} | " + " | ".join(f"{value:.2f}" for value in medians) + " |", flush=True)


def _measure(name: str, dataset: str, environment: dict[str, str]) -> dict[str, float]:
    begin = time.time()
    with tempfile.TemporaryDirectory() as folder:
        words = [sys.executable, "-m", "benchmarks.startup", "--child", name, "--dataset", dataset]
        environment = {**environment, "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"}
        # The store exists, as it does for all runs but the first.
        subprocess.run(
            [sys.executable, "-c", "from recipes.engine import store; store.connect(None)"],
            env=environment, check=True, capture_output=True,
        )  # fmt: skip
        begin = time.time()
        done = subprocess.run(words, env=environment, check=True, capture_output=True, text=True)
    moments = json.loads(done.stdout.splitlines()[-1])
    parts, before = {}, begin
    for part in PARTS[:-1]:
        parts[part] = moments[part] - before
        before = moments[part]
    return {**parts, "total": before - begin}


def _child(name: str, dataset: str) -> None:
    """Run the recipe until its first step; print when each part ended."""
    from recipes.engine import backend

    backend.choose(["--backend", name])
    moments: dict[str, float] = {}

    def timed(owner: Any, function: str, part: str, ends: bool) -> None:
        original = getattr(owner, function)

        def wrapper(*arguments: Any, **named: Any) -> Any:
            if not ends:
                moments.setdefault(part, time.time())
            result = original(*arguments, **named)
            if ends:
                moments.setdefault(part, time.time())
            return result

        setattr(owner, function, wrapper)

    from recipes import cnn_cifar
    from recipes.engine import data, launch, tracking, training
    from recipes.engine.progress import Progress

    timed(tracking, "start", "imports", ends=False)
    timed(tracking, "start", "tracking", ends=True)
    timed(data, "load", "data", ends=True)
    timed(training, "fit", "model", ends=False)

    def after_step(self: Progress, *arguments, **keywords) -> None:
        moments["first step"] = time.time()
        print(json.dumps(moments), flush=True)
        os._exit(0)

    Progress.after_step = after_step
    sys.argv[1:] = ["--backend", name, "--dataset", dataset, "--checkpoint-every", "0"]
    launch.main(cnn_cifar.Config, cnn_cifar.train)


if __name__ == "__main__":
    main()
