"""Runs a model without its head on a micro-batch."""

from typing import Any, cast

from torch import Tensor, nn

from train.batch.collate import MicroBatch
from train.model.attention import SHARED_PROMPT
from train.model.attention_choice import SHARING, make_layout


def predictor_states(backbone: nn.Module, batch: MicroBatch) -> Tensor:
    """Returns the hidden states that predict the trained tokens, shape ``(N, hidden_size)``.

    Raises:
        ValueError: If completions share a prompt and the model's attention would let them attend to one
            another.
    """
    attention = cast(Any, backbone).config._attn_implementation
    if attention not in SHARING and any(len(row.completions) > 1 for row in batch.rows):
        raise ValueError(
            f"The rows of this micro-batch share prompts, but the model's attention is {attention!r}; load "
            f"it with attn_implementation={SHARED_PROMPT!r}, or give each completion a row of its own "
            "(train.packing=padded)."
        )
    outputs = backbone(
        input_ids=batch.input_ids,
        position_ids=batch.position_ids,
        attention_mask=batch.attention_mask,
        rows=batch.rows,
        layout=make_layout(attention, batch.rows, batch.input_ids),
        use_cache=False,
    )
    # (B, T, hidden_size) -> (B * T, hidden_size), which ``predictors`` index.
    return outputs.last_hidden_state.flatten(0, 1)[batch.predictors]
