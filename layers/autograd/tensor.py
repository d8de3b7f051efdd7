"""Tensors that remember how they were made, and the reverse pass through that memory.

Every operation on a `Tensor` that requires gradients is recorded as the pair (parent, pullback). The
pullback maps the gradient with respect to the output to the gradient with respect to that parent (a
vector-Jacobian product), and it is itself written in tensor operations: differentiating it once more costs
no further code, which is what makes `grad(grad(f))` work.

    x = Tensor([1.0, 2.0], requires_grad=True)
    (x ** 3).sum().backward()
    x.grad                       # 3 x^2
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

_recording = contextvars.ContextVar("recording", default=True)


@contextlib.contextmanager
def recording(enabled: bool) -> Iterator[None]:
    """Switch the recording of operations on or off inside the block."""
    token = _recording.set(enabled)
    try:
        yield
    finally:
        _recording.reset(token)


def no_grad() -> contextlib.AbstractContextManager[None]:
    """Inside this block nothing is recorded: results do not require gradients."""
    return recording(False)


class Scattered(NamedTuple):
    """The gradient of `x[index]` with respect to x, before it is spread into zeros.

    A sequence of T steps reads x[:, t] T times. Were each of those gradients spread into an array of x's
    size, the backward pass would cost T times the input; so the pieces wait here and are written into one
    array.
    """

    index: Any
    piece: Tensor


Pullback = Callable[["Tensor", "Tensor"], "Tensor | Scattered"]


class Tensor:
    """An n-dimensional NumPy array that can be differentiated.

    Args:
        data: anything `numpy.asarray` takes; it is not copied.
        requires_grad: ask for gradients with respect to this tensor. The data must be floating-point.
        name: shown by `draw` and in messages.

    Raises:
        TypeError: gradients were asked for with respect to integers or booleans.
    """

    __slots__ = ("__weakref__", "_parents", "data", "grad", "name", "operation", "requires_grad")

    # NumPy arrays on the left of an operator leave the operation to Tensor's reflected one.
    __array_ufunc__ = None

    def __init__(self, data: Any, requires_grad: bool = False, name: str | None = None) -> None:
        if isinstance(data, Tensor):
            raise TypeError(
                "Tensor: the data is a Tensor already; use .detach() for a new leaf on the same data"
            )
        self.data = np.asarray(data)
        if requires_grad and self.data.dtype.kind != "f":
            raise TypeError(
                f"Tensor: gradients need floating-point data, got {self.dtype} of shape {self.shape}"
            )
        self.requires_grad = requires_grad
        self.name = name
        self.grad: Tensor | None = None
        self.operation: str | None = None  # None marks a leaf: a tensor nobody computed
        self._parents: tuple[tuple[Tensor, Pullback], ...] | None = ()  # None once the graph was freed

    @property
    def shape(self) -> tuple[int, ...]:
        """The lengths of the axes."""
        return self.data.shape

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return self.data.ndim

    @property
    def size(self) -> int:
        """The number of elements."""
        return self.data.size

    @property
    def dtype(self) -> np.dtype:
        """The NumPy type of the elements."""
        return self.data.dtype

    @property
    def parents(self) -> tuple[Tensor, ...]:
        """The recorded tensors this one was computed from (none for a leaf or a freed graph)."""
        return tuple(parent for parent, _ in self._parents or ())

    def __len__(self) -> int:
        """The length of the first axis."""
        return len(self.data)

    def __repr__(self) -> str:
        """The values, and the operation that made them."""
        origin = f", operation={self.operation!r}" if self.operation else ""
        wants = ", requires_grad=True" if self.requires_grad and not self.operation else ""
        return f"Tensor({np.array2string(self.data, separator=', ', prefix='Tensor(')}{origin}{wants})"

    def numpy(self) -> np.ndarray:
        """The values, shared with this tensor."""
        return self.data

    def item(self) -> float:
        """The value of a tensor with one element, as a Python number."""
        return self.data.item()

    def detach(self) -> Tensor:
        """A leaf on the same data that is no part of the graph."""
        return Tensor(self.data)

    def backward(
        self, gradient: Any = None, retain_graph: bool | None = None, create_graph: bool = False
    ) -> None:
        """Add d(self)/d(leaf) to `.grad` of every leaf that requires gradients.

        Args:
            gradient: d(result)/d(self), of this tensor's shape; 1 where this tensor is a single number.
            retain_graph: keep the graph for another backward pass (default: as `create_graph`).
            create_graph: record the backward pass itself, so that the gradients can be differentiated.

        Raises:
            ValueError: a non-scalar without `gradient`, or a `gradient` of another shape.
            RuntimeError: nothing was recorded, or the graph was freed by an earlier backward pass.
        """
        for leaf, value in _pull_back(self, gradient, None, retain_graph, create_graph):
            if leaf.grad is not None:
                with recording(create_graph):
                    leaf.grad = leaf.grad + value
            elif create_graph:
                leaf.grad = value
            else:
                # An own array: the pullback of a sum hands one and the same array to several leaves.
                leaf.grad = Tensor(value.data.copy())

    def __add__(self, other: Any) -> Tensor:
        """Elementwise sum."""
        return ops.add(self, other)

    def __radd__(self, other: Any) -> Tensor:
        """Elementwise sum."""
        return ops.add(other, self)

    def __sub__(self, other: Any) -> Tensor:
        """Elementwise difference."""
        return ops.subtract(self, other)

    def __rsub__(self, other: Any) -> Tensor:
        """Elementwise difference."""
        return ops.subtract(other, self)

    def __mul__(self, other: Any) -> Tensor:
        """Elementwise product."""
        return ops.multiply(self, other)

    def __rmul__(self, other: Any) -> Tensor:
        """Elementwise product."""
        return ops.multiply(other, self)

    def __truediv__(self, other: Any) -> Tensor:
        """Elementwise quotient."""
        return ops.divide(self, other)

    def __rtruediv__(self, other: Any) -> Tensor:
        """Elementwise quotient."""
        return ops.divide(other, self)

    def __pow__(self, other: Any) -> Tensor:
        """Elementwise power."""
        return ops.power(self, other)

    def __rpow__(self, other: Any) -> Tensor:
        """Elementwise power."""
        return ops.power(other, self)

    def __matmul__(self, other: Any) -> Tensor:
        """Matrix product."""
        return ops.matmul(self, other)

    def __rmatmul__(self, other: Any) -> Tensor:
        """Matrix product."""
        return ops.matmul(other, self)

    def __neg__(self) -> Tensor:
        """Elementwise negative."""
        return ops.negative(self)

    def __getitem__(self, index: Any) -> Tensor:
        """Basic and advanced indexing, as in NumPy."""
        return ops.getitem(self, index)

    def __gt__(self, other: Any) -> np.ndarray:
        """Where self > other, as a NumPy array: comparisons have no gradient."""
        return self.data > as_array(other)

    def __lt__(self, other: Any) -> np.ndarray:
        """Where self < other, as a NumPy array: comparisons have no gradient."""
        return self.data < as_array(other)

    def sum(self, axis: int | tuple[int, ...] | None = None, keepdims: bool = False) -> Tensor:
        """Sum over the axes."""
        return ops.sum(self, axis, keepdims)

    def mean(self, axis: int | tuple[int, ...] | None = None, keepdims: bool = False) -> Tensor:
        """Mean over the axes."""
        return ops.mean(self, axis, keepdims)

    def max(self, axis: int | tuple[int, ...] | None = None, keepdims: bool = False) -> Tensor:
        """Maximum over the axes."""
        return ops.max(self, axis, keepdims)

    def reshape(self, *shape: int | tuple[int, ...]) -> Tensor:
        """The same elements in another shape; one length may be -1."""
        return ops.reshape(self, shape[0] if len(shape) == 1 and isinstance(shape[0], tuple) else shape)

    def transpose(self, *axes: int) -> Tensor:
        """The axes in another order (reversed without arguments)."""
        return ops.transpose(self, axes or None)

    @property
    def T(self) -> Tensor:
        """The axes reversed."""
        return ops.transpose(self, None)


def as_array(value: Any) -> np.ndarray:
    """The values of a tensor, or of anything NumPy takes."""
    return value.data if isinstance(value, Tensor) else np.asarray(value)


def as_tensor(value: Any, like: Tensor | None = None) -> Tensor:
    """A tensor from a tensor, an array or a number; a Python number takes the type of `like`.

    Without that rule `float32 * 2.0` would go to float64, twice the memory and half the speed.
    """
    if isinstance(value, Tensor):
        return value
    if like is not None and isinstance(value, (int, float)) and like.dtype.kind == "f":
        return Tensor(np.asarray(value, like.dtype))
    return Tensor(value)


def record(operation: str, data: np.ndarray, *parents: tuple[Tensor, Pullback]) -> Tensor:
    """The result of an operation, with its place in the graph.

    Args:
        operation: the name that messages and drawings show.
        data: the computed values.
        parents: for each differentiable input the pair (tensor, pullback); `pullback(gradient, output)` is
            the gradient with respect to that tensor. It gets the output passed instead of closing over it,
            so that no reference cycle keeps a dead graph alive until the garbage collector comes. Inputs
            that do not require gradients are dropped here, and with them all work for them in the backward
            pass.
    """
    output = Tensor(data)
    if _recording.get():
        kept = tuple(pair for pair in parents if pair[0].requires_grad)
        if kept:
            output.requires_grad = True
            output.operation = operation
            output._parents = kept
    return output


def grad(
    output: Tensor,
    inputs: Tensor | Sequence[Tensor],
    gradient: Any = None,
    retain_graph: bool | None = None,
    create_graph: bool = False,
) -> Any:
    """The gradients of `output` with respect to `inputs`, without touching any `.grad`.

    Args:
        output: the tensor to differentiate, a single number unless `gradient` is given.
        inputs: one tensor or several, leaves or inner tensors of the graph.
        gradient: d(result)/d(output), of the output's shape.
        retain_graph: keep the graph for another pass (default: as `create_graph`).
        create_graph: record this pass, so that the result can be differentiated again.

    Returns:
        One tensor for one input, else a list. An input that `output` does not depend on gets zeros.
    """
    several = [inputs] if isinstance(inputs, Tensor) else list(inputs)
    found = {id(t): g for t, g in _pull_back(output, gradient, several, retain_graph, create_graph)}
    values = [found[id(t)] if id(t) in found else Tensor(np.zeros_like(t.data)) for t in several]
    return values[0] if isinstance(inputs, Tensor) else values


def topological_order(output: Tensor) -> list[Tensor]:
    """All recorded tensors behind `output`, every tensor after those it was computed from.

    A loop with its own stack: recursion would end at a depth of about a thousand operations.
    """
    order: list[Tensor] = []
    seen: set[int] = set()
    stack: list[tuple[Tensor, bool]] = [(output, False)]
    while stack:
        tensor, parents_done = stack.pop()
        if parents_done:
            order.append(tensor)
        elif id(tensor) not in seen:
            seen.add(id(tensor))
            if tensor._parents is None:
                raise RuntimeError(
                    f"backward: the graph behind {tensor.operation!r} of shape {tensor.shape} was freed "
                    "by an earlier backward pass; give that pass retain_graph=True"
                )
            stack.append((tensor, True))
            stack.extend((parent, False) for parent, _ in tensor._parents if id(parent) not in seen)
    return order


def _pull_back(
    output: Tensor,
    gradient: Any,
    wanted: list[Tensor] | None,
    retain_graph: bool | None,
    create_graph: bool,
) -> list[tuple[Tensor, Tensor]]:
    """Pairs (tensor, gradient) for the wanted tensors, or for all leaves when `wanted` is None."""
    seed = _seed(output, gradient)
    order = topological_order(output)
    useful = None if wanted is None else _leading_to(order, wanted)
    targets = None if wanted is None else {id(t) for t in wanted}
    retain_graph = create_graph if retain_graph is None else retain_graph
    results = []
    pending: dict[int, list[Tensor | Scattered]] = {id(output): [seed]}
    with recording(create_graph):
        for tensor in reversed(order):
            contributions = pending.pop(id(tensor), None)
            if contributions is None:
                continue
            total = _total(contributions, tensor)
            if tensor.operation is None if targets is None else id(tensor) in targets:
                results.append((tensor, total))
            for parent, pullback in tensor._parents:
                if useful is None or id(parent) in useful:
                    pending.setdefault(id(parent), []).append(pullback(total, tensor))
            if not retain_graph and tensor.operation is not None:
                tensor._parents = None
    return results


def _seed(output: Tensor, gradient: Any) -> Tensor:
    name = output.operation or "leaf"
    if not output.requires_grad:
        raise RuntimeError(
            f"backward: the tensor of shape {output.shape} was computed from nothing that requires gradients"
        )
    if gradient is None:
        if output.size != 1:
            raise ValueError(
                f"backward: {name!r} of shape {output.shape} is not a single number; "
                f"pass gradient= of shape {output.shape}"
            )
        return Tensor(np.ones_like(output.data))
    gradient = as_tensor(gradient, like=output)
    if gradient.shape != output.shape:
        raise ValueError(f"backward: gradient of shape {gradient.shape} for {name!r} of shape {output.shape}")
    return gradient


def _leading_to(order: list[Tensor], wanted: list[Tensor]) -> set[int]:
    """The tensors on a path to a wanted one: the others need no gradient."""
    useful = {id(t) for t in wanted}
    for tensor in order:
        if any(id(parent) in useful for parent, _ in tensor._parents):
            useful.add(id(tensor))
    return useful


def _total(contributions: list[Tensor | Scattered], tensor: Tensor) -> Tensor:
    """The sum of the gradients that reached one tensor along its several uses."""
    pieces = [c for c in contributions if isinstance(c, Scattered)]
    dense = [c for c in contributions if not isinstance(c, Scattered)]
    if pieces:
        dense.append(ops.scatter([p.index for p in pieces], [p.piece for p in pieces], tensor.shape))
    total = dense[0]
    for value in dense[1:]:
        total = total + value
    return total if total.dtype == tensor.dtype else ops.cast(total, tensor.dtype)


# Operators call operations and operations make tensors; this import is last because it needs the names above.
from layers.autograd import ops  # noqa: E402
