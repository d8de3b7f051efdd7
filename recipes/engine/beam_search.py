"""Beam search: the likeliest sequences of a model that gives the next word's probabilities."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Hypothesis:
    """A sequence that the search ended with; without its end mark."""

    words: list[int]
    log_probability: float
    score: float


def penalty(length: Any, strength: float) -> Any:
    """What the log-probability of a sequence is divided by: ((5 + length) / 6) ** strength (Wu et al.)."""
    return ((5 + length) / 6) ** strength


def beam_search(
    step: Callable,
    state: Any,
    batch: int,
    start: int,
    end: int,
    width: int,
    longest: int,
    length_penalty: float = 0.0,
    forbidden: Sequence[int] = (),
) -> list[list[Hypothesis]]:
    """Search for sequences y of high log p(y) / ((5 + |y|) / 6) ** length_penalty; |y| counts the end mark.

    The `width` best beginnings of each sentence are kept and continued by every word; a finished one keeps
    its place as long as it is among the best. Width 1 takes the likeliest word each time (greedy); a width
    that holds every sequence makes the search exhaustive.

    Args:
        step: `step(words, parents, state) -> (log-probabilities, state)`. Row r of the result continues what
            row `parents[r]` of the state stands for by `words[r]`; both are integers of shape
            `(batch * width,)`, the log-probabilities `(batch * width, vocabulary)`. A sentence's beams are
            neighbouring rows, and parents are of the same sentence.
        state: what `step` takes first, of `batch * width` rows; a sentence's rows are equal.
        batch: sentences at once.
        start: the word before the first.
        end: the word that finishes a sequence.
        width: beginnings kept of a sentence.
        longest: words, the end mark among them, after which a sequence is cut off.
        length_penalty: 0 favours short sequences; 1 nearly compares means over the words.
        forbidden: words that are never taken.

    Returns:
        For each sentence its hypotheses, the best first, at most `width`.

    Reference:
        Wu et al., 2016, Google's neural machine translation system, arXiv:1609.08144, section 7.
    """
    words = np.full(batch * width, start, np.int32)
    parents = np.arange(batch * width, dtype=np.int32)
    first_rows = parents.reshape(batch, width)[:, :1]
    totals = np.full((batch, width), -np.inf)
    totals[:, 0] = 0  # the beams of a sentence start equal: one of them counts
    lengths = np.zeros((batch, width), int)
    finished = np.zeros((batch, width), bool)
    sequences = np.zeros((batch, width, 0), np.int32)
    for _ in range(longest):
        log_probabilities, state = step(words, parents, state)
        options = np.array(log_probabilities, float).reshape(batch, width, -1)
        options[:, :, list(forbidden)] = -np.inf
        options[finished] = -np.inf
        options[finished, end] = 0  # a finished sequence goes on as itself
        options += totals[:, :, None]
        lengths = lengths + ~finished
        ranked = (options / penalty(lengths, length_penalty)[:, :, None]).reshape(batch, -1)
        best = np.argpartition(-ranked, width - 1, axis=1)[:, :width]
        best = np.take_along_axis(best, np.argsort(-np.take_along_axis(ranked, best, 1), axis=1), 1)
        beams, chosen = np.divmod(best, options.shape[-1])
        totals = np.take_along_axis(options.reshape(batch, -1), best, 1)
        lengths = np.take_along_axis(lengths, beams, 1)
        finished = np.take_along_axis(finished, beams, 1) | (chosen == end)
        sequences = np.concatenate(
            [np.take_along_axis(sequences, beams[:, :, None], 1), chosen[:, :, None]], axis=2
        )
        if finished.all():
            break
        words, parents = (
            chosen.reshape(-1).astype(np.int32),
            (first_rows + beams).reshape(-1).astype(np.int32),
        )
    scores = totals / penalty(lengths, length_penalty)
    return [
        [
            Hypothesis(
                sequences[row, beam, : lengths[row, beam] - finished[row, beam]].tolist(),
                float(totals[row, beam]),
                float(scores[row, beam]),
            )
            for beam in range(width)
            if np.isfinite(totals[row, beam])
        ]
        for row in range(batch)
    ]
