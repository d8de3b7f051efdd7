"""Training step and peak memory of our layers against Keras' built-in ones.

    python -m benchmarks.layers                                 # one table a backend
    python -m benchmarks.layers --backends torch --threads 2 --layers Conv2D Dropout

A step is the forward and the backward pass, by the weights and by floating-point inputs, compiled as
`model.fit` compiles it on a CPU: `jax.jit` on JAX, `tf.function` on TensorFlow, eager autograd on PyTorch.
(On TensorFlow `model.fit` uses XLA only where it finds an accelerator; `--xla` asks for it here.) Ours and
the built-in run in the same process, in interleaved rounds whose order alternates, each round long enough to
be timed; the ratio is the median over rounds. Processes are pinned to `--threads` cores.
Peak memory is `ru_maxrss` of a process of its own, less what it was before the layer was made.

Sizes are those of a recipe's middle: a ResNet-20's first stage (batch 128, 32x32, 16 channels) for images, a
small transformer's activations (batch 32, 128 steps, 256 features) for the rest. Other modules bring their
own cases: `if __name__ == "__main__": main(CASES, __spec__.name)`.

Figures and what was tried and not kept: `results/layers/layers.md` and the end of this file.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

BACKENDS = ("jax", "torch", "tensorflow")
SECONDS_A_ROUND = 0.15
# For the C library, where it is GNU's. By default it may return a freed tensor to the system, to be got back
# at a page fault for every 4 KiB; whether it does is an accident of sizes, and costs more than a layer.
KEEP_FREED_MEMORY = {"MALLOC_TRIM_THRESHOLD_": str(1 << 32), "MALLOC_MMAP_THRESHOLD_": str(1 << 32)}


@dataclass(frozen=True)
class Case:
    """One line of the table.

    Attributes:
        make: makes the layer from a module, `layers` or `keras.layers`.
        shape: shape of the input; several shapes where the layer takes several inputs.
        options: further arguments of the call.
        integers: None for normal inputs, or the bound of random integer ones.
        native: makes the same layer in the backend's own terms, or None where there is none (`--native`).
    """

    make: Callable[[Any], Any]
    shape: tuple
    options: dict = field(default_factory=dict)
    integers: int | None = None
    native: Callable[[], Any] | None = None


IMAGES = (128, 32, 32, 16)
FEATURES = (32, 128, 256)

CASES = {
    "Dense": Case(lambda m: m.Dense(256, activation="relu"), FEATURES),
    "Conv2D": Case(lambda m: m.Conv2D(16, 3, padding="same"), IMAGES),
    "DepthwiseConv2D": Case(lambda m: m.DepthwiseConv2D(3, padding="same"), IMAGES),
    "Conv2DTranspose": Case(lambda m: m.Conv2DTranspose(16, 3, 2, padding="same"), (128, 16, 16, 16)),
    "MaxPooling2D": Case(lambda m: m.MaxPooling2D(2), IMAGES),
    "GlobalAveragePooling2D": Case(lambda m: m.GlobalAveragePooling2D(), IMAGES),
    "BatchNormalization": Case(lambda m: m.BatchNormalization(), IMAGES, {"training": True}),
    "LayerNormalization": Case(lambda m: m.LayerNormalization(), FEATURES),
    "GroupNormalization": Case(lambda m: m.GroupNormalization(4), IMAGES),
    "RMSNormalization": Case(lambda m: m.RMSNormalization(), FEATURES),
    "Dropout": Case(lambda m: m.Dropout(0.1), FEATURES, {"training": True}),
    "SpatialDropout2D": Case(lambda m: m.SpatialDropout2D(0.1), IMAGES, {"training": True}),
    "GaussianNoise": Case(lambda m: m.GaussianNoise(0.1), FEATURES, {"training": True}),
}


def random_inputs(case: Case) -> list:
    """NumPy inputs, the same in every process."""
    import numpy as np

    rng = np.random.default_rng(0)
    shapes = case.shape if isinstance(case.shape[0], tuple) else (case.shape,)
    if case.integers is not None:
        return [rng.integers(0, case.integers, size=shape).astype("int32") for shape in shapes]
    return [rng.normal(size=shape).astype("float32") for shape in shapes]


def cotangents_of(outputs: Any) -> list:
    """Fixed output gradients of the outputs' shapes; PyTorch and XLA cannot simplify them away."""
    import keras
    import numpy as np

    rng = np.random.default_rng(1)
    return [
        keras.ops.cast(
            keras.ops.convert_to_tensor(rng.normal(size=tuple(x.shape)).astype("float32")), x.dtype
        )
        for x in keras.tree.flatten(outputs)
    ]


def training_step(layer: Any, case: Case, xla: bool) -> Callable[[], Any]:
    """A function that runs one step and returns when its gradients are there.

    `xla` concerns TensorFlow alone. On a CPU, PyTorch and TensorFlow return no sooner by themselves.
    """
    import keras

    inputs = [keras.ops.convert_to_tensor(x) for x in random_inputs(case)]
    cotangents = cotangents_of(layer(*inputs, **case.options))
    by_inputs = case.integers is None
    backend = keras.backend.backend()
    if backend == "jax":
        import jax

        @jax.jit
        def step(trainable: list, state: list, inputs: list) -> tuple:
            def outputs_of(trainable: list, inputs: list) -> tuple:
                outputs, new = layer.stateless_call(trainable, state, *inputs, **case.options)
                return keras.tree.flatten(outputs), new

            if by_inputs:
                _, pull, new = jax.vjp(outputs_of, trainable, inputs, has_aux=True)
            else:
                _, pull, new = jax.vjp(lambda t: outputs_of(t, inputs), trainable, has_aux=True)
            return pull(cotangents), new

        values = [[v.value for v in vs] for vs in (layer.trainable_variables, layer.non_trainable_variables)]
        return lambda: jax.block_until_ready(step(*values, inputs))
    if backend == "torch":
        import torch

        sources = [v.value for v in layer.trainable_variables]
        if by_inputs:
            inputs = [x.requires_grad_() for x in inputs]
            sources += inputs

        def step() -> tuple:
            outputs = keras.tree.flatten(layer(*inputs, **case.options))
            return torch.autograd.grad(outputs, sources, cotangents)

        return step

    import tensorflow as tf

    @tf.function(jit_compile=xla)
    def step(inputs: list) -> list:
        with tf.GradientTape() as tape:
            if by_inputs:
                tape.watch(inputs)
            outputs = keras.tree.flatten(layer(*inputs, **case.options))
        sources = [v.value for v in layer.trainable_variables] + (inputs if by_inputs else [])
        return tape.gradient(outputs, sources, cotangents)

    return lambda: step(inputs)


def seconds(step: Callable, calls: int, clock: Callable[[], float] = time.perf_counter) -> float:
    """Mean duration of a step."""
    start = clock()
    for _ in range(calls):
        step()
    return (clock() - start) / calls


def made(case: Case, who: str) -> Any:
    """The case's layer, ours, Keras' or the backend's own."""
    import keras

    import layers

    if who == "native":
        return case.native() if case.native else None
    return case.make(layers if who == "ours" else keras.layers)


def compare(case: Case, options: argparse.Namespace, rounds: int) -> dict:
    """Durations of ours, the built-in and with `--native` the backend's own, interleaved."""
    clock = time.process_time if options.cpu_time else time.perf_counter
    built = {who: made(case, who) for who in ("ours", "theirs", *(["native"] if options.native else []))}
    steps = {
        who: training_step(layer, case, options.xla) for who, layer in built.items() if layer is not None
    }
    for step in [*steps.values()] * 2:
        step()
    calls = max(1, round(SECONDS_A_ROUND / max(seconds(step, 2) for step in steps.values())))
    times: dict = {who: [] for who in steps}
    for number in range(rounds):
        for who, step in steps.items() if number % 2 else reversed(steps.items()):
            times[who].append(seconds(step, calls, clock))

    def ratios(who: str) -> list:
        return [mine / other for mine, other in zip(times[who], times["theirs"], strict=True)]

    ours = ratios("ours")
    low, middle, high = statistics.quantiles(ours, n=4, method="inclusive") if rounds > 1 else ours * 3
    result = {who: statistics.median(values) for who, values in times.items()}
    result |= {"ratio": middle, "low": low, "high": high}
    if "native" in steps:
        result["native ratio"] = statistics.median(ratios("native"))
    return result


def peak(case: Case, options: argparse.Namespace, who: str) -> dict:
    """Growth of this process' peak memory by a few steps, in MiB."""
    import keras

    random_inputs(case)
    keras.ops.convert_to_numpy(keras.ops.ones((1,)))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    step = training_step(made(case, who), case, options.xla)
    for _ in range(3):
        step()
    return {"mib": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024}


def pin(threads: int) -> None:
    """Hold this process, and the thread pools it will start, to so many cores."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    if os.environ["KERAS_BACKEND"] == "torch":
        import torch

        torch.set_num_threads(threads)


def child(module: str, backend: str, options: argparse.Namespace, *task: str) -> Any:
    """Run a task in a process of its own; the result is its last line."""
    environment = os.environ | {
        "KERAS_BACKEND": backend,
        "OMP_NUM_THREADS": str(options.threads),
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "CUDA_VISIBLE_DEVICES": "-1",
        **KEEP_FREED_MEMORY,
    }
    command = [sys.executable, "-m", module, "--threads", str(options.threads), "--task", *task]
    flags = {"--cpu-time": options.cpu_time, "--xla": options.xla, "--native": options.native}
    command += [flag for flag, given in flags.items() if given]
    result = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(result.stdout.splitlines()[-1])


def table(module: str, backend: str, options: argparse.Namespace) -> None:
    """Print one backend's table, line by line as they come."""
    count = options.threads
    name_of_backend = f"{backend}{', XLA' if options.xla and backend == 'tensorflow' else ''}"
    print(f"\n### {name_of_backend}, {count} thread{'s' * (count > 1)}, median of {options.rounds} rounds\n")
    titles = ["layer", "ours ms", "Keras ms", "ratio", "quartiles"]
    titles += ["ours MiB", "Keras MiB"] * (not options.no_memory)
    titles += ["native ms", "native / Keras"] * options.native
    print(f"| {' | '.join(titles)} |\n{'|---' * len(titles)}|", flush=True)
    ratios = []
    for name in options.layers:
        times = child(module, backend, options, "time", name, str(options.rounds))
        ratios.append(times["ratio"])
        cells = [name, f"{1e3 * times['ours']:.2f}", f"{1e3 * times['theirs']:.2f}", f"{times['ratio']:.2f}"]
        cells.append(f"{times['low']:.2f} - {times['high']:.2f}")
        if not options.no_memory:
            peaks = [child(module, backend, options, "memory", name, who) for who in ("ours", "theirs")]
            cells += [f"{of['mib']:.0f}" for of in peaks]
        if options.native:
            has = "native" in times
            cells += [f"{1e3 * times['native']:.2f}", f"{times['native ratio']:.2f}"] if has else ["-", "-"]
        print(f"| {' | '.join(cells)} |", flush=True)
    print(f"\nGeometric mean of the ratios: {statistics.geometric_mean(ratios):.2f}", flush=True)


def main(cases: dict[str, Case], module: str) -> None:
    """The command line, and the tasks of its child processes."""
    parser = argparse.ArgumentParser(description="Our layers against Keras' built-in ones.")
    parser.add_argument("--backends", nargs="+", choices=BACKENDS, default=BACKENDS)
    parser.add_argument("--layers", nargs="+", choices=list(cases), default=list(cases), metavar="NAME")
    parser.add_argument("--threads", type=int, default=1, help="cores that each process is pinned to")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--xla", action="store_true", help="compile by XLA on TensorFlow too")
    parser.add_argument(
        "--native", action="store_true", help="the backend's own layers too, where cases have them"
    )
    parser.add_argument("--no-memory", action="store_true", help="leave out the peak-memory processes")
    parser.add_argument(
        "--cpu-time", action="store_true", help="the process' own time: with one thread, on a shared machine"
    )
    parser.add_argument("--task", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.task:
        kind, name, value = options.task
        pin(options.threads)
        case = cases[name]
        print(
            json.dumps(compare(case, options, int(value)) if kind == "time" else peak(case, options, value))
        )
        return
    for backend in options.backends:
        table(module, backend, options)


if __name__ == "__main__":
    main(CASES, __spec__.name)

# Tried and not kept, the first attempts (the later ones are in results/layers/layers.md). Milliseconds of
# process time a step (forward and backward), one core, medians of 7 to 9 interleaved steps on a machine that
# others were using: compare within a line, not between lines.
#
# BatchNormalization at (128, 32, 32, 16), training; x2 is x reshaped to (131072, 16).
#   PyTorch:    two means of x2 16.5; means of the 4-D x 25.9; products of ones with x2 15.0; the
#               same, normalizing the centred x2 13.6; keras.layers.BatchNormalization 18.0
#   TensorFlow: two means 3.6; 4-D 9.5; ones 4.6; ones, centred 5.6; Keras 7.2
#   JAX:        two means 3.3; 4-D 3.3; ones 4.0; ones, centred 8.8; Keras 3.6
#   PyTorch, in another run: 4-D 17.9; torch.var 19.0; torch.var_mean 30.3; mean of squares less squared mean
#               14.6, which loses the digits of a large mean; einsum for the squares 28.5; Keras 16.8; torch's
#               fused batch_norm, out of reach of keras.ops, 3.7
