"""Policy losses on flat token tensors. Pure: one equation each, option names and formulas as in TRL 1.16.

A loss is a sum over tokens, ``sum_t weight_t * loss_t``. The weights already hold every normalisation
(tokens, sequences, roles, the global batch), so that a batch may be cut into rows, micro-batches and ranks
in any way without changing its gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rollout.records import TRACE

TokenLoss = Callable[..., tuple[Tensor, Tensor]]
"""``(logprobs, sampler_logprobs, advantages, epsilon=, epsilon_high=) -> (loss, is_clipped)``."""

TokenWeights = Callable[[Sequence[int]], list[float]]
"""Trained tokens of each sequence -> weight of each of its tokens."""


def clipped_surrogate(
    logprobs: Tensor,
    sampler_logprobs: Tensor,
    advantages: Tensor,
    *,
    epsilon: float,
    epsilon_high: float,
) -> tuple[Tensor, Tensor]:
    """PPO's pessimistic clipped surrogate, per token.

        ratio = exp(logprob - sampler_logprob)
        loss  = -min(ratio * A, clip(ratio, 1 - epsilon, 1 + epsilon_high) * A)

    Args:
        logprobs: Shape ``(N,)``, of the policy, with gradient.
        sampler_logprobs: Shape ``(N,)``, as the worker reported them.
        advantages: Shape ``(N,)``.
        epsilon: Lower clip distance from 1.
        epsilon_high: Upper clip distance from 1.

    Returns:
        The loss per token, and where the clip stopped the gradient.
    """
    ratio = torch.exp(logprobs - sampler_logprobs)
    clipped = torch.clamp(ratio, 1 - epsilon, 1 + epsilon_high)
    loss = -torch.min(ratio * advantages, clipped * advantages)
    too_low = (ratio < 1 - epsilon) & (advantages < 0)
    too_high = (ratio > 1 + epsilon_high) & (advantages > 0)
    return loss, too_low | too_high


def truncated_reinforce(
    logprobs: Tensor,
    sampler_logprobs: Tensor,
    advantages: Tensor,
    *,
    epsilon: float,
    epsilon_high: float,
) -> tuple[Tensor, Tensor]:
    """CISPO, per token: the importance weight is clipped and detached, so no token loses its gradient.

        loss = -stop_gradient(min(ratio, epsilon_high)) * A * logprob

    As in TRL, ``epsilon_high`` is here the largest ratio itself, not a distance from 1 (ScaleRL found values
    around 5 to work and the method insensitive to it), and there is no lower clip: ``epsilon`` is unused.

    Args and returns: see ``clipped_surrogate``.

    References:
        MiniMax-M1, https://arxiv.org/abs/2506.13585; ScaleRL, https://arxiv.org/abs/2510.13786.
    """
    del epsilon
    ratio = torch.exp(logprobs.detach() - sampler_logprobs)
    loss = -torch.clamp(ratio, max=epsilon_high) * advantages * logprobs
    return loss, (ratio > epsilon_high) & (advantages > 0)


def mean_over_tokens(lengths: Sequence[int]) -> list[float]:
    """Every trained token counts alike: ``1 / sum(lengths)``."""
    return [1.0 / max(sum(lengths), 1)] * len(lengths)


def mean_over_sequences(lengths: Sequence[int]) -> list[float]:
    """Every sequence counts alike: ``1 / (len(lengths) * length)``."""
    return [1.0 / (len(lengths) * max(length, 1)) for length in lengths]


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyLoss:
    """A loss of one token and how tokens are averaged over a sub-batch."""

    token_loss: TokenLoss
    token_weights: TokenWeights


LOSSES: Mapping[str, PolicyLoss] = {
    "grpo": PolicyLoss(token_loss=clipped_surrogate, token_weights=mean_over_sequences),
    "dapo": PolicyLoss(token_loss=clipped_surrogate, token_weights=mean_over_tokens),
    "cispo": PolicyLoss(token_loss=truncated_reinforce, token_weights=mean_over_tokens),
}


def policy_loss(loss_type: str, *, epsilon_high: float) -> PolicyLoss:
    """The loss named by ``algo.loss_type``.

    Raises:
        ValueError: If there is no such loss, or its clip would scale down tokens that are on-policy.
    """
    if loss_type not in LOSSES:
        raise ValueError(f"algo.loss_type is {loss_type!r}; choose one of {', '.join(LOSSES)}.")
    if loss_type == "cispo" and epsilon_high < 1:
        raise ValueError(
            f"algo.epsilon_high is {epsilon_high}, but for algo.loss_type=cispo it is the largest ratio "
            "itself (as in TRL), so it must be at least 1; 5.0 is a usual value."
        )
    return LOSSES[loss_type]


def imitation_nll(logprobs: Tensor, weights: Tensor) -> Tensor:
    """J_SFT as something to minimise: the length-normalised NLL, averaged over the positive samples.

        NLL = - sum_{i in positives} 1 / (|positives| * |o_i|) * sum_t logprob_it

    It is *added* to the policy loss: ``loss = policy loss + sft_coef * NLL``, so that a step down the loss
    makes positive samples likelier.

    Args:
        logprobs: Shape ``(N,)``.
        weights: Shape ``(N,)``: ``mean_over_sequences`` of the positive samples, zero for all others.
    """
    return -(weights * logprobs).sum()


def role_weights(roles: Iterable[str], *, operator_fraction: float) -> dict[str, float]:
    """The share of each sub-batch in the loss (Eq. 11 of the paper with ``operator_fraction`` 1/2).

    ``trace`` weighs ``1 - operator_fraction``; the operator's roles share ``operator_fraction`` evenly. Roles
    that are absent give their weight to those present, so the weights always sum to 1.

    Raises:
        ValueError: If only roles of weight zero are present.
    """
    present = sorted(set(roles))
    num_operator = sum(role != TRACE for role in present)
    raw = {
        role: 1 - operator_fraction if role == TRACE else operator_fraction / num_operator for role in present
    }
    total = sum(raw.values())
    if present and total <= 0:
        raise ValueError(
            f"algo.operator_fraction is {operator_fraction}, but the batch holds only {', '.join(present)} "
            "groups, whose weight is then zero. Collect groups of the other kind "
            "or change algo.operator_fraction."
        )
    return {role: weight / total for role, weight in raw.items()}
