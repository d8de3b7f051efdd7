"""High-dimensional points on a plane."""

import numpy as np


def pca(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The two directions of largest variance.

    With the centred points X = U S V^T, the coordinates are the first two columns of U S.

    Args:
        points: (n, dim).

    Returns:
        Coordinates (n, 2), and the share of the variance of each direction (2,).
    """
    centred = np.asarray(points, "float64") - np.mean(points, axis=0, dtype="float64")
    left, sizes, _ = np.linalg.svd(centred, full_matrices=False)
    return left[:, :2] * sizes[:2], sizes[:2] ** 2 / max(np.sum(sizes**2), 1e-30)


def tsne(points: np.ndarray, seed: int = 0) -> np.ndarray:
    """t-SNE: neighbours stay neighbours; distances between clusters and their sizes mean nothing.

    Args:
        points: (n, dim), more than 15.
        seed: of the descent; it starts from the principal components.

    Returns:
        Coordinates (n, 2).

    Reference:
        van der Maaten and Hinton, 2008, Visualizing data using t-SNE.
    """
    from sklearn.manifold import TSNE

    points = np.asarray(points, "float32")
    perplexity = min(30.0, (len(points) - 1) / 3)
    return TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(points)
