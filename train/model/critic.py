"""The critic of PPO: how much reward the rest of a completion will bring, at every trained token."""

from torch import Tensor, nn
from transformers import PreTrainedModel

from train.batch.collate import MicroBatch
from train.model.backbone import predictor_states


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
