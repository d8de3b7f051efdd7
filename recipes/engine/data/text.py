"""Texts as numbers, one a character, and batches of them.

`Windows` draws stretches at random, for models that forget; `Streams` reads on where the batch before
stopped, for models that carry their state along.
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from recipes.engine.data import tfds
from recipes.engine.data.batches import Batches
from recipes.engine.data.datasets import Split
from recipes.engine.errors import unknown, usage_error

BUILT_IN = "python_docs"
DATASETS = ("tiny_shakespeare", BUILT_IN)


@dataclass(frozen=True)
class Text:
    """A text in three parts, int32 numbers of characters, and the characters they stand for."""

    name: str
    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    alphabet: str

    def encode(self, words: str) -> np.ndarray:
        """The numbers of some characters, (n,).

        Raises:
            RecipeError: a character that the text does not have.
        """
        strange = sorted(set(words) - set(self.alphabet))
        if strange:
            raise usage_error(f"{self.name} has no character {strange[0]!r}: it has {self.alphabet!r}")
        return np.array([self.alphabet.index(character) for character in words], np.int32)

    def decode(self, numbers: Sequence[int]) -> str:
        """The characters of some numbers."""
        return "".join(self.alphabet[number] for number in numbers)

    @cached_property
    def fingerprint(self) -> str:
        """Sixteen hex digits that change when any character does, or moves to another part."""
        digest = hashlib.blake2b(self.alphabet.encode(), digest_size=8)
        for part in (self.train, self.validation, self.test):
            digest.update(part)
            digest.update(len(part).to_bytes(8, "big"))
        return digest.hexdigest()


def load(name: str, data_dir: Path | None = None, characters: int | None = None) -> Text:
    """A text cut into 90 % for training, 5 % for validation and 5 % for the test, in this order.

    TensorFlow Datasets cuts tiny_shakespeare in the same places.

    Args:
        name: `tiny_shakespeare`, by TensorFlow Datasets, or `python_docs`, the language's own documentation
            as it comes with this Python.
        data_dir: folder of TensorFlow Datasets; None for TFDS' own.
        characters: how much of the text to take, from its beginning; None for all.

    Returns:
        The text; its alphabet is that of all three parts.

    Raises:
        RecipeError: unknown, or neither prepared nor downloadable.
    """
    if name not in DATASETS:
        raise unknown("text", name, DATASETS)
    whole = (_python_docs() if name == BUILT_IN else _prepared(name, data_dir))[:characters]
    alphabet = "".join(sorted(set(whole)))
    numbers = np.searchsorted(np.array(list(alphabet)), np.array(list(whole))).astype(np.int32)
    cuts = [int(0.9 * len(numbers)), int(0.95 * len(numbers))]
    return Text(name, *np.split(numbers, cuts), alphabet)


def _python_docs() -> str:
    from pydoc_data.topics import topics

    whole = "\n\n".join(topics[name] for name in sorted(topics))
    # Rulers and deep indentation would make a large part of the task trivial.
    return re.sub(r"[ \t]+", " ", re.sub(r"[-*=^~]{4,}", "", whole))


def _prepared(name: str, data_dir: Path | None) -> str:
    builder = tfds.prepared(name, data_dir, instead=(BUILT_IN,))
    parts = [e["text"] for split in ("train", "validation", "test") for e in tfds.examples(builder, split)]
    return "".join(part.decode() if isinstance(part, bytes) else str(part) for part in parts)


def windows(numbers: np.ndarray, length: int, stride: int = 1) -> Split:
    """Stretches of a text, and the same one character further: what is read, and what is to be predicted.

    Args:
        numbers: the text, (n,).
        length: characters in a stretch.
        stride: from the beginning of one to that of the next.

    Returns:
        x and y, (stretches, length) each; views, which take no memory.

    Raises:
        RecipeError: the text is shorter than one stretch.
    """
    if len(numbers) <= length:
        raise usage_error(
            f"a part of the text has {len(numbers)} characters, too few to read {length} at once"
        )
    view = np.lib.stride_tricks.sliding_window_view(numbers, length)
    return Split(view[:-1:stride], view[1::stride])


def rows(numbers: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """A text cut into rows of one length: what is read, what is to be predicted, (count, length) each."""
    width = (len(numbers) - 1) // count
    return tuple(numbers[first : first + count * width].reshape(count, width) for first in (0, 1))


def entropies(numbers: np.ndarray, against: np.ndarray, characters: int) -> tuple[float, float]:
    """Nats a character of `against`, by the frequencies of characters and of pairs in `numbers` (plus one).

    What a model must beat: the second is the best that knowing one character gives.
    """
    single = np.bincount(numbers, minlength=characters) + 1.0
    pairs = np.ones((characters, characters))
    np.add.at(pairs, (numbers[:-1], numbers[1:]), 1)
    pairs /= pairs.sum(1, keepdims=True)
    return (
        float(-np.log(single / single.sum())[against].mean()),
        float(-np.log(pairs[against[:-1], against[1:]]).mean()),
    )


class _Stretches(Batches):
    """Batches of stretches of a text; a run's speed is counted in characters."""

    unit = "characters"

    def __init__(
        self, numbers: np.ndarray, length: int, batch_size: int, seed: int, accumulate: int = 1
    ) -> None:
        super().__init__(windows(numbers, length), batch_size, seed, accumulate=accumulate)
        self.length = length

    @property
    def units(self) -> int:
        """Characters in a batch."""
        return self.batch_size * self.length


class Windows(_Stretches):
    """Stretches that begin anywhere in the text; an epoch is as many steps as one says.

    Args:
        numbers: the text.
        length: characters in a stretch.
        batch_size: stretches in one optimizer step.
        seed: fixes which.
        steps: optimizer steps in an epoch.
        accumulate: as in `Batches`.
    """

    def __init__(
        self, numbers: np.ndarray, length: int, batch_size: int, seed: int, steps: int, accumulate: int = 1
    ) -> None:
        super().__init__(numbers, length, batch_size, seed, accumulate)
        self.steps_per_epoch = min(steps * accumulate, self.steps_per_epoch)


class Streams(_Stretches):
    """Every row of a batch goes on where the same row of the batch before stopped.

    The text is a ring with `batch_size` readers, spread evenly over it; the seed turns it. In an epoch all of
    them together read it about once. At the ring's seam a reader jumps from the text's end to its beginning.

    Args:
        numbers: the text.
        length: characters that a reader reads in a step.
        batch_size: readers.
        seed: where they begin.
        accumulate: as in `Batches`; the readers take turns, and come back to the first after a step of each.
    """

    def __init__(
        self, numbers: np.ndarray, length: int, batch_size: int, seed: int, accumulate: int = 1
    ) -> None:
        super().__init__(numbers, length, batch_size, seed, accumulate)
        ring, readers = len(self.split), self.batch_size * accumulate
        self.steps_per_epoch = max(1, ring // (readers * length)) * accumulate
        turned = np.random.default_rng(seed).integers(ring)
        self.starts = (turned + np.arange(readers) * ring // readers) % ring

    def __getitem__(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Batch number `step`, counted from 0 over all epochs: (x, y), each (batch, length)."""
        update, part = divmod(step, self.accumulate)
        readers = self.starts[part * self.batch_size : (part + 1) * self.batch_size]
        places = (readers + update * self.length) % len(self.split)
        return self.split.x[places], self.split.y[places]

    @property
    def fingerprint(self) -> str:
        """A digest of where the readers begin: equal for equal data order."""
        return hashlib.sha256(self.starts.tobytes()).hexdigest()[:16]
