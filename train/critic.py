"""The critic of PPO: how much reward the rest of a completion will bring, at every trained token."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from train.backbone import predictor_states
from train.collate import MicroBatch


class ValueHead(nn.Linear):
    """One number for each hidden state of ``model``, fp32 whatever its precision; 0 at the start."""

    def __init__(self, model: PreTrainedModel) -> None:
        # ZeRO-3 takes only models whose weights all have one type.
        super().__init__(model.config.get_text_config().hidden_size, 1, dtype=model.dtype)
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, input: Tensor) -> Tensor:
        """Hidden states, shape ``(N, hidden_size)`` -> values, shape ``(N,)``."""
        return nn.functional.linear(input.float(), self.weight.float(), self.bias.float()).squeeze(-1)


class CriticModel(nn.Module):
    """A critic with a backbone of its own."""

    def __init__(self, model: PreTrainedModel) -> None:
        """Takes the backbone of ``model``; its LM head is not used."""
        super().__init__()
        self.backbone = model.base_model
        self.value_head = ValueHead(model)

    def forward(self, batch: MicroBatch) -> Tensor:
        """Value of the state before each trained token, fp32, shape ``(N,)``."""
        return self.value_head(predictor_states(self.backbone, batch))


def clipped_value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, *, cliprange_value: float
) -> tuple[Tensor, Tensor]:
    """The squared error of the value, pessimistic about moves away from the old value, per token.

        loss = 1/2 max( (V - R)^2, (clip(V, V_old - cliprange_value, V_old + cliprange_value) - R)^2 )

    Args:
        values: Shape ``(N,)``, with gradient.
        old_values: Shape ``(N,)``, of the critic before its first update on this batch.
        returns: Shape ``(N,)``.
        cliprange_value: Distance from ``old_values`` beyond which a move no longer pays.

    Returns:
        The loss per token, and where the clip stopped the gradient.

    References:
        Schulman et al., Proximal Policy Optimization, https://arxiv.org/abs/1707.06347, as in OpenAI's
        baselines.
    """
    clipped = torch.clamp(values, old_values - cliprange_value, old_values + cliprange_value)
    plain_error, clipped_error = (values - returns).square(), (clipped - returns).square()
    return 0.5 * torch.maximum(plain_error, clipped_error), clipped_error > plain_error
