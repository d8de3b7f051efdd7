"""Writing text with a model, character by character: temperature, top-k and nucleus sampling.

A model comes as a function `read(numbers) -> logits`: it reads some more characters, (rows, n), and says what
it expects after the last of them, (rows, characters). How it remembers the earlier ones is its own affair.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from recipes.engine.config import TrainingConfig
from recipes.engine.errors import usage_error


@dataclass(frozen=True)
class WritingConfig(TrainingConfig):
    """What every recipe can be told that trains a model to write."""

    temperature: float = 0.8
    """Of the text written at the end: below 1 likely characters become likelier; 0 takes the likeliest."""
    top_k: int = 0
    """Write only with the so many likeliest characters; 0: with all."""
    top_p: float = 1.0
    """Write only with the likeliest characters that make up this much of the probability (nucleus)."""
    written: int = 400
    """Characters to write at the end, in each of several ways."""
    prompt: str = "\n"
    """What the written text begins with."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.temperature < 0 or self.top_k < 0 or not 0 < self.top_p <= 1:
            raise usage_error("--temperature and --top-k must not be negative, --top-p lie in (0, 1]")
        if self.written < 1 or not self.prompt:
            raise usage_error("--written must be at least 1, and --prompt hold a character")

    def ways(self) -> list["Way"]:
        """How to write: as the flags say, and in ways to compare it with."""
        own = Way(self.temperature, self.top_k, self.top_p)
        return list(dict.fromkeys([own, Way(0), Way(0.5), Way(1), Way(1, top_k=5), Way(1, top_p=0.9)]))


@dataclass(frozen=True)
class Way:
    """How a character is drawn from what the model expects.

        p = softmax(logits / temperature),  then what is outside the k likeliest is set to 0, and then what
        is outside the smallest set of likeliest characters that has the probability top_p (the nucleus)

    Args:
        temperature: 0 takes the likeliest character, 1 the model's own probabilities.
        top_k: 0 for all.
        top_p: 1 for all.

    Reference:
        Holtzman et al., 2020, The curious case of neural text degeneration, arXiv:1904.09751 (nucleus).
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """Probabilities of the characters to draw from, (..., characters), from logits of that shape."""
        z = np.asarray(logits, np.float64)
        z = z - z.max(axis=-1, keepdims=True)
        if self.temperature == 0:
            return np.eye(z.shape[-1])[z.argmax(axis=-1)]
        order = np.argsort(-z, axis=-1, kind="stable")
        p = np.exp(np.take_along_axis(z, order, axis=-1) / self.temperature)  # the likeliest first
        if self.top_k:
            p[..., self.top_k :] = 0
        p /= p.sum(axis=-1, keepdims=True)
        if self.top_p < 1:
            likelier = np.cumsum(p, axis=-1) - p  # probability of all that come before
            p[likelier >= self.top_p] = 0
            p /= p.sum(axis=-1, keepdims=True)
        result = np.empty_like(p)
        np.put_along_axis(result, order, p, axis=-1)
        return result

    def __str__(self) -> str:
        words = [f"temperature {self.temperature:g}" if self.temperature else "the likeliest character"]
        words += [f"top-k {self.top_k}"] if self.top_k else []
        words += [f"top-p {self.top_p:g}"] if self.top_p < 1 else []
        return ", ".join(words)


def draw(rng: np.random.Generator, p: np.ndarray) -> np.ndarray:
    """One number for each row of probabilities p (rows, characters), by the inverse of their sum: (rows,)."""
    sums = np.cumsum(p, axis=-1)
    return (sums <= rng.random((len(p), 1)) * sums[:, -1:]).sum(axis=-1).astype(np.int32)


def write(
    read: Callable[[np.ndarray], np.ndarray],
    prompt: np.ndarray,
    count: int,
    ways: Sequence[Way],
    seed: int,
) -> np.ndarray:
    """Texts written in several ways at once.

    Args:
        read: the model, at the beginning of a text of as many rows as there are ways.
        prompt: what to begin with, (n,).
        count: characters to write.
        ways: how to draw, one a row.
        seed: fixes what is drawn.

    Returns:
        What was written after the prompt, (ways, count).
    """
    rng = np.random.default_rng(seed)
    for number in prompt:
        logits = read(np.full((len(ways), 1), number, np.int32))
    written = np.empty((len(ways), count), np.int32)
    for place in range(count):
        p = np.stack([way.probabilities(row) for way, row in zip(ways, logits, strict=True)])
        written[:, place] = draw(rng, p)
        if place + 1 < count:
            logits = read(written[:, place : place + 1])
    return written


def gallery(ways: Sequence[Way], prompt: str, texts: Sequence[str]) -> str:
    """What was written in several ways, as one text to read."""
    return "\n\n".join(f"===== {way} =====\n{prompt}{text}" for way, text in zip(ways, texts, strict=True))
