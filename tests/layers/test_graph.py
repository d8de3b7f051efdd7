"""Graph layers against the dense formulas of their papers."""

import keras
import numpy as np
import pytest
from keras import ops

from layers.graph import (
    DenseGraphConvolution,
    GraphAttention,
    GraphConvolution,
    dense_adjacency,
    normalized_adjacency,
    segment_softmax,
    sparse_rows,
    undirected,
    with_self_loops,
)
from tests.layers.checking import check_layer, numpy_of

NODES = 5
# A triangle with a tail, and a node by itself.
EDGES = undirected(np.array([[0, 1], [1, 2], [2, 0], [2, 3]], "int32"))


def close(a, b, tolerance=1e-5):
    np.testing.assert_allclose(numpy_of(a), numpy_of(b), rtol=tolerance, atol=tolerance)


def dense(edges, weights=None):
    """The adjacency with row = target and column = source."""
    adjacency = np.zeros((NODES, NODES))
    adjacency[edges[:, 1], edges[:, 0]] = 1 if weights is None else weights
    return adjacency


def features(rng):
    return rng.normal(size=(NODES, 3)).astype("float32")


@pytest.mark.once
def test_undirected_edges():
    edges = undirected(np.array([[0, 1], [1, 0], [2, 2]]))
    assert edges.tolist() == [[1, 0], [0, 1], [2, 2]]


@pytest.mark.once
def test_self_loops_are_added_once():
    edges = with_self_loops(np.array([[0, 1], [2, 2]]), 3)
    assert sorted(edges.tolist()) == [[0, 0], [0, 1], [1, 1], [2, 2]]
    assert np.all(np.diff(edges[:, 1]) >= 0)


@pytest.mark.once
def test_normalized_adjacency_of_kipf_and_welling():
    adjacency = dense(EDGES) + np.eye(NODES)
    degree = np.diag(adjacency.sum(1) ** -0.5)
    np.testing.assert_allclose(
        dense(*normalized_adjacency(EDGES, NODES)), degree @ adjacency @ degree, rtol=1e-6
    )
    mean = dense(*normalized_adjacency(EDGES, NODES, self_loops=False, symmetric=False))
    np.testing.assert_allclose(mean.sum(1), [1, 1, 1, 1, 0])
    with pytest.raises(ValueError, match="between nodes 0 and 1"):
        normalized_adjacency(EDGES, 2)


def test_segment_softmax(rng):
    scores = rng.normal(size=(len(EDGES), 2)).astype("float32") * 100
    weights = numpy_of(
        segment_softmax(ops.convert_to_tensor(scores), ops.convert_to_tensor(EDGES[:, 1]), NODES)
    )
    for node in range(NODES):
        mine = EDGES[:, 1] == node
        if mine.any():
            e = np.exp(scores[mine] - scores[mine].max(0))
            np.testing.assert_allclose(weights[mine], e / e.sum(0), rtol=1e-4, atol=1e-6)


def test_graph_convolution_by_formula(rng):
    x = features(rng)
    edges, weights = normalized_adjacency(EDGES, NODES)
    layer = GraphConvolution(4, activation="tanh", bias_initializer="ones")
    output = layer([x, edges, weights])
    close(output, np.tanh(dense(edges, weights) @ x @ numpy_of(layer.kernel) + 1))
    unweighted = GraphConvolution(4, use_bias=False)
    output = unweighted([x, EDGES])
    close(output, dense(EDGES) @ x @ numpy_of(unweighted.kernel))


def gat_formula(layer, x, edges):
    """Velickovic's equations 1 to 6, with the adjacency as a mask."""
    heads = (x @ numpy_of(layer.kernel)).reshape(NODES, layer.num_heads, layer.units)
    a_source, a_target = numpy_of(layer.source_attention), numpy_of(layer.target_attention)
    adjacency = dense(edges)
    outputs = np.zeros_like(heads)
    for head in range(layer.num_heads):
        h = heads[:, head]
        scores = (h @ a_target[head])[:, None] + (h @ a_source[head])[None]
        scores = np.where(scores > 0, scores, layer.negative_slope * scores)
        e = np.where(adjacency > 0, np.exp(scores), 0)
        outputs[:, head] = e / e.sum(1, keepdims=True) @ h
    return outputs.reshape(NODES, -1) if layer.concatenate else outputs.mean(1)


@pytest.mark.parametrize("concatenate", [True, False])
def test_graph_attention_by_formula(rng, concatenate):
    x, edges = features(rng), with_self_loops(EDGES, NODES)
    layer = GraphAttention(4, num_heads=2, concatenate=concatenate)
    output, weights = layer([x, edges], return_attention_scores=True)
    close(output, gat_formula(layer, x, edges))
    close(ops.segment_sum(weights, edges[:, 1], num_segments=NODES), np.ones((NODES, 2)))


def make_convolution(**arguments):
    return GraphConvolution(4, **arguments)


def make_attention(**arguments):
    return GraphAttention(4, num_heads=2, **arguments)


def test_graph_convolution_as_every_layer(rng, tmp_path):
    check_layer(make_convolution, [features(rng), *normalized_adjacency(EDGES, NODES)], tmp_path)


def test_graph_attention_as_every_layer(rng, tmp_path):
    check_layer(make_attention, [features(rng), with_self_loops(EDGES, NODES)], tmp_path)


@pytest.mark.parametrize("make", [make_convolution, make_attention])
def test_order_of_nodes_and_edges_does_not_matter(rng, make):
    x, edges, layer = features(rng), with_self_loops(EDGES, NODES), make()
    output = numpy_of(layer([x, edges]))
    close(layer([x, edges[rng.permutation(len(edges))]]), output)
    order = rng.permutation(NODES)
    close(layer([x[order], np.argsort(order)[edges].astype("int32")]), output[order])


@pytest.mark.parametrize("make", [make_convolution, make_attention])
def test_only_neighbours_are_seen(rng, make):
    x, edges, layer = features(rng), with_self_loops(EDGES, NODES), make()
    output = numpy_of(layer([x, edges]))
    changed = x.copy()
    changed[3] += 10
    # Node 3 hangs on node 2 alone.
    other = numpy_of(layer([changed, edges]))
    np.testing.assert_array_equal(other[[0, 1, 4]], output[[0, 1, 4]])
    assert np.abs(other[[2, 3]] - output[[2, 3]]).min(1).max() > 0


def test_graph_attention_dropout(rng):
    inputs = [features(rng), with_self_loops(EDGES, NODES)]
    layer = GraphAttention(4, dropout=0.5, seed=0)
    close(layer(inputs), layer(inputs, training=False))
    assert np.abs(numpy_of(layer(inputs, training=True) - layer(inputs))).max() > 1e-3


@pytest.mark.once
def test_graph_layer_errors():
    x, edges = np.zeros((NODES, 3), "float32"), EDGES
    with pytest.raises(ValueError, match="`units` must be"):
        GraphConvolution(0)
    with pytest.raises(ValueError, match=r"\[features, edges, weights\]"):
        GraphConvolution(2)([x, edges.T[:1]])
    with pytest.raises(ValueError, match="`GraphAttention` must be called on a list"):
        GraphAttention(2)([x, edges, np.ones(len(edges), "float32")])


def test_a_graph_model_learns(rng):
    """Labels that only the neighbourhood tells: a linear layer cannot, one convolution can."""
    x, (edges, weights) = np.eye(NODES, dtype="float32"), normalized_adjacency(EDGES, NODES)
    inputs = [keras.Input((NODES,)), keras.Input((2,), dtype="int32"), keras.Input(())]
    model = keras.Model(inputs, GraphConvolution(1)(inputs))
    target = dense(edges, weights) @ np.arange(NODES)[:, None]
    kernel = np.arange(NODES, dtype="float32")[:, None]
    model.set_weights([kernel, np.zeros(1, "float32")])
    close(model([x, edges, weights]), target)


def test_dense_convolution_is_the_sparse_one(rng):
    x = features(rng)
    edges, weights = normalized_adjacency(EDGES, NODES)
    adjacency = dense_adjacency(edges, weights, NODES)
    np.testing.assert_allclose(adjacency, dense(edges, weights), rtol=1e-6)
    sparse, full = GraphConvolution(4, activation="tanh"), DenseGraphConvolution(4, activation="tanh")
    expected = sparse([x, edges, weights])
    full.build([x.shape, adjacency.shape])
    full.set_weights(sparse.get_weights())
    close(full([x, adjacency]), expected)


def test_dense_convolution_as_every_layer(rng, tmp_path):
    adjacency = dense_adjacency(*normalized_adjacency(EDGES, NODES), NODES)

    def make(**arguments):
        return DenseGraphConvolution(4, **arguments)

    check_layer(make, [features(rng), adjacency], tmp_path)
    with pytest.raises(ValueError, match="square adjacency"):
        make()([features(rng), adjacency[:3]])


@pytest.mark.once
def test_a_matrix_of_many_nodes_is_refused():
    edges = np.array([[0, 1]])
    with pytest.raises(ValueError, match=r"20000 nodes takes 1.6 GB, .* beyond 10000 nodes keep edges"):
        dense_adjacency(edges, np.ones(1, "float32"), 20_000)


@pytest.mark.once
def test_sparse_rows_hold_the_matrix(rng):
    matrix = rng.normal(size=(6, 9)) * (rng.random((6, 9)) < 0.3)
    matrix[2] = 0
    indices, values = sparse_rows(matrix)
    back = np.zeros_like(matrix)
    np.add.at(back, (np.arange(6)[:, None], indices), values)
    np.testing.assert_allclose(back, matrix, rtol=1e-6)
    assert indices.shape == values.shape == (6, np.count_nonzero(matrix, axis=1).max())


@pytest.mark.parametrize("make", [GraphConvolution, GraphAttention])
def test_sparse_features_are_dense_ones(rng, make, tmp_path):
    x = features(rng) * (rng.random((NODES, 3)) < 0.5)
    edges = with_self_loops(EDGES, NODES)
    dense_layer, layer = make(4), make(4, input_dim=3)
    expected = dense_layer([x, edges])
    inputs = [*sparse_rows(x), edges]
    layer.build([part.shape for part in inputs])
    layer.set_weights(dense_layer.get_weights())
    close(layer(inputs), expected)
    check_layer(lambda **arguments: make(4, input_dim=3, **arguments), inputs, tmp_path)
    with pytest.raises(ValueError, match=r"list \[indices, values, edges\]"):
        make(4, input_dim=3)([x, edges])
