"""Graphs whose nodes are to be classified, a few of them labelled.

`cora` and `citeseer`: papers, their words and citations, on the split of Yang et al. (Planetoid), from
`planetoid/NAME.npz` in the data folder. `sbm`: a stochastic block model drawn here.

A Planetoid file holds the features as a sparse matrix (`feat_indptr`, `feat_indices`, `feat_data`,
`feat_shape`), `labels` (-1: none), `edges` (a row a pair) and `train_idx`, `val_idx`, `test_idx`: the content
of the files `ind.NAME.*` of https://github.com/kimiyoung/planetoid, with nodes in their order.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from recipes.engine.data.datasets import Dataset, Split
from recipes.engine.errors import RecipeError, unknown

# In the order of the Planetoid files, told by the number of papers of each class.
CLASSES = {
    "cora": (
        "theory",
        "reinforcement learning",
        "genetic algorithms",
        "neural networks",
        "probabilistic methods",
        "case based",
        "rule learning",
    ),
    "citeseer": ("AI", "machine learning", "information retrieval", "databases", "agents", "HCI"),
}

BLOCKS = 5  # classes of the block model
WORDS = 100  # features of the block model
INSIDE, ACROSS = 4.0, 2.0  # mean number of neighbours in a node's own block and in all others
SOME, MANY = 0.05, 0.10  # probability of a word, and of one that is typical of the block
LABELLED, HELD_OUT = 20, 200  # training nodes a block, and validation nodes
LEAST = BLOCKS * LABELLED + 2 * HELD_OUT  # nodes of the block model
DRAWN = 2026  # seed of the block model: one graph of a size for all runs


@dataclass(frozen=True)
class Graph(Dataset):
    """A graph by name: `x` of its splits are node numbers, `y` their classes.

    Attributes:
        features: float32 (nodes, dim).
        edges: int32 (E, 2), each undirected edge once, no self-loops.
        classes: int32 (nodes,) of all nodes, -1 where unknown.
    """

    features: np.ndarray
    edges: np.ndarray
    classes: np.ndarray

    @property
    def degrees(self) -> np.ndarray:
        """Number of neighbours of each node, (nodes,)."""
        return np.bincount(self.edges.ravel(), minlength=len(self.features))

    def arrays(self) -> Iterator[np.ndarray]:
        """All data."""
        yield from super().arrays()
        yield from (self.features, self.edges, self.classes)


def load(name: str, data_dir: Path | None = None, nodes: int = 1000) -> Graph:
    """A graph by name.

    Args:
        name: `cora`, `citeseer` or `sbm`.
        data_dir: folder that holds `planetoid/`.
        nodes: size of the generated graph `sbm`.

    Returns:
        The graph, with 0/1 features.

    Raises:
        RecipeError: unknown, or not there.
    """
    if name == "sbm":
        return block_model(nodes)
    if name not in CLASSES:
        raise unknown("dataset", name, (*CLASSES, "sbm"))
    return planetoid(name, data_dir)


def planetoid(name: str, data_dir: Path | None) -> Graph:
    """Cora or Citeseer from `planetoid/NAME.npz`."""
    path = (data_dir or Path()) / "planetoid" / f"{name}.npz"
    if not path.exists():
        raise RecipeError(
            f"dataset '{name}' is not there ({path}): point --data-dir (or TFDS_DATA_DIR) at a folder with "
            "planetoid/ as recipes/engine/data/graphs.py describes it, or take the built-in --dataset sbm"
        )
    with np.load(path) as file:
        features = np.zeros(file["feat_shape"], "float32")
        rows = np.repeat(np.arange(len(features)), np.diff(file["feat_indptr"]))
        features[rows, file["feat_indices"]] = file["feat_data"]
        edges, classes = file["edges"].astype("int32"), file["labels"].astype("int32")
        parts = [_split(file[f"{part}_idx"], classes) for part in ("train", "val", "test")]
    return Graph(name, *parts, CLASSES[name], features=features, edges=edges, classes=classes)


def block_model(nodes: int) -> Graph:
    """A stochastic block model: nodes of one block are neighbours more often, and share some words.

    Neighbours and words each tell a class badly; together they tell it well. Work and memory grow with the
    number of nodes, not its square: the edges of two blocks are counted by a Poisson number, then placed.

    Args:
        nodes: number of nodes, at least `LEAST`.

    Returns:
        The graph: 20 training nodes a block, 200 validation nodes, all others for the test.
    """
    rng = np.random.default_rng(DRAWN)
    classes = np.sort(np.arange(nodes, dtype="int32") % BLOCKS)
    ends = np.searchsorted(classes, np.arange(BLOCKS + 1))
    pairs = []
    for i in range(BLOCKS):
        for j in range(i, BLOCKS):
            sizes = np.diff(ends)[[i, j]]
            mean = INSIDE * sizes[0] / 2 if i == j else ACROSS / (BLOCKS - 1) * sizes[0]
            count = rng.poisson(mean)
            pairs.append(np.stack([rng.integers(ends[k], ends[k + 1], count) for k in (i, j)], axis=1))
    edges = np.sort(np.concatenate(pairs), axis=1)
    edges = np.unique(edges[edges[:, 0] != edges[:, 1]], axis=0)
    typical = np.arange(WORDS) % BLOCKS == classes[:, None]  # (nodes, words)
    features = rng.random((nodes, WORDS)) < np.where(typical, MANY, SOME)
    # Numbers mean nothing: neither for a block nor for a split.
    order = rng.permutation(nodes)
    edges, classes, features = np.sort(np.argsort(order)[edges], axis=1), classes[order], features[order]
    train = np.concatenate([np.flatnonzero(classes == block)[:LABELLED] for block in range(BLOCKS)])
    rest = np.setdiff1d(np.arange(nodes), train)
    parts = [_split(numbers, classes) for numbers in (train, rest[:HELD_OUT], rest[HELD_OUT:])]
    return Graph(
        "sbm",
        *parts,
        tuple(f"block {i}" for i in range(BLOCKS)),
        features=features.astype("float32"),
        edges=edges.astype("int32"),
        classes=classes,
    )


def _split(numbers: np.ndarray, classes: np.ndarray) -> Split:
    return Split(numbers.astype("int32"), classes[numbers])
