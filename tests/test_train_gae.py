import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from training_fakes import make_group

from configs.schema import AlgoConfig
from rollout.records import REFINE, TRACE
from train.batch.collate import MicroBatch, collate
from train.loss.credit import credit, weigh
from train.loss.gae import advantage_moments, credit_tokens, gae, mean_and_std, whiten

UNIT = st.floats(0, 1)
STEPS = st.lists(st.tuples(st.floats(-3, 3), st.floats(-3, 3)), min_size=1, max_size=8)


def by_definition(rewards: list[float], values: list[float], gamma: float, lam: float) -> list[float]:
    """A_t = sum_l (gamma lam)^l (r_{t+l} + gamma V_{t+l+1} - V_{t+l}), written out."""
    after = [*values[1:], 0.0]
    deltas = [r + gamma * later - now for r, now, later in zip(rewards, values, after, strict=True)]
    return [
        sum((gamma * lam) ** (place - t) * deltas[place] for place in range(t, len(deltas)))
        for t in range(len(deltas))
    ]


@given(STEPS, UNIT, UNIT)
def test_gae_is_its_definition(steps, gamma, lam):
    rewards, values = (np.array(column) for column in zip(*steps, strict=True))
    found = gae(rewards, values, gamma=gamma, lam=lam)
    np.testing.assert_allclose(found, by_definition(list(rewards), list(values), gamma, lam), atol=1e-9)


@given(STEPS)
def test_without_discount_the_return_of_every_token_is_the_reward_that_is_left(steps):
    rewards, values = (np.array(column) for column in zip(*steps, strict=True))
    returns = gae(rewards, values, gamma=1.0, lam=1.0) + values
    np.testing.assert_allclose(returns, rewards[::-1].cumsum()[::-1], atol=1e-9)


@given(STEPS, UNIT)
def test_a_critic_that_knows_the_future_leaves_no_advantage(steps, lam):
    rewards = np.array([reward for reward, _ in steps])
    values = rewards[::-1].cumsum()[::-1]
    np.testing.assert_allclose(gae(rewards, values, gamma=1.0, lam=lam), 0, atol=1e-9)


def mixed_batch() -> MicroBatch:
    rng = random.Random(4)
    groups = [
        make_group(rng, role=TRACE, prompt=4, lengths=[5, 1, 7]),
        make_group(rng, role=REFINE, prompt=9, lengths=[6, 3], forced=True),
    ]
    algo = AlgoConfig(loss_type="ppo", epsilon_high=0.2)
    return collate(weigh(credit(groups, algo), algo, max_completion_length=16), roles=[REFINE, TRACE])


def test_each_completion_is_credited_by_itself_and_its_reward_is_on_its_last_trained_token():
    batch = mixed_batch()
    values = torch.randn(len(batch.targets), generator=torch.Generator().manual_seed(0))
    found = credit_tokens(batch, values, gamma=0.9, lam=0.8)
    # Of the refinements every fourth token is forced, and no action.
    lengths = [5, 1, 7, 5, 3]
    assert torch.bincount(batch.sequences).tolist() == lengths
    expected = []
    for of_sequence, reward in zip(values.split(lengths), batch.rewards.tolist(), strict=True):
        rewards = [0.0] * (len(of_sequence) - 1) + [reward]
        expected += by_definition(rewards, of_sequence.tolist(), 0.9, 0.8)
    torch.testing.assert_close(found.advantages, torch.tensor(expected), atol=1e-6, rtol=0)
    torch.testing.assert_close(found.returns, found.advantages + values)


def test_whitened_advantages_have_mean_zero_and_unit_spread_in_each_role():
    batch = mixed_batch()
    values = torch.randn(len(batch.targets), generator=torch.Generator().manual_seed(1))
    found = credit_tokens(batch, values, gamma=1.0, lam=0.5)
    mean, std = mean_and_std(advantage_moments([found], 2))
    white = whiten(found, mean, std)
    for role in (0, 1):
        of_role = white.advantages[batch.roles == role]
        assert of_role.mean().item() == pytest.approx(0, abs=1e-6)
        assert of_role.std(correction=0).item() == pytest.approx(1, abs=1e-5)
    assert white.returns is found.returns


def test_moments_of_parts_add_up_and_filler_rows_are_not_in_them():
    batch = mixed_batch()
    found = credit_tokens(batch, torch.zeros(len(batch.targets)), gamma=1.0, lam=1.0)
    whole = advantage_moments([found], 2)
    assert torch.equal(advantage_moments([found, found], 2), 2 * whole)
    (row,) = credit([make_group(random.Random(0), role=TRACE, prompt=3, lengths=[4])], AlgoConfig())
    filler = collate([row], roles=[REFINE, TRACE])
    nothing = credit_tokens(filler, torch.zeros(4), gamma=1.0, lam=1.0)
    assert not advantage_moments([nothing], 2).any()


def test_equal_advantages_are_whitened_to_zero_rather_than_to_nan():
    found = credit_tokens(mixed_batch(), torch.zeros(21), gamma=0.0, lam=0.0)
    mean, std = mean_and_std(advantage_moments([], 2))
    assert mean.tolist() == std.tolist() == [0.0, 0.0]
    assert torch.isfinite(whiten(found, mean, std).advantages).all()
