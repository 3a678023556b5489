"""Policy losses on flat token tensors. Pure: one equation each, option names and formulas as in TRL 1.16.

``N`` is the number of trained tokens; ``ratio`` is ``exp(logprob - old_logprob)``, per token or per sequence.
``train.loss.averaging`` defines how the losses of tokens are averaged over a batch.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from train.loss.averaging import TokenWeights, mean_over_longest, mean_over_sequences, mean_over_tokens

TokenLoss = Callable[..., tuple[Tensor, Tensor]]
"""``(ratio, logprobs, advantages, epsilon=, epsilon_high=) -> (loss, is_clipped)``."""


def clipped_surrogate(
    ratio: Tensor, logprobs: Tensor, advantages: Tensor, *, epsilon: float, epsilon_high: float
) -> tuple[Tensor, Tensor]:
    """Returns PPO's pessimistic clipped surrogate per token.

        loss = -min(ratio * A, clip(ratio, 1 - epsilon, 1 + epsilon_high) * A)

    Args:
        ratio: Shape ``(N,)``, with gradient.
        logprobs: Shape ``(N,)``, log-probs of the policy; unused here.
        advantages: Shape ``(N,)``.
        epsilon: Lower clip distance from 1.
        epsilon_high: Upper clip distance from 1.

    Returns:
        The loss per token and a bool mask of the tokens whose gradient the clip stopped, both ``(N,)``.
    """
    del logprobs
    clipped = torch.clamp(ratio, 1 - epsilon, 1 + epsilon_high)
    loss = -torch.min(ratio * advantages, clipped * advantages)
    # Where min() selects the clipped term, which does not depend on the ratio.
    too_low = (ratio < 1 - epsilon) & (advantages < 0)
    too_high = (ratio > 1 + epsilon_high) & (advantages > 0)
    return loss, too_low | too_high


def truncated_reinforce(
    ratio: Tensor, logprobs: Tensor, advantages: Tensor, *, epsilon: float, epsilon_high: float
) -> tuple[Tensor, Tensor]:
    """Returns the CISPO loss per token: the ratio is clipped and detached, so no token loses its gradient.

        loss = -stop_gradient(min(ratio, epsilon_high)) * A * logprob

    As in TRL, ``epsilon_high`` is the largest ratio itself, not a distance from 1 (ScaleRL found values
    around 5 to work and the method insensitive to it), and there is no lower clip: ``epsilon`` is unused.

    Args and returns: see ``clipped_surrogate``.

    References:
        MiniMax-M1, https://arxiv.org/abs/2506.13585; ScaleRL, https://arxiv.org/abs/2510.13786.
    """
    del epsilon
    ratio = ratio.detach()
    loss = -torch.clamp(ratio, max=epsilon_high) * advantages * logprobs
    return loss, (ratio > epsilon_high) & (advantages > 0)


def reinforce(
    ratio: Tensor, logprobs: Tensor, advantages: Tensor, *, epsilon: float, epsilon_high: float
) -> tuple[Tensor, Tensor]:
    """Returns the plain policy gradient loss per token: ``loss = -A * logprob``, never clipped.

    Args and returns: see ``clipped_surrogate``.
    """
    del epsilon, epsilon_high
    return -advantages * logprobs, torch.zeros_like(ratio, dtype=torch.bool)


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyLoss:
    """A token loss, the level of its ratio, and the average over the tokens of a sub-batch."""

    token_loss: TokenLoss
    token_weights: TokenWeights
    has_sequence_ratio: bool = False
    """True if a sequence has one ratio, the geometric mean of its tokens' ratios (``sequence_mean``)."""


_DAPO = PolicyLoss(token_loss=clipped_surrogate, token_weights=mean_over_tokens)

LOSSES: Mapping[str, PolicyLoss] = {
    "grpo": PolicyLoss(token_loss=clipped_surrogate, token_weights=mean_over_sequences),
    "dr_grpo": PolicyLoss(token_loss=clipped_surrogate, token_weights=mean_over_longest),
    "dapo": _DAPO,
    "bnpo": _DAPO,
    "cispo": PolicyLoss(token_loss=truncated_reinforce, token_weights=mean_over_tokens),
    # In TRL: loss_type=grpo with importance_sampling_level=sequence.
    "gspo": PolicyLoss(
        token_loss=clipped_surrogate, token_weights=mean_over_sequences, has_sequence_ratio=True
    ),
    "reinforce": PolicyLoss(token_loss=reinforce, token_weights=mean_over_tokens),
    # A critic's advantages (train.loss.gae) replace those of the group.
    "ppo": PolicyLoss(token_loss=clipped_surrogate, token_weights=mean_over_tokens),
}
"""Losses by their name in ``algo.loss_type``.

``bnpo`` is an alias of ``dapo``. In TRL they divide by different counts of trained tokens: dapo by those of
the whole batch; bnpo by those of each micro-batch on each rank, and then averages these means. Here the
gradient does not depend on how a batch is split into micro-batches and ranks, so both divide by the tokens of
the whole sub-batch. TRL's two losses are equal if a batch is one micro-batch on one rank.
"""


def sequence_mean(values: Tensor, sequences: Tensor, num_sequences: int) -> Tensor:
    """Replaces each token's value by the mean over its sequence.

    GSPO's ratio is the exponential of this mean of the tokens' log-ratios.

    Args:
        values: Shape ``(N,)``.
        sequences: Shape ``(N,)``: index of each token's sequence, below ``num_sequences``.
        num_sequences: Number of sequences; some may have no token.

    Returns:
        Shape ``(N,)``.

    References:
        Zheng et al., Group Sequence Policy Optimization, https://arxiv.org/abs/2507.18071.
    """
    # Every sequence that is looked up has a token, so no count is 0.
    counts = sequence_sum(torch.ones_like(values), sequences, num_sequences)
    return sequence_sum(values, sequences, num_sequences) / counts


def sequence_sum(values: Tensor, sequences: Tensor, num_sequences: int) -> Tensor:
    """Replaces each token's value by the sum over its sequence; arguments as for ``sequence_mean``."""
    sums = values.new_zeros(num_sequences).index_add(0, sequences, values)
    return sums[sequences]


def k3(log_ratio: Tensor) -> Tensor:
    """Returns the k3 estimate of a KL divergence, ``exp(x) - 1 - x``: unbiased and at least 0.

    For samples from q and ``x = log p - log q``, it estimates KL(q || p) per token, shape ``(N,)``.

    References:
        Schulman, http://joschu.net/blog/kl-approx.html.
    """
    return torch.exp(log_ratio) - 1 - log_ratio


def imitation_nll(logprobs: Tensor, weights: Tensor) -> Tensor:
    """Returns the negative of J_SFT: the length-normalised NLL, averaged over the positive samples.

        NLL = - sum_{i in positives} 1 / (|positives| * |o_i|) * sum_t logprob_it

    It is *added* to the policy loss: ``loss = policy loss + sft_coef * NLL``, so that minimising the loss
    makes positive samples more likely.

    Args:
        logprobs: Shape ``(N,)``.
        weights: Shape ``(N,)``: ``mean_over_sequences`` of the positive samples, zero for all others.
    """
    return -(weights * logprobs).sum()


def clipped_value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, *, cliprange_value: float
) -> tuple[Tensor, Tensor]:
    """Returns the squared value error per token, pessimistic about moves away from the old value.

        loss = 1/2 max( (V - R)^2, (clip(V, V_old - cliprange_value, V_old + cliprange_value) - R)^2 )

    Args:
        values: Shape ``(N,)``, with gradient.
        old_values: Shape ``(N,)``, values of the critic before its first update on this batch.
        returns: Shape ``(N,)``.
        cliprange_value: Distance from ``old_values`` beyond which a move no longer lowers the loss.

    Returns:
        The loss per token and a bool mask of the tokens whose gradient the clip stopped, both ``(N,)``.

    References:
        Schulman et al., Proximal Policy Optimization, https://arxiv.org/abs/1707.06347, as in OpenAI's
        baselines.
    """
    clipped = torch.clamp(values, old_values - cliprange_value, old_values + cliprange_value)
    plain_error, clipped_error = (values - returns).square(), (clipped - returns).square()
    return 0.5 * torch.maximum(plain_error, clipped_error), clipped_error > plain_error


def importance_weights(
    log_mismatch: Tensor,
    sequences: Tensor,
    num_sequences: int,
    *,
    mode: str,
    clip_min: float | None,
    clip_max: float | None,
) -> tuple[Tensor, Tensor]:
    """Returns factors of the token losses that correct the mismatch of sampler and trainer, within limits.

    The two engines assign different log-probs to the same policy, and a stale sampler adds to the difference.

        mismatch = exp(log_mismatch), per token, or its product over the sequence (``sequence_*``)
        weight   = min(max(mismatch, clip_min), clip_max)                (``*_truncate``)
        weight   = mismatch where clip_min <= mismatch <= clip_max else 0   (``*_mask``)

    ``token_truncate`` is truncated importance sampling; ``token_mask`` with both limits is IcePop.

    Args:
        log_mismatch: Shape ``(N,)``: ``old_logprob - sampler_logprob``, where the trainer computes the old
            log-prob with the policy before this batch.
        sequences: Shape ``(N,)``: index of each token's sequence.
        num_sequences: Number of sequences.
        mode: ``token_truncate``, ``token_mask``, ``sequence_truncate`` or ``sequence_mask``.
        clip_min: Lower limit, or None.
        clip_max: Upper limit, or None.

    Returns:
        The weights and a bool mask of the tokens outside the limits, both ``(N,)``.

    References:
        Yao et al., Your Efficient RL Framework Secretly Brings You Off-Policy RL Training,
        https://fengyao.notion.site/off-policy-rl; IcePop, https://ringtech.notion.site/icepop.
    """
    level, action = mode.split("_")
    if level == "sequence":
        # The log of the product over the sequence, repeated for each of its tokens.
        log_mismatch = sequence_sum(log_mismatch, sequences, num_sequences)
    mismatch = torch.exp(log_mismatch)
    least = 0.0 if clip_min is None else clip_min
    most = torch.inf if clip_max is None else clip_max
    is_outside = (mismatch < least) | (mismatch > most)
    if action == "truncate":
        return mismatch.clamp(least, most), is_outside
    return mismatch.masked_fill(is_outside, 0.0), is_outside
