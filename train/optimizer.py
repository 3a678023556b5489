"""AdamW with its schedule: accumulates backward passes and refuses a step that is not finite."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import get_scheduler

from configs.schema import AlgoConfig
from train.sharding import StepOutcome, sharding_of


class TrainedModel:
    """A prepared model with its optimizer and schedule; same behaviour with and without DeepSpeed."""

    def __init__(
        self,
        accelerator: Accelerator,
        model: nn.Module,
        algo: AlgoConfig,
        *,
        learning_rates: Mapping[str, float],
        num_steps: int,
    ) -> None:
        """Creates the optimizer and schedule, and prepares them with ``model``.

        Parameters that do not require a gradient are not optimized.

        Args:
            accelerator: Prepares the model, and includes it in its checkpoints.
            model: The model, on any device.
            algo: The other settings of the optimizer.
            learning_rates: Peak learning rate of the parameters whose name begins with a key; the first
                matching key applies. ``""`` matches all.
            num_steps: Number of optimizer steps of the whole run, for schedules that decay.
        """
        optimizer = torch.optim.AdamW(
            _parameter_groups(model, learning_rates),
            betas=(algo.adam_beta1, algo.adam_beta2),
            weight_decay=algo.weight_decay,
        )
        scheduler = get_scheduler(
            algo.lr_scheduler_type,
            optimizer,
            num_warmup_steps=algo.warmup_steps,
            num_training_steps=num_steps,
        )
        self.model, self._optimizer, self._scheduler = accelerator.prepare(model, optimizer, scheduler)
        self._engine = sharding_of(accelerator).engine(
            self.model, self._optimizer, max_grad_norm=algo.max_grad_norm
        )

    @property
    def learning_rate(self) -> float:
        """Learning rate of the next step; that of the first parameter group if they differ."""
        return float(self._scheduler.get_last_lr()[0])

    def backward(self, loss: Tensor, *, is_last: bool) -> StepOutcome | None:
        """Accumulates the gradient of this rank's part of the global loss; steps after the last part.

        The update follows the gradient of the *sum* of ``loss`` over all calls and ranks.

        Returns:
            The outcome of the step, or None before the last part.
        """
        if not torch.isfinite(loss.detach()):
            # The gradient of a non-finite loss may be finite; NaN makes every rank refuse the step.
            loss = loss * math.nan
        outcome = self._engine.backward(loss, is_last=is_last)
        # A refused step must not advance the schedule: it counts applied updates.
        if outcome is not None and outcome.applied:
            self._scheduler.step()
        return outcome


def _parameter_groups(model: nn.Module, learning_rates: Mapping[str, float]) -> list[dict[str, Any]]:
    groups: dict[str, list[nn.Parameter]] = {prefix: [] for prefix in learning_rates}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            prefix = next(prefix for prefix in learning_rates if name.startswith(prefix))
            groups[prefix].append(parameter)
    return [{"params": groups[prefix], "lr": rate} for prefix, rate in learning_rates.items()]
