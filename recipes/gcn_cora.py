"""Graph networks that classify papers: what do citations say that words do not?

Of Cora's 2,708 papers 140 are labelled, 20 a topic. A classic classifier sees the words of those 140; a graph
network sees the words of all papers through their citations,

    GCN:  H' = relu(A H W)                     A = D^-1/2 (adjacency + I) D^-1/2
    GAT:  h'_i = elu(sum_j a_ij W h_j)         a_ij = softmax_j of a learned score of nodes i and j

    python -m recipes.gcn_cora --backend torch                                       # GCN on Cora
    python -m recipes.gcn_cora --dataset citeseer
    python -m recipes.gcn_cora --model gat --epochs 1000 --early-stopping 100
    python -m recipes.gcn_cora --dataset sbm --nodes 20000                           # built in, no download
    python -m tuning.sweep gcn_cora --grid dataset=cora,citeseer --seeds 10 --metric test/accuracy

Expected: 81.4 +/- 0.7 % of the test nodes of Cora and 71.1 +/- 0.7 % of Citeseer over 10 seeds, where words
alone give 60.5 and 62.5 %, on JAX in 8 to 33 s a run (results/gcn_cora.md). GAT: 83.3 +/- 0.4 %
of Cora over 7 seeds.

Figures: learning_curves; confusion_matrix; embeddings (t-SNE of test papers by their words and by the hidden
layer); degrees (accuracy by number of neighbours, beside logistic regression); for GAT attention (how far
its weights are from a plain mean).

References:
    Kipf and Welling, 2017, Semi-supervised classification with graph convolutional networks,
    arXiv:1609.02907.
    Velickovic et al., 2018, Graph attention networks, arXiv:1710.10903.
    Yang, Cohen and Salakhutdinov, 2016, Revisiting semi-supervised learning with graph embeddings,
    arXiv:1603.08861 (the split).

Differences from the papers:
    1. Kipf and Welling stop when the validation loss exceeds its mean over the last 10 epochs; here a GCN
       trains for all 200 epochs unless `--early-stopping` is given, which then takes the best weights.
    2. Velickovic et al. watch validation loss and accuracy both; `--early-stopping` watches the loss alone.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Self

import keras
import numpy as np
from keras import ops

import layers
from layers import graph as graph_layers
from recipes import engine
from recipes.engine import launch
from recipes.engine.config import TrainingConfig
from recipes.engine.data import graphs
from recipes.engine.errors import usage_error

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# The settings of the papers, by model.
LEARNING_RATES = {"gcn": 0.01, "gat": 0.005}
UNITS = {"gcn": 16, "gat": 8}
DROPOUT = {"gcn": 0.5, "gat": 0.6}

HEADS = 8  # of the GAT's first layer
STRENGTHS = 10.0 ** np.arange(-1, 5)  # of logistic regression: C, chosen on validation data


@dataclass(frozen=True)
class Config(TrainingConfig):
    """What can be varied."""

    dataset: Literal["cora", "citeseer", "sbm"] = "cora"
    """Graph whose nodes are classified; sbm, a stochastic block model, is built in."""
    nodes: int = 1000
    """Nodes of the block model."""
    model: Literal["gcn", "gat"] = "gcn"
    """gcn: graph convolutions; gat: graph attention."""
    propagation: Literal["sparse", "dense"] = "sparse"
    """sparse: along a list of edges; dense: by a matrix of nodes times nodes, for gcn on small graphs."""
    epochs: int = 200
    """Passes over the labelled nodes; each propagates over the whole graph."""
    batch_size: int | None = None
    """Labelled nodes in one optimizer step; default: all there are."""
    learning_rate: float | None = None
    """Adam's step size; default: the paper's."""
    units: int | None = None
    """Width of the hidden layer, for gat of each of its 8 heads; default: the paper's."""
    dropout: float | None = None
    """Share of every layer's inputs dropped, and of attention weights; default: the paper's."""
    weight_decay: float = 5e-4
    """Half of it is the factor of the squared weights: of the first layer (gcn), of all (gat)."""
    projected: int = 1000
    """Test nodes in the t-SNE figure; 0: no such figure."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.model == "gat" and self.propagation == "dense":
            raise usage_error("--propagation dense is for gcn: attention has a weight for edges alone")
        if self.dataset == "sbm" and self.nodes < graphs.LEAST:
            raise usage_error(f"--nodes must be at least {graphs.LEAST}, not {self.nodes}")
        if self.dataset == "sbm" and self.propagation == "dense" and self.nodes > graph_layers.DENSE_LIMIT:
            raise usage_error(
                f"--propagation dense takes a matrix of --nodes {self.nodes} squared, and at most "
                f"{graph_layers.DENSE_LIMIT} of them: take --propagation sparse"
            )
        if self.units is not None and self.units < 1:
            raise usage_error(f"--units must be at least 1, not {self.units}")
        if self.dropout is not None and not 0 <= self.dropout < 1:
            raise usage_error(f"--dropout must lie in 0 ... 1, not {self.dropout}")

    @classmethod
    def small(cls, **changes: Any) -> Self:
        """A few seconds on the built-in graph."""
        return cls(**{"dataset": "sbm", "epochs": 30, "learning_rate": 0.03, "projected": 60, **changes})


class OnGraph(keras.Model):
    """A network on one graph as a function of node numbers: a batch of nodes in, their logits out.

    Every call propagates over the whole graph, then picks the nodes asked for. So `model.fit` trains on
    labelled nodes as on any examples, while the network sees the others' features.

    Args:
        network: maps the parts of a graph to logits (nodes, classes).
        parts: the graph, as `parts_of` gives it.
    """

    def __init__(self, network: keras.Model, parts: dict[str, np.ndarray]) -> None:
        super().__init__()
        self.network = network
        self.parts = tuple(ops.convert_to_tensor(part) for part in parts.values())

    def call(self, nodes: Any, training: bool = False) -> Any:
        """Logits of some nodes: (batch,) -> (batch, classes)."""
        logits = self.network(list(self.parts), training=training)  # (nodes, classes)
        return ops.take(logits, nodes, axis=0)


def parts_of(config: Config, graph: graphs.Graph) -> dict[str, np.ndarray]:
    """What a network is called on.

    Args:
        config: model and propagation.
        graph: the graph.

    Returns:
        `indices` and `values` (nodes, k) of the features that are not zero, each row's sum 1; for gat
        `edges` (E, 2), for a sparse gcn also `weights` (E,), for a dense one `adjacency` (nodes, nodes)
        instead. Edges go in both directions, with self-loops.
    """
    nodes = len(graph.features)
    indices, values = graph_layers.sparse_rows(row_normalized(graph.features))
    features = {"indices": indices, "values": values}
    edges = graph_layers.undirected(graph.edges)
    if config.model == "gat":
        return {**features, "edges": graph_layers.with_self_loops(edges, nodes).astype("int32")}
    edges, weights = graph_layers.normalized_adjacency(edges, nodes)
    if config.propagation == "sparse":
        return {**features, "edges": edges, "weights": weights}
    return {**features, "adjacency": graph_layers.dense_adjacency(edges, weights, nodes)}


def row_normalized(features: np.ndarray) -> np.ndarray:
    """Features whose rows sum to 1; empty rows stay 0."""
    return features / np.maximum(features.sum(axis=1, keepdims=True), 1e-12)


def build_network(config: Config, graph: graphs.Graph) -> keras.Model:
    """Two layers on the parts of a graph, any graph with as many features.

    Args:
        config: model, propagation, width, dropout, weight decay.
        graph: gives the numbers of features and classes.

    Returns:
        A model from [features, ...] as in `parts_of` to logits (nodes, classes); its layer `hidden` gives
        the embeddings.
    """
    dim, classes = graph.features.shape[1], len(graph.labels)
    units = config.units or UNITS[config.model]
    rate = DROPOUT[config.model] if config.dropout is None else config.dropout
    indices = keras.Input((None,), dtype="int32", name="indices")  # nodes take the place of a batch
    values = keras.Input((None,), name="values")
    edges = keras.Input((2,), dtype="int32", name="edges")
    weights = keras.Input((), name="weights")
    adjacency = keras.Input((None,), name="adjacency")
    features = [indices, layers.Dropout(rate)(values)]
    if config.model == "gat":
        common = {"dropout": rate, "kernel_regularizer": layers.L2(config.weight_decay / 2)}
        x = layers.GraphAttention(units, HEADS, activation="elu", input_dim=dim, name="hidden", **common)(
            [*features, edges]
        )
        x = layers.Dropout(rate)(x)
        logits = layers.GraphAttention(
            classes, 1, concatenate=False, dtype="float32", name="logits", **common
        )([x, edges])
        return keras.Model([indices, values, edges], logits, name="gat")
    dense = config.propagation == "dense"
    convolution = layers.DenseGraphConvolution if dense else layers.GraphConvolution
    graph_parts = [adjacency] if dense else [edges, weights]
    x = convolution(
        units,
        activation="relu",
        use_bias=False,
        kernel_regularizer=layers.L2(config.weight_decay / 2),
        input_dim=dim,
        name="hidden",
    )([*features, *graph_parts])
    x = layers.Dropout(rate)(x)
    logits = convolution(classes, use_bias=False, dtype="float32", name="logits")([x, *graph_parts])
    return keras.Model([indices, values, *graph_parts], logits, name="gcn")


def cross_entropy(labels: Any, logits: Any) -> Any:
    """Of integer labels and logits, (batch,)."""
    return layers.losses.sparse_categorical_crossentropy(labels, logits, from_logits=True)


def train(config: Config, run: engine.tracking.Run) -> dict[str, float]:
    """Train, look at the test nodes once, compare with logistic regression, draw."""
    graph = graphs.load(config.dataset, config.data_dir, config.nodes)
    run.tags({"dataset.fingerprint": lambda: graph.fingerprint})
    parts = parts_of(config, graph)
    network = build_network(config, graph)
    model = OnGraph(network, parts)
    batches = engine.data.Batches(graph.train, config.batch_size, config.seed, accumulate=config.accumulate)
    schedule = layers.schedules.Constant(config.learning_rate or LEARNING_RATES[config.model])
    model.compile(
        layers.optimizers.Adam(schedule, **engine.training.optimizer_options(config)),
        cross_entropy,
        metrics=["accuracy"],
    )
    try:
        engine.training.fit(model, batches, graph.validation, config, run, schedule)
    finally:
        run.figure(
            "learning_curves",
            lambda: engine.figures.learning_curves(run.history, f"{config.model} on {graph.name}"),
        )
    logits = ops.convert_to_numpy(network(list(model.parts)))  # (nodes, classes)
    predicted = logits.argmax(axis=-1)
    linear, chosen = logistic_regression(graph)
    for name, figure in draw(config, graph, network, model.parts, predicted, linear).items():
        run.figure(name, figure)
    test, validation = graph.test, graph.validation
    return {
        "test/accuracy": accuracy(predicted, test),
        "test/loss": float(np.mean(ops.convert_to_numpy(cross_entropy(test.y, logits[test.x])))),
        "val/accuracy": accuracy(predicted, validation),
        "logistic/test_accuracy": accuracy(linear, test),
        "logistic/val_accuracy": accuracy(linear, validation),
        "logistic/strength": chosen,
        "parameters": network.count_params(),
    }


def accuracy(predicted: np.ndarray, split: engine.data.Split) -> float:
    """Share of a split's nodes that were classified rightly; `predicted` (nodes,) holds all nodes."""
    return float(np.mean(predicted[split.x] == split.y))


def logistic_regression(graph: graphs.Graph) -> tuple[np.ndarray, float]:
    """The classic way: words alone, without the graph.

    Returns:
        Classes of all nodes, (nodes,), and the strength C (one over the penalty) with the best validation
        accuracy.
    """
    from sklearn.linear_model import LogisticRegression

    features = row_normalized(graph.features)
    best = None
    for strength in STRENGTHS:
        classic = LogisticRegression(C=strength, max_iter=2000)
        predicted = classic.fit(features[graph.train.x], graph.train.y).predict(features)
        score = accuracy(predicted, graph.validation)
        if best is None or score > best[0]:
            best = score, predicted, float(strength)
    return best[1:]


def draw(
    config: Config,
    graph: graphs.Graph,
    network: keras.Model,
    parts: tuple,
    predicted: np.ndarray,
    linear: np.ndarray,
) -> dict[str, Figure]:
    """What the network has learned, as figures by name.

    Args:
        config: the run's settings.
        graph: the data.
        network: trained.
        parts: the graph as the network takes it.
        predicted: classes of all nodes by the network, (nodes,).
        linear: and by logistic regression.
    """
    test = graph.test
    figures = {
        "confusion_matrix": engine.figures.confusion_matrix(test.y, predicted[test.x], graph.labels),
        "degrees": degrees_figure(
            graph, {config.model: predicted, "logistic regression": linear}, graph.name
        ),
    }
    if config.projected:
        shown = test.x[: config.projected]
        hidden = ops.convert_to_numpy(
            keras.Model(network.inputs, network.get_layer("hidden").output)(list(parts))
        )
        tsne = engine.projections.tsne
        panels = {
            "features": tsne(row_normalized(graph.features)[shown]),
            f"hidden layer of the {config.model}": tsne(hidden[shown]),
        }
        figures["embeddings"] = engine.figures.scatter(
            panels, graph.classes[shown], graph.labels, f"{len(shown)} test nodes of {graph.name}, t-SNE"
        )
    if config.model == "gat":
        edges = parts[-1]
        _, attention = network.get_layer("hidden")(list(parts), return_attention_scores=True)
        figures["attention"] = attention_figure(
            ops.convert_to_numpy(attention), ops.convert_to_numpy(edges)[:, 1], graph.name
        )
    return figures


def degrees_figure(graph: graphs.Graph, predictions: dict[str, np.ndarray], title: str) -> Figure:
    """Test accuracy of some classifiers by a node's number of neighbours, with standard errors."""
    from matplotlib.figure import Figure

    bounds = [0, 1, 2, 3, 4, 6, 10, np.inf]
    degrees = graph.degrees[graph.test.x]
    figure = Figure(figsize=(7.5, 4), layout="constrained")
    axes = figure.add_subplot()
    bins = list(itertools.pairwise(bounds))
    members = [(degrees >= low) & (degrees < high) for low, high in bins]
    shown = [index for index, mine in enumerate(members) if mine.sum() >= 5]
    width = 0.8 / len(predictions)
    for place, (name, predicted) in enumerate(predictions.items()):
        right = predicted[graph.test.x] == graph.test.y
        shares = np.array([right[members[index]].mean() for index in shown])
        counts = np.array([members[index].sum() for index in shown])
        errors = np.sqrt(shares * (1 - shares) / counts)
        xs = np.arange(len(shown)) + (place - (len(predictions) - 1) / 2) * width
        axes.bar(xs, 100 * shares, width, yerr=100 * errors, capsize=3, label=name, color=f"C{place}")
    names = []
    for index in shown:
        low, high = bins[index]
        text = f"{low} or more" if high == np.inf else str(low) if high == low + 1 else f"{low} to {high - 1}"
        names.append(f"{text}\n({members[index].sum()})")
    axes.set_xticks(range(len(shown)), names)
    axes.set(xlabel="neighbours (number of test nodes)", ylabel="test accuracy, %", ylim=(0, 105))
    axes.legend(fontsize="small", loc="lower right")
    axes.grid(axis="y", alpha=0.3)
    axes.set_title(f"Accuracy by number of neighbours, {title}", fontsize="medium")
    return figure


def entropies(attention: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How evenly each node attends, in units of the evenest way.

        -sum_j a_ij log a_ij / log d_i

    Args:
        attention: weights (E, heads).
        targets: (E,), the node that attends along each edge.

    Returns:
        Entropies (nodes, heads), NaN for nodes with one edge, and numbers of edges d (nodes,).
    """
    degrees = np.bincount(targets)
    terms = -attention * np.log(np.maximum(attention, 1e-12))
    sums = np.stack([np.bincount(targets, weights=column) for column in terms.T], axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(degrees[:, None] > 1, sums / np.log(degrees)[:, None], np.nan), degrees


def attention_figure(attention: np.ndarray, targets: np.ndarray, title: str) -> Figure:
    """Entropy of the hidden layer's attention, head by head: 1 is a plain mean, 0 one neighbour alone.

    The axis begins where the smallest hundredth of the nodes does: on a homophilous graph attention is nearly
    a mean, and on an axis from 0 that is all one would see.
    """
    from matplotlib.figure import Figure

    values, degrees = entropies(attention, targets)
    heads = values.shape[1]
    mean = np.nanmean(values[degrees > 1], axis=1)
    low = float(np.nanpercentile(values, 1))
    span = (low - 0.05 * (1 - low), 1 + 0.05 * (1 - low))
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.boxplot([column[~np.isnan(column)] for column in values.T], showfliers=False)
    left.set(xlabel="head", ylabel="entropy / entropy of a mean", ylim=span, xticks=range(1, heads + 1))
    left.set_title("all nodes with neighbours", fontsize="medium")
    right.scatter(degrees[degrees > 1], mean, s=5, alpha=0.3, linewidths=0)
    right.set(xscale="log", xlabel="neighbours, itself included", ylabel="mean over the heads", ylim=span)
    right.set_title("each node", fontsize="medium")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.suptitle(f"How even attention is in the hidden layer, {title}")
    return figure


if __name__ == "__main__":
    launch.main(Config, train)
