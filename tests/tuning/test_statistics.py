"""Intervals and tests: against SciPy's own, closed forms, and what they promise over many repetitions."""

import math

import numpy as np
import pytest
from scipy import stats

from tuning.statistics import compare, holm, interval, paired_t, ranked, verdict, welch_t

pytestmark = pytest.mark.once


def test_an_interval_is_scipys(rng):
    values = rng.normal(3, 2, 6)
    found = interval(values)
    low, high = stats.t.interval(0.95, 5, loc=values.mean(), scale=stats.sem(values))
    assert (found.mean, found.low, found.high) == pytest.approx((values.mean(), low, high))
    assert found.std == pytest.approx(values.std(ddof=1)) and found.n == 6


def test_the_interval_holds_the_truth_nineteen_times_of_twenty(rng):
    held = [found.low < 1 < found.high for found in map(interval, rng.normal(1, 3, (2000, 4)))]
    assert 0.93 < np.mean(held) < 0.97  # three standard errors are 0.015


def test_one_value_has_no_uncertainty():
    found = interval([2.0])
    assert found.mean == 2 and math.isnan(found.std) and math.isnan(found.low) and str(found) == "2"


@pytest.mark.parametrize("sizes", [(5, 5), (4, 9)])
def test_welchs_test_is_scipys(sizes, rng):
    first, second = rng.normal(0, 1, sizes[0]), rng.normal(1, 3, sizes[1])
    assert welch_t(first, second) == pytest.approx(stats.ttest_ind(first, second, equal_var=False).pvalue)


def test_the_paired_test_is_scipys_and_does_not_mind_what_a_seed_does_to_both(rng):
    first, second = rng.normal(0, 1, 5), rng.normal(1, 1, 5)
    assert paired_t(first, second) == pytest.approx(stats.ttest_rel(first, second).pvalue)
    seeds = 100 * rng.normal(size=5)
    assert paired_t(first + seeds, second + seeds) == pytest.approx(paired_t(first, second))
    assert welch_t(first + seeds, second + seeds) > 0.9


@pytest.mark.parametrize("test", [paired_t, welch_t])
def test_without_spread_only_equality_is_no_difference(test):
    assert test([1.0, 1.0], [1.0, 1.0]) == 1
    assert test([1.0, 1.0], [2.0, 2.0]) == 0
    assert math.isnan(test([1.0], [2.0]))


def test_one_step_for_every_seed_is_no_certainty(rng):
    """One example of 200 more, with each of three seeds: by signs alone that happens one time in four."""
    accuracy = np.array([0.955, 0.96, 0.965])
    assert paired_t(accuracy + 0.005, accuracy) == 0.25
    assert paired_t(accuracy, accuracy + 1e-16) == 1
    # Accuracies of two equal settings on 20 examples, five seeds: no more differences than the level allows.
    found = [paired_t(*rng.binomial(20, 0.9, (2, 5)) / 20) for _ in range(2000)]
    assert np.mean(np.array(found) < 0.05) < 0.06


def test_two_settings_that_happen_not_to_vary_are_not_certain():
    still = {"a": [0.9457, 0.9457], "b": [0.938, 0.938]}
    assert [each.p for each in compare(still)] == [0]  # nothing depends on the seed here
    by_pair = {(each.first, each.second): each.p for each in compare({**still, "c": [0.9, 0.91]})}
    assert by_pair["a", "b"] == 0.5
    unequal = {**still, "c": [0.9, 0.91, 0.9]}
    assert compare(unequal)[0].p == 0.5


def test_holms_correction_by_hand():
    # Sorted 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1: 0.02, 0.03, 0.06, 0.04, and never falling.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    adjusted = holm([0.02, math.nan, 0.01])
    assert math.isnan(adjusted[1]) and adjusted[::2] == pytest.approx([0.02, 0.02])


def test_equal_settings_are_rarely_told_apart(rng):
    """Five settings, ten pairs: without the correction one in four tables would show a difference."""
    tables = [compare(dict(enumerate(rng.normal(size=(5, 6))))) for _ in range(300)]
    corrected = np.mean([any(each.significant for each in table) for table in tables])
    plain = np.mean([any(each.p < 0.05 for each in table) for table in tables])
    assert corrected < 0.09 and plain > 0.15


def test_one_seed_decides_nothing():
    told = verdict("accuracy", {"a": [0.5], "b": [0.75]}, False)
    assert told == "accuracy is best with b, 0.75; with one seed each, chance is not ruled out"


def test_settings_with_fewer_seeds_are_compared_by_welch():
    values = {"a": [1.0, 2.0, 3.5], "b": [4.0, 5.0]}
    assert compare(values)[0].p == pytest.approx(welch_t(values["a"], values["b"]))
    values["b"].append(5.5)
    assert compare(values)[0].p == pytest.approx(paired_t(values["a"], values["b"]))


def test_a_verdict_says_what_the_numbers_allow(rng):
    noise = rng.normal(0, 0.01, 5)
    values = {"low": 0.2 + noise, "good": 0.900 + noise, "even": 0.9001 + 0.02 * rng.normal(size=5)}
    best, other = ranked(values, smaller_is_better=False)[:2]
    assert ranked(values, smaller_is_better=True)[0] == "low" and {best, other} == {"good", "even"}
    text = verdict("accuracy", values, smaller_is_better=False)
    assert text.startswith(f"accuracy is best with {best}, 0.9")
    assert "better than low (p < 0.05 after Holm)" in text and f"not told apart from {other}" in text
