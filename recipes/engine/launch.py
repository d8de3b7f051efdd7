"""From a command line to a seeded, tracked run with a true end."""

import atexit
import contextlib
import dataclasses
import functools
import gc
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from recipes.engine import backend, checkpoints, interruption, recorder, store, tracking
from recipes.engine.backend import (
    flush_denormals,
    make_deterministic,
    put_memory_first,
    require_installed,
)
from recipes.engine.config import RunConfig, check_words, field_types, value_of
from recipes.engine.errors import Finished, RecipeError, Stopped, usage_error
from recipes.engine.outage import Away

VERSIONED = ("keras", "jax", "torch", "tensorflow", "numpy")

Train = Callable[[Any, tracking.Run], dict[str, float]]


def main(config_class: type[RunConfig], train: Train) -> None:
    """The last two lines of every recipe: parse the command line, run, print, exit.

    Exit code 0 after a finished run, 2 for a command line that cannot be carried out, 1 for a run that
    failed or was stopped; every error is one sentence on standard error.
    """
    words = sys.argv[1:]
    leave_at_once()
    gc.disable()  # until training begins: nothing that is imported is garbage
    try:
        given = check_words(config_class, words)
        if {"-h", "--help"} & set(words):
            _parsed(config_class, words, train)  # prints, and exits
        with recorder.beside(given.get("tracking_uri", config_class().tracking_uri)):
            if given.get("resume"):
                config = resumed(config_class, given, recipe_name(train))
                backend.insist_on(config.backend)
            else:
                config = _parsed(config_class, words, train)
            metrics = run_recipe(config, train)
    except RecipeError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    width = max(map(len, metrics)) + 2
    for name, value in metrics.items():
        print(f"{name:<{width}}{value:.4f}")


def leave_at_once() -> None:
    """Have Python end this process when it is done: it would search all that is loaded for garbage first."""
    atexit.register(gc.freeze)


def run_recipe(
    config: RunConfig,
    train: Train,
    run_name: str | None = None,
    tags: Mapping[str, str] | None = None,
    only_training: bool = False,
    watch: Callable[[tracking.Run, dict[str, float]], None] | None = None,
    patience: float = 0.0,
) -> dict[str, float]:
    """One run of a recipe, tracked from its first to its last moment.

    Args:
        config: what to run.
        train: the recipe's algorithm; returns the final metrics.
        run_name: what the UI calls the run; default: recipe, backend and seed.
        tags: MLflow tags beside the usual ones; a sweep names its parent here.
        only_training: end the run after training, with the metrics of its last epoch: no test data, no
            figures and no stored model. Recipes that do not train with `engine.progress` run to their end.
        watch: called after every epoch with the run and the epoch's metrics.
        patience: seconds to wait for a tracking store that does not answer, at the start and at the end.

    Returns:
        The final metrics.

    Raises:
        RecipeError: the run failed or was stopped. Whatever happens, the MLflow run ends as FINISHED,
            FAILED (with the tag `error`) or KILLED, and keeps what was logged.
    """
    name = recipe_name(train)
    experiment = config.experiment or name
    uri = store.absolute(config.tracking_uri)

    def announce(run_id: str) -> None:
        print(f"run {run_id}  experiment '{experiment}'  {uri}", flush=True)

    if config.backend != "numpy":
        require_installed(config.backend)
        if config.backend == "jax" and getattr(config, "remat", False):
            put_memory_first()
        # First, as it loads Keras: PyTorch, while it is imported, looks into all modules, and would halfway.
        _seed(config)
        if config.deterministic:
            make_deterministic(config.backend)
        if config.backend == "torch":
            flush_denormals()
    if config.resume:
        run = tracking.resume(config.tracking_uri, config.resume)
        run.patience = patience
        announce(run.id)
    else:
        run = tracking.start(
            uri,
            experiment,
            run_name=run_name or f"{name} {config.backend} seed {config.seed}",
            params={field.name: getattr(config, field.name) for field in dataclasses.fields(config)},
            tags={
                **circumstances(f"recipes.{name}", config.backend, config.seed),
                "device": device(config.backend),
                "recipe": name,
                **tracking.process_tags(),
                **(tags or {}),
            },
            patience=patience,
            opened=announce,
        )
    run.only_training, run.watch = only_training, watch
    if not gc.isenabled():
        gc.freeze()
        gc.enable()
    start = time.perf_counter()
    handlers = interruption.listen()
    try:
        try:
            metrics = train(config, run)
        except Finished as finished:
            metrics = finished.metrics
        metrics = {**metrics, "duration_seconds": time.perf_counter() - start}
        run.metrics(metrics, step=run.last_step)
        run.end("FINISHED")
        if run.checkpoints:  # nothing is left to go on with; the best one stays
            checkpoints.clear(run.checkpoints)
        return metrics
    except KeyboardInterrupt:
        run.end("KILLED")
        how = f"; python -m recipes.{name} --resume {run.id} goes on" if run.checkpoints else ""
        raise Stopped(
            f"stopped at step {run.last_step}: run {run.id} is marked KILLED and keeps what it logged{how}"
        ) from None
    except Away:  # what the store did not take is kept, with the state
        raise
    except RecipeError as error:
        run.end("FAILED", error=str(error))
        raise
    except Exception as error:
        run.end("FAILED", error=f"{type(error).__name__}: {error}")
        raise
    finally:
        interruption.restore(handlers)


# What a resumed run may be told anew: none of it changes what is computed, but for the backend's rounding.
FREE_ON_RESUME = {
    "backend",
    "checkpoint_dir",
    "checkpoint_every",
    "data_dir",
    "keep_checkpoints",
    "resume",
    "tracking_uri",
}


def resumed(config_class: type[RunConfig], given: Mapping[str, Any], name: str) -> RunConfig:
    """The configuration that a killed run goes on with: its own, as MLflow has it.

    Args:
        config_class: the recipe's Config.
        given: the fields that the command line gives; `resume` among them.
        name: the recipe's name.

    Returns:
        The configuration; its backend is this process' one.

    Raises:
        RecipeError: no such run, a run of another recipe, or a field that cannot change now.
    """
    run_id = given["resume"]
    found = recorder.store(given.get("tracking_uri", config_class().tracking_uri)).look_up(run_id)
    recipe = found.tags.get("recipe")
    if recipe != name:
        raise usage_error(
            f"run {run_id} is one of recipe {recipe}: python -m recipes.{recipe} --resume {run_id}"
        )
    recorded = recorded_fields(config_class, found.params)
    for field, value in given.items():
        if field not in FREE_ON_RESUME and value != recorded.get(field):
            raise usage_error(
                f"run {run_id} has {field} {recorded.get(field)}, not {value}: leave the flag away, "
                "or start a new run"
            )
    fields = {**recorded, **given}
    backend.choose(["--backend", fields["backend"]])
    return config_class(**fields)


def recorded_fields(config_class: type[RunConfig], params: Mapping[str, str]) -> dict[str, Any]:
    """A run's parameters, which MLflow keeps as words, as fields of its recipe's Config."""
    return {
        name: value_of(config_class, name, params[name])
        for name in field_types(config_class)
        if name in params
    }


def recipe_name(train: Train) -> str:
    """The name of the recipe that a `train` function belongs to: its module's, also under `-m`."""
    module = train.__module__
    if module == "__main__":
        module = sys.modules["__main__"].__spec__.name
    return module.rsplit(".", 1)[-1]


def _parsed(config_class: type[RunConfig], words: list[str], train: Train) -> RunConfig:
    import tyro

    return tyro.cli(config_class, args=words, description=_description(train), prog=_command(train))


def _seed(config: RunConfig) -> None:
    import keras

    keras.utils.set_random_seed(config.seed)
    keras.config.set_dtype_policy(config.precision)


def _description(train: Train) -> str:
    return (sys.modules[train.__module__].__doc__ or "").split("\n\n")[0]


def _command(train: Train) -> str:
    return f"python -m recipes.{recipe_name(train)}"


def circumstances(source: str, backend: str, seed: int) -> dict[str, str]:
    """Tags that say where a run came from; no framework is imported to know them.

    Args:
        source: what ran, as `recipes.cnn_cifar`.
        backend: what computes.
        seed: the run's seed.
    """
    tags = {"backend": backend, "seed": str(seed), "mlflow.source.name": source}
    tags["command"] = command()
    tags |= _versions()
    commit = _git("rev-parse", "HEAD")
    if commit:
        tags["mlflow.source.git.commit"] = commit
        tags["git.dirty"] = str(bool(_git("status", "--porcelain")))
    return tags


@functools.cache
def _versions() -> dict[str, str]:
    versions = {"version.python": ".".join(map(str, sys.version_info[:3]))}
    for package in VERSIONED:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[f"version.{package}"] = metadata.version(package)
    return versions


def command() -> str:
    """The command line that this process was started with."""
    return " ".join(["python", *sys.orig_argv[1:]])


def device(backend: str) -> str:
    """What a backend computes on."""
    if backend == "jax":
        import jax

        first = jax.devices()[0]
        return f"{first.platform}: {first.device_kind}"
    if backend == "torch":
        import torch

        return f"cuda: {torch.cuda.get_device_name()}" if torch.cuda.is_available() else "cpu"
    if backend == "tensorflow":
        import tensorflow as tf

        return "gpu" if tf.config.list_physical_devices("GPU") else "cpu"
    return "cpu"


@functools.cache
def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), *arguments], capture_output=True, text=True, timeout=5
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
