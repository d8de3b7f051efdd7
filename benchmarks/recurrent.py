"""Recurrent layers against Keras' own: one training step, and the memory it takes.

    python benchmarks/recurrent.py --backend jax --threads 1

prints one table: the time of `train_on_batch` on a compiled model (the best of interleaved repeats, as
`model.fit` compiles it), and the peak memory of a process that does nothing else. `--jit` asks for XLA on
TensorFlow, where `model.compile` leaves it out by default; `--native` adds PyTorch's own layers, on
PyTorch, as the floor.
"""

import argparse
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

SHAPES = ((64, 100, 64), (16, 400, 64))
UNITS = 256
LAYERS = ("LSTM", "GRU", "SimpleRNN")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backend", choices=("jax", "torch", "tensorflow"), default="jax")
    parser.add_argument("--threads", type=int, choices=(1, 2), default=1)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--sequences", action="store_true", help="return all outputs, not the last alone")
    parser.add_argument("--jit", action="store_true", help="compile with XLA on TensorFlow too")
    parser.add_argument("--native", action="store_true", help="PyTorch's own layers too")
    parser.add_argument("--memory-of", nargs=2, metavar=("LAYER", "SHAPE"), help=argparse.SUPPRESS)
    return parser.parse_args()


def pin(options: argparse.Namespace) -> None:
    """Threads and backend, before any framework is imported."""
    os.environ.update(
        KERAS_BACKEND=options.backend,
        OMP_NUM_THREADS=str(options.threads),
        TF_NUM_INTRAOP_THREADS=str(options.threads),
        TF_NUM_INTEROP_THREADS="1",
        TF_CPP_MIN_LOG_LEVEL="3",
        CUDA_VISIBLE_DEVICES="-1",
    )
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.threads])
    sys.path.insert(0, str(Path(__file__).parents[1]))


def training_step(kind: str, name: str, shape: tuple, options: argparse.Namespace):
    """A function that takes one training step of the layer on fixed data."""
    import numpy as np

    x = np.random.default_rng(0).normal(size=shape).astype("float32")
    size = (*shape[:2], UNITS) if options.sequences else (shape[0], UNITS)
    y = np.zeros(size, "float32")
    if kind == "native":
        return native_step(name, x, y)
    import keras

    import layers

    library = layers if kind == "ours" else keras.layers
    layer = getattr(library, name)(UNITS, return_sequences=options.sequences)
    model = keras.Sequential([keras.Input(shape[1:]), layer])
    model.compile("sgd", "mse", jit_compile=True if options.jit else "auto")
    return lambda: model.train_on_batch(x, y)


def native_step(name: str, x, y):
    """The same step of PyTorch's fused layer."""
    import torch

    layer = getattr(torch.nn, {"SimpleRNN": "RNN"}.get(name, name))(x.shape[-1], UNITS, batch_first=True)
    optimizer = torch.optim.SGD(layer.parameters(), 0.01)
    x, y = torch.from_numpy(x), torch.from_numpy(y)

    def step() -> float:
        optimizer.zero_grad()
        outputs = layer(x)[0]
        loss = ((outputs if y.ndim == 3 else outputs[:, -1]) - y).square().mean()
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def peak_memory(kind: str, name: str, index: int, options: argparse.Namespace) -> float:
    """Megabytes that three steps add to a fresh process that has only imported its framework."""
    command = [sys.executable, __file__, "--backend", options.backend, "--threads", str(options.threads)]
    command += [flag for flag in ("--sequences", "--jit") if getattr(options, flag[2:])]
    command += ["--memory-of", f"{kind}:{name}", str(index)]
    result = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(result.stdout.split()[-1])


def report_memory(options: argparse.Namespace) -> None:
    import keras

    keras.ops.matmul(keras.ops.ones((8, 8)), keras.ops.ones((8, 8)))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    kind, name = options.memory_of[0].split(":")
    step = training_step(kind, name, SHAPES[int(options.memory_of[1])], options)
    for _ in range(3):
        step()
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)


def main() -> None:
    options = arguments()
    pin(options)
    if options.memory_of:
        report_memory(options)
        return
    # Before this process grows: a child's peak starts from its parent's.
    memory = {
        (kind, name, index): peak_memory(kind, name, index, options)
        for kind in ("ours", "keras")
        for name in LAYERS
        for index in range(len(SHAPES))
    }
    if options.backend == "torch":
        import torch

        torch.set_num_threads(options.threads)
    kinds = ["ours", "keras", *(["native"] if options.native and options.backend == "torch" else [])]
    print(
        f"backend {options.backend}, threads {options.threads}, "
        f"sequences {options.sequences}, jit {options.jit}"
    )
    print(
        f"{'layer':10} {'(batch, time, in)':>18} " + " ".join(f"{kind + ' ms':>10}" for kind in kinds), end=""
    )
    print(f" {'ratio':>6} {'ours MB':>8} {'keras MB':>8}")
    product, count = 1.0, 0
    for index, shape in enumerate(SHAPES):
        for name in LAYERS:
            steps = {kind: training_step(kind, name, shape, options) for kind in kinds}
            for step in steps.values():
                step()
            times = {kind: [] for kind in kinds}
            for _ in range(options.repeats):
                for kind, step in steps.items():
                    start = time.perf_counter()
                    step()
                    times[kind].append(time.perf_counter() - start)
            best = {kind: min(taken) for kind, taken in times.items()}
            ratio = best["ours"] / best["keras"]
            product, count = product * ratio, count + 1
            peaks = [memory[kind, name, index] for kind in ("ours", "keras")]
            print(
                f"{name:10} {shape!s:>18} " + " ".join(f"{1e3 * best[kind]:10.1f}" for kind in kinds), end=""
            )
            print(f" {ratio:6.2f} {peaks[0]:8.0f} {peaks[1]:8.0f}", flush=True)
    print(f"geometric mean {product ** (1 / count):.2f}")


if __name__ == "__main__":
    main()
