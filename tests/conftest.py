"""One pytest process a backend: `make test` starts them side by side and gives one summary."""

import gc
import importlib.util
import math
import os
import tempfile
import types

BACKENDS = {"jax": "jax", "torch": "torch", "tensorflow": "tensorflow"}

os.environ.setdefault("KERAS_BACKEND", "jax")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
os.environ.setdefault("MPLBACKEND", "agg")

import pytest  # noqa: E402 - the environment comes first

BACKEND = os.environ["KERAS_BACKEND"]
INSTALLED = [name for name, module in BACKENDS.items() if importlib.util.find_spec(module)]

# Tests marked `once` run on the backend that has the least to compile: beside the others, or, where there are
# processes for them, in these (those in tests/tuning in "tuning", all else in "others") and not in the first
# one of this backend ("without").
ONCE = next(name for name in ("torch", "tensorflow", "jax") if name in INSTALLED)
MARKED_ONCE = os.environ.get("MARKED_ONCE", "with" if ONCE == BACKEND else "without")

# Ray's workers would wait behind the other backends' tests.
os.environ.setdefault("RAY_worker_niceness", "0")

if BACKEND == "jax" or MARKED_ONCE == "tuning":  # the sweeps' workers run on JAX
    # Tests compile much and compute little: without optimization, and with the older way to fuse operations,
    # they take half of the time. (That way gets gradients of maxima wrong; pooling here takes none.)
    flags = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = (
        f"{flags} --xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false".strip()
    )
    # What one test compiled the next need not, nor the processes that tests start.
    COMPILED = tempfile.TemporaryDirectory()
    os.environ["JAX_COMPILATION_CACHE_DIR"] = COMPILED.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"

if BACKEND == "jax":
    # JAX makes a new compiler context for every program, for a third of the time that a small one takes.
    import functools

    from jax._src.interpreters import mlir

    mlir.make_ir_context = functools.cache(mlir.make_ir_context)

    # Keras' layers, which ours are compared to, draw weights in the kernel's shape: the same numbers as in a
    # row (see layers/initializers.py), and for small kernels ten times as long to compile.
    from keras.src.backend.jax import random
    from keras.src.initializers import random_initializers

    def in_a_row(draw):
        return lambda shape, *numbers, **named: draw((math.prod(shape),), *numbers, **named).reshape(shape)

    draws = {name: in_a_row(getattr(random, name)) for name in ("normal", "truncated_normal", "uniform")}
    # Not in Keras' own module: what a program draws is fused with the rest, and may then round otherwise.
    random_initializers.random = types.SimpleNamespace(**{**vars(random), **draws})

if (BACKEND, MARKED_ONCE) == ("torch", "without") and "PYTEST_XDIST_WORKER" in os.environ:
    # PyTorch has the least to do: the others go before it, so that all end together.
    os.nice(5)

if BACKEND == "torch":
    # One thread a process: the backends' processes run side by side, and reductions keep one order.
    import torch

    torch.set_num_threads(1)


def pytest_report_header():
    return f"keras backend: {BACKEND} (installed: {', '.join(INSTALLED)}), {MARKED_ONCE} tests marked once"


def pytest_ignore_collect(collection_path):
    """The process for the sweeps' tests need not import the others."""
    if MARKED_ONCE == "tuning" and collection_path.suffix == ".py":
        return collection_path.parent.name != "tuning" or None


def pytest_collection_modifyitems(config, items):
    """Tests marked `once` run in one process only."""
    if MARKED_ONCE != "with":

        def place(item):
            if "once" not in item.keywords:
                return "without"
            return "tuning" if item.path.parent.name == "tuning" else "others"

        kept = [item for item in items if place(item) == MARKED_ONCE]
        config.hook.pytest_deselected(items=[item for item in items if item not in kept])
        items[:] = kept


@pytest.fixture(autouse=True, scope="module")
def fresh_garbage_only():
    """What is alive when a module begins is never garbage collected: it is much, and none of it is garbage.

    Keras collects whenever it clears its session, Python every now and then: in a process that has traced and
    compiled for half of the tests that took a quarter of the time.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def copied_store():
    """Stores are copies of the first that this process made: MLflow takes seconds to make one."""
    from recipes.engine import store

    made, create = [], store._create_store

    def copy_or_create(path):
        if made:
            path.write_bytes(made[0])
        else:
            create(path)
            made.append(path.read_bytes())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "_create_store", copy_or_create)
        yield


@pytest.fixture
def folder_with_store(tmp_path):
    """A folder where a command finds its store made."""
    from recipes.engine import store

    store.connect(f"sqlite:///{tmp_path}/mlruns/mlflow.db")
    return tmp_path


@pytest.fixture
def rng():
    import numpy as np

    return np.random.default_rng(0)


@pytest.fixture
def meeting_place(tmp_path_factory):
    """The folder that all backends' test processes share; None where this one runs alone."""
    return tmp_path_factory.getbasetemp().parent / "meeting" if "PYTEST_XDIST_WORKER" in os.environ else None


@pytest.fixture(autouse=True)
def own_tracking_store(monkeypatch):
    """No test writes where the user does, and none leaves a store to the next: MLflow keeps its URI there."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    monkeypatch.delenv("MLFLOW_TRACKING_URI")


@pytest.fixture(autouse=True)
def fixed_seed(request):
    """Every test that uses Keras starts from the same seed."""
    if "once" not in request.keywords:
        import keras

        keras.utils.set_random_seed(0)
