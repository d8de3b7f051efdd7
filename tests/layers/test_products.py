"""Products with a matrix, and oneDNN's for PyTorch."""

import keras
import numpy as np
import pytest

import layers
from layers.products import matmul
from tests.layers.checking import numpy_of

on_torch = pytest.mark.skipif(keras.backend.backend() != "torch", reason="the others have one way")

LARGE = (128, 160, 192)  # rows, inputs, outputs: more than the smallest product by oneDNN


@pytest.mark.parametrize("leading", [(4,), (2, 3), (128,), (2, 4, 16)])
def test_is_the_matrix_product(rng, leading):
    x = rng.normal(size=(*leading, 160)).astype("float32")
    matrix = keras.Variable(rng.normal(size=(160, 192)).astype("float32"))
    product = matmul(keras.ops.convert_to_tensor(x), matrix)
    np.testing.assert_allclose(numpy_of(product), x @ numpy_of(matrix), atol=1e-4)


@pytest.fixture
def by_onednn(monkeypatch):
    """Any processor takes oneDNN's products; the list holds the operands' shapes of each."""
    import torch

    from layers import onednn

    if not torch.backends.mkldnn.is_available():
        pytest.skip("this PyTorch has no oneDNN")
    seen, multiply = [], onednn.multiply

    def watched(x, matrix):
        seen.append((*x.shape, matrix.shape[1]))
        return multiply(x, matrix)

    monkeypatch.setattr(onednn, "multiply", watched)
    monkeypatch.setattr(onednn, "is_faster", lambda: True)
    return seen


def operands(rng, *shapes):
    import torch

    return [torch.tensor(rng.normal(size=shape).astype("float32"), requires_grad=True) for shape in shapes]


def assert_close(ours, theirs):
    # One scale for all: what is zero but for rounding (an attention key's bias) has none of its own.
    scale = max(float(their.detach().abs().max()) for their in theirs)
    for our, their in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(numpy_of(our), numpy_of(their), atol=5e-6 * scale, rtol=0)


MATRICES = {
    "rows": ((160, 192), lambda stored: stored),
    "columns": ((192, 160), lambda stored: stored.T),
    "a slice of columns": ((160, 500), lambda stored: stored[:, 100:292]),
    "a slice of rows": ((500, 160), lambda stored: stored[100:292].T),
    "every other": ((320, 384), lambda stored: stored[::2, ::2]),
    "one row for all": ((1, 192), lambda stored: stored.expand(160, 192)),
}


@on_torch
@pytest.mark.parametrize("of_ones", [False, True], ids=["a gradient", "a gradient of ones"])
@pytest.mark.parametrize("name", MATRICES)
def test_however_the_matrix_is_stored(rng, by_onednn, name, of_ones):
    import torch

    shape, view = MATRICES[name]
    x, stored = operands(rng, (128, 160), shape)
    (by_output,) = operands(rng, (128, 192))

    def everything(multiply):
        product = multiply(x, view(stored))
        loss = product.sum() if of_ones else (product * by_output).sum()  # ones are stored as a single one
        return product, *torch.autograd.grad(loss, (x, stored))

    assert_close(everything(matmul), everything(torch.matmul))
    assert by_onednn == [LARGE, (128, 192, 160), (160, 128, 192)]


@on_torch
def test_derivatives_of_every_kind(rng, by_onednn):
    import torch

    x, matrix = operands(rng, (128, 160), (160, 192))
    tangents = [operand.detach() for operand in operands(rng, (128, 160), (160, 192))]

    def penalty(multiply):
        outputs = (multiply(x, matrix) / 16).tanh().square().sum()
        gradients = torch.autograd.grad(outputs, (x, matrix), create_graph=True)
        return torch.autograd.grad(sum(gradient.square().sum() for gradient in gradients), (x, matrix))

    assert_close(penalty(matmul), penalty(torch.matmul))
    assert len(by_onednn) >= 6

    def along(multiply, moving):
        with torch.autograd.forward_ad.dual_level():
            duals = [
                torch.autograd.forward_ad.make_dual(operand.detach(), tangent) if move else operand.detach()
                for operand, tangent, move in zip((x, matrix), tangents, moving, strict=True)
            ]
            return [torch.autograd.forward_ad.unpack_dual(multiply(*duals)).tangent]

    for moving in ((True, True), (True, False), (False, True)):
        assert_close(along(matmul, moving), along(torch.matmul, moving))

    def jacobian(multiply):
        rows = multiply(x, matrix)[:3].sum(1)
        return torch.autograd.grad(rows, (x, matrix), torch.eye(3), is_grads_batched=True)

    assert_close(jacobian(matmul), jacobian(torch.matmul))

    before = len(by_onednn)
    loss = {
        multiply: lambda x, matrix, multiply=multiply: multiply(x, matrix).square().sum()
        for multiply in (matmul, torch.matmul)
    }
    ours, theirs = (torch.func.grad(loss[multiply], (0, 1))(x, matrix) for multiply in (matmul, torch.matmul))
    assert_close(ours, theirs)
    assert len(by_onednn) == before


@on_torch
@pytest.mark.parametrize(
    "change",
    [
        lambda x, matrix: (x[:8], matrix),  # small
        lambda x, matrix: (x.reshape(-1, 40), matrix.reshape(40, -1)),  # narrow
        lambda x, matrix: (x.reshape(5, -1), matrix.repeat(26, 3)[:4096]),  # five rows
        lambda x, matrix: (x.double(), matrix.double()),
        lambda x, matrix: (x.to("meta"), matrix.to("meta")),
        lambda x, matrix: (x, matrix.expand(2, 160, 192)),  # a matrix for each of two
    ],
    ids=["small", "narrow", "few rows", "another dtype", "only described", "several"],
)
def test_what_does_not_go_by_onednn(rng, by_onednn, change):
    x, matrix = change(*operands(rng, (128, 160), (160, 192)))
    ours, theirs = matmul(x, matrix), keras.ops.matmul(x, matrix)
    assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
    if x.device.type != "meta":
        assert_close([ours], [theirs])
    assert not by_onednn


@on_torch
def test_compilers_have_their_own(rng, by_onednn):
    import torch

    x, matrix = operands(rng, (128, 160), (160, 192))
    compiled = torch.compile(lambda x, matrix: matmul(x, matrix), backend="eager", fullgraph=True)
    assert_close([compiled(x, matrix)], [x @ matrix])
    assert not by_onednn


@on_torch
def test_autocast_and_export_are_as_without(rng, by_onednn):
    import torch

    class Model(torch.nn.Module):
        def forward(self, x, matrix):
            return matmul(x, matrix)

    x, matrix = (operand.detach() for operand in operands(rng, (128, 160), (160, 192)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        np.testing.assert_array_equal(numpy_of(matmul(x, matrix)), numpy_of(keras.ops.matmul(x, matrix)))
    exported = torch.export.export(Model(), (x, matrix))
    assert_close([exported.module()(x, matrix)], [x @ matrix])
    assert not by_onednn


@on_torch
def test_only_on_processors_that_gain(monkeypatch):
    import torch

    from layers import onednn

    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    assert not onednn.is_faster.__wrapped__()
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(onednn.Path, "exists", lambda path: True)
    for vendor, gains in (("AuthenticAMD", True), ("GenuineIntel", False)):
        monkeypatch.setattr(onednn.Path, "read_text", lambda path, vendor=vendor: f"vendor_id\t: {vendor}\n")
        assert onednn.is_faster.__wrapped__() is gains


LAYERS = {
    "Dense": (lambda: layers.Dense(192), (4, 32, 160)),
    "MultiHeadAttention": (lambda: layers.MultiHeadAttention(8, 32), (2, 64, 160)),
    "SimpleRNN": (lambda: layers.SimpleRNN(256), (64, 3, 160)),
    "LSTM": (lambda: layers.LSTM(128, return_sequences=True), (64, 3, 96)),
    "PeepholeLSTM": (lambda: layers.PeepholeLSTM(128), (64, 3, 96)),
    "GRU": (lambda: layers.GRU(128), (64, 3, 160)),
    "PatchEmbedding": (lambda: layers.PatchEmbedding(8, 64), (16, 32, 32, 3)),
    "TransformerEncoderBlock": (lambda: layers.TransformerEncoderBlock(4, 512), (2, 64, 128)),
}


@on_torch
@pytest.mark.parametrize("name", LAYERS)
def test_layers_are_the_same_by_onednn(rng, by_onednn, monkeypatch, name):
    import torch

    from layers import onednn

    make, shape = LAYERS[name]
    layer, (x,) = make(), operands(rng, shape)
    call = (lambda: layer(x, x)) if name == "MultiHeadAttention" else (lambda: layer(x))
    (by_outputs,) = operands(rng, call().shape)
    weights = [variable.value for variable in layer.trainable_variables]

    def everything():
        outputs = call()
        return outputs, *torch.autograd.grad((outputs * by_outputs).sum(), (x, *weights))

    del by_onednn[:]
    ours = everything()
    assert by_onednn
    monkeypatch.setattr(onednn, "is_faster", lambda: False)
    assert_close(ours, everything())
