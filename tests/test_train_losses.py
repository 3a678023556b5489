import math

import pytest
import torch
from torch import Tensor

from configs.schema.algo import LOSS_TYPES
from train.loss.losses import LOSSES, reinforce, sequence_mean, sequence_sum, truncated_reinforce


def gradient(loss_type: str, log_ratio: Tensor, advantages: Tensor) -> Tensor:
    """Of the sum of token losses, by the log-probs of the policy."""
    logprobs = (log_ratio - 2.0).requires_grad_()
    ratio = torch.exp(logprobs + 2.0)
    loss, _ = LOSSES[loss_type].token_loss(ratio, logprobs, advantages, epsilon=0.2, epsilon_high=1.5)
    loss.sum().backward()
    return logprobs.grad


def test_every_loss_of_the_config_exists():
    assert set(LOSSES) == set(LOSS_TYPES)


def test_bnpo_is_another_name_of_dapo():
    assert LOSSES["bnpo"] is LOSSES["dapo"]


@pytest.mark.parametrize("loss_type", LOSSES)
def test_a_step_makes_better_samples_likelier_and_worse_ones_less_likely(loss_type):
    slope = gradient(loss_type, torch.zeros(2), torch.tensor([1.0, -1.0]))
    assert slope[0] < 0 < slope[1]


def test_at_ratio_one_all_losses_share_one_gradient():
    advantages = torch.tensor([0.5, -1.5, 2.0], dtype=torch.float64)
    gradients = [gradient(name, torch.zeros(3, dtype=torch.float64), advantages) for name in LOSSES]
    for other in gradients:
        torch.testing.assert_close(other, -advantages, rtol=1e-12, atol=0)


def test_below_its_cap_cispo_is_reinforce_times_the_ratio_and_above_it_times_the_cap():
    log_ratio = torch.tensor([math.log(0.5), math.log(1.2), math.log(4.0)])
    advantages = torch.tensor([1.0, -2.0, 3.0])
    plain = gradient("reinforce", log_ratio, advantages)
    expected = plain * torch.tensor([0.5, 1.2, 1.5])
    torch.testing.assert_close(gradient("cispo", log_ratio, advantages), expected)


def test_the_clipped_surrogate_stops_only_what_goes_further_away():
    log_ratio = torch.log(torch.tensor([0.7, 0.7, 3.0, 3.0]))
    advantages = torch.tensor([1.0, -1.0, 1.0, -1.0])
    _, clipped = LOSSES["grpo"].token_loss(
        log_ratio.exp(), log_ratio, advantages, epsilon=0.2, epsilon_high=0.28
    )
    assert clipped.tolist() == [False, True, True, False]


def test_reinforce_and_cispo_say_what_they_cut():
    ratio = torch.tensor([9.0, 9.0, 1.0])
    advantages = torch.tensor([1.0, -1.0, 1.0])
    none = reinforce(ratio, ratio, advantages, epsilon=0.2, epsilon_high=5.0)[1]
    some = truncated_reinforce(ratio, ratio, advantages, epsilon=0.2, epsilon_high=5.0)[1]
    assert none.tolist() == [False, False, False]
    assert some.tolist() == [True, False, False]


def test_a_sequence_ratio_is_the_geometric_mean_of_its_tokens_ratios():
    log_ratio = torch.tensor([0.1, 0.5, -0.3, 0.2, 0.0])
    sequences = torch.tensor([0, 0, 2, 2, 2])
    means = sequence_mean(log_ratio, sequences, 4)
    torch.testing.assert_close(means, torch.tensor([0.3, 0.3, -0.1 / 3, -0.1 / 3, -0.1 / 3]))
    torch.testing.assert_close(
        sequence_sum(log_ratio, sequences, 4), torch.tensor([0.6, 0.6, -0.1, -0.1, -0.1])
    )


def test_a_sequence_of_one_token_has_the_same_loss_under_gspo_and_grpo():
    log_ratio = torch.tensor([0.1, -0.4, 0.3])
    means = sequence_mean(log_ratio, torch.arange(3), 3)
    torch.testing.assert_close(means, log_ratio)
