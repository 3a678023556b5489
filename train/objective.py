"""The loss of one micro-batch: what is added up, token by token. Pure."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from configs.schema import AlgoConfig
from train.collate import MicroBatch
from train.losses import LOSSES, imitation_nll, k3, sequence_mean


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenTerms:
    """Per trained token, shape ``(N,)`` each, without gradient: for metrics."""

    token_loss: Tensor
    is_clipped: Tensor
    entropies: Tensor
    sampler_kl: Tensor
    """k3 estimate of KL(sampler || policy)."""
    ref_kl: Tensor
    """k3 estimate of KL(policy || reference); zero without a reference."""


def objective(
    batch: MicroBatch, logprobs: Tensor, entropies: Tensor, algo: AlgoConfig
) -> tuple[Tensor, TokenTerms]:
    """This micro-batch's part of the loss of an update: a sum, weighted token by token.

        loss = sum_t policy_weight_t * (policy loss_t + beta * KL_t)
               + sft_coef * NLL(positive samples) - entropy_coef * mean entropy

    As in TRL, the entropy is averaged over tokens whatever the loss type.

    Args:
        batch: The micro-batch.
        logprobs: Shape ``(N,)``, of the policy, with gradient.
        entropies: Shape ``(N,)``, of the policy, with gradient if ``algo.entropy_coef`` is not 0.
        algo: Which losses.

    Returns:
        The loss, and its terms.
    """
    policy_loss = LOSSES[algo.loss_type]
    log_ratio = logprobs - old_logprobs(batch, logprobs, algo)
    if policy_loss.has_sequence_ratio:
        log_ratio = sequence_mean(log_ratio, batch.sequences, batch.num_sequences)
    ratio = torch.exp(log_ratio)
    token_loss, is_clipped = policy_loss.token_loss(
        ratio, logprobs, batch.advantages, epsilon=algo.epsilon, epsilon_high=algo.epsilon_high
    )
    ref_kl = torch.zeros_like(logprobs)
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
        ref_kl=ref_kl.detach(),
    )
    return loss, terms


def old_logprobs(batch: MicroBatch, logprobs: Tensor, algo: AlgoConfig) -> Tensor:
    """The log-probs that ratios are taken against, shape ``(N,)``; see ``AlgoConfig.sampler_is_old``."""
    if algo.sampler_is_old:
        return batch.sampler_logprobs
    # In the first update the policy is the old policy.
    return logprobs.detach() if batch.old_logprobs is None else batch.old_logprobs
