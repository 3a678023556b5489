"""The difference between sampler and trainer: two engines give one policy different log-probs. Pure.

Names and formulas as in TRL 1.16. ``log_mismatch`` is old_logprob - sampler_logprob, where the old log-prob
is the trainer's for the policy that it had before the batch. A stale sampler adds to it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from train.losses import sequence_sum


def importance_weights(
    log_mismatch: Tensor,
    sequences: Tensor,
    num_sequences: int,
    *,
    mode: str,
    clip_min: float | None,
    clip_max: float | None,
) -> tuple[Tensor, Tensor]:
    """Factors of the token losses that correct for the mismatch, within limits.

        mismatch = exp(log_mismatch), per token, or its product over the sequence (``sequence_*``)
        weight   = min(max(mismatch, clip_min), clip_max)                (``*_truncate``)
        weight   = mismatch where clip_min <= mismatch <= clip_max else 0   (``*_mask``)

    ``token_truncate`` is truncated importance sampling; ``token_mask`` with both limits is IcePop.

    Args:
        log_mismatch: Shape ``(N,)``.
        sequences: Shape ``(N,)``: number of each token's sequence.
        num_sequences: How many there are.
        mode: ``token_truncate``, ``token_mask``, ``sequence_truncate`` or ``sequence_mask``.
        clip_min: Lower limit; None for none.
        clip_max: Upper limit; None for none.

    Returns:
        The weights, shape ``(N,)``, and which tokens were outside the limits.

    References:
        Yao et al., Your Efficient RL Framework Secretly Brings You Off-Policy RL Training,
        https://fengyao.notion.site/off-policy-rl; IcePop, https://ringtech.notion.site/icepop.
    """
    level, action = mode.split("_")
    if level == "sequence":
        log_mismatch = sequence_sum(log_mismatch, sequences, num_sequences)
    mismatch = torch.exp(log_mismatch)
    least = 0.0 if clip_min is None else clip_min
    most = torch.inf if clip_max is None else clip_max
    is_outside = (mismatch < least) | (mismatch > most)
    if action == "truncate":
        return mismatch.clamp(least, most), is_outside
    return mismatch.masked_fill(is_outside, 0.0), is_outside
