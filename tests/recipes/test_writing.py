"""Drawing characters: temperature, top-k and nucleus against values by hand."""

import numpy as np
import pytest

from recipes.engine.errors import RecipeError
from recipes.engine.writing import Way, WritingConfig, draw, gallery, write

pytestmark = pytest.mark.once

P = np.array([0.1, 0.4, 0.2, 0.3])


@pytest.mark.parametrize(
    ("way", "expected"),
    [
        (Way(), P),
        (Way(0), [0, 1, 0, 0]),
        (Way(0.5), P**2 / np.sum(P**2)),  # softmax(log p / T) = p^(1 / T), normalized
        (Way(2), P**0.5 / np.sum(P**0.5)),
        (Way(top_k=2), [0, 4 / 7, 0, 3 / 7]),
        (Way(top_k=9), P),
        (Way(top_p=0.4), [0, 1, 0, 0]),  # 0.4 is reached by the likeliest alone
        (Way(top_p=0.41), [0, 4 / 7, 0, 3 / 7]),
        (Way(top_p=0.85), [0, 4 / 9, 2 / 9, 3 / 9]),
        (Way(top_p=1e-9), [0, 1, 0, 0]),
        # The nucleus is of what top-k left: 4/9, 3/9, 2/9, of which two make up 0.7.
        (Way(top_k=3, top_p=0.7), [0, 4 / 7, 0, 3 / 7]),
        (Way(0.5, top_k=2), [0, 16 / 25, 0, 9 / 25]),
    ],
)
def test_probabilities_by_hand(way, expected):
    np.testing.assert_allclose(way.probabilities(np.log(P) + 3), expected, rtol=1e-12, atol=1e-15)


def test_rows_are_treated_one_by_one_and_large_logits_do_no_harm():
    logits = np.array([[1000.0, 0.0], [-1000.0, 0.0], [0.0, 0.0]], "float32")
    np.testing.assert_allclose(Way().probabilities(logits), [[1, 0], [0, 1], [0.5, 0.5]], atol=1e-12)
    # Of equals, top-k takes no more than k.
    np.testing.assert_array_equal(Way(top_k=1).probabilities(logits), [[1, 0], [0, 1], [1, 0]])


def test_draws_follow_the_probabilities(rng):
    p = np.tile([0.5, 0.0, 0.3, 0.2, 0.0], (20_000, 1))
    shares = np.bincount(draw(rng, p), minlength=5) / len(p)
    np.testing.assert_allclose(shares, p[0], atol=0.015)
    assert shares[1] == shares[4] == 0


def test_writing_feeds_back_what_was_written():
    """A model that expects the next number, surely: it counts on from the prompt's last."""
    seen = []

    def read(numbers):
        seen.append(numbers.copy())
        return np.where(np.eye(10)[(numbers[:, -1] + 1) % 10], 0, -1e9)

    written = write(read, np.array([4, 7]), 5, [Way(), Way(0), Way(2, top_k=3)], seed=0)
    np.testing.assert_array_equal(written, [[8, 9, 0, 1, 2]] * 3)
    np.testing.assert_array_equal(np.concatenate(seen, axis=1), [[4, 7, 8, 9, 0, 1]] * 3)


def test_what_is_written_depends_on_the_seed_and_on_each_way_alone():
    def read(numbers):
        return np.zeros((len(numbers), 50))

    ways = [Way(), Way(top_k=2)]
    first, again, other = (write(read, np.array([0]), 30, ways, seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    assert first[0].max() > 10 and set(first[1]) == {0, 1}


def test_ways_of_a_configuration():
    ways = WritingConfig(temperature=1.0, top_p=0.9).ways()
    assert ways[0] == Way(1, 0, 0.9) and len(ways) == len(set(ways)) == 5
    words = gallery([Way(0), Way(0.8, 3, 0.5)], "A", ["bc", "de"])
    assert "the likeliest character =====\nAbc" in words and "temperature 0.8, top-k 3, top-p 0.5" in words


@pytest.mark.parametrize(
    "fields",
    [{"temperature": -1.0}, {"top_k": -1}, {"top_p": 0.0}, {"top_p": 1.1}, {"written": 0}, {"prompt": ""}],
)
def test_bad_input(fields):
    (name,) = fields
    with pytest.raises(RecipeError, match=f"--{name.replace('_', '-')}"):
        WritingConfig(**fields)
