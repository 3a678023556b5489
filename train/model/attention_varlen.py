"""Attention over shared prompts as two variable-length calls a layer, for any number of rows and completions.

The first call computes causal attention within each prompt, each completion and each row with a single
completion; the second one that of all completions to the prompts they share. The two results are merged by
their log-sum-exp, so the keys of a prompt are read by all of its completions and never copied for each.

    out = exp(lse_1 - lse) out_1 + exp(lse_2 - lse) out_2,  lse = log(exp(lse_1) + exp(lse_2))

The backward pass of either call, given the merged output and log-sum-exp, is its part of the whole gradient.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import AttentionInterface

from train.batch.pinned import to_device
from train.batch.rows import RowShape
from train.model.attention import attend, refuse_foreign
from train.model.varlen_kernels import Segments, kernel_for

VARLEN = "shared_prompt_varlen"
"""Name of this attention as an ``attn_implementation``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedPrompts:
    """Completions that share a prompt and the prompts that they share, by position in the packed rows."""

    queries: Tensor
    """Positions of the tokens of the completions, int64."""
    of_queries: Segments
    """One sequence for all completions of a row."""
    keys: Tensor
    """Positions of the tokens of the prompts, int64."""
    of_keys: Segments
    """One sequence for the prompt of each of these rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VarlenLayout:
    """What the two calls compute, for B rows of T tokens packed into one sequence of ``B * T`` tokens."""

    own: Segments
    """Sequences with causal attention within them; padding is one of its own."""
    shared: SharedPrompts | None
    """None if every row has a single completion."""


def varlen_layout(rows: Sequence[RowShape], length: int, device: torch.device) -> VarlenLayout:
    """Returns the layout of rows of ``length`` tokens, padding included."""
    own: list[int] = []
    queries: list[np.ndarray] = []
    keys: list[np.ndarray] = []
    for index, row in enumerate(rows):
        used = row.prompt + sum(row.completions)
        # A single completion continues its prompt: one ordinary sequence.
        parts = [row.prompt, *row.completions] if len(row.completions) > 1 else [used]
        own += [*parts, length - used]
        if len(row.completions) > 1 and row.prompt and used > row.prompt:
            start = index * length
            keys.append(np.arange(start, start + row.prompt))
            queries.append(np.arange(start + row.prompt, start + used))
    shared = None
    if queries:
        shared = SharedPrompts(
            queries=to_device(torch.from_numpy(np.concatenate(queries)), device),
            of_queries=_segments([len(part) for part in queries], device),
            keys=to_device(torch.from_numpy(np.concatenate(keys)), device),
            of_keys=_segments([len(part) for part in keys], device),
        )
    return VarlenLayout(own=_segments(own, device), shared=shared)


def _segments(lengths: Sequence[int], device: torch.device) -> Segments:
    """Returns the segments of these lengths; empty ones are left out."""
    present = tuple(n for n in lengths if n)
    starts = torch.tensor([0, *np.cumsum(present).tolist()], dtype=torch.int32)
    return Segments(starts=to_device(starts, device), lengths=present)


def attend_varlen(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    rows: Sequence[RowShape] | None = None,
    layout: VarlenLayout | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **others: object,
) -> tuple[Tensor, None]:
    """Computes the same as ``train.model.attention.attend``.

    Args:
        module: The attention layer; only named in errors.
        query: Shape ``(B, heads, T, d)``.
        key: Shape ``(B, key heads, T, d)``.
        value: Shape as ``key``.
        attention_mask: None; unused.
        rows: Shapes of the B rows.
        layout: Result of ``varlen_layout`` for these rows; None means ordinary sequences.
        scaling: Factor of the query-key products; 1 / sqrt(d) if None.
        dropout: Share of the attention weights that is dropped; not 0: as ``attend`` computes it.
        others: Further arguments of the model.

    Returns:
        The output, shape ``(B, T, heads, d)``, and None in place of the attention weights.

    Raises:
        ValueError: If the model's attention needs a feature that this one lacks.
    """
    if layout is None or dropout:  # the kernels have no dropout
        return attend(
            module, query, key, value, attention_mask, rows=rows, scaling=scaling, dropout=dropout, **others
        )
    refuse_foreign(module, others)
    # (B, heads, T, d) -> (B * T, heads, d): a view where the model computed (B, T, heads, d).
    packed = [x.transpose(1, 2).flatten(0, 1) for x in (query, key, value)]
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    out = cast(Tensor, _Varlen.apply(*packed, layout, scale))
    return out.unflatten(0, (query.shape[0], query.shape[2])), None


class _Varlen(torch.autograd.Function):
    """Both calls and their merge, on packed tensors."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, layout: VarlenLayout, scale: float
    ) -> Tensor:
        kernel = kernel_for(query.device)
        packed = (query, key, value)
        out, lse = kernel.forward(packed, (layout.own, layout.own), causal=True, scale=scale)
        if shared := layout.shared:
            segments = (shared.of_queries, shared.of_keys)
            other, other_lse = kernel.forward(_gather(packed, shared), segments, causal=False, scale=scale)
            own, own_lse = out.index_select(0, shared.queries), lse.index_select(1, shared.queries)
            merged = torch.logaddexp(own_lse, other_lse)
            weights = ((part - merged).exp().t()[:, :, None] for part in (own_lse, other_lse))
            total = sum(part * weight for part, weight in zip((own, other), weights, strict=True))
            out.index_copy_(0, shared.queries, cast(Tensor, total).to(out.dtype))
            lse.index_copy_(1, shared.queries, merged)
        ctx.save_for_backward(query, key, value, out, lse)
        ctx.layout, ctx.scale = layout, scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, out, lse = ctx.saved_tensors
        layout: VarlenLayout = ctx.layout
        kernel = kernel_for(query.device)
        packed, gradient = (query, key, value), gradient.contiguous()
        own = (layout.own, layout.own)
        grads = kernel.backward(gradient, packed, (out, lse), own, causal=True, scale=ctx.scale)
        if shared := layout.shared:
            parts = kernel.backward(
                gradient.index_select(0, shared.queries),
                _gather(packed, shared),
                (out.index_select(0, shared.queries), lse.index_select(1, shared.queries)),
                (shared.of_queries, shared.of_keys),
                causal=False,
                scale=ctx.scale,
            )
            for grad, part, places in zip(
                grads, parts, (shared.queries, shared.keys, shared.keys), strict=True
            ):
                grad.index_add_(0, places, part)
        return (*grads, None, None)


def _gather(packed: Sequence[Tensor], shared: SharedPrompts) -> tuple[Tensor, ...]:
    """Returns the queries of the completions, and the keys and values of the prompts: each once."""
    places = (shared.queries, shared.keys, shared.keys)
    return tuple(x.index_select(0, place) for x, place in zip(packed, places, strict=True))


AttentionInterface.register(VARLEN, attend_varlen)
