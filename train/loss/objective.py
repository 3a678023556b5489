"""The loss of one micro-batch as a weighted sum over tokens. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from configs.schema import AlgoConfig
from train.batch.collate import MicroBatch
from train.loss.losses import LOSSES, clipped_value_loss, imitation_nll, importance_weights, k3, sequence_mean


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenTerms:
    """Terms of a loss, from which metrics are computed: by name, shape ``(N,)``, without gradient."""

    losses: Mapping[str, Tensor]
    """Terms that are summed over tokens with the weights of the loss."""
    means: Mapping[str, Tensor]
    """Terms that are averaged over tokens."""
    only: Mapping[str, Tensor]
    """For means that not every token has: bool, True for the tokens that have it."""
    maxima: Mapping[str, Tensor]
    """Terms that are reduced to their maximum."""


def objective(
    batch: MicroBatch, logprobs: Tensor, entropies: Tensor, algo: AlgoConfig
) -> tuple[Tensor, TokenTerms]:
    """Returns this micro-batch's part of the loss of an update: a weighted sum over tokens.

        loss = sum_t policy_weight_t * (mismatch_t * policy loss_t + beta * KL_t)
               + sft_coef * NLL(positive samples) + amortise_coef * NLL(amortised answers)
               - entropy_coef * mean entropy

    As in TRL, the importance weight for the mismatch does not apply to the KL term, and the entropy is
    averaged over tokens for every loss type.

    Args:
        batch: The micro-batch.
        logprobs: Shape ``(N,)``, log-probs of the policy, with gradient.
        entropies: Shape ``(N,)``, entropies of the policy, with gradient if ``algo.entropy_coef`` is not 0.
        algo: Loss type, coefficients and limits.

    Returns:
        The loss, a scalar, and its terms.
    """
    # In the first update the policy is the old policy; detached, so that the ratio still has a gradient.
    old_logprobs = logprobs.detach() if batch.old_logprobs is None else batch.old_logprobs
    # Without a policy weight there is no ratio: an amortised answer was sampled under another prompt.
    has_ratio = batch.policy_weights != 0
    sampler_logprobs = torch.where(has_ratio, batch.sampler_logprobs, old_logprobs)
    log_mismatch = old_logprobs - sampler_logprobs
    weights, is_outside = importance_weights(
        log_mismatch,
        batch.sequences,
        batch.num_sequences,
        mode=algo.vllm_importance_sampling_mode,
        clip_min=algo.vllm_importance_sampling_clip_min,
        clip_max=algo.vllm_importance_sampling_clip_max,
    )
    policy_loss = LOSSES[algo.loss_type]
    # With sampler_is_old the ratio itself contains the mismatch of the engines.
    log_ratio = logprobs - (sampler_logprobs if algo.sampler_is_old else old_logprobs)
    if policy_loss.has_sequence_ratio:
        log_ratio = sequence_mean(log_ratio, batch.sequences, batch.num_sequences)
    ratio = torch.exp(log_ratio)
    gap = teacher_gap(batch, logprobs)
    advantages = batch.advantages if gap is None else batch.advantages + algo.opd_coef * gap
    token_loss, is_clipped = policy_loss.token_loss(
        ratio, logprobs, advantages, epsilon=algo.epsilon, epsilon_high=algo.epsilon_high
    )
    if algo.vllm_importance_sampling_correction:
        token_loss = token_loss * weights
    ref_kl = None
    if batch.ref_logprobs is not None:
        # Estimates KL(policy || reference). The ratio corrects for tokens of an older policy.
        ref_kl = k3(batch.ref_logprobs - logprobs)
        token_loss = token_loss + algo.beta * (ref_kl * ratio if algo.use_bias_correction_kl else ref_kl)
    # All normalisation is in the weights: parts of micro-batches and ranks simply add up.
    loss = (
        (batch.policy_weights * token_loss).sum()
        + imitation_nll(logprobs, batch.imitation_weights)
        - (batch.entropy_weights * entropies).sum()
    )
    mismatch = log_mismatch.exp()
    means = {
        "entropy": entropies.detach(),
        "kl": k3(logprobs.detach() - sampler_logprobs),
        "clip": is_clipped,
        "mismatch": mismatch,
        "mismatch_kl": k3(log_mismatch),
        "mismatch_outside": is_outside,
    }
    if ref_kl is not None:
        means["ref_kl"] = ref_kl.detach()
    only = dict.fromkeys(means, has_ratio)
    if algo.opd_coef:
        # Also without a teacher in this micro-batch: all ranks reduce the same terms.
        nobody = torch.zeros_like(has_ratio)
        means["opd_kl"] = torch.zeros_like(mismatch) if gap is None else -gap
        only["opd_kl"] = nobody if batch.has_teacher is None else batch.has_teacher
    means["nll"] = -logprobs.detach()
    only["nll"] = ~has_ratio
    losses = {"loss": token_loss.detach()}
    return loss, TokenTerms(losses=losses, means=means, only=only, maxima={"mismatch_max": mismatch})


def teacher_gap(batch: MicroBatch, logprobs: Tensor) -> Tensor | None:
    """Returns what a teacher adds to the advantage of each token; None if no token has a teacher.

        gap_t = log q(y_t | y_<t, teacher's prompt) - log pi(y_t | y_<t, own prompt); 0 without a teacher

    On samples of pi, ``E[-gap_t]`` is the reverse KL divergence KL(pi || q) of the next token, and its
    gradient is ``E[-gap_t * grad log pi]``: a policy gradient whose advantage is the gap. So the gap is added
    to the advantage, times ``algo.opd_coef``, and the loss of ``algo.loss_type`` does the rest. As in the
    sources, a token answers for its own divergence only, not for that of later tokens (a discount of 0).

    Args:
        batch: The micro-batch.
        logprobs: Log-probs of the policy, shape ``(N,)``; no gradient flows through the gap.

    References:
        Thinking Machines, https://thinkingmachines.ai/blog/on-policy-distillation, whose code
        (tinker_cookbook.distillation) adds ``-kl_penalty_coef * (log pi - log q)`` to advantages. The policy
        with more context as its own teacher: SDPO, https://arxiv.org/abs/2601.20802, TRL's ``SDPOTrainer``.
    """
    if batch.teacher_logprobs is None or batch.has_teacher is None:
        return None
    return torch.where(batch.has_teacher, batch.teacher_logprobs - logprobs.detach(), 0.0)


def value_objective(batch: MicroBatch, values: Tensor, algo: AlgoConfig) -> tuple[Tensor, TokenTerms]:
    """Returns this micro-batch's part of the critic's loss: the mean over the tokens of each role.

    It uses the policy weights, and with them the shares of the roles.

    Args:
        batch: The micro-batch, with ``old_values`` and ``returns``.
        values: Shape ``(N,)``, values of the critic, with gradient.
        algo: Source of ``cliprange_value``.

    Returns:
        The loss, a scalar, and its terms.
    """
    assert batch.old_values is not None and batch.returns is not None, "a critic's batch has its estimates"
    value_loss, is_clipped = clipped_value_loss(
        values, batch.old_values, batch.returns, cliprange_value=algo.cliprange_value
    )
    error = batch.returns - batch.old_values
    means = {
        "value": values.detach(),
        "value_clip": is_clipped,
        "return": batch.returns,
        "return_squared": batch.returns.square(),
        "value_error": error,
        "value_error_squared": error.square(),
    }
    losses = {"value_loss": value_loss.detach()}
    only = dict.fromkeys(means, batch.policy_weights != 0)
    terms = TokenTerms(losses=losses, means=means, only=only, maxima={})
    return (batch.policy_weights * value_loss).sum(), terms
