"""Batches as Keras' own `fit` takes them."""

import keras
import numpy as np

from recipes.engine.data.batches import Batches


class Stretch(keras.utils.PyDataset):
    """Consecutive batches of a run, whatever epochs they belong to, as one dataset for `model.fit`."""

    def __init__(self, batches: Batches, first: int, last: int) -> None:
        super().__init__()
        self.batches = batches
        self.first = first
        self.last = last

    def __len__(self) -> int:
        return self.last - self.first

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        return self.batches[self.first + index]
