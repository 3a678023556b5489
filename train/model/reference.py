"""The reference model of the KL term: the policy at the start of the run."""

from typing import Protocol

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from configs.schema import TrainingConfig
from train.batch.collate import MicroBatch
from train.deepspeed_zero import sharding_of
from train.model.lora import adapters_off
from train.model.policy import PolicyModel, load_model


class Reference(Protocol):
    """A policy that is never updated."""

    def logprobs(self, batch: MicroBatch) -> Tensor:
        """Returns log-probs of the trained tokens, fp32, without gradient, shape ``(N,)``."""
        ...


class FrozenReference:
    """A second copy of the model of ``model.path``."""

    def __init__(self, config: TrainingConfig, accelerator: Accelerator) -> None:
        """Loads the model: sharded over the ranks under ZeRO-3, otherwise whole on each rank."""
        model = PolicyModel(
            load_model(config.model),
            temperature=config.rollout.temperature,
            fp32_head=config.model.cast_lm_head_to_fp32,
        )
        self._model = sharding_of(accelerator).freeze(model, accelerator.device)

    @torch.no_grad()
    def logprobs(self, batch: MicroBatch) -> Tensor:
        """See ``Reference``."""
        return self._model(batch)[0]


class WithoutAdapters:
    """The policy itself with its LoRA adapters disabled, so no second copy is needed."""

    def __init__(self, policy: nn.Module) -> None:
        """``policy`` must have adapters and be prepared by the accelerator."""
        self._policy = policy

    @torch.no_grad()
    def logprobs(self, batch: MicroBatch) -> Tensor:
        """See ``Reference``."""
        with adapters_off(self._policy):
            return self._policy(batch)[0]
