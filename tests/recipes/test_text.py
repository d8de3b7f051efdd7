"""Texts: where they are cut, what a batch holds, and what counting alone would predict."""

import os
from pathlib import Path

import numpy as np
import pytest

from recipes.engine.data import text as texts
from recipes.engine.data import tfds
from recipes.engine.errors import RecipeError

pytestmark = pytest.mark.once

DATA = Path(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()
prepared = pytest.mark.skipif(
    not (DATA / "tiny_shakespeare").exists(), reason="TFDS_DATA_DIR holds no tiny_shakespeare"
)


@pytest.fixture(scope="module")
def docs():
    return texts.load("python_docs")


def test_the_documentation_is_cut_in_order(docs):
    whole = np.concatenate([docs.train, docs.validation, docs.test])
    assert len(whole) > 300_000 and docs.train.dtype == np.int32
    assert [len(docs.train), len(docs.train) + len(docs.validation)] == [
        int(0.9 * len(whole)),
        int(0.95 * len(whole)),
    ]
    words = docs.decode(whole)
    assert 'The "assert" statement' in words[:2000] and "   " not in words
    np.testing.assert_array_equal(docs.encode(words[:99]), whole[:99])


def test_a_part_of_a_text_and_its_fingerprint(docs):
    part = texts.load("python_docs", characters=1000)
    assert [len(part.train), len(part.validation), len(part.test)] == [900, 50, 50]
    assert part.decode(part.train) == docs.decode(docs.train[:900])
    other = texts.load("python_docs", characters=1001)
    assert part.fingerprint == texts.load("python_docs", characters=1000).fingerprint != other.fingerprint


@prepared
def test_shakespeare_is_cut_where_tensorflow_datasets_cuts_it():
    text = texts.load("tiny_shakespeare", DATA)
    assert [len(part) for part in (text.train, text.validation, text.test)] == [1_003_854, 55_770, 55_770]
    assert len(text.alphabet) == 65
    builder = tfds.prepared("tiny_shakespeare", DATA)
    for split in ("train", "validation", "test"):
        (example,) = tfds.examples(builder, split)
        assert text.decode(getattr(text, split)) == example["text"].decode()


def test_bad_input_gets_one_sentence(docs, tmp_path):
    with pytest.raises(RecipeError, match="unknown text 'python_dox': did you mean 'python_docs'"):
        texts.load("python_dox")
    with pytest.raises(RecipeError, match="python_docs has no character '\N{SNOWMAN}'"):
        docs.encode("snow \N{SNOWMAN}")
    with pytest.raises(RecipeError, match="has 8 characters, too few to read 8 at once"):
        texts.windows(np.arange(8), 8)
    with pytest.raises(RecipeError, match=r"built-in set: --dataset python_docs$"):
        texts.load("tiny_shakespeare", tmp_path)


def test_windows_predict_what_follows():
    split = texts.windows(np.arange(7), 3)
    np.testing.assert_array_equal(split.x, [[0, 1, 2], [1, 2, 3], [2, 3, 4], [3, 4, 5]])
    np.testing.assert_array_equal(split.y, split.x + 1)
    beside = texts.windows(np.arange(7), 3, 3)
    np.testing.assert_array_equal(beside.x, [[0, 1, 2], [3, 4, 5]])
    np.testing.assert_array_equal(beside.y, beside.x + 1)


def test_windows_are_drawn_by_the_seed_and_the_number_of_the_batch():
    numbers = np.arange(1000, dtype=np.int32)
    batches, again, other = (texts.Windows(numbers, 8, 4, seed, steps=5) for seed in (1, 1, 2))
    assert batches.steps_per_epoch == 5 and batches.unit == "characters" and batches.units == 32
    for step in (7, 0, 13):
        x, y = batches[step]
        assert x.shape == (4, 8)
        np.testing.assert_array_equal(y, x + 1)
        np.testing.assert_array_equal(x, again[step][0])
        assert not np.array_equal(x, other[step][0])
    assert len({int(x) for step in range(20) for x in batches[step][0][:, 0]}) > 60
    assert batches.fingerprint == again.fingerprint != other.fingerprint
    halves = texts.Windows(numbers, 8, 4, 1, steps=5, accumulate=2)
    assert halves.steps_per_epoch == 10
    np.testing.assert_array_equal(np.concatenate([halves[4][0], halves[5][0]]), batches[2][0])


def test_streams_go_on_where_they_stopped():
    numbers = np.arange(1003, dtype=np.int32)
    streams = texts.Streams(numbers, 10, 4, seed=3)
    assert streams.steps_per_epoch == 24  # 4 readers of 10 characters, 993 places to begin
    seams = 0
    for step in range(100):
        x, y = streams[step]
        np.testing.assert_array_equal(y, x + 1)
        follows = streams[step + 1][0][:, 0] == y[:, -1]
        seams += np.count_nonzero(~follows)
    assert seams == 4  # 1,000 characters are once around the ring of 993, for each reader
    assert streams.fingerprint != texts.Streams(numbers, 10, 4, seed=4).fingerprint


def test_streams_read_everything_once_in_an_epoch():
    numbers = np.arange(810, dtype=np.int32)  # 800 places to begin, 8 readers, 100 characters each
    streams = texts.Streams(numbers, 10, 8, seed=0)
    read = np.concatenate([streams[step][0].ravel() for step in range(streams.steps_per_epoch)])
    counts = np.bincount(read, minlength=810)
    assert streams.steps_per_epoch == 10 and counts[10:800].tolist() == [1] * 790 and counts.max() == 1


def test_streams_in_parts_are_the_same_readers_in_turn():
    numbers = np.arange(1003, dtype=np.int32)
    whole, parts = (texts.Streams(numbers, 10, 6, seed=3, accumulate=count) for count in (1, 3))
    assert parts.steps_per_epoch == 3 * whole.steps_per_epoch and parts.units == 20
    assert parts.fingerprint == whole.fingerprint
    for step in range(20):
        x = np.concatenate([parts[3 * step + part][0] for part in range(3)])
        np.testing.assert_array_equal(x, whole[step][0])


def test_rows_of_a_text():
    x, y = texts.rows(np.arange(8), 2)
    np.testing.assert_array_equal(x, [[0, 1, 2], [3, 4, 5]])
    np.testing.assert_array_equal(y, x + 1)


def test_entropy_baselines_by_hand():
    # "abab...": single characters carry log 2, the next one given the last carries next to nothing.
    numbers = np.tile([0, 1], 500)
    single, pair = texts.entropies(numbers, numbers, 2)
    assert single == pytest.approx(np.log(2))
    assert pair < 0.01
