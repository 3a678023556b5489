"""Intervals over problems."""

import numpy as np
import pytest

from rollout.evaluation.bootstrap import bootstrap


def test_the_mean_is_the_mean_and_lies_in_its_interval():
    interval = bootstrap([0.0, 1.0, 1.0, 0.5])
    assert interval.mean == 0.625
    assert interval.low <= interval.mean <= interval.high


def test_equal_values_have_no_interval():
    interval = bootstrap([0.25] * 30)
    assert (interval.low, interval.mean, interval.high) == (0.25, 0.25, 0.25)


def test_the_interval_agrees_with_the_normal_one_for_many_problems():
    values = np.random.default_rng(3).random(2000) < 0.4
    interval = bootstrap(values.astype(float).tolist())
    half = 1.96 * values.std() / np.sqrt(len(values))
    assert interval.low == pytest.approx(values.mean() - half, abs=2e-3)
    assert interval.high == pytest.approx(values.mean() + half, abs=2e-3)


def test_it_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(300):
        interval = bootstrap((rng.random(100) < 0.5).astype(float).tolist(), resamples=500)
        hits += interval.low <= 0.5 <= interval.high
    assert 0.90 <= hits / 300 <= 0.99


def test_more_problems_narrow_it_and_the_seed_fixes_it():
    few, many = bootstrap([0.0, 1.0] * 10), bootstrap([0.0, 1.0] * 1000)
    assert many.high - many.low < (few.high - few.low) / 5
    assert bootstrap([0.0, 1.0] * 10) == few


def test_resampling_in_blocks_gives_as_many_resamples_as_asked_for():
    values = [0.0, 1.0] * 100_000  # 4M / 200k = 20 resamples a block
    interval = bootstrap(values, resamples=45)
    assert abs(interval.mean - 0.5) < 1e-9
    assert 0.49 < interval.low < 0.5 < interval.high < 0.51


def test_no_problem_is_an_error():
    with pytest.raises(ValueError, match="at least one problem"):
        bootstrap([])
