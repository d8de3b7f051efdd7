"""Choosing the backend before Keras loads.

Keras reads KERAS_BACKEND once, when it is imported. So the choice is made by `recipes/__init__.py`, the
first line of this project that runs, from the command line that Python was started with.
"""

import contextlib
import ctypes
import hashlib
import importlib.util
import os
import platform
import sys
from collections.abc import Collection, Iterator
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any

from recipes.engine import catalogue
from recipes.engine.errors import RecipeError, unknown, usage_error

CACHE = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "keras-recipes"
BACKENDS = ("jax", "torch", "tensorflow")
DEFAULT = "jax"


def choose_at_start() -> None:
    """Set KERAS_BACKEND for `python -m recipes.NAME` or `python -m tuning.NAME`; exit 2 if it cannot be.

    The order is --backend, then KERAS_BACKEND, then jax. A program that merely imports the package keeps
    whatever Keras would do by itself, with jax as the default.
    """
    command = _command()
    if command is None:
        os.environ.setdefault("KERAS_BACKEND", DEFAULT)
        return
    try:
        name = command.removeprefix("recipes.")
        if name != command and name not in catalogue.COMMANDS:
            catalogue.require(name)
        choose(sys.orig_argv)
    except RecipeError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


def choose(arguments: list[str]) -> str:
    """Take the backend from a command line and make this process use it.

    Args:
        arguments: the words of the command line; `--backend NAME` and `--backend=NAME` are looked for.

    Returns:
        The name chosen. `numpy`, for recipes on the NumPy engine, needs nothing set up.

    Raises:
        RecipeError: the name is unknown, or the framework is not installed.
    """
    asked = _option(arguments, "--backend") or os.environ.get("KERAS_BACKEND")
    name = asked or DEFAULT
    if name == "numpy":
        keep_tensorflow_out()
        return name
    if name not in BACKENDS:
        raise unknown("backend", name, BACKENDS)
    if asked:  # a recipe on the NumPy engine needs no default backend; for the others `launch` looks
        require_installed(name)
    os.environ["KERAS_BACKEND"] = name
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if name == "tensorflow":
        let_tensorflow_in()
    else:
        keep_tensorflow_out()
    if name == "jax":
        keep_compiled()
    keep_memory()
    return name


def insist_on(name: str) -> None:
    """Begin this process' command once more if Keras is loaded already, with another backend.

    Which backend a run to go on with had is known only after its recipe was imported, and many a recipe
    loads Keras when it is.
    """
    if "keras.src" in sys.modules and name in BACKENDS and sys.modules["keras"].backend.backend() != name:
        os.environ["KERAS_BACKEND"] = name
        sys.stdout.flush()
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def require_installed(name: str) -> None:
    """Refuse a backend whose framework is absent, saying how to get it."""
    if name not in installed():
        raise usage_error(
            f"backend '{name}' is not installed: pip install 'keras-recipes[{name}]', "
            f"or choose one of {', '.join(installed()) or 'jax, torch, tensorflow'} with --backend"
        )


def installed() -> list[str]:
    """The backends whose framework can be imported here, also where TensorFlow is kept out."""
    return [name for name in BACKENDS if importlib.util.find_spec(name) or PathFinder.find_spec(name)]


class _WithoutTensorFlow(PathFinder):
    """Python's ordinary search for modules, which does not find TensorFlow."""

    @classmethod
    def find_spec(cls, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        return None if fullname == "tensorflow" else super().find_spec(fullname, path, target)


def keep_tensorflow_out() -> None:
    """Make TensorFlow look absent in this process.

    Keras and MLflow import it whenever they find it (`model.save` does), which costs a JAX or PyTorch
    run two seconds and 400 MB for nothing.
    """
    if PathFinder in sys.meta_path:
        sys.meta_path[sys.meta_path.index(PathFinder)] = _WithoutTensorFlow


@contextlib.contextmanager
def hidden(packages: Collection[str]) -> Iterator[None]:
    """Within, these packages look absent to who would import them now."""
    place = next(i for i, f in enumerate(sys.meta_path) if isinstance(f, type) and issubclass(f, PathFinder))
    usual = sys.meta_path[place]

    class Without(usual):
        """The usual search for modules, which does not find these."""

        @classmethod
        def find_spec(cls, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
            return None if fullname.split(".")[0] in packages else super().find_spec(fullname, path, target)

    sys.meta_path[place] = Without
    try:
        yield
    finally:
        sys.meta_path[sys.meta_path.index(Without)] = usual


def let_tensorflow_in() -> None:
    """Undo `keep_tensorflow_out`: a resumed run's own backend is known later than the default."""
    if _WithoutTensorFlow in sys.meta_path:
        sys.meta_path[sys.meta_path.index(_WithoutTensorFlow)] = PathFinder


def make_deterministic(name: str) -> None:
    """Have a GPU repeat a run bit for bit: no reductions in the order in which threads happen to end."""
    if name == "jax":
        _tell_xla("--xla_gpu_deterministic_ops=true")
    elif name == "torch":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        import torch

        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False
    else:
        import tensorflow as tf

        tf.config.experimental.enable_op_determinism()


def flush_denormals() -> None:
    """Have PyTorch take what is nearer to 0 than 1e-38 for 0 on CPUs, as XLA and TensorFlow do.

    Gradients that fade over hundreds of steps end as such numbers, with which some processors compute so
    slowly that a step of a recurrent network takes four times as long.
    """
    import torch

    torch.set_flush_denormal(True)


def put_memory_first() -> None:
    """Have XLA, which a process must not have used yet, keep little at a time on CPUs.

    Else it computes whatever it can as soon as it can, for the sake of many cores, and so too at once what is
    to be computed again for the backward pass (`gradients.recompute`): no memory would be saved.
    """
    _tell_xla("--xla_cpu_enable_concurrency_optimized_scheduler=false")


def _tell_xla(flag: str) -> None:
    """Set a flag of XLA, which reads them when it is first used."""
    if flag not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()


def keep_compiled() -> None:
    """Have JAX keep compiled programs on disk: the next run of the same model loads instead of compiling.

    All of them, however quickly compiled: making a model alone takes some hundred small ones. They are made
    for this processor: in a home that several machines share, each kind has its own.
    """
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE.expanduser() / "xla" / _processor()))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")


def _processor() -> str:
    """Ten hex digits of what this machine's processor can do."""
    features = platform.processor()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        features += "".join(line for line in lines if line.startswith(("flags", "Features")))
    return hashlib.sha256(features.encode()).hexdigest()[:10]


def keep_memory() -> None:
    """Let the C library keep freed memory for the next step instead of giving it back to the system.

    A training step frees and allocates the same large arrays again and again; with glibc's defaults each
    of them is mapped, cleared and unmapped anew, which can take half the time of a PyTorch step on CPU. XLA
    asks from threads of its own, whose parts of the heap go back to the system once they are empty, whatever
    is said here: it took a third of a JAX step, until all shared one heap.
    """
    if sys.platform != "linux":
        return
    trim_threshold, mmap_max, arena_max = -1, -4, -8  # M_TRIM_THRESHOLD, ... of malloc.h
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(trim_threshold, 2**31 - 1)
        libc.mallopt(mmap_max, 0)
        libc.mallopt(arena_max, 1)


def thread_environment(threads: int) -> dict[str, str]:
    """The environment variables that hold every backend to a number of threads."""
    count = str(threads)
    return {
        "OMP_NUM_THREADS": count,  # PyTorch, and NumPy's BLAS
        "OPENBLAS_NUM_THREADS": count,
        "NPROC": count,  # XLA's CPU client
        "TF_NUM_INTRAOP_THREADS": count,
        "TF_NUM_INTEROP_THREADS": count,
    }


def _command() -> str | None:
    """The module of `python -m recipes...` or `python -m tuning...`, while Python is looking for it."""
    if sys.argv[:1] != ["-m"] or "-m" not in sys.orig_argv:
        return None
    module = "".join(sys.orig_argv[sys.orig_argv.index("-m") + 1 :][:1])
    return module if module.split(".")[0] in ("recipes", "tuning") and ".engine" not in module else None


def _option(arguments: list[str], flag: str) -> str | None:
    """The value of a flag, wherever it stands."""
    for index, word in enumerate(arguments):
        if word == flag and index + 1 < len(arguments):
            return arguments[index + 1]
        if word.startswith(flag + "="):
            return word.split("=", 1)[1]
    return None
