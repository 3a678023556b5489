"""The critic of PPO: predicts, at every trained token, the reward that the rest of the completion gets."""

from torch import Tensor, nn
from transformers import PreTrainedModel

from train.batch.collate import MicroBatch
from train.model.backbone import predictor_states


class ValueHead(nn.Linear):
    """Maps a hidden state of ``model`` to one value, computed in fp32; initially 0 everywhere."""

    def __init__(self, model: PreTrainedModel) -> None:
        # The dtype of the model, because ZeRO-3 requires that all weights have the same dtype.
        super().__init__(model.config.get_text_config().hidden_size, 1, dtype=model.dtype)
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, input: Tensor) -> Tensor:
        """Maps hidden states, shape ``(N, hidden_size)``, to values, shape ``(N,)``."""
        return nn.functional.linear(input.float(), self.weight.float(), self.bias.float()).squeeze(-1)


class CriticModel(nn.Module):
    """A critic with a backbone of its own."""

    def __init__(self, model: PreTrainedModel) -> None:
        """Uses the backbone of ``model`` without its LM head."""
        super().__init__()
        self.backbone = model.base_model
        self.value_head = ValueHead(model)

    def forward(self, batch: MicroBatch) -> Tensor:
        """Returns the value of the state before each trained token, fp32, shape ``(N,)``."""
        return self.value_head(predictor_states(self.backbone, batch))
