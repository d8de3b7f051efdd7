"""Peak memory and time of training steps of gpt_shakespeare, with and without recomputed blocks.

    python -m benchmarks.remat [--backends torch jax tensorflow] [--layers 12] [--context 256]
        [--batch-size 16] [--steps 2]

A process each: what it takes at most, less what it took before the first step, and the mean time of the steps
after the first one.
"""

import argparse
import os
import resource
import subprocess
import sys
import time


def measure(layers_: int, context: int, batch_size: int, steps: int, remat: bool) -> None:
    """Train, and print what it took."""
    import keras
    import numpy as np

    import layers
    from recipes import gpt_shakespeare as recipe
    from recipes.engine import programs
    from recipes.engine.data import Batches, Split

    config = recipe.Config(layers=layers_, context=context, batch_size=batch_size, remat=remat)
    keras.utils.set_random_seed(0)
    numbers = np.random.default_rng(0).integers(0, 64, (batch_size, context)).astype("int32")
    batches = Batches(Split(numbers, numbers), batch_size, seed=0)
    model = recipe.build_model(config, 64)
    model.compile(layers.optimizers.AdamW(1e-3), recipe.cross_entropy)
    train = programs.training(model, batches, config)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    losses, seconds = [], []
    for step in range(1 + steps):
        begin = time.perf_counter()
        losses += [values["loss"] for values in train(step, [1e-3])]
        seconds.append(time.perf_counter() - begin)
    most = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    name = f"{keras.backend.backend()}{', recomputed' if remat else ''}"
    print(f"{name:<24}{most:6.0f} MiB  {np.mean(seconds[1:]):5.2f} s a step  last loss {losses[-1]:.6f}")


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--backends", nargs="+", default=["torch", "jax", "tensorflow"])
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--child", choices=["kept", "recomputed"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        measure(
            options.layers, options.context, options.batch_size, options.steps, options.child == "recomputed"
        )
        return
    for backend in options.backends:
        for child in ("kept", "recomputed"):
            words = [sys.executable, "-m", "benchmarks.remat", *sys.argv[1:], "--child", child]
            subprocess.run(words, env={**os.environ, "KERAS_BACKEND": backend}, check=True)


if __name__ == "__main__":
    main()
