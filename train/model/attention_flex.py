"""Attention over shared prompts as one FlexAttention call a layer, with a block mask made from row shapes."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from transformers import AttentionInterface

from train.batch.pinned import to_device
from train.batch.rows import RowShape
from train.model.attention import attend, refuse_foreign

FLEX = "shared_prompt_flex"
"""Name of this attention as an ``attn_implementation``."""
BLOCK = 128
"""Side of a block of the mask, in tokens: FlexAttention skips blocks in which no query sees a key."""


def flex_layout(rows: Sequence[RowShape], length: int, device: torch.device) -> BlockMask:
    """Returns the block mask of rows of ``length`` tokens, padding included.

    It is computed from the lengths on the host, block by block; a mask of single tokens never exists.
    """
    number = -(-length // BLOCK)
    segments = np.stack([_segments(row, number * BLOCK) for row in rows])
    blocks = segments.reshape(len(rows), number, BLOCK)
    # Segments never decrease along a row, so two blocks have one in common if their ranges touch.
    first, last = blocks.min(-1), blocks.max(-1)
    query_first, query_last = first[:, :, None], last[:, :, None]
    key_first, key_last = first[:, None, :], last[:, None, :]
    position = np.arange(number)
    is_before = position[:, None] > position[None, :]
    sees_any = is_before & ((key_first == 0) | (key_last >= query_first))
    is_one = (key_first == key_last) & (query_first == query_last) & (key_first == query_first)
    sees_all = is_before & ((key_last == 0) | is_one)
    sees_some = (sees_any & ~sees_all) | (position[:, None] == position[None, :])
    segment = to_device(torch.from_numpy(segments), device)

    def sees(row: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        own = segment[row, key]
        return (query >= key) & ((own == 0) | (own == segment[row, query]))

    return BlockMask.from_kv_blocks(
        *_ordered(sees_some, device),
        *_ordered(sees_all, device),
        BLOCK_SIZE=BLOCK,
        mask_mod=sees,
        seq_lengths=(length, length),
    )


def _segments(row: RowShape, length: int) -> np.ndarray:
    """Returns the segment of each token: 0 in the prompt, i in completion i, the next number at padding."""
    sizes = [row.prompt, *row.completions]
    sizes.append(length - sum(sizes))
    return np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)


def _ordered(mask: np.ndarray, device: torch.device) -> tuple[Tensor, Tensor]:
    """Returns the number of True keys of each query block, and all keys with the True ones first, int32."""
    counts = mask.sum(-1, dtype=np.int32)[:, None]
    indices = np.argsort(~mask, axis=-1, kind="stable").astype(np.int32)[:, None]
    return to_device(torch.from_numpy(counts), device), to_device(torch.from_numpy(indices), device)


def attend_flex(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    rows: Sequence[RowShape] | None = None,
    layout: BlockMask | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **others: object,
) -> tuple[Tensor, None]:
    """Computes the same as ``train.model.attention.attend``; ``layout`` is the result of ``flex_layout``.

    Without a layout the rows are ordinary sequences. With dropout the result is that of ``attend``.

    Raises:
        ValueError: If the model's attention needs a feature that this one lacks.
    """
    if layout is None or dropout:  # the kernels have no dropout
        return attend(
            module, query, key, value, attention_mask, rows=rows, scaling=scaling, dropout=dropout, **others
        )
    refuse_foreign(module, others)
    out = _flex(query.device.type)(
        query,
        key,
        value,
        block_mask=layout,
        scale=scaling,
        enable_gqa=key.shape[1] != query.shape[1],
    )
    return cast(Tensor, out).transpose(1, 2), None


@functools.cache
def _flex(device: str) -> Callable[..., Any]:
    """Returns the function of a device: compiled into one kernel on a GPU, plain products elsewhere."""
    # Dynamic: the rows of every micro-batch have another length.
    return torch.compile(flex_attention, dynamic=True) if device == "cuda" else flex_attention


AttentionInterface.register(FLEX, attend_flex)
