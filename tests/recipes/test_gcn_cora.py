"""Graph recipes: the data, the networks against their formulas, and a tracked run that beats words alone."""

import dataclasses
import os
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import ops
from mlflow import MlflowClient

from recipes import gcn_cora as recipe
from recipes.engine import projections
from recipes.engine.data import Split, graphs
from recipes.engine.errors import RecipeError
from recipes.engine.launch import run_recipe
from recipes.engine.progress import Progress
from tests.recipes.agreement import (
    assert_backends_agree,
    outputs_loss_and_gradient,
    set_weights_from_numpy,
)

DATA = Path(os.environ.get("TFDS_DATA_DIR", "absent"))
needs_planetoid = pytest.mark.skipif(
    not (DATA / "planetoid/cora.npz").exists(), reason="TFDS_DATA_DIR holds no planetoid/cora.npz"
)


@pytest.fixture(scope="module")
def graph():
    return graphs.load("sbm")


@pytest.fixture(scope="module")
def tiny():
    """Six nodes: a square with a diagonal, a tail, and the sixth alone."""
    edges = np.array([[0, 1], [1, 2], [2, 3], [0, 3], [0, 2], [3, 4]], "int32")
    rng = np.random.default_rng(1)
    classes = np.array([0, 1, 2, 0, 1, 2], "int32")
    split = Split(np.arange(6, dtype="int32"), classes)
    features = (rng.random((6, 4)) < 0.5).astype("float32")
    return graphs.Graph(
        "tiny", split, split, split, ("a", "b", "c"), features=features, edges=edges, classes=classes
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One store for all runs: making one takes longer than a run."""
    return tmp_path_factory.mktemp("gcn")


def config_in(folder, **changes):
    return recipe.Config.small(
        tracking_uri=f"sqlite:///{folder}/mlflow.db",
        backend=keras.backend.backend(),
        checkpoint_every="10",
        checkpoint_dir=folder / "checkpoints",
        **changes,
    )


def last_run(folder):
    """The newest run: its identifier, and the names of its figures."""
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    experiment = client.get_experiment_by_name("gcn_cora").experiment_id
    run = client.search_runs([experiment], order_by=["attributes.start_time DESC"])[0]
    drawn = {path.stem for path in (folder / "artifacts/gcn_cora" / run.info.run_id).rglob("*.png")}
    return run.info.run_id, drawn


@pytest.fixture(scope="module")
def trained(folder):
    """A run on the built-in graph: (metrics, figures)."""
    keras.utils.clear_session()
    return run_recipe(config_in(folder), recipe.train), last_run(folder)[1]


def test_neighbours_tell_what_words_do_not(trained):
    metrics, drawn = trained
    assert metrics["logistic/test_accuracy"] < 0.65
    assert metrics["test/accuracy"] > metrics["logistic/test_accuracy"] + 0.1
    assert drawn == {"learning_curves", "confusion_matrix", "degrees", "embeddings"}


@pytest.fixture
def as_many_as_cora(monkeypatch):
    """A built-in graph with as many labelled nodes as Cora has: seven classes of twenty."""
    monkeypatch.setattr(graphs, "BLOCKS", 7)
    keras.utils.clear_session()


def test_a_step_on_all_labelled_nodes_is_cut_into_parts(folder, as_many_as_cora, monkeypatch):
    steps, after = [], Progress.after_step

    def watched(self, values):
        steps.append((self.data.batch_size, self.data.steps_per_epoch))
        after(self, values)

    monkeypatch.setattr(Progress, "after_step", watched)
    metrics = run_recipe(config_in(folder, accumulate=7, epochs=3, projected=0), recipe.train)
    assert steps == [(20, 7)] * 21 and np.isfinite(metrics["test/loss"])


def test_parts_that_are_not_equal_are_refused(folder, as_many_as_cora):
    with pytest.raises(RecipeError) as error:
        run_recipe(config_in(folder, accumulate=3, epochs=3, projected=0), recipe.train)
    assert error.value.exit_code == 2
    assert str(error.value) == (
        "--accumulate 3 does not divide the 140 examples of a step: choose a divisor of their number"
    )


@pytest.mark.once  # that it is so on every backend is tested with the engine
def test_a_killed_run_goes_on(folder, monkeypatch, trained):
    """Stopped after 15 of 30 steps and resumed: the metrics of the run that was not stopped, to the bit."""
    metrics, _ = trained
    after, calls = Progress.after_step, []

    def stopping(self, values):
        calls.append(1)
        if len(calls) > 15:
            raise KeyboardInterrupt
        return after(self, values)

    keras.utils.clear_session()
    with monkeypatch.context() as patch, pytest.raises(RecipeError, match="--resume"):
        patch.setattr(Progress, "after_step", stopping)
        run_recipe(config_in(folder, projected=0), recipe.train)
    keras.utils.clear_session()
    resumed = run_recipe(config_in(folder, projected=0, resume=last_run(folder)[0]), recipe.train)
    assert {**resumed, "duration_seconds": 0} == {**metrics, "duration_seconds": 0}


@pytest.mark.once  # gradients are compared on every backend below
def test_attention_learns_and_is_drawn(folder):
    metrics = run_recipe(config_in(folder, model="gat", epochs=15, dropout=0.2, projected=0), recipe.train)
    assert metrics["test/accuracy"] > 0.5  # guessing gives 0.2
    assert last_run(folder)[1] == {"learning_curves", "confusion_matrix", "degrees", "attention"}


def network_on(config, graph):
    """A network with weights from NumPy, and the graph's parts."""
    network = recipe.build_network(config, graph)
    set_weights_from_numpy(network, np.random.default_rng(0))
    return network, recipe.parts_of(config, graph)


def called(network, parts):
    return ops.convert_to_numpy(network([ops.convert_to_tensor(part) for part in parts.values()]))


def test_gcn_is_kipf_and_wellings_formula(tiny):
    """softmax(A relu(A X W0) W1), equation 9, with A from a dense matrix in NumPy."""
    network, parts = network_on(recipe.Config(units=5), tiny)
    adjacency = np.eye(6)
    for u, v in tiny.edges:
        adjacency[u, v] = adjacency[v, u] = 1
    scale = adjacency.sum(axis=1) ** -0.5
    adjacency = scale[:, None] * adjacency * scale
    x = tiny.features / np.maximum(tiny.features.sum(axis=1, keepdims=True), 1e-12)
    w0, w1 = network.get_weights()[:2]
    expected = adjacency @ np.maximum(adjacency @ x @ w0, 0) @ w1
    np.testing.assert_allclose(called(network, parts), expected, atol=1e-5)


def test_dense_and_sparse_propagation_are_the_same(tiny):
    one = called(*network_on(recipe.Config(units=5), tiny))
    other = called(*network_on(recipe.Config(units=5, propagation="dense"), tiny))
    np.testing.assert_allclose(one, other, atol=1e-5)


def test_a_batch_of_nodes_gets_its_own_logits(tiny):
    network, parts = network_on(recipe.Config(units=5), tiny)
    model = recipe.OnGraph(network, parts)
    picked = ops.convert_to_numpy(model(np.array([4, 0, 4], "int32")))
    np.testing.assert_allclose(picked, called(network, parts)[[4, 0, 4]], atol=1e-6)


@pytest.mark.parametrize("name", ["gcn", "gat"])
def test_backends_agree(name, tiny, meeting_place):
    """Weights from NumPy, no dropout: the same logits, loss and gradients everywhere."""
    network, parts = network_on(recipe.Config(model=name, units=3, dropout=0.0), tiny)
    labels = ops.convert_to_tensor(tiny.classes)
    arrays = outputs_loss_and_gradient(
        network, list(parts.values()), lambda logits: recipe.cross_entropy(labels, logits)
    )
    assert_backends_agree(meeting_place, f"gcn_cora {name}", arrays)


@pytest.mark.once
def test_entropy_of_attention():
    """Node 0 attends evenly to two, node 1 to one of three, node 2 to itself alone."""
    targets = np.array([0, 0, 1, 1, 1, 2])
    attention = np.array([[0.5], [0.5], [1.0], [0.0], [0.0], [1.0]])
    values, degrees = recipe.entropies(attention, targets)
    np.testing.assert_allclose(values[:, 0], [1, 0, np.nan], atol=1e-9)
    assert degrees.tolist() == [2, 3, 1]


@pytest.mark.once
@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"model": "gat", "propagation": "dense"}, "--propagation dense is for gcn"),
        ({"dataset": "sbm", "nodes": 499}, "--nodes must be at least 500, not 499"),
        (
            {"dataset": "sbm", "nodes": 20_000, "propagation": "dense"},
            "at most 10000 of them: take --propagation sparse",
        ),
        ({"units": 0}, "--units must be at least 1, not 0"),
        ({"dropout": 1.0}, "--dropout must lie in 0 ... 1, not 1.0"),
    ],
)
def test_impossible_configurations(changes, sentence):
    with pytest.raises(RecipeError, match=sentence) as error:
        recipe.Config(**changes)
    assert error.value.exit_code == 2


@pytest.mark.once
def test_block_model_is_what_it_says(graph):
    assert graph.features.shape == (1000, 100) and set(np.unique(graph.features)) == {0, 1}
    assert [len(split) for split in (graph.train, graph.validation, graph.test)] == [100, 200, 700]
    assert set(np.bincount(graph.train.y)) == {20}
    assert len(np.unique(np.concatenate([s.x for s in (graph.train, graph.validation, graph.test)]))) == 1000
    assert np.all(graph.edges[:, 0] < graph.edges[:, 1])
    assert len(np.unique(graph.edges, axis=0)) == len(graph.edges)
    inside = np.mean(graph.classes[graph.edges[:, 0]] == graph.classes[graph.edges[:, 1]])
    assert inside == pytest.approx(2 / 3, abs=0.03)  # 4 of 6 neighbours
    assert graph.degrees.mean() == pytest.approx(6, abs=0.4)
    assert graphs.load("sbm").fingerprint == graph.fingerprint
    moved = dataclasses.replace(graph, edges=graph.edges[1:])
    assert moved.fingerprint != graph.fingerprint
    assert len(graphs.load("sbm", nodes=graphs.LEAST).test) == graphs.HELD_OUT


@pytest.mark.once
def test_absent_and_unknown_graphs(tmp_path):
    with pytest.raises(RecipeError, match=r"'cora' is not there.*--data-dir.*--dataset sbm"):
        graphs.load("cora", tmp_path)
    with pytest.raises(RecipeError, match="did you mean 'cora'"):
        graphs.load("core")


@pytest.mark.once
@needs_planetoid
def test_planetoid_is_the_published_split():
    """Sizes of Yang et al. and Kipf and Welling, table 1; class sizes of the original data."""
    cora, citeseer = graphs.load("cora", DATA), graphs.load("citeseer", DATA)
    assert cora.features.shape == (2708, 1433) and citeseer.features.shape == (3327, 3703)
    assert [len(split) for split in (cora.train, cora.validation, cora.test)] == [140, 500, 1000]
    assert [len(split) for split in (citeseer.train, citeseer.validation, citeseer.test)] == [120, 500, 1000]
    assert set(np.bincount(cora.train.y)) == {20} == set(np.bincount(citeseer.train.y))
    sizes = {name: int(np.sum(cora.classes == i)) for i, name in enumerate(cora.labels)}
    assert sizes["neural networks"] == 818 and sizes["rule learning"] == 180 and sizes["theory"] == 351
    sizes = {name: int(np.sum(citeseer.classes == i)) for i, name in enumerate(citeseer.labels)}
    assert sizes["databases"] == 701 and sizes["machine learning"] == 590 and sizes["agents"] == 596
    assert np.all(citeseer.test.y >= 0) and np.sum(citeseer.classes < 0) == 15


@pytest.mark.once
def test_principal_components_of_a_known_cloud(rng):
    """Points on an ellipse in a plane of five dimensions come back, up to signs."""
    axes = np.linalg.qr(rng.normal(size=(5, 2)))[0].T
    angles = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    known = np.stack([3 * np.cos(angles), np.sin(angles)], axis=1)
    points, shares = projections.pca(known @ axes + 7)
    np.testing.assert_allclose(np.abs(points), np.abs(known), atol=1e-9)
    np.testing.assert_allclose(shares, [0.9, 0.1])


@pytest.mark.once
def test_tsne_keeps_clusters_apart(rng):
    clusters = np.concatenate([rng.normal(size=(30, 10)) + 20 * shift for shift in (0, 1)])
    points = projections.tsne(clusters)
    one, other = points[:30], points[30:]
    gap = np.linalg.norm(one[:, None] - other[None], axis=-1).min()
    nearest = np.sort(np.linalg.norm(one[:, None] - one[None], axis=-1), axis=1)[:, 1]
    assert gap > 2 * np.median(nearest)
