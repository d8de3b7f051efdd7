"""Does a machine repeat a run bit for bit? Every recipe's small setting, run and then rerun.

    python -m benchmarks.determinism --backends jax torch --jobs 14

On CPUs every row says that the metrics are the same; on a GPU those with --deterministic have to, and the
others need not. `python -m recipes.rerun` compares every metric at every step, bit for bit.
"""

import argparse
import importlib
import os
import re
import subprocess
import sys
import tempfile
import typing
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from recipes.engine import backend, catalogue, launch


def main() -> None:
    """The command: a line for each recipe, backend and setting."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--backends", nargs="+", default=["jax"], choices=["jax", "torch", "tensorflow"])
    parser.add_argument("--recipes", nargs="+", help="default: all that use a backend")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        _run(*options.child)
        return
    names = options.recipes or [name for name in catalogue.names() if _uses_backends(name)]
    jobs = [(name, one, flag) for flag in (True, False) for name in names for one in options.backends]
    print("| recipe | backend | --deterministic | rerun |\n|---|---|---|---|")
    with ThreadPoolExecutor(options.jobs) as pool:
        for job, said in zip(jobs, pool.map(lambda job: _twice(*job), jobs), strict=True):
            name, one, flag = job
            print(f"| {name} | {one} | {'yes' if flag else 'no'} | {said} |", flush=True)


def _uses_backends(name: str) -> bool:
    """Whether a recipe trains on the three backends, which NumPy's do not."""
    hints = typing.get_type_hints(importlib.import_module(f"recipes.{name}").Config)
    return "jax" in typing.get_args(hints["backend"])


def _run(name: str, backend_name: str, deterministic: str) -> None:
    backend.choose(["--backend", backend_name])
    recipe = importlib.import_module(f"recipes.{name}")
    config = recipe.Config.small(backend=backend_name, deterministic=deterministic == "True")
    launch.run_recipe(config, recipe.train)


def _twice(name: str, backend_name: str, deterministic: bool) -> str:
    """Run a recipe's small setting in a folder of its own, and rerun it: what is said of its metrics."""
    # JAX takes most of a GPU's memory at its start: runs side by side would find none.
    environment = {
        **os.environ,
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        "TF_FORCE_GPU_ALLOW_GROWTH": "true",
    }
    environment["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])
    with tempfile.TemporaryDirectory() as folder:

        def call(*words: str) -> str:
            done = subprocess.run(
                [sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True
            )
            return done.stdout + done.stderr

        first = call("-m", "benchmarks.determinism", "--child", name, backend_name, str(deterministic))
        run = re.search(r"^run (\w{32})", first, re.MULTILINE)
        said = call("-m", "recipes.rerun", run.group(1)) if run else first
        verdict = re.search(r"metrics are (.*)", said)
        return verdict.group(1) if verdict else said.strip().splitlines()[-1]


if __name__ == "__main__":
    main()
