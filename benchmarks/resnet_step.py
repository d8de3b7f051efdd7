"""ResNet-20's training step: this project's recipe against a loop written by hand in the framework itself.

    python -m benchmarks.resnet_step --backend torch      # or jax; --rounds 5 --steps 10

Both train He et al.'s network of 269,722 weights on the same batches of 128 images by SGD with Nesterov
momentum, in float32. The recipe's side is what a user runs: `model.fit` on the recipe's batches (cropping
and flipping included), with its metrics. The native side is the leanest loop a specialist would write,
fused batch normalization and channels-last memory on PyTorch, one jitted function on JAX; it gets the same
cropped batches. Rounds alternate, so that a machine whose speed drifts is fair to both. On PyTorch a third
side shows what its fused batch normalization is worth, which `keras.ops` has no access to.
"""

import argparse
import os
import statistics
import time

parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
parser.add_argument("--backend", choices=["jax", "torch"], default="jax")
parser.add_argument("--rounds", type=int, default=5)
parser.add_argument("--steps", type=int, default=10)
parser.add_argument("--batch-size", type=int, default=128)
arguments = parser.parse_args()
os.environ["KERAS_BACKEND"] = arguments.backend

from recipes.engine import backend  # noqa: E402 - the backend comes first

backend.choose(["--backend", arguments.backend])

import numpy as np  # noqa: E402

from recipes import cnn_cifar  # noqa: E402
from recipes.engine.data import Batches, Dataset, Split  # noqa: E402

STAGES = ((16, 1), (32, 2), (64, 2))


def recipe_fit(data, batch_size):
    """A function that trains the recipe's model on one epoch of batches."""
    config = cnn_cifar.Config(
        model="resnet20", batch_size=batch_size, schedule="constant", learning_rate=0.01
    )
    model = cnn_cifar.build_model(config, data)
    schedule = cnn_cifar.build_schedule(config, 1)
    model.compile(
        cnn_cifar.build_optimizer(config, schedule),
        cnn_cifar.smoothed_cross_entropy(config, 10),
        metrics=["accuracy"],
    )
    batches = Batches(data.train, batch_size, seed=0, augment="crop_flip")
    whole = batches.between(0, batches.steps_per_epoch)
    return lambda: model.fit(whole, verbose=0, shuffle=False)


def torch_loop(data, batch_size, fused=True):
    """The same training in plain PyTorch; without `fused`, batch normalization is spelled out."""
    import torch
    import torch.nn.functional as functional
    from torch import nn

    class ArithmeticNorm(nn.Module):
        def __init__(self, channels):
            super().__init__()
            self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
            self.register_buffer("mean", torch.zeros(channels))
            self.register_buffer("variance", torch.ones(channels))

        def forward(self, x):
            rows = x.permute(0, 2, 3, 1)  # a view: the memory is channels-last
            mean = rows.mean((0, 1, 2))
            variance = rows.square().mean((0, 1, 2)) - mean.square()
            with torch.no_grad():
                self.mean.lerp_(mean, 0.1)
                self.variance.lerp_(variance, 0.1)
            scale = self.weight * torch.rsqrt(variance + 1e-3)
            return (rows * scale + (self.bias - mean * scale)).permute(0, 3, 1, 2)

    norm = nn.BatchNorm2d if fused else ArithmeticNorm

    class Block(nn.Module):
        def __init__(self, channels, filters, stride):
            super().__init__()
            self.first = nn.Conv2d(channels, filters, 3, stride, 1, bias=False)
            self.second = nn.Conv2d(filters, filters, 3, 1, 1, bias=False)
            self.norms = nn.ModuleList([norm(filters), norm(filters)])
            self.stride, self.new = stride, filters - channels

        def forward(self, x):
            y = functional.relu(self.norms[0](self.first(x)), inplace=True)
            y = self.norms[1](self.second(y))
            if self.new:
                x = functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.new))
            return functional.relu(y + x, inplace=True)

    blocks, channels = [], 16
    for filters, stride in STAGES:
        for index in range(3):
            blocks.append(Block(channels, filters, stride if index == 0 else 1))
            channels = filters
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, 1, 1, bias=False), norm(16), nn.ReLU(inplace=True), *blocks,
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10),
    ).to(memory_format=torch.channels_last)  # fmt: skip
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9, nesterov=True, weight_decay=1e-4)
    batches = Batches(data.train, batch_size, seed=0, augment="crop_flip")

    def epoch():
        for index in range(batches.steps_per_epoch):
            x, y = batches[index]
            images = torch.from_numpy(x).permute(0, 3, 1, 2).float().sub_(127).div_(64)
            optimizer.zero_grad(set_to_none=True)
            loss = functional.cross_entropy(model(images), torch.from_numpy(y).long(), label_smoothing=0.1)
            loss.backward()
            optimizer.step()
        return loss.item()

    assert sum(p.numel() for p in model.parameters()) == 269_722
    return epoch


def jax_loop(data, batch_size):
    """The same training in plain JAX."""
    import jax
    import jax.numpy as jnp

    rng = np.random.default_rng(0)

    def kernel(channels, filters):
        return jnp.asarray(
            rng.normal(size=(3, 3, channels, filters)) * (2 / (9 * channels)) ** 0.5, jnp.float32
        )

    def unit(channels, filters):
        return {"w": kernel(channels, filters), "g": jnp.ones(filters), "b": jnp.zeros(filters)}

    parameters = {"stem": unit(3, 16), "blocks": [], "w": jnp.zeros((64, 10)), "b": jnp.zeros(10)}
    channels, strides = 16, []
    for filters, stride in STAGES:
        for index in range(3):
            parameters["blocks"].append((unit(channels, filters), unit(filters, filters)))
            strides.append(stride if index == 0 else 1)
            channels = filters

    def conv_norm(p, x, stride, moments):
        x = jax.lax.conv_general_dilated(
            x, p["w"], (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        mean = x.mean((0, 1, 2))
        variance = (x * x).mean((0, 1, 2)) - mean * mean
        moments.append((mean, variance))
        return (x - mean) * (jax.lax.rsqrt(variance + 1e-3) * p["g"]) + p["b"]

    def loss(p, x, y):
        moments = []
        x = (x.astype(jnp.float32) - 127) / 64
        x = jax.nn.relu(conv_norm(p["stem"], x, 1, moments))
        for (first, second), stride in zip(p["blocks"], strides, strict=True):
            z = jax.nn.relu(conv_norm(first, x, stride, moments))
            z = conv_norm(second, z, 1, moments)
            x = x[:, ::stride, ::stride]
            x = jax.nn.relu(z + jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, z.shape[-1] - x.shape[-1]))))
        logits = x.mean((1, 2)) @ p["w"] + p["b"]
        targets = 0.9 * jax.nn.one_hot(y, 10) + 0.01
        return -(targets * jax.nn.log_softmax(logits)).sum(-1).mean(), moments

    @jax.jit
    def step(p, velocity, running, x, y):
        (value, moments), gradient = jax.value_and_grad(loss, has_aux=True)(p, x, y)
        running = jax.tree.map(lambda r, m: 0.9 * r + 0.1 * m, running, moments)
        velocity = jax.tree.map(lambda v, g: 0.9 * v - 0.01 * g, velocity, gradient)
        p = jax.tree.map(lambda p, v, g: p * (1 - 1e-5) + 0.9 * v - 0.01 * g, p, velocity, gradient)
        return p, velocity, running, value

    _, moments = jax.eval_shape(
        loss, parameters, jnp.zeros((batch_size, 32, 32, 3)), jnp.zeros(batch_size, int)
    )
    running = jax.tree.map(lambda m: jnp.zeros(m.shape), moments)
    state = [parameters, jax.tree.map(jnp.zeros_like, parameters), running]
    batches = Batches(data.train, batch_size, seed=0, augment="crop_flip")

    def epoch():
        for index in range(batches.steps_per_epoch):
            *state[:], value = step(*state, *batches[index])
        return float(value)

    assert sum(leaf.size for leaf in jax.tree.leaves(parameters)) == 269_722
    return epoch


def main():
    rng = np.random.default_rng(0)
    count = arguments.batch_size * arguments.steps
    split = Split(
        rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8), rng.integers(0, 10, count).astype("int32")
    )
    data = Dataset("random", split, split, split, tuple("0123456789"))
    sides = {"recipe": recipe_fit(data, arguments.batch_size)}
    if arguments.backend == "jax":
        sides["native"] = jax_loop(data, arguments.batch_size)
    else:
        sides["native"] = torch_loop(data, arguments.batch_size)
        sides["native, batch normalization in arithmetic"] = torch_loop(
            data, arguments.batch_size, fused=False
        )
    for run in sides.values():
        run()  # compilation
    speeds = {name: [] for name in sides}
    for _ in range(arguments.rounds):
        for name, run in sides.items():
            begin = time.perf_counter()
            run()
            speeds[name].append(count / (time.perf_counter() - begin))
    for name, values in speeds.items():
        ratios = [ours / theirs for ours, theirs in zip(speeds["recipe"], values, strict=True)]
        print(
            f"{arguments.backend:<6}{statistics.median(values):7.1f} images/s, "
            f"recipe / this {statistics.median(ratios):.2f} ({min(ratios):.2f} ... {max(ratios):.2f}): {name}"
        )


if __name__ == "__main__":
    main()
