"""Attention over rows whose completions share a prompt, without a mask over whole rows: the reference.

In a row ``[prompt, c1, .., cn]`` the prompt attends to itself, and each completion to the prompt and to
itself, both causally. Only these pairs are computed: P^2 / 2 + sum of L_i (P + L_i) out of
(P + sum of L_i)^2.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention.bias import causal_lower_right
from transformers import AttentionInterface

from train.batch.rows import RowShape

SHARED_PROMPT = "shared_prompt"
"""Name of this attention as an ``attn_implementation``. Transformers builds no mask for unknown names."""
FOREIGN = ("sliding_window", "position_bias", "softcap", "s_aux")
"""Arguments that only unsupported kinds of attention receive."""


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    rows: Sequence[RowShape] | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **others: object,
) -> tuple[Tensor, None]:
    """Computes causal self-attention over the whole context, as transformers' ``AttentionInterface``.

    Args:
        module: The attention layer; only named in the error.
        query: Shape ``(B, heads, T, d)``.
        key: Shape ``(B, key heads, T, d)``.
        value: Shape as ``key``.
        attention_mask: None; unused.
        rows: Shapes of the B rows, passed to the model's forward as ``rows=``. None means ordinary
            sequences, with padding on the right only.
        scaling: Factor of the query-key products; 1 / sqrt(d) if None.
        dropout: Share of the attention weights that is dropped.
        others: Further arguments of the model.

    Returns:
        The output, shape ``(B, T, heads, d)``, with arbitrary finite values at padding; and None in place of
        the attention weights.

    Raises:
        ValueError: If the model's attention needs a feature that this one lacks.
    """
    refuse_foreign(module, others)
    sdpa = partial(_sdpa, scaling=scaling, dropout=dropout)
    if rows is None or all(
        len(row.completions) == 1 for row in rows
    ):  # padding comes last, so no token attends to it
        out = sdpa(query, key, value)
    else:
        parts = zip(query.split(1), key.split(1), value.split(1), rows, strict=True)
        out = torch.cat([_attend_in_row(*part, sdpa) for part in parts])
    return out.transpose(1, 2), None


def refuse_foreign(module: nn.Module, others: Mapping[str, object]) -> None:
    """Checks that a layer passes no argument of another kind of attention.

    Raises:
        ValueError: If one is not None.
    """
    if foreign := [name for name in FOREIGN if others.get(name) is not None]:
        raise ValueError(
            f"{type(module).__name__} needs {foreign[0]}, which attention over shared prompts does not "
            "support: train.model.policy.has_full_attention should return False for this model."
        )


def _attend_in_row(
    query: Tensor, key: Tensor, value: Tensor, row: RowShape, sdpa: Callable[[Tensor, Tensor, Tensor], Tensor]
) -> Tensor:
    """Computes attention of one row; shapes as in ``attend`` with B = 1."""
    used = row.prompt + sum(row.completions)
    sizes = [row.prompt, *row.completions, query.shape[2] - used]
    # One split instead of slices: its backward pass writes every gradient once.
    prompt, *queries, padding = query.split(sizes, dim=2)
    prompt_key, *keys, _ = key.split(sizes, dim=2)
    prompt_value, *values, _ = value.split(sizes, dim=2)
    outs = [sdpa(prompt, prompt_key, prompt_value)]
    for own_query, own_key, own_value in zip(queries, keys, values, strict=True):
        seen_key = torch.cat([prompt_key, own_key], dim=2)
        seen_value = torch.cat([prompt_value, own_value], dim=2)
        outs.append(sdpa(own_query, seen_key, seen_value))
    return torch.cat([*outs, torch.zeros_like(padding)], dim=2)


def _sdpa(query: Tensor, key: Tensor, value: Tensor, *, scaling: float | None, dropout: float) -> Tensor:
    """Computes causal attention in which the last query attends to every key."""
    # Keys of the prompt, which precede the first query; 0 for the prompt itself.
    before = key.shape[2] - query.shape[2]
    return functional.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=causal_lower_right(query.shape[2], key.shape[2]) if before else None,
        is_causal=not before,
        dropout_p=dropout,
        scale=scaling,
        enable_gqa=key.shape[1] != query.shape[1],
    )


AttentionInterface.register(SHARED_PROMPT, attend)
