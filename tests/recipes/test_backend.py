"""The backend is chosen before Keras loads, and nothing is imported that a run does not need."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from recipes.engine import backend
from recipes.engine.errors import RecipeError

pytestmark = pytest.mark.once


@pytest.fixture(autouse=True)
def unchanged_process(monkeypatch):
    """`choose` sets this process up; undo it, so that other tests find what they expect."""
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    monkeypatch.setattr(backend, "keep_memory", lambda: None)
    monkeypatch.setattr(backend, "keep_compiled", lambda: None)
    monkeypatch.setenv("KERAS_BACKEND", "jax")


def python(*arguments, **environment):
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        timeout=120,
    )


def test_flag_wins_over_environment_over_default(monkeypatch):
    monkeypatch.setattr(backend, "require_installed", lambda name: None)
    assert backend.choose(["--backend", "torch"]) == "torch"
    assert backend.choose(["--backend=jax"]) == "jax"
    monkeypatch.setenv("KERAS_BACKEND", "tensorflow")
    assert backend.choose([]) == "tensorflow"
    monkeypatch.delenv("KERAS_BACKEND")
    assert backend.choose([]) == "jax"
    assert os.environ["KERAS_BACKEND"] == "jax"


def test_unknown_backend_names_the_nearest():
    with pytest.raises(RecipeError, match="'torhc': did you mean 'torch'") as error:
        backend.choose(["--backend", "torhc"])
    assert error.value.exit_code == 2


def test_backend_that_is_not_installed(monkeypatch):
    monkeypatch.setattr(backend, "installed", lambda: ["jax"])
    with pytest.raises(
        RecipeError, match=r"'torch' is not installed: pip install 'keras-recipes\[torch\]'"
    ) as error:
        backend.choose(["--backend", "torch"])
    assert error.value.exit_code == 2


def test_tensorflow_is_absent_for_whoever_looks():
    code = (
        "import importlib.util; from recipes.engine import backend; backend.keep_tensorflow_out();"
        "assert importlib.util.find_spec('tensorflow') is None\n"
        "try: import tensorflow\nexcept ModuleNotFoundError: print('absent')"
    )
    assert python("-c", code).stdout == "absent\n"


@pytest.mark.skipif("tensorflow" not in backend.installed(), reason="needs TensorFlow")
def test_tensorflow_can_be_chosen_where_it_was_kept_out():
    """A run to resume or to repeat names its backend after the default one was chosen."""
    code = (
        "import importlib.util; from recipes.engine import backend\n"
        "backend.choose(['--backend', 'torch']); assert importlib.util.find_spec('tensorflow') is None\n"
        "backend.choose(['--backend', 'tensorflow']); print(importlib.util.find_spec('tensorflow').name)"
    )
    assert python("-c", code).stdout == "tensorflow\n"


@pytest.mark.parametrize("name", backend.installed())
def test_keras_comes_without_what_no_recipe_needs(name):
    code = (
        "import sys, recipes, keras; keras.Layer\n"
        "print({'sklearn', 'matplotlib', 'pandas'} & set(sys.modules))\n"
        "import sklearn, matplotlib.pyplot; print('there')"
    )
    assert python("-c", code, KERAS_BACKEND=name).stdout == "set()\nthere\n"


def test_jax_keeps_compiled_programs(tmp_path, monkeypatch):
    for name in ("JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"):
        monkeypatch.delenv(name, raising=False)  # the tests' own, see conftest.py
    code = (
        "from recipes.engine import backend; backend.choose(['--backend', 'jax'])\n"
        "import jax; jax.jit(lambda x: 2 * x)(jax.numpy.ones(3)).block_until_ready()"
    )
    done = python("-c", code, XDG_CACHE_HOME=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "keras-recipes/xla").iterdir())


def test_thread_environment_holds_each_backend(tmp_path):
    assert set(backend.thread_environment(3).values()) == {"3"}


@pytest.mark.parametrize("name", [name for name in ("jax", "torch") if name in backend.installed()])
def test_a_run_never_imports_tensorflow(name, folder_with_store):
    """The whole command, with data of TFDS' library at hand, figures and a stored model."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "recipes.cnn_cifar", "--backend", name,
         "--dataset", "digits", "--epochs", "1", "--no-augment", "--deterministic"],
        capture_output=True, text=True, cwd=folder_with_store, timeout=300,
        env={**os.environ, "PYTHONPATH": os.getcwd()},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    imported = [
        line.rsplit("|", 1)[-1].strip()
        for line in done.stderr.splitlines()
        if line.startswith("import time:")
    ]
    # Nobody waits for MLflow: this process needs it in the end, to store a model.
    assert imported.index("keras") < imported.index("recipes.engine.progress") < imported.index("mlflow")
    assert "matplotlib.figure" not in imported[: imported.index("recipes.engine.progress")]
    assert not {module for module in imported if module.split(".")[0] in ("tensorflow", "tensorboard")}


@pytest.mark.skipif("torch" not in backend.installed(), reason="needs torch")
def test_pytorch_computes_with_no_denormal_numbers():
    import torch

    before = float(torch.tensor([2e-38]) / 100) == 0  # a recipe that ran in this process leaves it so
    try:
        torch.set_flush_denormal(False)
        tiny = torch.tensor([1e-38])
        assert float(tiny / 100) > 0
        backend.flush_denormals()
        assert float(tiny / 100) == 0
    finally:
        torch.set_flush_denormal(before)


def test_help_is_answered_at_once():
    python("-m", "recipes.cnn_cifar", "--help")  # warm the file cache
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    done = python("-X", "importtime", "-m", "recipes.cnn_cifar", "--help")
    took = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before
    assert done.returncode == 0
    imported = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines()}
    assert not imported & {"keras.src", "jax", "torch", "tensorflow", "mlflow", "matplotlib"}
    # Half a second of the processor's time on a free one; other tests beside this one slow it down.
    assert took < 2
    text = " ".join(done.stdout.split())
    for help_line in ("Framework that computes", "Passes over the training data", "small: made for CPUs"):
        assert help_line in text


def test_every_field_has_a_help_line():
    import ast

    from recipes.engine import catalogue

    files = [Path("recipes/engine/config.py"), *(Path(f"recipes/{name}.py") for name in catalogue.names())]
    for file in files:
        for node in ast.parse(file.read_text()).body:
            if isinstance(node, ast.ClassDef) and node.name in ("Config", "RunConfig", "TrainingConfig"):
                for field, after in zip(node.body, [*node.body[1:], None], strict=True):
                    if isinstance(field, ast.AnnAssign):
                        documented = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
                        assert documented, f"{file}: {field.target.id} has no help line"


def test_table_of_contents_lists_every_recipe():
    from recipes.engine import catalogue

    shown = python("-m", "recipes").stdout
    for name in catalogue.names():
        assert f"    {name}" in shown and catalogue.summary(name) in shown


def test_readme_has_the_table_of_the_modules():
    from recipes.engine import catalogue

    assert all(catalogue.expected(name) for name in catalogue.names())
    assert catalogue.table() in Path("README.md").read_text(), "python -m recipes --table prints it"


def test_a_command_begins_again_where_keras_is_loaded_with_another_backend(monkeypatch):
    """As `--resume RUN` of a PyTorch run does: the recipe had loaded Keras with the default, JAX."""
    import keras

    from recipes.engine import backend

    started = []
    monkeypatch.setattr(backend.os, "execv", lambda *command: started.append(command))
    monkeypatch.setenv("KERAS_BACKEND", keras.backend.backend())
    for name in (keras.backend.backend(), "numpy"):
        backend.insist_on(name)
        assert not started and os.environ["KERAS_BACKEND"] == keras.backend.backend()
    other = next(name for name in backend.BACKENDS if name != keras.backend.backend())
    backend.insist_on(other)
    assert started == [(sys.executable, [sys.executable, *sys.orig_argv[1:]])]
    assert os.environ["KERAS_BACKEND"] == other
