"""Beam search against exhaustive search, against greedy search, and sentence by sentence."""

import itertools

import numpy as np
import pytest

from recipes.engine.beam_search import beam_search, penalty

END, VOCABULARY, LONGEST = 0, 4, 4
START = VOCABULARY  # is never said


@pytest.fixture
def model():
    """A table of log-probabilities of the next word given the two last ones, for each of five sentences."""
    logits = 2 * np.random.default_rng(3).normal(size=(5, VOCABULARY + 1, VOCABULARY + 1, VOCABULARY))
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def step_of(table, width):
    """The model as `beam_search` calls it; its state is the last word but one of every row."""
    sentences = np.repeat(np.arange(len(table)), width)

    def step(words, parents, before):
        before = before[parents]
        return table[sentences, before, words], words

    return step, np.full(len(sentences), START)


def search(table, width, strength=0.0, **options):
    step, state = step_of(table, width)
    return beam_search(step, state, len(table), START, END, width, LONGEST, strength, **options)


def log_probability(table, words):
    before, last, total = START, START, 0.0
    for word in words:
        total += table[before, last, word]
        before, last = last, word
    return total


def every_sequence():
    """All sequences that end, or are cut off: as (words, words with the end mark)."""
    for length in range(LONGEST):
        for words in itertools.product(range(1, VOCABULARY), repeat=length):
            yield list(words), [*words, END]
    for words in itertools.product(range(1, VOCABULARY), repeat=LONGEST):
        yield list(words), list(words)


@pytest.mark.once
@pytest.mark.parametrize("strength", [0.0, 0.7, 2.0])
def test_wide_enough_it_is_exhaustive(model, strength):
    """With room for all 121 sequences it finds them all, in the order of their scores."""
    found = search(model, 121, strength)
    for table, hypotheses in zip(model, found, strict=True):
        scored = [
            (log_probability(table, marked) / penalty(len(marked), strength), words)
            for words, marked in every_sequence()
        ]
        scored.sort(key=lambda pair: -pair[0])
        assert [h.words for h in hypotheses] == [words for _, words in scored]
        np.testing.assert_allclose([h.score for h in hypotheses], [score for score, _ in scored])


@pytest.mark.once
def test_width_one_is_greedy(model):
    for table, (hypothesis,) in zip(model, search(model, 1, 1.0), strict=True):
        before, last, words = START, START, []
        while len(words) < LONGEST and (not words or words[-1] != END):
            words.append(int(table[before, last].argmax()))
            before, last = last, words[-1]
        assert hypothesis.words == [word for word in words if word != END]
        assert hypothesis.log_probability == pytest.approx(log_probability(table, words))


@pytest.mark.once
def test_sentences_of_a_batch_do_not_meet(model):
    together = search(model, 3, 0.5)
    apart = [search(table[None], 3, 0.5)[0] for table in model]
    assert together == apart


@pytest.mark.once
def test_the_penalty_is_the_published_one_and_makes_longer(model):
    assert penalty(1, 0.7) == 1 and penalty(7, 1.0) == 2 and penalty(7, 2.0) == 4
    lengths = [
        np.mean([len(hypotheses[0].words) for hypotheses in search(model, 121, strength)])
        for strength in (0.0, 5.0)
    ]
    assert lengths[1] > lengths[0]


@pytest.mark.once
def test_forbidden_words_are_never_said(model):
    found = search(model, 30, forbidden=(2,))
    assert all(2 not in h.words for hypotheses in found for h in hypotheses)
    assert any(2 in h.words for hypotheses in search(model, 30) for h in hypotheses)
