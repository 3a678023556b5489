"""The reference model: the policy that the run started from, frozen."""

from __future__ import annotations

from copy import deepcopy

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from configs.schema import TrainingConfig
from train.collate import MicroBatch
from train.policy import PolicyModel, load_model


class Reference:
    """Log-probs under the model of ``model.path``, which is never updated."""

    def __init__(self, config: TrainingConfig, accelerator: Accelerator) -> None:
        """Loads the model; under ZeRO-3 sharded over the ranks, otherwise whole on each of them."""
        model = PolicyModel(load_model(config.model), temperature=config.rollout.temperature)
        self._model = freeze(model, accelerator)

    @torch.no_grad()
    def logprobs(self, batch: MicroBatch) -> Tensor:
        """Of the trained tokens, fp32, shape ``(N,)``."""
        return self._model(batch)[0]


def freeze(model: nn.Module, accelerator: Accelerator) -> nn.Module:
    """``model`` for use without gradient: sharded under ZeRO-3, otherwise as it is, on the rank's device."""
    model.requires_grad_(False)
    plugin = accelerator.state.deepspeed_plugin
    if plugin is None or plugin.zero_stage != 3:
        return model.to(accelerator.device).eval()
    import deepspeed

    options = deepcopy(plugin.deepspeed_config)
    # Without an optimizer DeepSpeed refuses what describes one.
    for training_only in ("optimizer", "scheduler"):
        options.pop(training_only, None)
    options["zero_optimization"].pop("offload_optimizer", None)
    engine, *_ = deepspeed.initialize(model=model, config=options)
    engine.eval()
    return engine
