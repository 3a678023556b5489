"""Rows -> micro-batches of rows, balanced over ranks.

Several completions of one prompt share its keys and values where that pays (see ``train.batch.collate``).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from configs.schema import HEAD_CHUNK_BYTES, SHARE_FROM
from train.batch.rows import Branch, Row


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSizes:
    """What the cost of a micro-batch depends on."""

    hidden: int
    vocab: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Bin:
    """The rows of one micro-batch, before they become tensors."""

    rows: tuple[Row, ...]
    head_chunks: int
    """Calls of the LM head. Equal on all ranks of a micro-step: under ZeRO-3 each call is a collective."""


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


def make_plan(
    rows: Sequence[Row], *, tokens_per_micro_batch: int, world_size: int, sizes: ModelSizes
) -> list[list[Bin]]:
    """Packs rows into micro-steps; each holds one bin for each rank.

    Rows are sorted by length, so that micro-batches waste little padding; micro-batches are sorted by their
    cost, attention included, so that those which run at the same time on different ranks take about as long.
    Where the count does not divide, costly ones are halved, and at last a row of zero weight fills up.

    Args:
        rows: As ``share_prompts`` leaves them; not empty.
        tokens_per_micro_batch: Padded tokens of one micro-batch; a longer row gets one of its own.
        world_size: Number of ranks.
        sizes: Of the model.

    Returns:
        ``plan[micro_step][rank]``.
    """
    assert rows, "a plan needs rows"
    bins = _fill(rows, tokens_per_micro_batch)
    while len(bins) % world_size:
        largest = max(range(len(bins)), key=lambda i: (len(bins[i]) > 1, cost(bins[i], sizes)))
        if len(bins[largest]) > 1:
            bins.append(bins[largest][1::2])
            bins[largest] = bins[largest][::2]
        else:
            bins.append([_dummy(min(rows, key=lambda row: row.num_tokens))])
    bins.sort(key=lambda rows: cost(rows, sizes), reverse=True)
    steps = [bins[start : start + world_size] for start in range(0, len(bins), world_size)]
    return [_micro_step(step, sizes) for step in steps]


def _micro_step(bins: Sequence[Sequence[Row]], sizes: ModelSizes) -> list[Bin]:
    most = max(sum(row.num_trained for row in rows) for rows in bins)
    chunks = max(1, math.ceil(4 * most * sizes.vocab / HEAD_CHUNK_BYTES))
    return [Bin(rows=tuple(rows), head_chunks=chunks) for rows in bins]


def _fill(rows: Sequence[Row], budget: int) -> list[list[Row]]:
    """First rows, longest first, until the padded micro-batch would exceed the budget."""
    bins: list[list[Row]] = []
    # Attention takes rows that branch one by one; kept apart, so that it takes the others together.
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


def cost(rows: Sequence[Row], sizes: ModelSizes) -> float:
    """Of a micro-batch, in tokens: padded ones, and what attention takes on top.

    A layer's matrices have about 12 hidden^2 parameters, 24 hidden^2 FLOPs a token; a pair of query and key
    takes 4 hidden.
    """
    tokens = len(rows) * max(row.num_tokens for row in rows)
    return tokens + sum(row.shape.pairs for row in rows) / (6 * sizes.hidden)


def _dummy(row: Row) -> Row:
    return replace(row, branches=(row.branches[0].without_weight(),))
