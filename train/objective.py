"""The loss of one micro-batch: what is added up, token by token. Pure."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from configs.schema import AlgoConfig
from train.collate import MicroBatch
from train.losses import LOSSES, imitation_nll, k3, sequence_mean
from train.mismatch import importance_weights


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenTerms:
    """Per trained token, shape ``(N,)`` each, without gradient: for metrics."""

    token_loss: Tensor
    is_clipped: Tensor
    entropies: Tensor
    sampler_kl: Tensor
    """k3 estimate of KL(sampler || policy)."""
    mismatch: Tensor
    """exp(trainer's old log-prob - sampler's)."""
    mismatch_kl: Tensor
    """k3 estimate of KL(sampler || trainer's old policy)."""
    is_outside: Tensor
    """Outside the limits of the importance weight, whether or not that is applied."""
    ref_kl: Tensor | None
    """k3 estimate of KL(policy || reference)."""


def objective(
    batch: MicroBatch, logprobs: Tensor, entropies: Tensor, algo: AlgoConfig
) -> tuple[Tensor, TokenTerms]:
    """This micro-batch's part of the loss of an update: a sum, weighted token by token.

        loss = sum_t policy_weight_t * (mismatch_t * policy loss_t + beta * KL_t)
               + sft_coef * NLL(positive samples) - entropy_coef * mean entropy

    As in TRL, the importance weight for the mismatch leaves the KL term alone, and the entropy is averaged
    over tokens whatever the loss type.

    Args:
        batch: The micro-batch.
        logprobs: Shape ``(N,)``, of the policy, with gradient.
        entropies: Shape ``(N,)``, of the policy, with gradient if ``algo.entropy_coef`` is not 0.
        algo: Which losses.

    Returns:
        The loss, and its terms.
    """
    # In the first update the policy is the old policy.
    old_logprobs = logprobs.detach() if batch.old_logprobs is None else batch.old_logprobs
    log_mismatch = old_logprobs - batch.sampler_logprobs
    weights, is_outside = importance_weights(
        log_mismatch,
        batch.sequences,
        batch.num_sequences,
        mode=algo.vllm_importance_sampling_mode,
        clip_min=algo.vllm_importance_sampling_clip_min,
        clip_max=algo.vllm_importance_sampling_clip_max,
    )
    policy_loss = LOSSES[algo.loss_type]
    log_ratio = logprobs - (batch.sampler_logprobs if algo.sampler_is_old else old_logprobs)
    if policy_loss.has_sequence_ratio:
        log_ratio = sequence_mean(log_ratio, batch.sequences, batch.num_sequences)
    ratio = torch.exp(log_ratio)
    token_loss, is_clipped = policy_loss.token_loss(
        ratio, logprobs, batch.advantages, epsilon=algo.epsilon, epsilon_high=algo.epsilon_high
    )
    if algo.vllm_importance_sampling_correction:
        token_loss = token_loss * weights
    ref_kl = None
    if batch.ref_logprobs is not None:
        ref_kl = k3(batch.ref_logprobs - logprobs)
        token_loss = token_loss + algo.beta * (ref_kl * ratio if algo.use_bias_correction_kl else ref_kl)
    loss = (
        (batch.policy_weights * token_loss).sum()
        + imitation_nll(logprobs, batch.imitation_weights)
        - (batch.entropy_weights * entropies).sum()
    )
    terms = TokenTerms(
        token_loss=token_loss.detach(),
        is_clipped=is_clipped,
        entropies=entropies.detach(),
        sampler_kl=k3(logprobs.detach() - batch.sampler_logprobs),
        mismatch=log_mismatch.exp(),
        mismatch_kl=k3(log_mismatch),
        is_outside=is_outside,
        ref_kl=None if ref_kl is None else ref_kl.detach(),
    )
    return loss, terms
