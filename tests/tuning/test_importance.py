"""Permutation importance: large for what decides, near nothing for what does not."""

import pytest

from tuning.importance import number, permutation_importance

pytestmark = pytest.mark.once


def trials(rng, metric):
    drawn = [
        {"rate": float(10 ** rng.uniform(-4, -1)), "kind": rng.choice(["a", "b", "c"]), "idle": rng.random()}
        for _ in range(60)
    ]
    return [{**row, "metric": metric(row)} for row in drawn]


def test_a_field_matters_as_much_as_it_decides(rng):
    rows = trials(rng, lambda row: (row["rate"] > 3e-3) + 0.3 * (row["kind"] == "b") + rng.normal(0, 0.02))
    found, fit = permutation_importance(rows, ["rate", "kind", "idle"], "metric")
    assert fit > 0.8
    assert found["rate"][0] > 3 * found["kind"][0] > 10 * abs(found["idle"][0])


def test_a_forest_that_knows_nothing_says_so(rng):
    rows = trials(rng, lambda row: rng.normal())
    assert permutation_importance(rows, ["rate", "kind", "idle"], "metric")[1] < 0.1


def test_other_seeds_of_a_setting_teach_nothing(rng):
    """What is true of one setting alone is no knowledge of its fields."""
    drawn = trials(rng, lambda row: rng.normal())
    rows = [{**row, "metric": row["metric"] + 0.01 * seed} for row in drawn for seed in range(3)]
    assert permutation_importance(rows, ["rate", "kind", "idle"], "metric")[1] < 0.1


def test_words_become_the_numbers_that_they_are():
    assert [number(word) for word in ("3", "1e-3", "relu", "True")] == [3, 1e-3, "relu", "True"]
