"""Sweeps, as commands or in this process, and what they leave in MLflow."""

import atexit
import collections
import contextlib
import functools
import io
import os
import subprocess
import sys
import time
from pathlib import Path

import mlflow

from recipes.engine import backend
from tuning import sweep

# JAX is imported in half of PyTorch's time, and every worker does.
WORKERS = next(name for name in ("jax", "torch", "tensorflow") if name in backend.installed())
DIGITS = ["--backend", WORKERS, "--dataset", "digits", "--units", "16", "--projected", "0"]


def started(cwd, *words):
    """A sweep in a process group of its own, its output in the file `out`."""
    with open(cwd / "out.txt", "ab") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "tuning.sweep", *words], stdout=out, stderr=subprocess.STDOUT, cwd=cwd,
            env={**os.environ, "PYTHONPATH": os.getcwd()}, start_new_session=True,
        )  # fmt: skip
    process.out = cwd / "out.txt"
    return process


@functools.cache
def shared_ray():
    """The address of a Ray for all sweeps of this process: to start one takes longer than a small sweep."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    atexit.register(cluster.shutdown)
    return cluster.address


def output_of(cwd, *words):
    """What a sweep prints that is run in this process and a folder."""
    with (
        contextlib.chdir(cwd),
        contextlib.redirect_stdout(io.StringIO()) as out,
        contextlib.redirect_stderr(out),
    ):
        sweep.main([*words, "--address", shared_ray()])
    return out.getvalue()


def records(store, kind="children", experiment="mlp_fashion"):
    """MLflow's records of the trials, or of the sweep, in a store or in that of a folder."""
    uri = f"sqlite:///{store}/mlruns/mlflow.db" if isinstance(store, Path) else store
    client = mlflow.MlflowClient(uri)
    found = client.get_experiment_by_name(experiment)
    runs = client.search_runs([found.experiment_id]) if found else []
    return [run for run in runs if ("mlflow.parentRunId" in run.data.tags) == (kind == "children")]


def until(ready, sweep, seconds=600):
    """Wait for what a sweep is about to do."""
    end = time.time() + seconds
    while not ready():
        assert sweep.poll() is None and time.time() < end, sweep.out.read_text()
        time.sleep(0.5)


def finished(store, experiment="mlp_fashion"):
    """How often each setting and seed is finished."""
    counts = collections.Counter()
    for run in records(store, experiment=experiment):
        if run.info.status == "FINISHED":
            counts[run.data.tags["setting"], run.data.params["seed"]] += 1
    return counts
