"""Collates rows into one micro-batch of flat tensors.

A row with one completion is an ordinary sequence. A row with several is ``[prompt, c1, .., cn]``: positions
restart after the prompt for each completion, and ``train.model.attention`` prevents completions from
attending to one another.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from train.batch.pinned import to_device
from train.batch.rows import Branch, Row, RowShape


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroBatch:
    """Input of one forward and backward pass on one rank: B rows of T tokens, N trained tokens in total.

    ``predictors`` are flat positions (``row * T + column``) whose hidden state predicts ``targets``: the
    position of the preceding token, or of the last prompt token for the first token of a completion. Only
    trained tokens are listed, so prompts and forced tokens cannot receive gradient. Tensors with one entry
    per trained token have shape ``(N,)``; tokens of one completion are contiguous and in order.
    """

    input_ids: Tensor
    """Token ids, shape ``(B, T)``; 0 at padding."""
    position_ids: Tensor
    """Positions, shape ``(B, T)``; they restart after the prompt for each completion."""
    attention_mask: Tensor
    """Bool, shape ``(B, T)``: False at padding. Used by attention other than ``train.model.attention``."""
    rows: tuple[RowShape, ...]
    """Shapes of the B rows."""
    predictors: Tensor
    targets: Tensor
    sequences: Tensor
    """Index of each trained token's completion within this micro-batch."""
    roles: Tensor
    """Index of each trained token's role in the ``roles`` passed to ``collate``."""
    sampler_logprobs: Tensor
    advantages: Tensor
    policy_weights: Tensor
    imitation_weights: Tensor
    entropy_weights: Tensor
    rewards: Tensor
    """Rewards of the completions, shape ``(num_sequences,)``."""
    num_sequences: int
    """Number of completions, including those without a trained token."""
    call_ids: tuple[str, ...]
    """Call ids of the completions, ``num_sequences`` in total."""
    temperatures: Tensor | None = None
    """Temperatures that the tokens are sampled at, shape ``(N,)``; None: the policy's for all."""
    teacher_logprobs: Tensor | None = None
    """Log-probs of the teacher, shape ``(N,)``; any number for tokens without one; None without a teacher."""
    has_teacher: Tensor | None = None
    """Bool, shape ``(N,)``: True for tokens that have a teacher."""
    old_logprobs: Tensor | None = None
    """Log-probs of the policy before its first update on this batch; None during that first update."""
    ref_logprobs: Tensor | None = None
    """Log-probs of the reference model; None without one."""
    old_values: Tensor | None = None
    """Values of the critic before its first update on this batch; None without a critic."""
    returns: Tensor | None = None
    """Regression targets of the values; None without a critic."""

    def to(self, device: torch.device) -> Self:
        """Returns a copy on ``device``. The host does not wait for a copy to a GPU."""
        tensors: dict[str, Any] = {
            field.name: to_device(getattr(self, field.name), device)
            for field in fields(self)
            if isinstance(getattr(self, field.name), Tensor)
        }
        return replace(self, **tensors)


def collate(rows: Sequence[Row], *, roles: Sequence[str]) -> MicroBatch:
    """Returns one micro-batch of ``rows``, padded on the right to the longest row.

    Args:
        rows: At least one row.
        roles: All roles of the step; ``MicroBatch.roles`` indexes this list.
    """
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
            # Each completion sees only the prompt before it, so its positions continue the prompt's.
            positions[index, start:end] = prompt + np.arange(end - start)
            flat.append(_flatten(branch, index * length, prompt, start, len(flat), roles))
            start = end
        is_token[index, :start] = True
    # One column per array of ``_flatten``, concatenated over completions to shape (N,).
    columns = [torch.from_numpy(np.concatenate(column)) for column in zip(*flat, strict=True)]
    predictors, targets, sequences, role_ids, sampler, advantages, policy, imitation, entropy = columns
    teacher_logprobs, has_teacher = _teachers([branch for row in rows for branch in row.branches])
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
        teacher_logprobs=teacher_logprobs,
        has_teacher=has_teacher,
    )


def _teachers(branches: Sequence[Branch]) -> tuple[Tensor, Tensor] | tuple[None, None]:
    """Returns the teacher's log-probs of the trained tokens, and whether they have one."""
    if all(branch.teacher_logprobs is None for branch in branches):
        return None, None
    given = [b.teacher_logprobs for b in branches]
    logprobs = [
        np.zeros(b.num_trained, dtype=np.float32) if each is None else each[b.train_mask]
        for b, each in zip(branches, given, strict=True)
    ]
    known = [np.full(b.num_trained, each is not None) for b, each in zip(branches, given, strict=True)]
    return torch.from_numpy(np.concatenate(logprobs)), torch.from_numpy(np.concatenate(known))


def _flatten(
    branch: Branch, offset: int, prompt: int, start: int, number: int, roles: Sequence[str]
) -> tuple[np.ndarray, ...]:
    """Returns the trained tokens of completion ``number``, which begins at column ``start`` of its row.

    Each array has one entry per trained token; ``offset`` is the flat position of the row's first column.
    """
    # Indices within the completion. Index 0 is predicted from the last prompt token, which in a shared row
    # does not directly precede the completion.
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
