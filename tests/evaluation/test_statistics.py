"""Intervals: known answers, coverage, pairing and clusters."""

import math

import numpy as np
import pytest

from vivavoce.evaluation import difference, estimate


def test_the_bootstrap_of_a_mean_is_its_standard_error():
    values = np.random.default_rng(0).normal(3.0, 2.0, 400)
    found = estimate(list(values))
    assert found.value == pytest.approx(values.mean()) and found.count == 400
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * values.std() / 20, rel=0.08)
    assert estimate(list(values)) == found and estimate(list(values), seed=1) != found


def test_intervals_cover_the_truth():
    rng = np.random.default_rng(1)
    hits = [estimate(list(rng.random(150) < 0.8)) for _ in range(200)]
    assert 0.9 <= np.mean([h.low <= 0.8 <= h.high for h in hits]) <= 0.99


def test_all_right_is_no_certainty():
    found = estimate([1.0] * 50)
    assert found.value == 1.0 and found.high == pytest.approx(1.0) and found.low == pytest.approx(0.9286, abs=1e-3)
    assert estimate([0.0] * 50).high == pytest.approx(1 - 0.9286, abs=1e-3)


def test_missing_values_and_none_at_all():
    assert estimate([1.0, math.nan, 3.0]).count == 2 and estimate([1.0, math.nan, 3.0]).value == 2.0
    nothing = estimate([math.nan])
    assert nothing.count == 0 and math.isnan(nothing.value)


def test_values_of_one_speaker_count_as_one():
    values = [float(v) for v in [1] * 50 + [0] * 50]
    loose = estimate(values)
    clustered = estimate(values, clusters=["a"] * 50 + ["b"] * 50)
    assert clustered.high - clustered.low == 1.0 > loose.high - loose.low


def test_paired_differences_are_narrower():
    rng = np.random.default_rng(2)
    base = rng.normal(0, 5, 100)
    found = difference(list(base + 1 + rng.normal(0, 0.1, 100)), list(base))
    assert found.value == pytest.approx(1, abs=0.05) and found.high - found.low < 0.1
    with pytest.raises(ValueError):
        difference([1.0], [1.0, 2.0])


def test_a_median_has_an_interval_too():
    found = estimate([1.0, 2.0, 3.0, 4.0, 100.0], np.median)
    assert found.value == 3.0 and found.low >= 1.0 and found.high <= 100.0
