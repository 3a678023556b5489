"""The loss of one micro-batch: what is added up, token by token. Pure."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from configs.schema import AlgoConfig
from train.collate import MicroBatch
from train.losses import LOSSES, imitation_nll, sequence_mean


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenTerms:
    """Per trained token, shape ``(N,)`` each, without gradient: for metrics."""

    logprobs: Tensor
    token_loss: Tensor
    is_clipped: Tensor


def objective(batch: MicroBatch, logprobs: Tensor, algo: AlgoConfig) -> tuple[Tensor, TokenTerms]:
    """This micro-batch's part of the loss of an update: a sum, weighted token by token.

        loss = sum_t policy_weight_t * policy loss_t + sft_coef * NLL(positive samples)

    Args:
        batch: The micro-batch.
        logprobs: Shape ``(N,)``, of the policy, with gradient.
        algo: Which losses.
    """
    policy_loss = LOSSES[algo.loss_type]
    log_ratio = logprobs - batch.sampler_logprobs
    if policy_loss.has_sequence_ratio:
        log_ratio = sequence_mean(log_ratio, batch.sequences, batch.num_sequences)
    token_loss, is_clipped = policy_loss.token_loss(
        torch.exp(log_ratio),
        logprobs,
        batch.advantages,
        epsilon=algo.epsilon,
        epsilon_high=algo.epsilon_high,
    )
    loss = (batch.policy_weights * token_loss).sum() + imitation_nll(logprobs, batch.imitation_weights)
    terms = TokenTerms(
        logprobs=logprobs.detach(), token_loss=token_loss.detach(), is_clipped=is_clipped.detach()
    )
    return loss, terms
