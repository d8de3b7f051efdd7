"""One epoch of numpy_mlp and numpy_cnn: the NumPy engine against the same networks in PyTorch on the CPU.

    python -m benchmarks.numpy_engine [--threads 1] [--rounds 5] [--batches 421]

Both libraries train the networks of the two recipes with Adam on the same batches of 128 images of MNIST's
shape, in float32, with the same number of threads. They take turns, a tenth of an epoch each, so that
whatever else the machine does meets both; a ratio is the median over the turns of (NumPy's time / PyTorch's
time). 421 batches are an epoch of the recipes. The goals are 1.5 for the dense network and 4 for the
convolutional one.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable

BATCH = 128


def numpy_step(module, shape: tuple[int, ...], x, y) -> Callable[[], None]:
    from layers.autograd import optim
    from layers.autograd.nn.losses import sparse_categorical_crossentropy

    arguments = (28 * 28, 10) if len(shape) == 1 else (shape, 10)
    model = module.build_model(module.Config(), *arguments)
    optimizer = optim.Adam(model.weights)

    def step() -> None:
        optimizer.zero_grad()
        sparse_categorical_crossentropy(y, model(x, training=True), from_logits=True).mean().backward()
        optimizer.step()

    return step


def torch_step(model, x, y) -> Callable[[], None]:
    import torch

    optimizer = torch.optim.Adam(model.parameters())
    images, labels = torch.tensor(x), torch.tensor(y)
    if images.ndim == 4:
        images = images.permute(0, 3, 1, 2).contiguous()

    def step() -> None:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()

    return step


def torch_models() -> dict:
    from torch import nn

    return {
        "numpy_mlp": nn.Sequential(nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 10)),
        "numpy_cnn": nn.Sequential(
            *(nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Flatten(), nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10)),
        ),
    }


def seconds(step: Callable[[], None], count: int) -> float:
    start = time.perf_counter()
    for _ in range(count):
        step()
    return (time.perf_counter() - start) / count


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batches", type=int, default=421)
    options = parser.parse_args()
    # Before NumPy loads: its BLAS reads this once.
    os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = str(options.threads)

    import numpy as np
    import torch

    from recipes import numpy_cnn, numpy_mlp

    torch.set_num_threads(options.threads)
    rng = np.random.default_rng(0)
    y = rng.integers(0, 10, BATCH)
    print(f"numpy {np.__version__}, torch {torch.__version__}, {options.threads} threads, batch {BATCH}")
    for name, module, shape in (("numpy_mlp", numpy_mlp, (784,)), ("numpy_cnn", numpy_cnn, (28, 28, 1))):
        x = rng.random((BATCH, *shape), np.float32)
        steps = {"numpy": numpy_step(module, shape, x, y), "torch": torch_step(torch_models()[name], x, y)}
        turn = max(1, options.batches // 10)
        times: dict[str, list[float]] = {library: [] for library in steps}
        for step in steps.values():
            seconds(step, 5)  # the first steps pay for caches and threads
        for _ in range(10 * options.rounds):
            for library, step in steps.items():
                times[library].append(seconds(step, turn))
        ratios = [a / b for a, b in zip(times["numpy"], times["torch"], strict=True)]
        epochs = {library: options.batches * statistics.median(found) for library, found in times.items()}
        print(
            f"{name}: epoch of {options.batches} batches  numpy {epochs['numpy']:.2f} s  "
            f"torch {epochs['torch']:.2f} s  ratio {statistics.median(ratios):.2f} "
            f"(quartiles {statistics.quantiles(ratios)[0]:.2f} ... {statistics.quantiles(ratios)[2]:.2f})"
        )


if __name__ == "__main__":
    main()
