"""Sentence pairs: words and back, vocabularies, batches packed by length."""

import os
from pathlib import Path

import numpy as np
import pytest

from recipes.engine.data import translation
from recipes.engine.data.translation import END, PAD, START, UNKNOWN
from recipes.engine.errors import RecipeError

pytestmark = pytest.mark.once

DATA = os.environ.get("TFDS_DATA_DIR", "")


@pytest.fixture(scope="module")
def examples():
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 30, (500, 2))
    return [tuple(rng.integers(4, 50, n).tolist() for n in pair) for pair in lengths]


@pytest.mark.parametrize(
    ("sentence", "words"),
    [
        ("L'homme s'assoit, là-bas.", ["L'", "homme", "s'", "assoit", ",", "là-bas", "."]),
        ('A sign says "Stop here!" (again)',
         ["A", "sign", "says", '"', "Stop", "here", "!", '"', "(", "again", ")"]),
        ("The man's dog; two T-shirts: 3", ["The", "man'", "s", "dog", ";", "two", "T-shirts", ":", "3"]),
    ],
)  # fmt: skip
def test_words_and_back(sentence, words):
    assert translation.words_of(sentence) == words
    assert translation.words_of(sentence, lowercase=True) == [word.lower() for word in words]
    assert translation.sentence_of(words) == sentence


def test_a_vocabulary_is_sorted_by_frequency_and_leaves_rare_words_out():
    vocabulary = translation.Vocabulary([["b", "a", "b"], ["c", "b", "a", "d"], ["d"]], min_count=2)
    assert vocabulary.words == ("<pad>", "<start>", "<end>", "<unknown>", "b", "a", "d")
    assert vocabulary.encode(["a", "c", "b"]) == [5, UNKNOWN, 4]
    assert vocabulary.decode([4, 6]) == ["b", "d"]


def test_a_padded_batch_is_source_input_and_target():
    x, y = translation.padded([([5, 6], [7]), ([8], [4, 4, 4])], rows=3)
    assert x.shape == (3, 3, 4) and y.shape == (3, 4)
    assert x[0].tolist() == [[5, 6, PAD, PAD], [START, 7, PAD, PAD], [0, 0, 0, 0]]
    assert y.tolist() == [[7, END, PAD, PAD], [4, 4, 4, END], [PAD] * 4]
    assert translation.padded([([5] * 5, [7])])[0].shape == (1, 3, 8)


def test_batches_are_packed_by_length_and_a_function_of_their_number(examples):
    batches = translation.PackedBatches(examples, 32, seed=1)
    assert batches.steps_per_epoch == 500 // 32
    epochs = [[batches[i] for i in range(e * 15, e * 15 + 15)] for e in range(2)]
    shapes, filled = set(), []
    for epoch in epochs:
        seen = [tuple(row[row > 3]) for x, _ in epoch for row in x[:, 0]]
        assert len(seen) == 480 and len(set(seen)) > 450  # no pair twice; short ones may be equal by chance
        shapes |= {x.shape for x, _ in epoch}
        filled += [np.mean((x[:, 0] > 0) | (y > 0)) for x, y in epoch]
    assert all(shape[:2] == (32, 3) and shape[2] % translation.MULTIPLE == 0 for shape in shapes)
    assert len(shapes) <= 8 and np.mean(filled) > 0.85  # drawn at random, about 0.7 were filled
    lengths = [x.shape[-1] for x, _ in epochs[0]]
    assert lengths != sorted(lengths) and lengths != [x.shape[-1] for x, _ in epochs[1]]
    again = translation.PackedBatches(examples, 32, seed=1)
    for step in (20, 3):  # in another order, by another object
        for ours, theirs in zip(again[step], epochs[step // 15][step % 15], strict=True):
            np.testing.assert_array_equal(ours, theirs)
    assert batches.fingerprint == again.fingerprint
    assert batches.fingerprint != translation.PackedBatches(examples, 32, seed=2).fingerprint


def test_parts_of_a_step_hold_what_the_whole_would(examples):
    whole = translation.PackedBatches(examples, 32, seed=1)
    parts = translation.PackedBatches(examples, 32, seed=1, accumulate=2)
    assert parts.batch_size == 16 and parts.steps_per_epoch == 2 * whole.steps_per_epoch
    for step in range(3):
        together = [tuple(row[row > 3]) for part in (2 * step, 2 * step + 1) for row in parts[part][0][:, 0]]
        assert together == [tuple(row[row > 3]) for row in whole[step][0][:, 0]]
    with pytest.raises(RecipeError, match="--accumulate 3 does not divide the 32 pairs"):
        translation.PackedBatches(examples, 32, seed=1, accumulate=3)


def test_sampling_rises_with_the_step_and_spares_start_and_padding(examples):
    batches = translation.PackedBatches(examples, 32, seed=1, sampling=0.6, epochs=4)
    shares = []
    for step in range(60):
        x, y = batches[step]
        assert not x[:, 2, 0].any() and not x[:, 2][y == PAD].any()
        shares.append(x[:, 2, 1:][y[:, 1:] != PAD].mean())
    assert shares[0] == 0
    assert np.mean(shares[-10:]) == pytest.approx(0.55, abs=0.03)
    assert np.mean(shares[25:35]) == pytest.approx(0.3, abs=0.03)


def test_numbers_in_words():
    corpus = translation.load("numbers", "fr")
    assert (len(corpus.train), len(corpus.validation), len(corpus.tests["test"])) == (4400, 300, 300)
    pairs = dict(zip(corpus.train.source, corpus.train.target, strict=True))
    assert len(pairs) == 4400 and not set(pairs) & set(corpus.tests["test"].source)
    numbers = [pairs.get(english) for english in ("seven thousand, one hundred and one", "ninety-nine")]
    assert numbers[0] or numbers[1]


def test_an_absent_corpus_is_told_in_one_sentence(tmp_path):
    with pytest.raises(RecipeError, match=r"lacks .*train.en.gz.*--data-dir.*--dataset numbers"):
        translation.load("multi30k", "fr", tmp_path)


@pytest.mark.skipif(not Path(DATA, "multi30k").is_dir() or not DATA, reason="no multi30k in TFDS_DATA_DIR")
def test_multi30k_is_the_published_one():
    corpus = translation.load("multi30k", "de", Path(DATA))
    assert (len(corpus.train), len(corpus.validation)) == (29_000, 1_014)
    assert {name: len(pairs) for name, pairs in corpus.tests.items()} == {
        "test_2016_flickr": 1000,
        "test_2017_flickr": 1000,
    }
    assert corpus.train.source[0] == "Two young, White males are outside near many bushes."
    same = [translation.sentence_of(translation.words_of(s)) == s for s in corpus.train.target]
    assert np.mean(same) > 0.98
