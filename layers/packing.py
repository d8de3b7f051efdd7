"""Four bits a weight: two numbers in a byte, and a scale and a zero point for every group of weights."""

import math
from typing import Any

import keras
import numpy as np
from keras import ops


def packed(integers: Any) -> Any:
    """Numbers from -8 to 7, `(..., width)`, in `(..., (width + 1) // 2)` bytes, the first in the low half."""
    numbers = np.asarray(ops.convert_to_numpy(integers)).astype("uint8")
    numbers = np.pad(numbers, [(0, 0)] * (numbers.ndim - 1) + [(0, numbers.shape[-1] % 2)])
    return ops.convert_to_tensor(((numbers[..., ::2] & 15) | (numbers[..., 1::2] << 4)).view("int8"))


def unpacked(pairs: Any, width: int) -> Any:
    """The numbers `(..., width)` of `packed`, as int8."""
    pairs = ops.convert_to_tensor(pairs)
    sign = ops.cast(8, "int8")
    low = ops.bitwise_xor(ops.bitwise_and(pairs, ops.cast(15, "int8")), sign) - sign
    high = ops.right_shift(pairs, ops.cast(4, "int8"))  # of signed numbers: the sign comes along
    both = ops.reshape(ops.stack([low, high], axis=-1), (*ops.shape(pairs)[:-1], 2 * pairs.shape[-1]))
    return both[..., :width]


def quantized_by_groups(values: Any, axis: int, size: int) -> tuple[Any, Any, Any]:
    """Integers q from -8 to 7 with `value = scale (q - zero)`, scale and zero of groups along an axis.

        scale = (max - min) / 15,    zero = round(-min / scale) - 8,    q = round(value / scale) + zero

    Args:
        values: a matrix of floating-point numbers.
        axis: along which neighbours make a group.
        size: of a group; the last one may be smaller.

    Returns:
        Integers of the matrix' shape, and scales and zeros with a row or column a group.
    """
    dtype = keras.backend.standardize_dtype(values.dtype)
    numbers = np.moveaxis(np.asarray(ops.convert_to_numpy(values)), axis, 0)
    count = math.ceil(len(numbers) / size)
    grouped = np.pad(numbers, ((0, count * size - len(numbers)), (0, 0))).reshape(count, size, -1)
    least, most = (pick(grouped, axis=1, keepdims=True) for pick in (np.min, np.max))
    scale = (most - least + keras.config.epsilon()) / 15
    zero = np.clip(np.round(-least / scale) - 8, -8, 7)
    integers = np.clip(np.round(grouped / scale) + zero, -8, 7).reshape(count * size, -1)[: len(numbers)]
    parts = ((integers, "int8"), (scale[:, 0], dtype), (zero[:, 0], "int8"))
    return tuple(ops.convert_to_tensor(np.moveaxis(part, 0, axis), dtype=kind) for part, kind in parts)


def of_groups(integers: Any, scale: Any, zero: Any, group: Any, axis: int, dtype: str) -> Any:
    """The values of `quantized_by_groups`.

    Args:
        integers: its integers.
        scale, zero: its scales and zeros, with an entry a group along `axis`.
        group: the group of each place along the axis.
        axis: which it is.
        dtype: of the values.
    """
    group = ops.cast(group, "int32")
    scale, zero = (ops.cast(ops.take(each, group, axis=axis), dtype) for each in (scale, zero))
    return (ops.cast(integers, dtype) - zero) * scale
