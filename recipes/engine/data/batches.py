"""Batches by index: the same on every backend, and after a restart.

What batch `i` of epoch `e` holds depends on the seed, `e` and `i` alone, not on what was drawn before.
Cropping and flipping are byte copies in NumPy: 5 microseconds an image, and bit-equal on all backends.
"""

import keras
import numpy as np

from recipes.engine.data.datasets import Split


class Batches(keras.utils.PyDataset):
    """A split as shuffled batches for `model.fit`.

    Args:
        split: what to draw from.
        batch_size: examples in a batch; the incomplete last batch of an epoch is left out, so that every
            step is compiled once and weighs the same.
        seed: fixes order and augmentation.
        augment: "crop_flip" for a random crop out of the image padded by 4 zeros on each side and a random
            mirror image, as He et al.; "none".
        epoch: the epoch to begin with.
    """

    def __init__(
        self, split: Split, batch_size: int, seed: int, augment: str = "none", epoch: int = 0
    ) -> None:
        super().__init__()
        self.split = split
        self.batch_size = min(batch_size, len(split))
        self.seed = seed
        self.augment = augment
        self.epoch = epoch
        self._order = self._permutation()

    def __len__(self) -> int:
        return len(self.split) // self.batch_size

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        chosen = self._order[index * self.batch_size : (index + 1) * self.batch_size]
        x, y = self.split.x[chosen], self.split.y[chosen]
        if self.augment == "crop_flip":
            x = cropped_and_flipped(x, np.random.default_rng((self.seed, self.epoch, index)))
        return x, y

    def on_epoch_end(self) -> None:
        """Draw the next epoch's order."""
        self.epoch += 1
        self._order = self._permutation()

    def _permutation(self) -> np.ndarray:
        return np.random.default_rng((self.seed, self.epoch)).permutation(len(self.split))


def cropped_and_flipped(images: np.ndarray, rng: np.random.Generator, padding: int = 4) -> np.ndarray:
    """Each image cropped at random out of itself padded with zeros, and mirrored with probability 1/2.

    Args:
        images: (n, height, width, channels).
        rng: the randomness.
        padding: zeros on each side, in pixels.

    Returns:
        Images of the same shape and type.
    """
    n, height, width, _ = images.shape
    padded = np.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    tops, lefts = rng.integers(0, 2 * padding + 1, (2, n))
    mirrored = rng.random(n) < 0.5
    result = np.empty_like(images)
    # A loop of plain copies takes a third of the time of one fancy index.
    for i, (top, left, mirror) in enumerate(zip(tops, lefts, mirrored, strict=True)):
        crop = padded[i, top : top + height, left : left + width]
        result[i] = crop[:, ::-1] if mirror else crop
    return result
