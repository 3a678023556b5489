"""Rows -> micro-batches of flat tensors, balanced over ranks.

A row is one prompt and one or more completions of it. Several completions share the prompt's keys and
values: the row is ``[prompt, c1, .., cn]``, positions restart after the prompt for each completion, and a
tree mask keeps completions from seeing one another. A row of one completion is an ordinary sequence.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

SHARE_FROM = 0.25
"""A group shares its prompt when that saves at least this share of its tokens; below, attention over the
longer row costs more than it saves."""

HEAD_CHUNK = 1024
"""Trained tokens that go through the LM head at once."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Branch:
    """One completion with what its loss needs; each array has one entry per completion token.

    ``policy_weights`` and ``imitation_weights`` hold every normalisation (see ``train.losses``).
    """

    role: str
    is_positive: bool
    """A correct sample, which imitation learns from."""
    completion_ids: np.ndarray
    sampler_logprobs: np.ndarray
    train_mask: np.ndarray
    advantages: np.ndarray
    policy_weights: np.ndarray
    imitation_weights: np.ndarray

    @property
    def num_trained(self) -> int:
        """Tokens in the loss."""
        return int(self.train_mask.sum())

    @property
    def has_gradient(self) -> bool:
        """Whether any token of it can move the policy: by its advantage or by imitation."""
        policy = (self.policy_weights * self.advantages)[self.train_mask]
        return bool(policy.any() or self.imitation_weights[self.train_mask].any())

    def without_weight(self) -> Branch:
        """The same tokens with no influence on the policy."""
        zeros = np.zeros_like(self.policy_weights)
        return replace(self, policy_weights=zeros, imitation_weights=zeros)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Row:
    """A prompt and the completions that share it."""

    prompt_ids: np.ndarray
    branches: tuple[Branch, ...]

    @property
    def num_tokens(self) -> int:
        """Length of the row in the model."""
        return len(self.prompt_ids) + sum(len(branch.completion_ids) for branch in self.branches)

    @property
    def num_trained(self) -> int:
        """Tokens in the loss."""
        return sum(branch.num_trained for branch in self.branches)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Bin:
    """The rows of one micro-batch, before they become tensors."""

    rows: tuple[Row, ...]
    head_chunks: int
    """Calls of the LM head. Equal on all ranks of a micro-step: under ZeRO-3 each call is a collective."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroBatch:
    """One forward and backward of one rank. B rows of T tokens, N trained tokens in all.

    ``predictors`` are flat positions (``row * T + column``) whose hidden state predicts ``targets``: the
    token before, or the last prompt token for the first token of every completion. Only trained tokens are
    listed, so prompts and forced tokens cannot receive gradient.
    """

    input_ids: Tensor
    position_ids: Tensor
    attention_mask: Tensor
    """Bool: ``(B, T)`` where no token is padding, or ``(B, 1, T, T)`` (query, key) when a row branches."""
    predictors: Tensor
    targets: Tensor
    sampler_logprobs: Tensor
    advantages: Tensor
    policy_weights: Tensor
    imitation_weights: Tensor
    roles: Tensor
    """Index of each trained token's role in the list given to ``collate``."""
    head_chunks: int
    """See ``Bin``."""

    def to(self, device: torch.device) -> MicroBatch:
        """A copy on ``device``."""
        tensors: dict[str, Any] = {
            field.name: getattr(self, field.name).to(device)
            for field in fields(self)
            if isinstance(getattr(self, field.name), Tensor)
        }
        return replace(self, **tensors)


def share_prompts(rows: Sequence[Row], *, tokens_per_row: int) -> list[Row]:
    """Decides per group whether its completions share one row.

    Args:
        rows: One row per group, with all its completions.
        tokens_per_row: No shared row gets longer, unless its shortest form already is.
    """
    result: list[Row] = []
    for row in rows:
        prompt = len(row.prompt_ids)
        apart = row.num_tokens + prompt * (len(row.branches) - 1)
        if apart - row.num_tokens >= SHARE_FROM * apart:
            result.extend(_split(row, tokens_per_row))
        else:
            result.extend(separate([row]))
    return result


def separate(rows: Sequence[Row]) -> list[Row]:
    """One row for each completion, each with the whole prompt."""
    return [replace(row, branches=(branch,)) for row in rows for branch in row.branches]


def _split(row: Row, tokens_per_row: int) -> list[Row]:
    """Cuts a row with many completions into rows within the budget, longest completions first."""
    parts: list[list[Branch]] = []
    used = math.inf
    for branch in sorted(row.branches, key=lambda branch: -len(branch.completion_ids)):
        if used + len(branch.completion_ids) > tokens_per_row:
            parts.append([])
            used = len(row.prompt_ids)
        parts[-1].append(branch)
        used += len(branch.completion_ids)
    return [replace(row, branches=tuple(part)) for part in parts]


def make_plan(rows: Sequence[Row], *, tokens_per_micro_batch: int, world_size: int) -> list[list[Bin]]:
    """Packs rows into micro-steps; each holds one bin for each rank.

    Rows are sorted by length, so that micro-batches waste little padding, and neighbours, which cost about
    the same, run at the same time on different ranks. Where the count does not divide, large bins are
    halved, and at last a row of zero weight fills up.

    Args:
        rows: As ``share_prompts`` leaves them; not empty.
        tokens_per_micro_batch: Padded tokens of one micro-batch; a longer row gets one of its own.
        world_size: Number of ranks.

    Returns:
        ``plan[micro_step][rank]``.
    """
    assert rows, "a plan needs rows"
    bins = _fill(rows, tokens_per_micro_batch)
    while len(bins) % world_size:
        largest = max(range(len(bins)), key=lambda position: (len(bins[position]) > 1, _cost(bins[position])))
        if len(bins[largest]) > 1:
            bins.append(bins[largest][1::2])
            bins[largest] = bins[largest][::2]
        else:
            bins.append([_dummy(min(rows, key=lambda row: row.num_tokens))])
    bins.sort(key=_cost, reverse=True)
    steps = [bins[start : start + world_size] for start in range(0, len(bins), world_size)]
    return [_micro_step(step) for step in steps]


def _micro_step(bins: Sequence[Sequence[Row]]) -> list[Bin]:
    most = max(sum(row.num_trained for row in rows) for rows in bins)
    chunks = max(1, math.ceil(most / HEAD_CHUNK))
    return [Bin(rows=tuple(rows), head_chunks=chunks) for rows in bins]


def _fill(rows: Sequence[Row], budget: int) -> list[list[Row]]:
    """First rows, longest first, until the padded micro-batch would exceed the budget."""
    bins: list[list[Row]] = []
    # Rows that branch need the dense mask; kept apart, so that others are spared it.
    for branching in (True, False):
        start = len(bins)
        matching = [row for row in rows if (len(row.branches) > 1) == branching]
        for row in sorted(matching, key=lambda row: -row.num_tokens):
            fits = len(bins) > start and (len(bins[-1]) + 1) * bins[-1][0].num_tokens <= budget
            if fits:
                bins[-1].append(row)
            else:
                bins.append([row])
    return bins


def _cost(rows: Sequence[Row]) -> int:
    return len(rows) * max(row.num_tokens for row in rows)


def _dummy(row: Row) -> Row:
    return replace(row, branches=(row.branches[0].without_weight(),))


def collate(rows: Sequence[Row], *, roles: Sequence[str], head_chunks: int = 1) -> MicroBatch:
    """One micro-batch of rows, padded on the right to the longest."""
    length = max(row.num_tokens for row in rows)
    ids = np.zeros((len(rows), length), dtype=np.int64)
    positions = np.zeros((len(rows), length), dtype=np.int64)
    is_token = np.zeros((len(rows), length), dtype=bool)
    segments = np.full((len(rows), length), -1, dtype=np.int64)
    flat: list[tuple[np.ndarray, ...]] = []
    for index, row in enumerate(rows):
        prompt = len(row.prompt_ids)
        ids[index, :prompt] = row.prompt_ids
        positions[index, :prompt] = np.arange(prompt)
        start = prompt
        for number, branch in enumerate(row.branches, start=1):
            end = start + len(branch.completion_ids)
            ids[index, start:end] = branch.completion_ids
            positions[index, start:end] = prompt + np.arange(end - start)
            segments[index, start:end] = number
            flat.append(_flatten(branch, index * length, prompt, start, roles))
            start = end
        segments[index, :prompt] = 0
        is_token[index, :start] = True
    mask = is_token
    if any(len(row.branches) > 1 for row in rows):
        mask = _tree_mask(segments)
    columns = [np.concatenate(column) for column in zip(*flat, strict=True)]
    predictors, targets, role_ids, *floats = columns
    sampler, advantages, policy, imitation = (torch.from_numpy(c.astype(np.float32)) for c in floats)
    return MicroBatch(
        input_ids=torch.from_numpy(ids),
        position_ids=torch.from_numpy(positions),
        attention_mask=torch.from_numpy(mask),
        predictors=torch.from_numpy(predictors),
        targets=torch.from_numpy(targets),
        sampler_logprobs=sampler,
        advantages=advantages,
        policy_weights=policy,
        imitation_weights=imitation,
        roles=torch.from_numpy(role_ids),
        head_chunks=head_chunks,
    )


def _flatten(
    branch: Branch, offset: int, prompt: int, start: int, roles: Sequence[str]
) -> tuple[np.ndarray, ...]:
    """The trained tokens of one completion that begins at column ``start`` of its row."""
    trained = np.flatnonzero(branch.train_mask)
    predictors = offset + np.where(trained == 0, prompt - 1, start + trained - 1)
    return (
        predictors.astype(np.int64),
        branch.completion_ids[trained].astype(np.int64),
        np.full(len(trained), roles.index(branch.role), dtype=np.int64),
        branch.sampler_logprobs[trained],
        branch.advantages[trained],
        branch.policy_weights[trained],
        branch.imitation_weights[trained],
    )


def _tree_mask(segments: np.ndarray) -> np.ndarray:
    """Query sees key if that is not later and of the prompt or the same completion; ``(B, 1, T, T)``."""
    length = segments.shape[1]
    causal = np.tril(np.ones((length, length), dtype=bool))
    query, key = segments[:, :, None], segments[:, None, :]
    # Padding (-1) sees itself only through query == key: a query without any key would give NaN.
    return (causal & ((query == key) | (key == 0)))[:, None]
