"""Intervals over problems."""

from statistics import NormalDist

import numpy as np
import pytest

from rollout.evaluation.bootstrap import DIFFERENCE, bootstrap, bootstrap_ratio


def test_the_mean_is_the_mean_and_lies_in_its_interval():
    interval = bootstrap([0.0, 1.0, 1.0, 0.5])
    assert interval.mean == 0.625
    assert interval.low <= interval.mean <= interval.high


def _wilson(share: float, num: int) -> tuple[float, float]:
    """Wilson's 95% interval of a binomial share (Wilson 1927)."""
    z = NormalDist().inv_cdf(0.975)
    centre = (share + z**2 / (2 * num)) / (1 + z**2 / num)
    half = z / (1 + z**2 / num) * (share * (1 - share) / num + z**2 / (4 * num**2)) ** 0.5
    return centre - half, centre + half


@pytest.mark.parametrize("num", [1, 8, 30, 500])
def test_if_all_or_none_are_right_the_interval_is_wilsons(num: int):
    for share in (0.0, 1.0):
        interval = bootstrap([share] * num)
        low, high = _wilson(share, num)
        assert (interval.low, interval.mean, interval.high) == pytest.approx((low, share, high), abs=1e-12)


def test_equal_values_have_an_interval_within_their_bounds():
    quarter = bootstrap([0.25] * 30)
    assert (quarter.low, quarter.mean, quarter.high) == pytest.approx((0.2216, 0.25, 0.3351), abs=1e-4)
    same = bootstrap([0.0] * 8, DIFFERENCE)
    assert (same.low, same.mean, same.high) == pytest.approx((-0.3244, 0.0, 0.3244), abs=1e-4)
    better = bootstrap([1.0] * 8, DIFFERENCE)
    assert (better.low, better.high) == pytest.approx((1 - 2 * 0.3244, 1.0), abs=1e-4)


def test_a_right_answer_more_never_lowers_the_upper_end():
    ends = [bootstrap([right / 16, *[0.0] * 7]).high for right in range(17)]
    assert ends == sorted(ends) and ends[0] == pytest.approx(0.3244, abs=1e-4)


def test_a_stratum_that_never_succeeds_has_an_interval_over_the_problems_that_it_has():
    interval = bootstrap_ratio([0.0] * 10, [3.0] * 8 + [0.0] * 2)
    assert (interval.low, interval.high) == pytest.approx((0.0, 0.3244), abs=1e-4)


def test_it_covers_a_rare_success_about_as_often_as_it_says():
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(300):
        interval = bootstrap((rng.random(20) < 0.05).astype(float).tolist(), resamples=300)
        hits += interval.low <= 0.05 <= interval.high
    # The bootstrap alone covers it in at most 64%: without any success its interval is [0, 0].
    assert hits / 300 >= 0.93


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
