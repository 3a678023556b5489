import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from training_fakes import make_groups

from configs.schema import AlgoConfig
from train.advantages import STD_EPSILON, group_advantages
from train.credit import credit

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
