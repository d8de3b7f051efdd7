"""Convolutions as products of what each place in a window sees, for CPUs that are slow at others.

XLA's convolutions on CPUs are fast where the window fits into the image and moves by ordinary steps. Off that
path, in a window larger than the image, the gradient of a transposed convolution, or channels by themselves,
they take up to 30 times as long as what is here; groups of channels, also TensorFlow's, up to 80 times.

All images here have their channels last, and spatial lengths that are known.
"""

import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops


@functools.cache
def on_cpu(*backends: str) -> bool:
    """Whether the backend is one of these, and computes on a CPU."""
    return keras.backend.backend() in backends and all(
        device.startswith("cpu") for device in keras.distribution.list_devices()
    )


def window_count(length: int | None, window: int, stride: int, padding: str, dilation: int = 1) -> int | None:
    """How many positions a window takes along an axis; None stays None.

    valid: floor((length - dilation (window - 1) - 1) / stride) + 1;  same and causal: ceil(length / stride).
    """
    if length is None:
        return None
    if padding == "valid":
        return (length - dilation * (window - 1) - 1) // stride + 1
    return math.ceil(length / stride)


def seen(inputs: Any, window: Sequence[int], strides: tuple, dilation_rate: tuple, padding: str) -> list[Any]:
    """What each place of a sliding window sees.

    Args:
        inputs: tensor of shape (batch, *spatial, channels).
        window: the window's lengths.
        strides: steps between windows, one an axis.
        dilation_rate: steps between the inputs of a window.
        padding: "valid" or "same".

    Returns:
        A tensor of shape (batch, *new spatial, channels) for each place, the last axis' places first.
    """
    widths, places = [(0, 0)], []
    axes = zip(inputs.shape[1:-1], window, strides, dilation_rate, strict=True)
    for length, size, stride, dilation in axes:
        reach = dilation * (size - 1)
        last = (
            math.ceil(length / stride) - 1 if padding == "same" else (length - reach - 1) // stride
        ) * stride
        total = max(last + reach + 1 - length, 0) if padding == "same" else 0
        widths.append((total // 2, total - total // 2))
        places.append([slice(tap, tap + last + 1, stride) for tap in range(0, reach + 1, dilation)])
    padded = ops.pad(inputs, [*widths, (0, 0)]) if padding == "same" else inputs
    return [padded[(slice(None), *place)] for place in itertools.product(*places)]


def convolved(inputs: Any, kernel: Any, strides: tuple, dilation_rate: tuple, padding: str) -> Any:
    """A convolution as one matrix product: of all that each window sees with the kernel.

    Args:
        inputs: tensor of shape (batch, *spatial, channels).
        kernel: tensor of shape (*window, channels, filters).
        strides, dilation_rate, padding: as in `seen`.

    Returns:
        Tensor of shape (batch, *new spatial, filters).
    """
    *window, channels, filters = kernel.shape
    flat = ops.reshape(kernel, (math.prod(window) * channels, filters))
    return ops.matmul(ops.concatenate(seen(inputs, window, strides, dilation_rate, padding), axis=-1), flat)


def convolved_each(inputs: Any, kernel: Any, strides: tuple, dilation_rate: tuple, padding: str) -> Any:
    """A convolution of each channel by itself: the sum of what the window's places see, weighted.

    Args:
        inputs: tensor of shape (batch, *spatial, channels).
        kernel: tensor of shape (*window, channels, multiplier).
        strides, dilation_rate, padding: as in `seen`.

    Returns:
        Tensor of shape (batch, *new spatial, channels multiplier).
    """
    *window, channels, multiplier = kernel.shape
    weights = ops.reshape(kernel, (-1, channels * multiplier))
    if multiplier > 1:
        inputs = ops.repeat(inputs, multiplier, axis=-1)
    views = seen(inputs, window, strides, dilation_rate, padding)
    return sum(view * weights[place] for place, view in enumerate(views))


def convolved_in_groups(
    inputs: Any, kernel: Any, strides: tuple, dilation_rate: tuple, padding: str, groups: int
) -> Any:
    """A convolution of groups of channels, one after another.

    Args:
        inputs: tensor of shape (batch, *spatial, channels).
        kernel: tensor of shape (*window, channels / groups, filters).
        strides, dilation_rate, padding: as in `seen`.
        groups: how many.

    Returns:
        Tensor of shape (batch, *new spatial, filters).
    """
    parts = zip(ops.split(inputs, groups, axis=-1), ops.split(kernel, groups, axis=-1), strict=True)
    options = {"strides": list(strides), "dilation_rate": dilation_rate, "padding": padding}
    return ops.concatenate(
        [ops.conv(*part, data_format="channels_last", **options) for part in parts], axis=-1
    )


def transposed(
    inputs: Any, kernel: Any, strides: tuple, starts: Sequence[int], lengths: Sequence[int]
) -> Any:
    """A transposed convolution as one matrix product, whose blocks are laid over each other.

        y[s p + k] += W[k] x[p], of which y[start], ..., y[start + length - 1] are the outputs

    A block is as long as a step: then all blocks with the same place in the window are one image.

    Args:
        inputs: tensor of shape (batch, *spatial, channels).
        kernel: tensor of shape (*window, filters, channels).
        strides: steps between windows, one an axis.
        starts: where the outputs begin, one an axis.
        lengths: how many there are, one an axis.

    Returns:
        Tensor of shape (batch, *lengths, filters).
    """
    *window, filters, channels = kernel.shape
    counts, rank = inputs.shape[1:-1], len(window)
    blocks = [
        max(math.ceil(size / stride), math.ceil((start + length) / stride) - count + 1)
        for size, stride, start, length, count in zip(window, strides, starts, lengths, counts, strict=True)
    ]
    missing = [(0, b * s - size) for b, s, size in zip(blocks, strides, window, strict=True)]
    split = ops.reshape(
        ops.pad(kernel, [*missing, (0, 0), (0, 0)]),
        (*itertools.chain(*zip(blocks, strides, strict=True)), filters, channels),
    )
    within = range(1, 2 * rank, 2)  # the axes of places within a block
    flat = ops.transpose(split, (2 * rank + 1, *range(0, 2 * rank, 2), *within, 2 * rank))
    products = ops.matmul(inputs, ops.reshape(flat, (channels, -1)))
    products = ops.reshape(products, (-1, *counts, *blocks, math.prod(strides) * filters))
    outputs = 0
    for place in itertools.product(*map(range, blocks)):
        around = [(before, b - 1 - before) for before, b in zip(place, blocks, strict=True)]
        outputs = outputs + ops.pad(products[(..., *place, slice(None))], [(0, 0), *around, (0, 0)])
    sizes = [count + b - 1 for count, b in zip(counts, blocks, strict=True)]
    outputs = ops.reshape(outputs, (-1, *sizes, *strides, filters))
    pairs = itertools.chain(*((1 + axis, 1 + rank + axis) for axis in range(rank)))
    outputs = ops.transpose(outputs, (0, *pairs, 1 + 2 * rank))
    outputs = ops.reshape(outputs, (-1, *(n * s for n, s in zip(sizes, strides, strict=True)), filters))
    wanted = [slice(start, start + length) for start, length in zip(starts, lengths, strict=True)]
    return outputs[(slice(None), *wanted)]
