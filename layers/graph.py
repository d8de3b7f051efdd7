"""Layers on graphs whose edges are a list: `(E, 2)` integers, each row a source node and a target node.

A message travels from source to target. Work and memory grow with the number of edges, not with the square
of the number of nodes. An undirected edge is two rows; several graphs are one graph without edges between
its parts.

    edges, weights = normalized_adjacency(edges, num_nodes)       # once, in NumPy
    hidden = GraphConvolution(16, activation="relu")([features, edges, weights])

Features that are mostly zeros, such as words of a text, may be given by their non-zero entries:

    indices, values = sparse_rows(features)                       # once, in NumPy
    hidden = GraphConvolution(16, input_dim=features.shape[1])([indices, values, edges, weights])
"""

from typing import Any

import keras
import numpy as np
from keras import ops

from .initializers import twin
from .products import matmul
from .regularization import Dropout

# Nodes beyond which a graph is not made a matrix: 10,000 take 0.4 GB, and as much again for each copy.
DENSE_LIMIT = 10_000


def undirected(edges: np.ndarray) -> np.ndarray:
    """Both directions of every edge, each once, sorted by target; self-loops are kept.

    Args:
        edges: integers `(E, 2)`.

    Returns:
        Integers `(E', 2)`.
    """
    edges = np.asarray(edges)
    both = np.unique(np.concatenate([edges, edges[:, ::-1]]), axis=0)
    return both[np.lexsort((both[:, 0], both[:, 1]))]


def with_self_loops(edges: np.ndarray, num_nodes: int) -> np.ndarray:
    """The edges, and one from every node to itself that had none, sorted by target.

    Args:
        edges: integers `(E, 2)`.
        num_nodes: number of nodes.

    Returns:
        Integers `(E', 2)`.
    """
    edges = np.asarray(edges)
    others = edges[edges[:, 0] != edges[:, 1]]
    looped = np.concatenate([others, np.repeat(np.arange(num_nodes)[:, None], 2, axis=1)])
    return looped[np.lexsort((looped[:, 0], looped[:, 1]))].astype(edges.dtype)


def normalized_adjacency(
    edges: np.ndarray, num_nodes: int, self_loops: bool = True, symmetric: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """Edges with weights, such that aggregating keeps the scale of the features.

        symmetric:  A_ij / sqrt(d_i d_j)       otherwise: A_ij / d_i, the mean over incoming edges

    with A the adjacency (plus identity, with `self_loops`) and d the number of edges into a node.

    Args:
        edges: integers `(E, 2)`; for the symmetric form, both directions of every edge.
        num_nodes: number of nodes.
        self_loops: whether every node is its own neighbour.
        symmetric: which of the two.

    Returns:
        int32 edges `(E', 2)` sorted by target, and float32 weights `(E',)`.

    Raises:
        ValueError: if an edge names a node that is not there.

    Reference:
        Kipf & Welling, Semi-Supervised Classification with Graph Convolutional Networks, 2017,
        https://arxiv.org/abs/1609.02907, section 2
    """
    edges = np.asarray(edges).reshape(-1, 2)
    if edges.size and not (edges.min() >= 0 and edges.max() < num_nodes):
        raise ValueError(
            f"Edges must be between nodes 0 and {num_nodes - 1}. "
            f"Received: indices from {edges.min()} to {edges.max()}"
        )
    edges = with_self_loops(edges, num_nodes) if self_loops else edges[np.lexsort((edges[:, 0], edges[:, 1]))]
    sources, targets = edges[:, 0], edges[:, 1]
    # A node without edges has no row to scale; 1 avoids dividing by zero there.
    degrees = np.maximum(np.bincount(targets, minlength=num_nodes), 1).astype("float64")
    weights = 1 / np.sqrt(degrees[sources] * degrees[targets]) if symmetric else 1 / degrees[targets]
    return edges.astype("int32"), weights.astype("float32")


def dense_adjacency(
    edges: np.ndarray, weights: np.ndarray, num_nodes: int, limit: int = DENSE_LIMIT
) -> np.ndarray:
    """The edges as a matrix: row = target, column = source.

    For small graphs, where a matrix product is faster than gathering, and as an oracle. Memory grows with the
    square of the nodes.

    Args:
        edges: integers `(E, 2)`.
        weights: `(E,)`.
        num_nodes: number of nodes.
        limit: largest number of nodes that is accepted.

    Returns:
        float32 `(num_nodes, num_nodes)`.

    Raises:
        ValueError: if the graph is larger than that.
    """
    if num_nodes > limit:
        raise ValueError(
            f"A dense adjacency of {num_nodes} nodes takes {4e-9 * num_nodes**2:.1f} GB, of which "
            f"{len(edges) / num_nodes**2:.2%} are not zero; beyond {limit} nodes keep edges as a list"
        )
    adjacency = np.zeros((num_nodes, num_nodes), "float32")
    np.add.at(adjacency, (edges[:, 1], edges[:, 0]), weights)
    return adjacency


def sparse_rows(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The entries of a matrix that are not zero, row by row.

    Args:
        features: `(nodes, dim)`.

    Returns:
        int32 indices and float32 values, both `(nodes, k)` with k the most entries of a row; shorter rows are
        filled up with value 0.
    """
    counts = np.count_nonzero(features, axis=1)
    rows, columns = np.nonzero(features)
    places = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    indices = np.zeros((len(features), max(counts.max(initial=0), 1)), "int32")
    values = np.zeros(indices.shape, "float32")
    indices[rows, places], values[rows, places] = columns, features[rows, columns]
    return indices, values


def aggregate(messages: Any, targets: Any, num_nodes: Any) -> Any:
    """Sum of the messages that arrive at each node: `(E, ...), (E,) -> (num_nodes, ...)`."""
    return ops.segment_sum(messages, targets, num_segments=num_nodes)


def segment_softmax(scores: Any, targets: Any, num_nodes: Any) -> Any:
    """Softmax over the edges that share a target.

        a_e = exp(s_e) / sum over edges f with the target of e of exp(s_f)

    Args:
        scores: shape `(E, ...)`.
        targets: integers `(E,)`.
        num_nodes: number of nodes.

    Returns:
        Tensor `(E, ...)`.
    """
    highest = ops.segment_max(ops.stop_gradient(scores), targets, num_segments=num_nodes)  # (num_nodes, ...)
    numerators = ops.exp(scores - ops.take(highest, targets, axis=0))
    totals = aggregate(numerators, targets, num_nodes)
    return numerators / ops.take(totals, targets, axis=0)


class GraphLayer(keras.layers.Layer):
    """What layers on `[features, edges]` and `[features, edges, weights]` share.

    With `input_dim`, features are two inputs, `indices` and `values`, as `sparse_rows` gives them.
    """

    def __init__(
        self,
        units: int,
        activation: Any,
        use_bias: bool,
        kernel_initializer: Any,
        bias_initializer: Any,
        kernel_regularizer: Any,
        input_dim: int | None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        if not isinstance(units, int) or units <= 0:
            raise ValueError(f"`units` must be a positive integer. Received: units={units}")
        self.units = units
        self.activation = keras.activations.get(activation)
        self.use_bias = use_bias
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.bias_initializer = keras.initializers.get(bias_initializer)
        self.kernel_regularizer = keras.regularizers.get(kernel_regularizer)
        self.input_dim = input_dim

    def parted(self, inputs: list) -> tuple[list, list]:
        """The inputs (or their shapes) that are features, and the others."""
        count = 1 if self.input_dim is None else 2
        return inputs[:count], inputs[count:]

    def project(self, features: list, kernel: Any) -> Any:
        """Features times kernel: `(nodes, units)`."""
        if self.input_dim is None:
            return matmul(features[0], kernel)
        indices, values = features
        rows = ops.take(kernel, indices, axis=0)  # (nodes, k, units)
        return ops.squeeze(ops.matmul(ops.expand_dims(values, 1), rows), 1)

    def check_inputs(self, shapes: list, lengths: tuple) -> None:
        """Raise ValueError unless there are features and as many others as expected, edges first."""
        others = self.parted(shapes)[1] if isinstance(shapes, list) else []
        if len(others) not in lengths or others[0][-1] != 2:
            names = "features" if self.input_dim is None else "indices, values"
            expected = f"[{names}, edges]" + (f" or [{names}, edges, weights]" if 2 in lengths else "")
            raise ValueError(
                f"`{type(self).__name__}` must be called on a list {expected} with edges of shape "
                f"(number of edges, 2). Received: input_shape={shapes}"
            )

    def finish(self, outputs: Any) -> Any:
        """Bias and activation."""
        if self.use_bias:
            outputs = outputs + self.bias
        return self.activation(outputs)

    def get_config(self) -> dict:
        """The arguments of the constructor that all have."""
        return {
            **super().get_config(),
            "units": self.units,
            "activation": keras.activations.serialize(self.activation),
            "use_bias": self.use_bias,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "bias_initializer": keras.initializers.serialize(self.bias_initializer),
            "kernel_regularizer": keras.regularizers.serialize(self.kernel_regularizer),
            "input_dim": self.input_dim,
        }


@keras.saving.register_keras_serializable(package="layers")
class GraphConvolution(GraphLayer):
    """Kipf and Welling's graph convolution: a linear map, then a weighted sum over neighbours.

        H' = activation(A H W + b)

    with A given by its edges and their weights, usually those of `normalized_adjacency`.

    Args:
        units: width of the output.
        activation: name or function; None for none.
        use_bias: whether to add b.
        kernel_initializer, bias_initializer, kernel_regularizer: of W and b.
        input_dim: number of features, where they are given by `sparse_rows`.

    Call arguments:
        inputs: list `[features, edges]` or `[features, edges, weights]` of shapes `(nodes, dim)`, integers
            `(E, 2)` and `(E,)`; without weights, each edge has weight 1. With `input_dim`, `indices` and
            `values` `(nodes, k)` take the place of the features.

    Returns:
        Tensor `(nodes, units)`.

    Reference:
        Kipf & Welling, Semi-Supervised Classification with Graph Convolutional Networks, 2017,
        https://arxiv.org/abs/1609.02907
    """

    def __init__(
        self,
        units: int,
        activation: Any = None,
        use_bias: bool = True,
        kernel_initializer: Any = "glorot_uniform",
        bias_initializer: Any = "zeros",
        kernel_regularizer: Any = None,
        input_dim: int | None = None,
        **kwargs: Any,
    ):
        super().__init__(
            units,
            activation,
            use_bias,
            kernel_initializer,
            bias_initializer,
            kernel_regularizer,
            input_dim,
            **kwargs,
        )

    def build(self, input_shape: list) -> None:
        """Make W `(dim, units)` and b."""
        self.check_inputs(input_shape, (1, 2))
        self.kernel = self.add_weight(
            name="kernel",
            shape=(self.input_dim or input_shape[0][-1], self.units),
            initializer=twin(self.kernel_initializer),
            regularizer=self.kernel_regularizer,
        )
        if self.use_bias:
            self.bias = self.add_weight(name="bias", shape=(self.units,), initializer=self.bias_initializer)

    def call(self, inputs: list) -> Any:
        """Apply the layer."""
        features, (edges, *weights) = self.parted(inputs)
        # The linear map first: then messages have the width of the output, usually the smaller one.
        projected = self.project(features, self.kernel)  # (nodes, units)
        messages = ops.take(projected, edges[:, 0], axis=0)  # (E, units)
        if weights:
            messages = messages * ops.expand_dims(weights[0], -1)
        return self.finish(aggregate(messages, edges[:, 1], ops.shape(projected)[0]))

    def compute_output_shape(self, input_shape: list) -> tuple:
        """`(nodes, units)`."""
        return (input_shape[0][0], self.units)


@keras.saving.register_keras_serializable(package="layers")
class DenseGraphConvolution(GraphConvolution):
    """`GraphConvolution` with the adjacency as a matrix, as `dense_adjacency` makes it.

    The same weights give the same outputs.

    Args:
        units, activation, ...: as in `GraphConvolution`.

    Call arguments:
        inputs: list `[features, adjacency]` of shapes `(nodes, dim)` and `(nodes, nodes)`.

    Returns:
        Tensor `(nodes, units)`.
    """

    def check_inputs(self, shapes: list, lengths: tuple) -> None:
        """Raise ValueError unless the inputs are features and a square matrix."""
        others = self.parted(shapes)[1] if isinstance(shapes, list) else []
        # One size may still be unknown.
        if len(others) != 1 or len(others[0]) != 2 or len({*others[0], None}) > 2:
            raise ValueError(
                "`DenseGraphConvolution` must be called on a list [features, adjacency] with a square "
                f"adjacency. Received: input_shape={shapes}"
            )

    def call(self, inputs: list) -> Any:
        """Apply the layer."""
        features, (adjacency,) = self.parted(inputs)
        return self.finish(ops.matmul(adjacency, self.project(features, self.kernel)))


@keras.saving.register_keras_serializable(package="layers")
class GraphAttention(GraphLayer):
    """Graph attention: each node takes a mean of its neighbours, with learned weights.

        e_ij = LeakyReLU(a_source . W h_j + a_target . W h_i)   for every edge from j to i
        h'_i = activation(sum_j softmax_j(e_ij) W h_j + b)      for every head

    Edges should include self-loops (`with_self_loops`): a node without any incoming edge gets only b.

    Args:
        units: width of a head.
        num_heads: number of heads.
        concatenate: whether heads are concatenated, or averaged (as in a last layer).
        activation: name or function; None for none.
        negative_slope: of the LeakyReLU.
        dropout: fraction of the attention weights dropped in training.
        use_bias: whether to add b.
        kernel_initializer, bias_initializer, kernel_regularizer: of W (and both a) and b.
        input_dim: number of features, where they are given by `sparse_rows`.
        seed: integer seed of the dropout.

    Call arguments:
        inputs: list `[features, edges]` of shapes `(nodes, dim)` and integers `(E, 2)`; with `input_dim`,
            `[indices, values, edges]`, the first two `(nodes, k)`.
        training: whether to drop weights.
        return_attention_scores: whether to return the weights too.

    Returns:
        Tensor `(nodes, num_heads * units)`, or `(nodes, units)` if averaged; with
        `return_attention_scores`, also the weights `(E, num_heads)`.

    Reference:
        Velickovic et al., Graph Attention Networks, 2018, https://arxiv.org/abs/1710.10903
    """

    def __init__(
        self,
        units: int,
        num_heads: int = 1,
        concatenate: bool = True,
        activation: Any = None,
        negative_slope: float = 0.2,
        dropout: float = 0.0,
        use_bias: bool = True,
        kernel_initializer: Any = "glorot_uniform",
        bias_initializer: Any = "zeros",
        kernel_regularizer: Any = None,
        input_dim: int | None = None,
        seed: int | None = None,
        **kwargs: Any,
    ):
        super().__init__(
            units,
            activation,
            use_bias,
            kernel_initializer,
            bias_initializer,
            kernel_regularizer,
            input_dim,
            **kwargs,
        )
        self.num_heads = num_heads
        self.concatenate = concatenate
        self.negative_slope = negative_slope
        self.dropout = dropout
        self.seed = seed
        self._dropout_layer = Dropout(dropout, seed=seed, dtype=self.dtype_policy) if dropout > 0 else None

    def build(self, input_shape: list) -> None:
        """Make W `(dim, heads * units)`, both a `(heads, units)`, and b."""
        self.check_inputs(input_shape, (1,))
        self.kernel = self.add_weight(
            name="kernel",
            shape=(self.input_dim or input_shape[0][-1], self.num_heads * self.units),
            initializer=twin(self.kernel_initializer),
            regularizer=self.kernel_regularizer,
        )
        self.source_attention, self.target_attention = (
            self.add_weight(
                name=f"{role}_attention",
                shape=(self.num_heads, self.units),
                initializer=twin(self.kernel_initializer),
                regularizer=self.kernel_regularizer,
            )
            for role in ("source", "target")
        )
        if self.use_bias:
            width = self.compute_output_shape(input_shape)[-1]
            self.bias = self.add_weight(name="bias", shape=(width,), initializer=self.bias_initializer)

    def call(self, inputs: list, training: bool = False, return_attention_scores: bool = False) -> Any:
        """Apply the layer."""
        features, (edges,) = self.parted(inputs)
        sources, targets = edges[:, 0], edges[:, 1]
        nodes = ops.shape(features[0])[0]
        heads = ops.reshape(
            self.project(features, self.kernel), (-1, self.num_heads, self.units)
        )  # (nodes, heads, units)
        # a . [W h_j, W h_i] splits into a number per node for each end; edges only add two numbers.
        source_scores = ops.sum(heads * self.source_attention, axis=-1)  # (nodes, heads)
        target_scores = ops.sum(heads * self.target_attention, axis=-1)
        scores = ops.take(source_scores, sources, axis=0) + ops.take(target_scores, targets, axis=0)
        scores = ops.where(scores > 0, scores, self.negative_slope * scores)  # (E, heads)
        weights = segment_softmax(scores, targets, nodes)
        kept = weights if self._dropout_layer is None else self._dropout_layer(weights, training=training)
        messages = ops.take(heads, sources, axis=0) * ops.expand_dims(kept, -1)  # (E, heads, units)
        outputs = aggregate(messages, targets, nodes)  # (nodes, heads, units)
        if self.concatenate:
            outputs = ops.reshape(outputs, (-1, self.num_heads * self.units))
        else:
            outputs = ops.mean(outputs, axis=1)
        outputs = self.finish(outputs)
        return (outputs, weights) if return_attention_scores else outputs

    def compute_output_shape(self, input_shape: list) -> tuple:
        """`(nodes, heads * units)`, or `(nodes, units)`."""
        return (input_shape[0][0], self.units * (self.num_heads if self.concatenate else 1))

    def compute_output_spec(
        self, inputs: list, training: bool = False, return_attention_scores: bool = False
    ) -> Any:
        """Symbolic outputs, and weights where they are returned."""
        shape = self.compute_output_shape([x.shape for x in inputs])
        outputs = keras.KerasTensor(shape, dtype=self.compute_dtype)
        if not return_attention_scores:
            return outputs
        return outputs, keras.KerasTensor((inputs[-1].shape[0], self.num_heads), dtype=self.compute_dtype)

    def get_config(self) -> dict:
        """The arguments of the constructor."""
        return {
            **super().get_config(),
            "num_heads": self.num_heads,
            "concatenate": self.concatenate,
            "negative_slope": self.negative_slope,
            "dropout": self.dropout,
            "seed": self.seed,
        }
