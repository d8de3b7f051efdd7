"""Training steps of a plain classifier: `model.fit`, the portable step, that of `training.fit`, and probing.

    python -m benchmarks.training_step                       # each backend in a process of its own
    python -m benchmarks.training_step --backends jax --steps 100 --rounds 7

The network is `cnn_cifar --model small` on random images (32, 32, 3), batches of 128, Nesterov SGD. All do
the same steps on the same batches in one process, in interleaved rounds; a ratio is the median over rounds of
the side's speed to that of `fit`. Probing looks once in `--steps` steps.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from types import SimpleNamespace


def main() -> None:
    """The command: a line a backend and side."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--backends", nargs="+", default=["jax", "torch", "tensorflow"])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        _compare(options.steps, options.rounds)
        return
    print("| backend | side | ms a step | speed to fit | quartiles |\n|---|---|---|---|---|", flush=True)
    for name in options.backends:
        words = ["--child", "--steps", str(options.steps), "--rounds", str(options.rounds)]
        environment = {**os.environ, "KERAS_BACKEND": name}
        subprocess.run(
            [sys.executable, "-m", "benchmarks.training_step", *words], env=environment, check=True
        )


def _compare(steps: int, rounds: int) -> None:
    from recipes.engine import backend

    backend.keep_memory()
    import keras

    sides = _sides(steps)
    for side in sides.values():
        side()  # compile
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds):
        for name in list(sides) if number % 2 else reversed(list(sides)):
            begin = time.perf_counter()
            sides[name]()
            seconds[name].append(time.perf_counter() - begin)
    for name, times in seconds.items():
        ratios = sorted(fit / own for fit, own in zip(seconds["fit"], times, strict=True))
        low, middle, high = statistics.quantiles(ratios, n=4)
        print(
            f"| {keras.backend.backend()} | {name} | {1000 * statistics.median(times) / steps:.1f} "
            f"| {middle:.2f} | {low:.2f} - {high:.2f} |",
            flush=True,
        )


def _sides(steps: int) -> dict[str, Callable[[], None]]:
    import keras
    import numpy as np

    from recipes import cnn_cifar, training_loop
    from recipes.engine import probes, programs
    from recipes.engine.data import Batches, Dataset, Split

    rng = np.random.default_rng(0)
    split = Split(
        rng.integers(0, 256, (128 * 20, 32, 32, 3), dtype=np.uint8),
        rng.integers(0, 10, 128 * 20).astype("int32"),
    )
    data = Dataset("random", split, split, split, tuple("0123456789"))
    name = keras.backend.backend()
    config = cnn_cifar.Config(backend=name)
    batches = Batches(split, 128, seed=0)

    def made(compiled: bool) -> tuple[keras.Model, keras.optimizers.Optimizer]:
        model = cnn_cifar.build_model(config, data)
        optimizer = cnn_cifar.build_optimizer(config, 0.01)
        optimizer.build(model.trainable_variables)
        if compiled:
            model.compile(optimizer, training_loop.loss_of)
        return model, optimizer

    fitted, _ = made(compiled=True)
    plain, _ = made(compiled=True)
    probed, _ = made(compiled=True)
    stepped = made(compiled=False)
    step = training_loop.portable_step(*stepped)
    run = SimpleNamespace(metrics=lambda values, at: None, history={})
    train, train_probed = (programs.training(model, batches, config) for model in (plain, probed))
    probe = probes.Probe({"": probes.Look(probed)}, run, batches, steps)

    def portable() -> None:
        for index in range(steps):
            float(step(*(keras.ops.convert_to_tensor(part) for part in batches[index]))["loss"])

    def trained() -> None:
        for index in range(steps):
            train(index, [0.01])

    def looked_at() -> None:
        for index in range(steps):
            train_probed(index, [0.01])
            probe.after_step(index + 1)

    return {
        "fit": lambda: fitted.fit(batches.between(0, steps), shuffle=False, verbose=0),
        "portable step": portable,
        "step of training.fit": trained,
        f"step of training.fit, a look every {steps} steps": looked_at,
    }


if __name__ == "__main__":
    main()
