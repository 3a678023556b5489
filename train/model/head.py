"""The LM head of a policy on trained tokens only, as one module call for each forward pass."""

from typing import TYPE_CHECKING, Any, cast

from torch import Tensor, nn
from transformers import PreTrainedModel

from train.model.logprobs import HeadOptions, HeadWeights, head_logprobs
from train.model.lora import ADAPTER, lora_layers

if TYPE_CHECKING:
    from peft.tuners.lora import LoraLayer


class TokenHead(nn.Module):
    """Maps hidden states and the tokens that follow them to log-probs and entropies.

    It holds the weights of the model's own LM head, tied or not, instead of calling that module once for each
    chunk. ZeRO-3 gathers the weights of a module for its forward and for its backward pass: they are gathered
    once each, and the sequence of module calls, from which ZeRO-3 prefetches, is that of every micro-batch.
    """

    def __init__(self, model: PreTrainedModel, options: HeadOptions) -> None:
        """Shares the weights of the output embedding of ``model`` and of its LoRA adapter, if it has one."""
        super().__init__()
        self.options = options
        head = cast(Any, model.get_output_embeddings())
        self._adapter: tuple[LoraLayer, ...] = tuple(
            layer for layer in lora_layers(model).values() if layer is head
        )
        """The adapted layer, not registered as a module: it belongs to the model."""
        base = head.base_layer if self._adapter else head
        self.weight: nn.Parameter = base.weight
        self.bias: nn.Parameter | None = base.bias
        self.up: nn.Parameter | None = head.lora_B[ADAPTER].weight if self._adapter else None

    def forward(
        self, hidden: Tensor, targets: Tensor, temperatures: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Returns log-probs of ``targets`` and entropies, both fp32, shape ``(N,)``.

        Args:
            hidden: Shape ``(N, hidden_size)``.
            targets: Token ids, shape ``(N,)``.
            temperatures: Temperature of each token in place of the one of ``options``, shape ``(N,)``.
        """
        low, up = None, None
        if self._adapter and not self._adapter[0].disable_adapters:
            assert self.up is not None, "an adapter has two factors"
            layer, up = self._adapter[0], self.up
            first = cast(nn.Linear, layer.lora_A[ADAPTER])
            low = (first(hidden.to(first.weight.dtype)) * layer.scaling[ADAPTER]).to(up.dtype)
        weights = HeadWeights(weight=self.weight, bias=self.bias, low=low, up=up)
        return head_logprobs(hidden, weights, targets, self.options, temperatures)

    # A checkpoint holds these weights once, under the names of the model.
    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        pass

    def _load_from_state_dict(self, *arguments: Any) -> None:
        pass
