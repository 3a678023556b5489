"""Which attention a model uses, by ``model.attention`` and device, and the layout that it takes."""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from configs.schema import ModelConfig
from train.batch.rows import RowShape
from train.model.attention import SHARED_PROMPT, attend
from train.model.attention_flex import FLEX, attend_flex, flex_layout
from train.model.attention_varlen import VARLEN, attend_varlen, varlen_layout

logger = logging.getLogger(__name__)

SHARING = {SHARED_PROMPT: "shared_prompt", FLEX: "flex", VARLEN: "varlen"}
"""Values of ``model.attention`` by their name as an ``attn_implementation``."""
ATTENTIONS: dict[str, Callable[..., tuple[Tensor, None]]] = {
    SHARED_PROMPT: attend,
    FLEX: attend_flex,
    VARLEN: attend_varlen,
}
"""Functions by their name as an ``attn_implementation``."""
LAYOUTS: dict[str, Callable[[Sequence[RowShape], int, torch.device], object]] = {
    FLEX: flex_layout,
    VARLEN: varlen_layout,
}
PROBE_ROWS = (RowShape(70, (33, 1, 90)), RowShape(5, (150,)), RowShape(130, (40, 20)))
"""Rows that ``check_agreement`` computes; 194 tokens at most."""
LARGEST_ERROR = 0.02
"""Relative to the norm; bfloat16 rounds each value by up to 0.004."""


def make_layout(attention: str, rows: Sequence[RowShape], input_ids: Tensor) -> object:
    """Returns the layout of a micro-batch, which all layers share; None for attention without one.

    Args:
        attention: Name as an ``attn_implementation``.
        rows: Shapes of the B rows.
        input_ids: Shape ``(B, T)``, on the device of the model.
    """
    make = LAYOUTS.get(attention)
    return None if make is None else make(rows, input_ids.shape[1], input_ids.device)


def choose_attention(config: ModelConfig, settings: PreTrainedConfig, *, on_gpu: bool) -> str:
    """Returns the ``attn_implementation`` for a model with full attention.

    ``auto`` is the reference on a CPU. On a GPU it is variable-length attention in bfloat16, provided that it
    agrees with the reference on this card, and otherwise the reference.

    Raises:
        ValueError: If ``model.attention`` names one that cannot train on this device.
    """
    if config.attention == "auto":
        if not on_gpu or config.dtype != "bfloat16":
            return SHARED_PROMPT
        try:
            check_agreement(VARLEN, settings, torch.device("cuda", torch.cuda.current_device()))
        except RuntimeError as error:
            logger.warning("model.attention=auto uses shared_prompt, which is slower on a GPU: %s", error)
            return SHARED_PROMPT
        return VARLEN
    if config.attention == "flex" and not on_gpu:
        raise ValueError(
            "model.attention is flex, but torch has no backward pass of FlexAttention on a CPU. "
            "Use auto, shared_prompt or varlen."
        )
    if config.attention == "varlen" and on_gpu and config.dtype != "bfloat16":
        raise ValueError(
            f"model.attention is varlen and model.dtype {config.dtype}, but FlashAttention on a GPU takes "
            "bfloat16 only. Use model.dtype=bfloat16, or model.attention=flex."
        )
    return {name: attention for attention, name in SHARING.items()}[config.attention]


def check_agreement(attention: str, settings: PreTrainedConfig, device: torch.device) -> None:
    """Compares output and gradients of an attention with the reference, in bfloat16 on a few short rows.

    Raises:
        RuntimeError: If they differ beyond rounding, or the attention fails.
    """
    text: Any = settings.get_text_config()
    heads = text.num_attention_heads
    size = getattr(text, "head_dim", None) or text.hidden_size // heads
    try:
        errors = disagreement(
            attention, PROBE_ROWS, (heads, text.num_key_value_heads, size), torch.bfloat16, device
        )
    except (RuntimeError, NotImplementedError, AttributeError) as error:
        raise RuntimeError(f"{SHARING[attention]} fails on {device}: {error}") from error
    if not max(errors) < LARGEST_ERROR:
        raise RuntimeError(
            f"{SHARING[attention]} differs from shared_prompt on {device} by {max(errors):.3g} of the norm."
        )


def disagreement(
    attention: str,
    rows: Sequence[RowShape],
    sizes: tuple[int, int, int],
    dtype: torch.dtype,
    device: torch.device,
) -> list[float]:
    """Returns the differences of output and gradients from those of the reference, relative to their norms.

    Args:
        attention: Name as an ``attn_implementation``.
        rows: Shapes of the rows; they are padded to the longest and one token more.
        sizes: Heads, key heads, size of a head.
        dtype: Dtype of the inputs.
        device: Device of the inputs.
    """
    heads, key_heads, size = sizes
    used = [row.prompt + sum(row.completions) for row in rows]
    length = max(used) + 1
    generator = torch.Generator().manual_seed(0)
    shapes = [(len(rows), count, length, size) for count in (heads, key_heads, key_heads)]
    inputs = [torch.randn(shape, generator=generator).to(device, dtype).requires_grad_() for shape in shapes]
    # Outputs at padding are arbitrary.
    is_token = torch.arange(length) < torch.tensor(used)[:, None]
    weights = torch.randn(len(rows), length, heads, size, generator=generator) * is_token[:, :, None, None]
    weights = weights.to(device, dtype)
    results = []
    for name in (SHARED_PROMPT, attention):
        layout = LAYOUTS[name](rows, length, device) if name in LAYOUTS else None
        out, _ = ATTENTIONS[name](nn.Identity(), *inputs, None, rows=rows, layout=layout)
        gradients = torch.autograd.grad((out * weights).sum(), inputs)
        results.append([out.detach() * (weights != 0), *gradients])
    return [
        float((mine.float() - theirs.float()).norm() / theirs.float().norm())
        for theirs, mine in zip(*results, strict=True)
    ]
