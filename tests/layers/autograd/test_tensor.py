"""The engine itself: recording, the reverse pass, accumulation, higher orders, and its errors."""

import gc
import subprocess
import sys
import weakref

import numpy as np
import pytest

from layers.autograd import Tensor, grad, no_grad, ops

pytestmark = pytest.mark.once


def leaf(values, dtype=np.float64):
    return Tensor(np.array(values, dtype), requires_grad=True)


def test_import_needs_no_framework():
    code = (
        "import sys, layers.autograd; "
        "print([m for m in ('keras', 'torch', 'jax', 'tensorflow', 'matplotlib') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_a_gradient_computed_on_paper():
    # f = a b + sin(a), df/da = b + cos(a), df/db = a
    a, b = leaf(2.0), leaf(3.0)
    (a * b + ops.sin(a)).backward()
    assert a.grad.item() == pytest.approx(3 + np.cos(2))
    assert b.grad.item() == 2.0


def test_a_tensor_used_several_times_gets_the_sum():
    x = leaf(3.0)
    y = x * x  # reaches the output along two ways
    (y * x + y).backward()
    assert x.grad.item() == pytest.approx(3 * 9 + 2 * 3)


def test_backward_accumulates_until_told_otherwise():
    x = leaf([1.0, 2.0])
    for _ in range(3):
        (x * x).sum().backward()
    np.testing.assert_allclose(x.grad.data, [6, 12])
    x.grad = None
    (x * x).sum().backward()
    np.testing.assert_allclose(x.grad.data, [2, 4])


def test_leaves_of_a_sum_do_not_share_one_gradient_array():
    a, b = leaf([1.0]), leaf([1.0])
    (a + b).backward()
    a.grad.data *= 5
    assert b.grad.item() == 1.0


def test_gradient_argument_of_a_non_scalar():
    x = leaf([1.0, 2.0, 3.0])
    (x * x).backward([1.0, 0.0, -1.0])
    np.testing.assert_allclose(x.grad.data, [2, 0, -6])


@pytest.mark.parametrize("depth", [10_000, 30_000])
def test_a_deep_chain_does_not_overflow(depth):
    x = leaf(1.0)
    y = x
    for _ in range(depth):
        y = y + 1e-3
    (y * 2).backward()
    assert x.grad.item() == 2.0
    for _ in range(depth):  # and dropping a chain nobody differentiated does not either
        y = y * x
    del y


def test_higher_order_gradients():
    x = leaf(0.7)
    value = ops.sin(x)
    derivatives = []
    for _ in range(4):
        value = grad(value, x, create_graph=True)
        derivatives.append(value.item())
    np.testing.assert_allclose(
        derivatives, [np.cos(0.7), -np.sin(0.7), -np.cos(0.7), np.sin(0.7)], rtol=1e-12
    )


def test_hessian_of_a_quadratic_form_is_its_matrix():
    rng = np.random.default_rng(0)
    a = rng.normal(size=(4, 4))
    x = leaf(rng.normal(size=4))
    slope = grad(0.5 * (x @ Tensor(a) @ x), x, create_graph=True)
    rows = [grad(slope[i], x, retain_graph=True).data for i in range(4)]
    np.testing.assert_allclose(rows, (a + a.T) / 2, atol=1e-12)


def test_gradient_penalty_reaches_the_weights():
    # L = |dy/dx|^2 with y = w x^2: dy/dx = 2 w x, L = 4 w^2 x^2, dL/dw = 8 w x^2
    w, x = leaf(3.0), leaf(2.0)
    slope = grad(w * x * x, x, create_graph=True)
    (slope * slope).backward()
    assert w.grad.item() == pytest.approx(8 * 3 * 4)


def test_grad_leaves_grad_fields_alone_and_gives_inner_tensors():
    x = leaf(2.0)
    y = x * x
    z = y * 3
    by_y, by_x = grad(z, [y, x])
    assert (by_y.item(), by_x.item()) == (3.0, 12.0)
    assert x.grad is None


def test_grad_of_an_input_without_influence_is_zero():
    x, y = leaf([1.0, 2.0]), leaf(3.0)
    np.testing.assert_array_equal(grad(y * y, x).data, [0, 0])


def test_no_grad_records_nothing():
    x = leaf(2.0)
    with no_grad():
        y = x * x
    assert not y.requires_grad and y.parents == ()
    assert (x * x).requires_grad


def test_constants_are_not_recorded():
    x = leaf(2.0)
    assert (x * Tensor(3.0)).parents == (x,)


def test_a_dead_graph_is_freed_without_the_garbage_collector():
    gc.disable()
    try:
        x = leaf([1.0])
        y = ops.tanh(x)
        watch = weakref.ref(y)
        z = ops.exp(y).sum()
        del y, z
        assert watch() is None
    finally:
        gc.enable()


def test_retain_graph_allows_a_second_pass():
    x = leaf(3.0)
    y = x * x
    y.backward(retain_graph=True)
    y.backward()
    assert x.grad.item() == 12.0


def test_array_and_number_on_the_left():
    x = leaf([1.0, 2.0])
    for result, expected in (
        (np.array([3.0, 4.0]) * x, [3, 8]),
        (1 - x, [0, -1]),
        (2 / x, [2, 1]),
        (2**x, [2, 4]),
        (np.array([3.0, 4.0]) @ x, 11),
    ):
        assert isinstance(result, Tensor)
        np.testing.assert_allclose(result.data, expected)


def test_float32_stays_float32():
    x = Tensor(np.ones((2, 3), np.float32), requires_grad=True)
    y = (2.0 * ops.gelu(x) / 3 + 1).mean()
    assert y.dtype == np.float32
    y.backward()
    assert x.grad.dtype == np.float32


def test_gradient_has_the_type_of_its_tensor_in_mixed_arithmetic():
    x = Tensor(np.ones(3, np.float32), requires_grad=True)
    (x * Tensor(np.ones(3))).sum().backward()
    assert x.grad.dtype == np.float32


def test_many_slices_of_one_tensor():
    x = leaf(np.arange(12.0).reshape(3, 4))
    (x[:, 0] * x[:, 1] + x[:, [2, 2]].sum(axis=1) + x[1, 3]).sum().backward()
    expected = np.zeros((3, 4))
    expected[:, 0], expected[:, 1], expected[:, 2] = x.data[:, 1], x.data[:, 0], 2
    expected[1, 3] = 3  # once a row of the sum
    np.testing.assert_allclose(x.grad.data, expected)


ERRORS = {
    "integers": (lambda: Tensor([1, 2], requires_grad=True), TypeError, r"int64.*\(2,\)"),
    "tensor of a tensor": (lambda: Tensor(Tensor(1.0)), TypeError, "already"),
    "add": (lambda: leaf(np.ones((2, 3))) + leaf(np.ones(4)), ValueError, r"add: .*\(2, 3\).*\(4,\)"),
    "multiply": (
        lambda: leaf(np.ones((2, 3))) * np.ones((3, 2)),
        ValueError,
        r"multiply: .*\(2, 3\).*\(3, 2\)",
    ),
    "matmul": (
        lambda: leaf(np.ones((2, 3))) @ leaf(np.ones((2, 3))),
        ValueError,
        r"matmul: .*\(2, 3\).*\(2, 3\)",
    ),
    "matmul batch": (
        lambda: leaf(np.ones((2, 3, 3))) @ leaf(np.ones((4, 3, 3))),
        ValueError,
        r"matmul: .*\(2, 3, 3\).*\(4, 3, 3\)",
    ),
    "matmul scalar": (lambda: leaf(1.0) @ leaf([1.0]), ValueError, r"matmul: .*\(\).*\(1,\)"),
    "where": (
        lambda: ops.where(np.ones(3, bool), leaf([1.0, 2.0]), 0.0),
        ValueError,
        r"where: .*\(3,\).*\(2,\)",
    ),
    "reshape": (lambda: leaf([1.0, 2.0]).reshape(3), ValueError, r"reshape: 2 elements.*\(2,\).*\(3,\)"),
    "transpose": (lambda: leaf(np.ones((2, 3))).transpose(0, 0), ValueError, r"transpose: .*\(2, 3\)"),
    "broadcast": (
        lambda: ops.broadcast_to(leaf([1.0, 2.0]), (3,)),
        ValueError,
        r"broadcast_to: .*\(2,\).*\(3,\)",
    ),
    "getitem": (lambda: leaf([1.0, 2.0])[5], IndexError, r"getitem: .*\(2,\)"),
    "concatenate": (
        lambda: ops.concatenate([leaf(np.ones((2, 3))), leaf(np.ones((3, 2)))], axis=0),
        ValueError,
        r"concatenate: .*\(2, 3\), \(3, 2\)",
    ),
    "stack": (
        lambda: ops.stack([leaf([1.0]), leaf([1.0, 2.0])]),
        ValueError,
        r"stack: shapes \(1,\), \(2,\)",
    ),
    "pad": (lambda: ops.pad(leaf([1.0]), [(1, 1), (0, 0)]), ValueError, r"pad: .*\(1,\)"),
    "sum axis": (lambda: leaf([1.0]).sum(axis=1), ValueError, r"sum: axis 1.*\(1,\)"),
    "empty max": (lambda: leaf(np.ones((0, 2))).max(), ValueError, r"max: shape \(0, 2\)"),
    "empty mean": (lambda: leaf(np.ones((0, 2))).mean(), ValueError, r"mean: shape \(0, 2\)"),
    "conv channels": (
        lambda: ops.conv2d(leaf(np.ones((1, 5, 5, 2))), leaf(np.ones((3, 3, 4, 1)))),
        ValueError,
        r"conv2d: .*\(1, 5, 5, 2\).*\(3, 3, 4, 1\)",
    ),
    "conv too large": (
        lambda: ops.conv2d(leaf(np.ones((1, 2, 2, 1))), leaf(np.ones((3, 3, 1, 1)))),
        ValueError,
        r"\(3, 3\).*\(1, 2, 2, 1\)",
    ),
    "conv padding": (
        lambda: ops.conv2d(leaf(np.ones((1, 5, 5, 1))), leaf(np.ones((3, 3, 1, 1))), padding="full"),
        ValueError,
        "conv2d: padding.*'full'",
    ),
    "unfold": (lambda: ops.unfold(leaf(np.ones((4, 4))), 2), ValueError, r"unfold: .*\(4, 4\)"),
    "pool": (lambda: ops.max_pool2d(leaf(np.ones((4, 4)))), ValueError, r"max_pool2d: .*\(4, 4\)"),
    "non-scalar": (lambda: (leaf([1.0, 2.0]) * 2).backward(), ValueError, r"'multiply' of shape \(2,\)"),
    "gradient shape": (
        lambda: (leaf([1.0, 2.0]) * 2).backward(np.ones(3)),
        ValueError,
        r"\(3,\) for 'multiply' of shape \(2,\)",
    ),
    "nothing recorded": (lambda: Tensor([1.0]).backward(), RuntimeError, r"\(1,\).*requires gradients"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors_name_the_operation_and_the_shapes(case):
    make, kind, message = ERRORS[case]
    with pytest.raises(kind, match=message):
        make()


def test_backward_twice_on_a_freed_graph():
    x = leaf([1.0, 2.0])
    y = (x * x).sum()
    y.backward()
    with pytest.raises(RuntimeError, match=r"'sum' of shape \(\) was freed.*retain_graph=True"):
        y.backward()


def test_a_freed_part_below_a_new_operation_is_found():
    x = leaf([1.0, 2.0])
    y = ops.exp(x)
    y.sum().backward()
    with pytest.raises(RuntimeError, match=r"'exp' of shape \(2,\) was freed"):
        (y * 2).sum().backward()
