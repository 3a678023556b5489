"""Packs rows into micro-batches that are balanced over ranks.

Several completions of one prompt share its keys and values where that saves time (see
``train.batch.collate``).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from configs.schema import SHARE_FROM
from train.batch.rows import Branch, Row


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Bin:
    """The rows of one micro-batch, before they become tensors."""

    rows: tuple[Row, ...]


def share_prompts(rows: Sequence[Row], *, tokens_per_row: int) -> list[Row]:
    """Decides for each prompt whether its completions share rows, those of several groups included.

    Args:
        rows: One row per group, with all its completions.
        tokens_per_row: Limit on the length of a shared row. A row that exceeds it even with a single
            completion is kept.
    """
    result: list[Row] = []
    for row in _by_prompt(rows):
        prompt = len(row.prompt_ids)
        # Tokens if every completion has a row, and thus a prompt, of its own: n * P + sum of L_i.
        apart = row.num_tokens + prompt * (len(row.branches) - 1)
        if apart - row.num_tokens >= SHARE_FROM * apart:
            result.extend(_split(row, tokens_per_row))
        else:
            result.extend(separate([row]))
    return result


def _by_prompt(rows: Sequence[Row]) -> list[Row]:
    """Joins rows of equal prompts, such as a problem's traces and amortised answers; keeps the first key."""
    joined: dict[bytes, Row] = {}
    for row in rows:
        name = row.prompt_ids.tobytes()
        first = joined.get(name)
        joined[name] = row if first is None else replace(first, branches=first.branches + row.branches)
    return list(joined.values())


def separate(rows: Sequence[Row]) -> list[Row]:
    """Returns one row per completion, each with the whole prompt."""
    return [replace(row, branches=(branch,)) for row in rows for branch in row.branches]


def _split(row: Row, tokens_per_row: int) -> list[Row]:
    """Splits a row with many completions into rows within the budget, longest completions first."""
    parts: list[list[Branch]] = []
    used = math.inf  # forces the first completion to open a part
    for branch in sorted(row.branches, key=lambda branch: -len(branch.completion_ids)):
        if used + len(branch.completion_ids) > tokens_per_row:
            parts.append([])
            used = len(row.prompt_ids)
        parts[-1].append(branch)
        used += len(branch.completion_ids)
    return [replace(row, branches=tuple(part)) for part in parts]


def make_plan(
    rows: Sequence[Row], *, tokens_per_micro_batch: int, world_size: int, hidden_size: int
) -> list[list[Bin]]:
    """Packs rows into micro-steps, each with one bin per rank.

    Rows are sorted by length, so that micro-batches contain little padding. Micro-batches are sorted by
    cost, attention included, so that those that run at the same time on different ranks take about equally
    long. If their number is not a multiple of ``world_size``, the most expensive ones are halved; once none
    has two rows, rows of zero weight are added.

    Args:
        rows: Result of ``share_prompts`` or ``separate``; not empty.
        tokens_per_micro_batch: Limit on the padded tokens of one micro-batch. A longer row gets a
            micro-batch of its own.
        world_size: Number of ranks.
        hidden_size: Width of the model, which determines the cost of attention.

    Returns:
        ``plan[micro_step][rank]``.
    """
    assert rows, "a plan needs rows"
    bins = _fill(rows, tokens_per_micro_batch)
    while len(bins) % world_size:
        # Bins with several rows come first: only those can be halved.
        largest = max(range(len(bins)), key=lambda i: (len(bins[i]) > 1, cost(bins[i], hidden_size)))
        if len(bins[largest]) > 1:
            # Every second row, so that both halves get rows of similar lengths.
            bins.append(bins[largest][1::2])
            bins[largest] = bins[largest][::2]
        else:
            bins.append([_dummy(min(rows, key=lambda row: row.num_tokens))])
    bins.sort(key=lambda rows: cost(rows, hidden_size), reverse=True)
    steps = [bins[start : start + world_size] for start in range(0, len(bins), world_size)]
    return [[Bin(rows=tuple(rows)) for rows in step] for step in steps]


def _fill(rows: Sequence[Row], budget: int) -> list[list[Row]]:
    """Fills bins in order of length, longest row first, each until its padding would exceed the budget."""
    bins: list[list[Row]] = []
    # Attention processes rows with several completions one at a time. They are kept apart, so that the
    # other rows still run as one batch.
    for branching in (True, False):
        start = len(bins)
        matching = [row for row in rows if (len(row.branches) > 1) == branching]
        for row in sorted(matching, key=lambda row: -row.num_tokens):
            # The first row of a bin is its longest and sets the padded length.
            fits = len(bins) > start and (len(bins[-1]) + 1) * bins[-1][0].num_tokens <= budget
            if fits:
                bins[-1].append(row)
            else:
                bins.append([row])
    return bins


def cost(rows: Sequence[Row], hidden_size: int) -> float:
    """Returns the cost of a micro-batch in tokens: its padded tokens plus the equivalent of its attention.

    A layer's matrices have about 12 hidden^2 parameters, which is 24 hidden^2 FLOPs per token; a pair of
    query and key takes 4 hidden FLOPs. One token therefore costs as much as 6 hidden pairs.
    """
    tokens = len(rows) * max(row.num_tokens for row in rows)
    return tokens + sum(row.shape.pairs for row in rows) / (6 * hidden_size)


def _dummy(row: Row) -> Row:
    """Returns a filler row: one completion of ``row`` with zero weight."""
    return replace(row, branches=(row.branches[0].without_weight(),))
