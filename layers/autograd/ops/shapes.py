"""Operations that move elements without changing them, and the two that undo broadcasting and indexing."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from layers.autograd.tensor import Scattered, Tensor, as_tensor, record


def unbroadcast(gradient: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Sum a gradient over the axes along which an operand of `shape` was repeated by broadcasting."""
    if gradient.shape == shape:
        return gradient
    added = gradient.ndim - len(shape)
    repeated = tuple(added + i for i, n in enumerate(shape) if n == 1 and gradient.shape[added + i] != 1)
    return gradient.sum(axis=(*range(added), *repeated), keepdims=True).reshape(shape)


def broadcast_to(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """`x` repeated to `shape` without copying. Gradient: summed over the repetitions."""
    x = as_tensor(x)
    try:
        data = np.broadcast_to(x.data, shape)
    except ValueError:
        raise ValueError(f"broadcast_to: shape {x.shape} cannot be repeated to {tuple(shape)}") from None
    return record("broadcast_to", data, (x, lambda g, _: unbroadcast(g, x.shape)))


def reshape(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The elements of x in another shape. Gradient: reshaped back."""
    x = as_tensor(x)
    try:
        data = x.data.reshape(shape)
    except ValueError:
        raise ValueError(f"reshape: {x.size} elements of shape {x.shape} do not fit {tuple(shape)}") from None
    return record("reshape", data, (x, lambda g, _: reshape(g, x.shape)))


def transpose(x: Tensor, axes: Sequence[int] | None = None) -> Tensor:
    """The axes of x in the order `axes` (reversed without it). Gradient: the inverse permutation."""
    x = as_tensor(x)
    order = tuple(reversed(range(x.ndim))) if axes is None else tuple(axes)
    if sorted(a % x.ndim if x.ndim else a for a in order) != list(range(x.ndim)):
        raise ValueError(f"transpose: axes {order} do not permute the axes of shape {x.shape}")
    inverse = tuple(int(i) for i in np.argsort([a % x.ndim for a in order])) if order else ()
    return record("transpose", x.data.transpose(order), (x, lambda g, _: transpose(g, inverse)))


def getitem(x: Tensor, index: Any) -> Tensor:
    """x[index], basic or advanced. Gradient: written back to the places it was read from, repeats added."""
    x = as_tensor(x)
    index = _plain_index(index)
    try:
        data = x.data[index]
    except IndexError as error:
        raise IndexError(f"getitem: {error}, shape {x.shape}") from None
    return record("getitem", data, (x, lambda g, _: Scattered(index, g)))


def scatter(indices: Sequence[Any], pieces: Sequence[Tensor], shape: tuple[int, ...]) -> Tensor:
    """Zeros of `shape`, every piece added at its index. Gradient of a piece: read from its place."""
    data = np.zeros(shape, np.result_type(*(piece.dtype for piece in pieces)))
    for index, piece in zip(indices, pieces, strict=True):
        if _is_basic(index):
            data[index] += piece.data
        else:
            np.add.at(data, index, piece.data)  # unlike +=, it adds at every repeat of one place
    reads = [(piece, lambda g, _, i=index: g[i]) for index, piece in zip(indices, pieces, strict=True)]
    return record("scatter", data, *reads)


def concatenate(tensors: Sequence[Tensor], axis: int = -1) -> Tensor:
    """The tensors one after the other along an axis. Gradient: every tensor gets its own stretch."""
    parts = [as_tensor(t) for t in tensors]
    try:
        data = np.concatenate([t.data for t in parts], axis)
    except ValueError:
        shapes = ", ".join(str(t.shape) for t in parts)
        raise ValueError(f"concatenate: shapes {shapes} differ in another axis than {axis}") from None
    starts = np.cumsum([0] + [t.shape[axis] for t in parts])
    before = (slice(None),) * (axis % data.ndim)
    stretches = [(*before, slice(int(a), int(b))) for a, b in itertools.pairwise(starts)]
    pairs = [(t, lambda g, _, s=s: g[s]) for t, s in zip(parts, stretches, strict=True)]
    return record("concatenate", data, *pairs)


def stack(tensors: Sequence[Tensor], axis: int = 0) -> Tensor:
    """Tensors of one shape along a new axis. Gradient: every tensor gets its own slice."""
    parts = [as_tensor(t) for t in tensors]
    try:
        data = np.stack([t.data for t in parts], axis)
    except ValueError:
        raise ValueError(f"stack: shapes {', '.join(str(t.shape) for t in parts)} differ") from None
    before = (slice(None),) * (axis % data.ndim)
    return record("stack", data, *[(t, lambda g, _, i=i: g[(*before, i)]) for i, t in enumerate(parts)])


def pad(x: Tensor, widths: Sequence[tuple[int, int]], value: float = 0.0) -> Tensor:
    """`x` with `value` added around it, (before, after) for each axis. Gradient: the inner part."""
    x = as_tensor(x)
    if len(widths) != x.ndim:
        raise ValueError(f"pad: {len(widths)} pairs of widths for shape {x.shape}")
    if not any(before or after for before, after in widths):
        return x
    # np.pad costs more than the copy itself for small arrays and loses the memory order of x.
    order = np.argsort([-abs(s) for s in x.data.strides], kind="stable")
    shape = [n + before + after for n, (before, after) in zip(x.shape, widths, strict=True)]
    data = np.full([shape[i] for i in order], value, x.dtype).transpose(np.argsort(order))
    inner = tuple(slice(before, before + n) for n, (before, _) in zip(x.shape, widths, strict=True))
    data[inner] = x.data
    return record("pad", data, (x, lambda g, _: g[inner]))


def _plain_index(index: Any) -> Any:
    """The index with tensors replaced by their arrays and lists by arrays."""
    if isinstance(index, tuple):
        return tuple(_plain_index(part) for part in index)
    if isinstance(index, Tensor):
        return index.data
    return np.asarray(index) if isinstance(index, list) else index


def _is_basic(index: Any) -> bool:
    parts = index if isinstance(index, tuple) else (index,)
    return all(
        part is None or part is Ellipsis or isinstance(part, (int, slice, np.integer)) for part in parts
    )
