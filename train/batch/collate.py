"""Rows -> one micro-batch of flat tensors.

A row of one completion is an ordinary sequence. A row of several is ``[prompt, c1, .., cn]``: positions
restart after the prompt for each completion, and ``train.model.attention`` keeps completions from seeing one
another.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from train.batch.rows import Branch, Row, RowShape


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroBatch:
    """One forward and backward of one rank. B rows of T tokens, N trained tokens in all.

    ``predictors`` are flat positions (``row * T + column``) whose hidden state predicts ``targets``: the
    token before, or the last prompt token for the first token of every completion. Only trained tokens are
    listed, so prompts and forced tokens cannot receive gradient. What has one entry per trained token has
    shape ``(N,)``; tokens of one completion are neighbours, in their order.
    """

    input_ids: Tensor
    position_ids: Tensor
    attention_mask: Tensor
    """Bool, ``(B, T)``: where a token is no padding. For attention other than ``train.model.attention``."""
    rows: tuple[RowShape, ...]
    """Of each of the B rows."""
    predictors: Tensor
    targets: Tensor
    sequences: Tensor
    """Number of each trained token's completion in this micro-batch."""
    roles: Tensor
    """Index of each trained token's role in the list given to ``collate``."""
    sampler_logprobs: Tensor
    advantages: Tensor
    policy_weights: Tensor
    imitation_weights: Tensor
    entropy_weights: Tensor
    rewards: Tensor
    """Of each completion, shape ``(num_sequences,)``."""
    num_sequences: int
    """Completions, those without a trained token included."""
    call_ids: tuple[str, ...]
    """The call of each completion, ``num_sequences`` of them."""
    head_chunks: int
    """See ``train.batch.packing.Bin``."""
    old_logprobs: Tensor | None = None
    """Of the policy before its first update on this batch; None where this is that update."""
    ref_logprobs: Tensor | None = None
    """Of the reference model; None without one."""
    old_values: Tensor | None = None
    """Of the critic before its first update on this batch; None without one."""
    returns: Tensor | None = None
    """What values should predict; None without a critic."""

    def to(self, device: torch.device) -> Self:
        """A copy on ``device``."""
        tensors: dict[str, Any] = {
            field.name: getattr(self, field.name).to(device)
            for field in fields(self)
            if isinstance(getattr(self, field.name), Tensor)
        }
        return replace(self, **tensors)


def collate(rows: Sequence[Row], *, roles: Sequence[str], head_chunks: int = 1) -> MicroBatch:
    """One micro-batch of rows, padded on the right to the longest."""
    length = max(row.num_tokens for row in rows)
    ids = np.zeros((len(rows), length), dtype=np.int64)
    positions = np.zeros((len(rows), length), dtype=np.int64)
    is_token = np.zeros((len(rows), length), dtype=bool)
    flat: list[tuple[np.ndarray, ...]] = []
    for index, row in enumerate(rows):
        prompt = len(row.prompt_ids)
        ids[index, :prompt] = row.prompt_ids
        positions[index, :prompt] = np.arange(prompt)
        start = prompt
        for branch in row.branches:
            end = start + len(branch.completion_ids)
            ids[index, start:end] = branch.completion_ids
            positions[index, start:end] = prompt + np.arange(end - start)
            flat.append(_flatten(branch, index * length, prompt, start, len(flat), roles))
            start = end
        is_token[index, :start] = True
    columns = [torch.from_numpy(np.concatenate(column)) for column in zip(*flat, strict=True)]
    predictors, targets, sequences, role_ids, sampler, advantages, policy, imitation, entropy = columns
    return MicroBatch(
        input_ids=torch.from_numpy(ids),
        position_ids=torch.from_numpy(positions),
        attention_mask=torch.from_numpy(is_token),
        rows=tuple(row.shape for row in rows),
        predictors=predictors,
        targets=targets,
        sequences=sequences,
        roles=role_ids,
        sampler_logprobs=sampler,
        advantages=advantages,
        policy_weights=policy,
        imitation_weights=imitation,
        entropy_weights=entropy,
        rewards=torch.tensor([branch.reward for row in rows for branch in row.branches]),
        num_sequences=len(flat),
        call_ids=tuple(branch.call_id for row in rows for branch in row.branches),
        head_chunks=head_chunks,
    )


def _flatten(
    branch: Branch, offset: int, prompt: int, start: int, number: int, roles: Sequence[str]
) -> tuple[np.ndarray, ...]:
    """The trained tokens of completion ``number``, which begins at column ``start`` of its row."""
    trained = np.flatnonzero(branch.train_mask)
    predictors = offset + np.where(trained == 0, prompt - 1, start + trained - 1)
    return (
        predictors.astype(np.int64),
        branch.completion_ids[trained].astype(np.int64),
        np.full(len(trained), number, dtype=np.int64),
        np.full(len(trained), roles.index(branch.role), dtype=np.int64),
        branch.sampler_logprobs[trained].astype(np.float32),
        branch.advantages[trained].astype(np.float32),
        np.full(len(trained), branch.policy_weight, dtype=np.float32),
        np.full(len(trained), branch.imitation_weight, dtype=np.float32),
        np.full(len(trained), branch.entropy_weight, dtype=np.float32),
    )
