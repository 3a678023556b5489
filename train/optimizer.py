"""AdamW with its schedule: accumulates backward passes and refuses a step that is not finite."""

import math
from collections.abc import Mapping
from typing import Any, cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import get_scheduler

from configs.schema import AlgoConfig
from train.deepspeed_zero import sharding_of
from train.sharding import StepOutcome

OPTIONS = ("initial_lr", "betas", "weight_decay")
"""Options of a parameter group that the config decides; ``initial_lr`` is the schedule's peak."""


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
            # One kernel for all weights. Where ZeRO offloads the optimizer, DeepSpeed's CPU Adam replaces it.
            fused=accelerator.device.type == "cuda",
        )
        scheduler = get_scheduler(
            algo.lr_scheduler_type,
            optimizer,
            num_warmup_steps=algo.warmup_steps,
            num_training_steps=num_steps,
        )
        # Copied before ``prepare``: loading a checkpoint replaces them by those of the run that wrote it.
        self._options = [{name: group[name] for name in OPTIONS} for group in optimizer.param_groups]
        self.model, self._optimizer, self._scheduler = accelerator.prepare(model, optimizer, scheduler)
        self._engine = sharding_of(accelerator).engine(
            self.model, self._optimizer, max_grad_norm=algo.max_grad_norm
        )

    @property
    def learning_rate(self) -> float:
        """Learning rate of the next step; that of the first parameter group if they differ."""
        return float(self._scheduler.get_last_lr()[0])

    def restore_options(self, updates_ratio: float = 1.0, scale: float = 1.0) -> None:
        """Restores the options of this run's config after a checkpoint was loaded, which replaced them.

        The schedule, too, is that of this config, at the number of updates that were applied until then. If
        the config is that of the checkpoint and ``scale`` is 1, nothing changes.

        Args:
            updates_ratio: Factor of the number of applied updates, if batches now get more or fewer updates.
            scale: Factor of every learning rate (rollbacks).
        """
        schedule = cast(LambdaLR, self._scheduler.scheduler)
        # Loading may create new groups (DeepSpeed's CPU Adam), which the schedule would no longer reach.
        schedule.optimizer.param_groups = self._optimizer.param_groups
        schedule.base_lrs = [scale * options["initial_lr"] for options in self._options]
        schedule.last_epoch = round(schedule.last_epoch * updates_ratio)
        rates = [
            peak * factor(schedule.last_epoch)
            for peak, factor in zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)
        ]
        for group, options, rate in zip(self._optimizer.param_groups, self._options, rates, strict=True):
            group.update(options, lr=rate)
        schedule._last_lr = rates
        self._engine.restore_options()

    def backward(self, loss: Tensor, *, is_last: bool) -> StepOutcome | None:
        """Accumulates the gradient of this rank's part of the global loss; steps after the last part.

        The update follows the gradient of the *sum* of ``loss`` over all calls and ranks.

        Returns:
            The outcome of the step, or None before the last part.
        """
        # The gradient of a non-finite loss may be finite; NaN makes every rank refuse the step. A factor
        # instead of a branch: the host does not wait for the loss.
        loss = loss * torch.where(torch.isfinite(loss.detach()), 1.0, math.nan)
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
