import random
from functools import partial
from itertools import combinations, product
from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from training_fakes import make_group, make_groups

from configs.schema import AlgoConfig
from configs.schema.algo import ADVANTAGE_ESTIMATORS
from rollout.records import DRAFT, REFINE
from train.loss.advantages import STD_EPSILON, group_advantages, group_mean, leave_one_out, pass_at_k
from train.loss.credit import credit

REWARDS = st.lists(
    st.lists(st.sampled_from([-1.0, 0.0, 0.25, 1.0]), min_size=1, max_size=6), min_size=1, max_size=6
)


@given(REWARDS, st.sampled_from(["group", "batch", "none"]))
def test_advantages_of_every_group_sum_to_zero(rewards, scale):
    for advantages in group_advantages(rewards, scale_rewards=scale):
        assert abs(advantages.sum()) < 1e-9


@given(REWARDS)
def test_group_scaling_is_the_formula(rewards):
    for group, advantages in zip(rewards, group_advantages(rewards, scale_rewards="group"), strict=True):
        if len(group) > 1:
            std = np.std(group, ddof=1)
            expected = (np.array(group) - np.mean(group)) / (std + STD_EPSILON)
            np.testing.assert_allclose(advantages, expected, atol=1e-12)


@given(REWARDS, st.lists(st.floats(-5, 5), min_size=1, max_size=5), st.sampled_from(["group", "none"]))
def test_another_group_does_not_change_a_groups_advantages(rewards, other, scale):
    alone = group_advantages(rewards, scale_rewards=scale)
    beside = group_advantages([other, *rewards], scale_rewards=scale)[1:]
    for a, b in zip(alone, beside, strict=True):
        np.testing.assert_array_equal(a, b)


def test_batch_scaling_divides_by_the_spread_of_all_rewards():
    first, second = group_advantages([[1.0, -1.0], [3.0, -3.0, 0.0]], scale_rewards="batch")
    std = np.std([1.0, -1.0, 3.0, -3.0, 0.0], ddof=1) + STD_EPSILON
    np.testing.assert_allclose(first, np.array([1.0, -1.0]) / std)
    np.testing.assert_allclose(second, np.array([3.0, -3.0, 0.0]) / std)


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
@pytest.mark.parametrize("group", [[0.1, 0.1, 0.1], [5.0]])
def test_a_group_of_equal_rewards_or_of_one_sample_gets_exactly_zero(group, scale):
    assert not group_advantages([group, [1.0, 0.0]], scale_rewards=scale)[0].any()


def test_permuting_a_group_permutes_its_advantages():
    rewards = [0.0, 1.0, 1.0, 0.5]
    order = [2, 0, 3, 1]
    (plain,) = group_advantages([rewards])
    (permuted,) = group_advantages([[rewards[place] for place in order]])
    np.testing.assert_allclose(permuted, plain[order])


def test_an_unknown_scale_and_a_reward_that_is_not_finite_are_refused():
    with pytest.raises(ValueError, match=r"algo\.scale_rewards is 'std'"):
        group_advantages([[1.0, 0.0]], scale_rewards="std")
    with pytest.raises(ValueError, match="group 1 has a reward that is not finite"):
        group_advantages([[1.0, 0.0], [float("nan"), 0.0]])


def test_refinements_of_different_workspaces_do_not_share_a_baseline():
    groups = make_groups(3)
    rows = credit(groups, AlgoConfig(scale_rewards="none"))
    for group, row in zip(groups, rows, strict=True):
        mean = np.mean([sample.reward for sample in group.samples])
        for sample, branch in zip(group.samples, row.branches, strict=True):
            np.testing.assert_allclose(branch.advantages, sample.reward - mean)


def best_of_all_subsets(rewards, k, *, with_sample=None, without_sample=None):
    """The mean largest reward over subsets of size k, by listing them."""
    picks = [
        subset
        for subset in combinations(range(len(rewards)), k)
        if (with_sample is None or with_sample in subset)
        and (without_sample is None or without_sample not in subset)
    ]
    return np.mean([max(rewards[i] for i in subset) for subset in picks])


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=9))
def test_leave_one_out_is_the_group_mean_times_n_over_n_minus_one(rewards):
    rewards = np.array(rewards)
    n = len(rewards)
    np.testing.assert_allclose(leave_one_out(rewards), group_mean(rewards) * n / (n - 1), atol=1e-9)


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=9))
def test_pass_at_one_is_leave_one_out(rewards):
    rewards = np.array(rewards)
    np.testing.assert_allclose(pass_at_k(rewards, k=1), leave_one_out(rewards), atol=1e-9)


@given(st.lists(st.floats(-5, 5), min_size=4, max_size=7), st.integers(2, 3))
def test_pass_at_k_compares_the_best_of_subsets_with_a_sample_and_without_it(rewards, k):
    expected = [
        k
        * (best_of_all_subsets(rewards, k, with_sample=i) - best_of_all_subsets(rewards, k, without_sample=i))
        for i in range(len(rewards))
    ]
    np.testing.assert_allclose(pass_at_k(np.array(rewards), k=k), expected, atol=1e-9)


@pytest.mark.parametrize("k", [2, 3])
def test_pass_at_k_is_an_unbiased_gradient_of_pass_at_k(k):
    """Exactly, over all outcomes of n samples that are right with probability p = sigmoid(theta)."""
    n, p = 5, 0.3
    expectation = 0.0
    for outcome in product([0.0, 1.0], repeat=n):
        rewards = np.array(outcome)
        probability = np.prod(np.where(rewards == 1, p, 1 - p))
        score = rewards - p  # d log P(outcome_i) / d theta
        expectation += probability * np.mean(pass_at_k(rewards, k=k) * score)
    slope = k * (1 - p) ** (k - 1) * p * (1 - p)  # d (1 - (1 - p)^k) / d theta
    assert expectation == pytest.approx(slope, rel=1e-12)


@given(st.integers(0, 8), st.integers(1, 4))
def test_for_right_and_wrong_pass_at_k_is_chens_advantage_with_a_leave_one_out_baseline(right, k):
    """Pass@k Training, https://arxiv.org/abs/2508.10751, without its scaling: the baseline is the group's."""
    n = 8
    rewards = np.array([1.0] * right + [0.0] * (n - right))
    pass_rate = 1 - comb(n - right, k) / comb(n, k)
    wrong_before = 1 - (comb(n - right - 1, k - 1) / comb(n - 1, k - 1) if right < n else 0.0)
    theirs = np.where(rewards == 1, 1 - pass_rate, wrong_before - pass_rate)
    np.testing.assert_allclose(pass_at_k(rewards, k=k), theirs * k * n / (n - k), atol=1e-12)


def test_a_group_of_at_most_k_samples_has_no_baseline_for_pass_at_k():
    assert not pass_at_k(np.array([1.0, 0.0, 0.0]), k=3).any()
    assert pass_at_k(np.array([1.0, 0.0, 0.0]), k=2).any()


@pytest.mark.parametrize("name", ADVANTAGE_ESTIMATORS)
def test_the_option_chooses_the_estimator_of_every_group(name):
    groups = make_groups(3)
    rows = credit(groups, AlgoConfig(scale_rewards="none", advantage_estimator=name, pass_k=2))
    for group, row in zip(groups, rows, strict=True):
        rewards = np.array([sample.reward for sample in group.samples])
        expected = {
            "group_mean": group_mean(rewards),
            "leave_one_out": leave_one_out(rewards),
            "pass_at_k": pass_at_k(rewards, k=2),
        }[name]
        np.testing.assert_allclose([b.advantages[0] for b in row.branches], expected, atol=1e-12)


def test_drafts_may_be_judged_by_the_best_of_them_and_answers_by_themselves():
    rng = random.Random(1)
    groups = [make_group(rng, role=role, prompt=4, lengths=[3] * 6, name=role) for role in (REFINE, DRAFT)]
    algo = AlgoConfig(scale_rewards="none", draft_credit="pass_at_k", pass_k=2)
    refined, drafted = credit(groups, algo)
    for row, group, estimate in (
        (refined, groups[0], group_mean),
        (drafted, groups[1], partial(pass_at_k, k=2)),
    ):
        expected = estimate(np.array([sample.reward for sample in group.samples]))
        np.testing.assert_allclose([b.advantages[0] for b in row.branches], expected, atol=1e-12)


def test_the_reward_scale_of_a_batch_is_that_of_one_role():
    rng = random.Random(2)
    refined = [make_group(rng, role=REFINE, prompt=4, lengths=[3] * 5, name=f"r{i}") for i in range(3)]
    drafted = make_group(rng, role=DRAFT, prompt=4, lengths=[3] * 5, name="d")
    algo = AlgoConfig(scale_rewards="batch")
    alone = credit(refined, algo)
    mixed = credit([drafted, *refined], algo)[1:]
    for one, other in zip(alone, mixed, strict=True):
        for first, second in zip(one.branches, other.branches, strict=True):
            np.testing.assert_array_equal(first.advantages, second.advantages)
