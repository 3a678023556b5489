"""AdamW with its schedule: backward passes that add up, and a step that is refused when not finite."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from accelerate import Accelerator
from accelerate.utils import DeepSpeedEngineWrapper, DistributedType
from torch import Tensor, nn
from transformers import get_scheduler

from configs.schema import AlgoConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class StepOutcome:
    """What an optimizer step did."""

    grad_norm: float
    """Global norm before clipping."""
    applied: bool
    """False if loss or gradient were not finite: weights, moments and schedule are then untouched."""


class TrainedModel:
    """A prepared model with its optimizer and schedule, the same under DeepSpeed and without it."""

    def __init__(
        self,
        accelerator: Accelerator,
        model: nn.Module,
        algo: AlgoConfig,
        *,
        learning_rates: Mapping[str, float],
        num_steps: int,
    ) -> None:
        """Parameters without gradient are left out.

        Args:
            accelerator: Prepares the model; it also saves and loads it with its checkpoints.
            model: On any device.
            algo: The optimizer's other settings.
            learning_rates: Peak learning rate of the parameters whose name begins with a key; the first key
                that fits counts. ``""`` fits all.
            num_steps: Optimizer steps of the whole run, for schedules that decay.
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
        self._accelerator = accelerator
        # As in DeepSpeed, 0 means no clipping.
        self._max_grad_norm = algo.max_grad_norm or math.inf
        self.model, self._optimizer, self._scheduler = accelerator.prepare(model, optimizer, scheduler)
        self._engine = (
            DeepSpeedEngineWrapper(self.model)
            if accelerator.distributed_type == DistributedType.DEEPSPEED
            else None
        )

    @property
    def learning_rate(self) -> float:
        """Of the next step; of the first parameters, if they differ."""
        return float(self._scheduler.get_last_lr()[0])

    def backward(self, loss: Tensor, *, is_last: bool) -> StepOutcome | None:
        """Adds the gradient of this rank's part of the global loss; after the last part, steps.

        The update follows the gradient of the *sum* of ``loss`` over all calls and ranks.
        """
        if not torch.isfinite(loss.detach()):
            # The gradient of a non-finite loss may be finite; NaN makes every rank refuse the step.
            loss = loss * math.nan
        if self._engine is not None:
            outcome = self._backward_deepspeed(self._engine, loss, is_last=is_last)
        else:
            loss.backward()
            outcome = self._step() if is_last else None
        if outcome is not None and outcome.applied:
            self._scheduler.step()
        return outcome

    def _backward_deepspeed(
        self, engine: DeepSpeedEngineWrapper, loss: Tensor, *, is_last: bool
    ) -> StepOutcome | None:
        # DeepSpeed averages over ranks. With is_last it also clips, steps and clears the gradient,
        # unless the norm is not finite.
        engine.backward(loss * self._accelerator.num_processes, sync_gradients=is_last, scale_wrt_gas=False)
        if not is_last:
            return None
        norm = float(engine.get_global_grad_norm())
        return StepOutcome(grad_norm=norm, applied=not self._optimizer.step_was_skipped)

    def _step(self) -> StepOutcome:
        assert self._accelerator.num_processes == 1, "several ranks need DeepSpeed"
        parameters = [p for group in self._optimizer.param_groups for p in group["params"]]
        norm = cast(Tensor, nn.utils.clip_grad_norm_(parameters, self._max_grad_norm))
        applied = bool(torch.isfinite(norm))
        if applied:
            self._optimizer.step()
        self._optimizer.zero_grad()
        return StepOutcome(grad_norm=float(norm), applied=applied)


def _parameter_groups(model: nn.Module, learning_rates: Mapping[str, float]) -> list[dict[str, Any]]:
    groups: dict[str, list[nn.Parameter]] = {prefix: [] for prefix in learning_rates}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            prefix = next(prefix for prefix in learning_rates if name.startswith(prefix))
            groups[prefix].append(parameter)
    return [{"params": groups[prefix], "lr": rate} for prefix, rate in learning_rates.items()]
