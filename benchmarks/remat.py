"""Peak memory and time of training steps of deep networks, with and without recomputed blocks.

    python -m benchmarks.remat [--networks gpt_shakespeare cnn_cifar] [--backends torch jax tensorflow]
        [--layers 12] [--context 256] [--model resnet56] [--batch-size 16] [--steps 2]

`--layers` and `--context` are gpt_shakespeare's, `--model` is cnn_cifar's. A process each: what it takes at
most, less what it took before the first step, and the mean time of the steps after the first one.
"""

import argparse
import os
import resource
import subprocess
import sys
import time

from recipes.engine.backend import put_memory_first


def gpt_shakespeare(options, remat):
    """(network, its loss, a batch, its settings)."""
    import numpy as np

    from recipes import gpt_shakespeare as recipe
    from recipes.engine.data import Split

    config = recipe.Config(
        layers=options.layers, context=options.context, batch_size=options.batch_size, remat=remat
    )
    numbers = np.random.default_rng(0).integers(0, 64, (config.batch_size, config.context)).astype("int32")
    return recipe.build_model(config, 64), recipe.cross_entropy, Split(numbers, numbers), config


def cnn_cifar(options, remat):
    """(network, its loss, a batch, its settings)."""
    import numpy as np

    from recipes import cnn_cifar as recipe
    from recipes.engine.data import Dataset, Split

    config = recipe.Config(model=options.model, batch_size=options.batch_size, remat=remat)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (config.batch_size, 32, 32, 3), dtype="uint8")
    split = Split(images, rng.integers(0, 10, config.batch_size).astype("int32"))
    model = recipe.build_model(config, Dataset("random", split, split, split, tuple("0123456789")))
    return model, recipe.smoothed_cross_entropy(config, 10), split, config


NETWORKS = {function.__name__: function for function in (gpt_shakespeare, cnn_cifar)}


def measure(network, options, remat):
    """Train, and print what it took."""
    if remat and os.environ["KERAS_BACKEND"] == "jax":
        put_memory_first()
    import keras
    import numpy as np

    import layers
    from recipes.engine import programs
    from recipes.engine.data import Batches

    keras.utils.set_random_seed(0)
    model, loss, split, config = NETWORKS[network](options, remat)
    model.compile(layers.optimizers.AdamW(1e-3), loss)
    train = programs.training(model, Batches(split, config.batch_size, seed=0), config)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    losses, seconds = [], []
    for step in range(1 + options.steps):
        begin = time.perf_counter()
        losses += [values["loss"] for values in train(step, [1e-3])]
        seconds.append(time.perf_counter() - begin)
    most = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    name = f"{network}, {keras.backend.backend()}{', recomputed' if remat else ''}"
    print(f"{name:<40}{most:6.0f} MiB  {np.mean(seconds[1:]):5.2f} s a step  last loss {losses[-1]:.6f}")


def main():
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--backends", nargs="+", default=["torch", "jax", "tensorflow"])
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--model", default="resnet56")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--child", choices=["kept", "recomputed"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        measure(options.networks[0], options, options.child == "recomputed")
        return
    for network in options.networks:
        for backend in options.backends:
            for child in ("kept", "recomputed"):
                words = [*sys.argv[1:], "--networks", network, "--child", child]
                subprocess.run(
                    [sys.executable, "-m", "benchmarks.remat", *words],
                    env={**os.environ, "KERAS_BACKEND": backend},
                    check=True,
                )


if __name__ == "__main__":
    main()
