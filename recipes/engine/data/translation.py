"""Sentence pairs: corpora, words, vocabularies, and batches packed by length.

`multi30k`: 29,000 captions of photographs in English, French and German (Elliott et al., 2016 and 2017), read
from plain files. `numbers`: built in, the numbers below 10,000 in words, English and French.
"""

import functools
import gzip
import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import keras
import numpy as np

from recipes.engine.data.stretch import Stretch
from recipes.engine.errors import RecipeError, usage_error

PAD, START, END, UNKNOWN = range(4)  # what a vocabulary holds before its words
SPECIAL = ("<pad>", "<start>", "<end>", "<unknown>")

# Lengths are rounded up to multiples of this: few shapes, few programs to compile, and little padding.
MULTIPLE = 4

# A word is letters and digits, with hyphens inside and at its end an apostrophe that joins it to the next
# (l'homme is l' homme, man's is man' s); every other character stands alone.
TOKEN = re.compile(r"\w+(?:-\w+)*['\u2019](?=\w)|\w+(?:-\w+)*|[^\w\s]")
CLOSING = set(".,;:!?)]}%»…")
OPENING = set("([{«")


def words_of(sentence: str, lowercase: bool = False) -> list[str]:
    """The words of a sentence, punctuation apart."""
    return TOKEN.findall(sentence.lower() if lowercase else sentence)


def sentence_of(words: Sequence[str]) -> str:
    """Words as a sentence again: spaces stand where one writes them, quotation marks in pairs."""
    text, quoted, joined = "", False, True
    for word in words:
        opens = word in OPENING or (word == '"' and not quoted)
        closes = word in CLOSING or (word == '"' and quoted)
        text += word if joined or closes else " " + word
        quoted ^= word == '"'
        joined = opens or (len(word) > 1 and word[-1] in "'\u2019")
    return text


@dataclass(frozen=True)
class Pairs:
    """Sentences and their translations, as they were written."""

    source: tuple[str, ...]
    target: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.source)


@dataclass(frozen=True)
class Corpus:
    """A corpus: pairs for training and validation, and test sets by name."""

    name: str
    train: Pairs
    validation: Pairs
    tests: dict[str, Pairs]

    @cached_property
    def fingerprint(self) -> str:
        """Sixteen hex digits that change when any sentence does."""
        digest = hashlib.blake2b(digest_size=8)
        for pairs in (self.train, self.validation, *self.tests.values()):
            digest.update("\n".join((*pairs.source, *pairs.target)).encode())
        return digest.hexdigest()


def load(name: str, target: str, data_dir: Path | None = None) -> Corpus:
    """A corpus from English.

    Args:
        name: `multi30k` or `numbers`.
        target: the language translated to, `fr` or `de`.
        data_dir: folder in which `multi30k` lies; None for TensorFlow Datasets' own.

    Raises:
        RecipeError: the files are not there.
    """
    return _numbers(target) if name == "numbers" else _multi30k(target, data_dir)


def _multi30k(target: str, data_dir: Path | None) -> Corpus:
    folder = (data_dir or Path("~/tensorflow_datasets").expanduser()) / "multi30k"

    def lines(split: str, language: str) -> tuple[str, ...]:
        path = folder / f"{split}.{language}.gz"
        try:
            return tuple(gzip.open(path, "rt", encoding="utf-8").read().split("\n")[:-1])
        except FileNotFoundError:
            raise RecipeError(
                f"dataset 'multi30k' lacks {path}: put the files data/task1/raw of "
                "github.com/multi30k/dataset there (--data-dir or TFDS_DATA_DIR names the folder above), "
                "or take the built-in set: --dataset numbers"
            ) from None

    def pairs(split: str) -> Pairs:
        return Pairs(lines(split, "en"), lines(split, target))

    tests = ("test_2016_flickr", "test_2017_flickr")
    return Corpus("multi30k", pairs("train"), pairs("val"), {name: pairs(name) for name in tests})


def _numbers(target: str) -> Corpus:
    from num2words import num2words

    chosen = np.random.default_rng(2026).permutation(10_000)[:5_000]

    def pairs(numbers: np.ndarray) -> Pairs:
        return Pairs(*(tuple(num2words(int(n), lang=lang) for n in numbers) for lang in ("en", target)))

    return Corpus("numbers", pairs(chosen[:4400]), pairs(chosen[4400:4700]), {"test": pairs(chosen[4700:])})


class Vocabulary:
    """Words by number: the frequent words of some sentences, the most frequent first.

    Args:
        sentences: lists of words.
        min_count: a rarer word is unknown.
    """

    def __init__(self, sentences: Iterable[Sequence[str]], min_count: int) -> None:
        counts = Counter(word for sentence in sentences for word in sentence)
        # Equally frequent words in the order of the alphabet, so that nothing depends on that of the data.
        frequent = sorted((-count, word) for word, count in counts.items() if count >= min_count)
        self.words = (*SPECIAL, *(word for _, word in frequent))
        self.numbers = {word: number for number, word in enumerate(self.words)}

    def __len__(self) -> int:
        return len(self.words)

    def encode(self, words: Iterable[str]) -> list[int]:
        """Numbers of words; one that is not in the vocabulary is `UNKNOWN`."""
        return [self.numbers.get(word, UNKNOWN) for word in words]

    def decode(self, numbers: Iterable[int]) -> list[str]:
        """Words of numbers."""
        return [self.words[number] for number in numbers]


Example = tuple[list[int], list[int]]  # word numbers of a sentence and of its translation


def padded(examples: Sequence[Example], rows: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Examples as one batch, as long as its longest, rounded up to a `MULTIPLE`.

    Args:
        examples: word numbers, without marks for start and end.
        rows: rows of the batch, if more than examples; the others are padding throughout.

    Returns:
        x (rows, 3, length) int32: the source; what the decoder reads, START and the target; and zeros, where
        scheduled sampling says 1 for a word that the decoder takes from itself.
        y (rows, length) int32: what the decoder should say, the target and END. The rest is PAD.
    """
    longest = max(max(len(source), len(target) + 1) for source, target in examples)
    x = np.zeros((rows or len(examples), 3, -(-longest // MULTIPLE) * MULTIPLE), np.int32)
    y = np.zeros((len(x), x.shape[-1]), np.int32)
    for row, (source, target) in enumerate(examples):
        x[row, 0, : len(source)] = source
        x[row, 1, : len(target) + 1] = [START, *target]
        y[row, : len(target) + 1] = [*target, END]
    return x, y


def by_length(examples: Sequence[Example], rows: int) -> Iterator[tuple[np.ndarray, np.ndarray, list[int]]]:
    """All examples in batches of like lengths, the last one filled up: (x, y, the examples' numbers)."""
    order = sorted(range(len(examples)), key=lambda i: max(len(examples[i][0]), len(examples[i][1]) + 1))
    for first in range(0, len(order), rows):
        chosen = order[first : first + rows]
        yield *padded([examples[i] for i in chosen], rows), chosen


class PackedBatches:
    """Examples as an endless, shuffled row of batches, each of sentences of like lengths.

    As `Batches`: what a batch holds depends on the seed and its number alone. In every epoch other sentences
    of a length meet in a batch, and batches of all lengths follow each other at random.

    Args:
        examples: what to draw from.
        batch_size: sentence pairs in one optimizer step; what is left over in an epoch is left out.
        seed: fixes the order and what is sampled.
        accumulate: batches that one optimizer step is cut into.
        sampling: probability of the last step that the decoder reads its own word instead of the true one;
            it rises in proportion to the step.
        epochs: passes over the examples until then.

    Attributes:
        batch_size: pairs in a batch: `batch_size / accumulate`.
        steps_per_epoch: batches in an epoch.

    Raises:
        RecipeError: `accumulate` does not divide the batch size.
    """

    unit = "pairs"  # what a run's speed is counted in

    def __init__(
        self,
        examples: Sequence[Example],
        batch_size: int,
        seed: int,
        accumulate: int = 1,
        sampling: float = 0.0,
        epochs: int = 1,
    ) -> None:
        full = min(batch_size, len(examples))
        if full % accumulate:
            raise usage_error(f"--accumulate {accumulate} does not divide the {full} pairs of a step")
        self.examples = examples
        self.seed = seed
        self.accumulate = accumulate
        self.batch_size = full // accumulate
        self.steps_per_epoch = len(examples) // full * accumulate
        self.sampling = sampling
        self.total = self.steps_per_epoch * epochs
        longer = [max(len(source), len(target) + 1) for source, target in examples]
        self.lengths = -(-np.array(longer) // MULTIPLE)
        self._drawn = functools.lru_cache(maxsize=2)(self._draw)  # two: batches are fetched ahead

    def __getitem__(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Batch number `step`, counted from 0 over all epochs, as `padded` gives it."""
        epoch, index = divmod(step, self.steps_per_epoch)
        x, y = padded([self.examples[i] for i in self._drawn(epoch)[index]])
        probability = self.sampling * min(1.0, step / max(1, self.total - 1))
        if probability > 0:
            own = np.random.default_rng((self.seed, step, 1)).random(y.shape) < probability
            x[:, 2, 1:] = own[:, 1:] & (y[:, 1:] != PAD)  # at the start there is no word of its own yet
        return x, y

    def between(self, first: int, last: int) -> Any:
        """Batches `first` to `last - 1`, as `model.fit` takes them."""
        if keras.backend.backend() != "tensorflow":
            return Stretch(self, first, last)
        import tensorflow as tf

        # Of a PyDataset Keras takes the first two batches' shapes for those of all.
        return tf.data.Dataset.from_generator(
            lambda: (self[step] for step in range(first, last)),
            output_signature=(tf.TensorSpec((None, 3, None), "int32"), tf.TensorSpec((None, None), "int32")),
        )

    @property
    def units(self) -> int:
        """Pairs in one batch."""
        return self.batch_size

    @property
    def fingerprint(self) -> str:
        """A digest of the first epoch's order: equal for equal data order."""
        return hashlib.sha256(self._drawn(0).tobytes()).hexdigest()[:16]

    def _draw(self, epoch: int) -> np.ndarray:
        """One epoch's examples by batch, (steps_per_epoch, batch_size)."""
        rng = np.random.default_rng((self.seed, epoch))
        kept = rng.permutation(len(self.examples))[: self.steps_per_epoch * self.batch_size]
        kept = kept[np.argsort(self.lengths[kept], kind="stable")]
        steps = kept.reshape(
            -1, self.accumulate, self.batch_size
        )  # an optimizer step's batches stay together
        return rng.permutation(steps).reshape(self.steps_per_epoch, self.batch_size)
