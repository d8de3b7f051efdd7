"""Every operation's gradient against finite differences and PyTorch, over drawn shapes, in float64."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from layers.autograd import Tensor, check_gradients, grad, ops

pytestmark = pytest.mark.once

sizes = st.integers(1, 4)
shapes = st.lists(sizes, min_size=0, max_size=3).map(tuple)
seeds = st.integers(0, 2**16)


def normal(shape, seed):
    """Normal values at least 0.05 away from 0, where |x| and relu have their kink."""
    values = np.random.default_rng(seed).normal(size=shape)
    return values + 0.05 * np.sign(values)


def distinct(shape, seed):
    """Values no two of which are nearer than 0.1, so that finite differences cross no tie."""
    return 0.1 * np.random.default_rng(seed).permutation(int(np.prod(shape))).reshape(shape) - 0.5


def positive(shape, seed):
    return np.random.default_rng(seed).uniform(0.5, 2, shape)


@st.composite
def one(draw, values=normal):
    return [values(draw(shapes), draw(seeds))]


@st.composite
def at_least_one_axis(draw, values=normal):
    return [values((*draw(shapes), draw(sizes)), draw(seeds))]


@st.composite
def two(draw, first=normal, second=normal):
    """Two arrays that broadcast: axes dropped in front or set to one at random."""
    shape = draw(shapes)

    def operand(values):
        kept = shape[draw(st.integers(0, len(shape))) :]
        return values(tuple(1 if draw(st.booleans()) else n for n in kept), draw(seeds))

    return [operand(first), operand(second)]


@st.composite
def matrices(draw):
    m, n, k = draw(sizes), draw(sizes), draw(sizes)
    batch = draw(st.sampled_from([(), (2,), (3, 2)]))
    kind = draw(st.sampled_from(["matrices", "shared", "broadcast", "row", "column", "vectors"]))
    left, right = {
        "matrices": ((*batch, m, n), (*batch, n, k)),
        "shared": ((*batch, m, n), (n, k)),
        "broadcast": ((1, m, n), (*batch[-1:], n, k)),
        "row": ((n,), (*batch, n, k)),
        "column": ((*batch, m, n), (n,)),
        "vectors": ((n,), (n,)),
    }[kind]
    return [normal(left, draw(seeds)), normal(right, draw(seeds))]


@st.composite
def matrix(draw):
    return [normal((draw(sizes), draw(sizes) + 1), draw(seeds))]


@st.composite
def several(draw):
    rows = draw(st.lists(sizes, min_size=1, max_size=3))
    columns = draw(sizes)
    return [normal((n, columns), draw(seeds)) for n in rows]


@st.composite
def alike(draw):
    shape = (draw(sizes), draw(sizes))
    return [normal(shape, draw(seeds)) for _ in range(draw(st.integers(1, 3)))]


@st.composite
def images(draw, values=distinct, smallest=4):
    shape = (
        draw(st.integers(1, 2)),
        draw(st.integers(smallest, 6)),
        draw(st.integers(smallest, 6)),
        draw(st.integers(1, 2)),
    )
    return [values(shape, draw(seeds))]


@st.composite
def convolutions(draw):
    (x,) = draw(images(values=normal))
    shape = (draw(st.integers(1, 3)), draw(st.integers(1, 3)), x.shape[3], draw(st.integers(1, 2)))
    return [x, normal(shape, draw(seeds))]


def torch_of(name):
    """PyTorch's function of that name, found when it is called: collecting tests needs no torch."""

    def function(*tensors, **options):
        import torch

        return getattr(torch, name, None)(*tensors, **options)

    return function


def torch_functional(name, **options):
    def function(*tensors):
        import torch

        return getattr(torch.nn.functional, name)(*tensors, **options)

    return function


def torch_conv(x, kernel, **options):
    import torch

    y = torch.nn.functional.conv2d(x.permute(0, 3, 1, 2), kernel.permute(3, 2, 0, 1).contiguous(), **options)
    return y.permute(0, 2, 3, 1)


def torch_pool(kind, *arguments, **options):
    def function(x):
        import torch

        pool = getattr(torch.nn.functional, f"{kind}_pool2d")
        return pool(x.permute(0, 3, 1, 2), *arguments, **options).permute(0, 2, 3, 1)

    return function


def torch_unfold(x):
    import torch

    n, height, width, channels = x.shape
    columns = torch.nn.functional.unfold(x.permute(0, 3, 1, 2), (2, 3), stride=(1, 2))
    columns = columns.reshape(n, channels, 2, 3, height - 1, (width - 3) // 2 + 1)
    return columns.permute(2, 3, 1, 0, 4, 5)


def same(function):
    """Both libraries spell it alike."""
    return function, function


OPERATIONS = {
    # name: (inputs, ours, torch's)
    "add": (two(), *same(lambda a, b: a + b)),
    "subtract": (two(), *same(lambda a, b: a - b)),
    "multiply": (two(), *same(lambda a, b: a * b)),
    "divide": (two(second=positive), *same(lambda a, b: a / b)),
    "power": (two(first=positive), *same(lambda a, b: a**b)),
    "cube": (one(), *same(lambda a: a**3)),
    "reversed operators": (one(positive), *same(lambda a: 2 - a + 3 / a + 2**a)),
    "negative": (one(), *same(lambda a: -a)),
    "matmul": (matrices(), *same(lambda a, b: a @ b)),
    "exp": (one(), ops.exp, torch_of("exp")),
    "log": (one(positive), ops.log, torch_of("log")),
    "sqrt": (one(positive), ops.sqrt, torch_of("sqrt")),
    "sin": (one(), ops.sin, torch_of("sin")),
    "cos": (one(), ops.cos, torch_of("cos")),
    "tanh": (one(), ops.tanh, torch_of("tanh")),
    "sigmoid": (one(), ops.sigmoid, torch_of("sigmoid")),
    "relu": (one(), ops.relu, torch_of("relu")),
    "softplus": (one(), ops.softplus, torch_functional("softplus")),
    "gelu": (one(), ops.gelu, torch_functional("gelu")),
    "gelu, tanh": (
        one(),
        lambda a: ops.gelu(a, approximate=True),
        torch_functional("gelu", approximate="tanh"),
    ),
    "absolute": (one(), ops.absolute, torch_of("abs")),
    "maximum": (
        st.tuples(shapes, seeds).map(lambda s: list(distinct((2, *s[0]), s[1]))),
        ops.maximum,
        torch_of("maximum"),
    ),
    "where": (two(), lambda a, b: ops.where(np.True_, a, b) * 2, lambda a, b: (a + 0 * b) * 2),
    "softmax": (at_least_one_axis(), ops.softmax, lambda a: a.softmax(-1)),
    "softmax, first axis": (
        at_least_one_axis(),
        lambda a: ops.softmax(a, axis=0),
        lambda a: a.softmax(0),
    ),
    "log_softmax": (at_least_one_axis(), ops.log_softmax, lambda a: a.log_softmax(-1)),
    "sum": (one(), *same(lambda a: a.sum())),
    "sum, axis": (matrix(), lambda a: a.sum(axis=(0, -1), keepdims=True), lambda a: a.sum((0, 1), True)),
    "sum, first axis": (at_least_one_axis(), *same(lambda a: a.sum(axis=0))),
    "mean": (one(), *same(lambda a: a.mean())),
    "mean, axis": (matrix(), lambda a: a.mean(axis=1), lambda a: a.mean(1)),
    "max": (one(distinct), *same(lambda a: a.max())),
    "max, axis": (
        at_least_one_axis(distinct),
        lambda a: a.max(axis=0, keepdims=True),
        lambda a: a.amax(0, True),
    ),
    "reshape": (one(), *same(lambda a: a.reshape(-1))),
    "transpose": (matrix(), lambda a: a.transpose(1, 0), lambda a: a.permute(1, 0)),
    "reversed axes": (one(), lambda a: a.T, lambda a: a.permute(tuple(reversed(range(a.ndim))))),
    "getitem, slice": (matrix(), *same(lambda a: a[::2, 1:])),
    "getitem, number": (matrix(), *same(lambda a: a[0] * a[-1, None])),
    "getitem, repeated": (matrix(), *same(lambda a: a[[0, 0, -1]])),
    "getitem, pairs": (matrix(), *same(lambda a: a[[0, -1, 0], [1, 0, 1]])),
    "getitem, mask": (matrix(), *same(lambda a: a[:, np.arange(a.shape[1]) % 2 == 0])),
    "concatenate": (
        several(),
        lambda *a: ops.concatenate(a, axis=0),
        lambda *a: torch_of("cat")(a, dim=0),
    ),
    "stack": (alike(), lambda *a: ops.stack(a, axis=1), lambda *a: torch_of("stack")(a, dim=1)),
    "pad": (
        matrix(),
        lambda a: ops.pad(a, [(1, 0), (2, 1)], value=3.0),
        torch_functional("pad", pad=(2, 1, 1, 0), value=3.0),
    ),
    "broadcast_to": (
        matrix(),
        lambda a: ops.broadcast_to(a, (3, *a.shape)),
        lambda a: a.expand(3, *a.shape),
    ),
    "unfold": (images(), lambda x: ops.unfold(x, (2, 3), (1, 2)), torch_unfold),
    "conv2d": (convolutions(), ops.conv2d, torch_conv),
    "conv2d, strides": (
        convolutions(),
        lambda x, k: ops.conv2d(x, k, strides=(2, 3)),
        lambda x, k: torch_conv(x, k, stride=(2, 3)),
    ),
    "conv2d, same": (
        convolutions(),
        lambda x, k: ops.conv2d(x, k, padding="same"),
        lambda x, k: torch_conv(x, k, padding="same"),
    ),
    "conv2d, dilated": (
        convolutions(),
        lambda x, k: ops.conv2d(x, k, padding="same", dilation_rate=2),
        lambda x, k: torch_conv(x, k, padding="same", dilation=2),
    ),
    "max_pool2d": (images(), ops.max_pool2d, torch_pool("max", 2)),
    "max_pool2d, overlapping": (
        images(),
        lambda x: ops.max_pool2d(x, (3, 2), 1),
        torch_pool("max", (3, 2), 1),
    ),
    "avg_pool2d": (images(), ops.avg_pool2d, torch_pool("avg", 2)),
    "avg_pool2d, overlapping": (
        images(),
        lambda x: ops.avg_pool2d(x, (2, 3), (2, 1)),
        torch_pool("avg", (2, 3), (2, 1)),
    ),
}


def weighted(values):
    """A scalar in which no two elements have the same weight, so that no error can cancel."""
    return np.cos(np.arange(values.size)).reshape(values.shape)


@pytest.mark.parametrize("name", OPERATIONS)
def test_gradient_against_finite_differences(name):
    inputs, ours, _ = OPERATIONS[name]

    @settings(max_examples=12, deadline=None, derandomize=True, database=None)
    @given(inputs)
    def check(arrays):
        check_gradients(ours, *arrays, tolerance=1e-6)

    check()


@pytest.mark.parametrize("name", OPERATIONS)
def test_value_and_gradients_against_torch(name):
    torch = pytest.importorskip("torch", reason="PyTorch is the oracle of this test")
    inputs, ours, theirs = OPERATIONS[name]

    @settings(max_examples=12, deadline=None, derandomize=True, database=None)
    @given(inputs)
    def check(arrays):
        mine = [Tensor(a.copy(), requires_grad=True) for a in arrays]
        other = [torch.tensor(a, requires_grad=True) for a in arrays]
        value, oracle = ours(*mine), theirs(*other)
        np.testing.assert_allclose(value.data, oracle.detach().numpy(), rtol=1e-12, atol=1e-12)
        weights = weighted(value.data)
        first = grad((value * Tensor(weights)).sum(), mine, create_graph=True)
        expected = torch.autograd.grad(
            (oracle * torch.tensor(weights)).sum(), other, create_graph=True, materialize_grads=True
        )
        for a, b in zip(first, expected, strict=True):
            np.testing.assert_allclose(a.data, b.detach().numpy(), rtol=1e-6, atol=1e-6)
        # The gradient of the squared gradient: every pullback differentiated once more.
        # (Zero times the inputs: where that is a constant, there would be nothing to differentiate.)
        slope = sum((g * g + 0 * x).sum() for g, x in zip(first, mine, strict=True))
        torch_slope = sum((g * g + 0 * x).sum() for g, x in zip(expected, other, strict=True))
        again = torch.autograd.grad(torch_slope, other, materialize_grads=True)
        for a, b in zip(grad(slope, mine), again, strict=True):
            np.testing.assert_allclose(a.data, b.numpy(), rtol=1e-6, atol=1e-6)

    check()


SECOND_ORDER = {
    "two-layer network": (
        lambda x, w, v: ops.log_softmax(ops.tanh(x @ w) @ v),
        [(2, 3), (3, 4), (4, 2)],
    ),
    "gelu and softplus": (lambda x: ops.gelu(x) * ops.softplus(x), [(5,)]),
    "convolution": (
        lambda x, k: ops.avg_pool2d(ops.sigmoid(ops.conv2d(x, k, padding="same")), 2),
        [(1, 4, 3, 2), (2, 2, 2, 1)],
    ),
    "indexing": (lambda x: x[0] * x[:, [1, 1, 0]] ** 2, [(3, 3)]),
    "division and powers": (lambda x, y: x / (1 + y**2), [(2, 3), (3,)]),
}


@pytest.mark.parametrize("name", SECOND_ORDER)
def test_second_gradient_against_finite_differences(name):
    function, shapes_ = SECOND_ORDER[name]
    check_gradients(function, *[normal(s, i) for i, s in enumerate(shapes_)], order=2, tolerance=1e-6)


def test_second_gradient_of_max_pooling():
    # y = max(x)^2 summed: the Hessian is 2 at the winners and 0 elsewhere.
    x = Tensor(distinct((1, 4, 4, 1), 0), requires_grad=True)
    y = ops.max_pool2d(x)
    slope = grad((y * y).sum(), x, create_graph=True)
    second = grad(slope.sum(), x).data
    assert sorted(second.ravel()) == [0] * 12 + [2] * 4


def test_ties():
    x = Tensor(np.array([1.0, 3.0, 3.0]), requires_grad=True)
    np.testing.assert_array_equal(grad(x.max(), x).data, [0, 0.5, 0.5])
    np.testing.assert_array_equal(grad(ops.maximum(x, 3.0).sum(), x).data, [0, 0.5, 0.5])
    tile = Tensor(np.ones((1, 2, 2, 1)), requires_grad=True)
    np.testing.assert_array_equal(grad(ops.max_pool2d(tile).sum(), tile).data.ravel(), [1, 0, 0, 0])


def test_extreme_values_do_not_overflow():
    x = Tensor(np.array([-1000.0, 0.0, 1000.0]), requires_grad=True)
    with np.errstate(over="raise", invalid="raise"):
        for function in (ops.sigmoid, ops.softmax, ops.log_softmax, ops.softplus, ops.tanh, ops.gelu):
            y = function(x)
            assert np.isfinite(y.data).all()
            assert np.isfinite(grad(y.sum(), x).data).all()


def test_fold_is_the_transpose_of_unfold():
    # <unfold(x), y> = <x, fold(y)> for all x and y
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 5, 6, 3))
    columns = ops.unfold(x, (2, 3), (2, 1), (2, 1))
    y = rng.normal(size=columns.shape)
    left = (columns.data * y).sum()
    right = (x * ops.fold(y, x.shape, (2, 1), (2, 1)).data).sum()
    assert left == pytest.approx(right, rel=1e-12)


def test_same_padding_with_strides_puts_the_odd_zero_behind():
    # 1x1 images of width 4, window 3, step 2: TensorFlow pads 0 in front and 1 behind.
    x = np.arange(1.0, 5.0).reshape(1, 1, 4, 1)
    y = ops.conv2d(x, np.ones((1, 3, 1, 1)), strides=(1, 2), padding="same")
    np.testing.assert_array_equal(y.data.ravel(), [1 + 2 + 3, 3 + 4])
    z = ops.avg_pool2d(x, (1, 3), (1, 2), padding="same")
    np.testing.assert_array_equal(z.data.ravel(), [2, 3.5])
    w = ops.max_pool2d(-x, (1, 3), (1, 2), padding="same")
    np.testing.assert_array_equal(w.data.ravel(), [-1, -3])


def test_a_wrong_gradient_is_found():
    from layers.autograd.tensor import record

    def wrong(x):
        return record("wrong", x.data**2, (x, lambda g, _: g * x))  # the factor 2 is missing

    with pytest.raises(AssertionError, match=r"gradient with respect to input 0 of shape \(3,\), at"):
        check_gradients(wrong, np.array([1.0, 2.0, 3.0]))
