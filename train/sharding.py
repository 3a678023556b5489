"""What the trainer needs of an engine that shards a model over ranks, and that of one process.

``Sharding`` is the complete interface. ``Unsharded`` implements it for one process without DeepSpeed,
``train.deepspeed_zero`` for every other run; an FSDP2 backend would be a third class.
"""

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, cast

import torch
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor, nn


@dataclass(frozen=True, slots=True, kw_only=True)
class StepOutcome:
    """The result of an optimizer step."""

    grad_norm: float
    """Global norm before clipping."""
    applied: bool
    """False if loss or gradient were not finite: weights, moments and schedule are then unchanged."""


class Engine(Protocol):
    """Backward passes and optimizer steps of one prepared model."""

    def backward(self, loss: Tensor, *, is_last: bool) -> StepOutcome | None:
        """Accumulates the gradient of this rank's part of the global loss; with ``is_last`` also steps.

        The update follows the gradient of the *sum* of ``loss`` over all calls and ranks. If the gradient is
        not finite, every rank refuses the step.

        Returns:
            The outcome of the step; None without ``is_last``.
        """
        ...

    def restore_options(self) -> None:
        """Restores this run's clipping after a checkpoint was loaded, which may have replaced it."""
        ...


class Sharding(Protocol):
    """An engine that shards weights, gradients and moments over ranks."""

    @property
    def stage(self) -> int:
        """ZeRO stage: 0 shards nothing, 1 moments, 2 also gradients, 3 also weights."""
        ...

    def engine(self, model: nn.Module, optimizer: AcceleratedOptimizer, *, max_grad_norm: float) -> Engine:
        """Returns the engine of a prepared model. ``max_grad_norm`` 0 means no clipping."""
        ...

    def freeze(self, model: nn.Module, device: torch.device) -> nn.Module:
        """Returns ``model`` without gradients on the rank's device, sharded if the stage shards weights."""
        ...

    def gathered(self, parameters: Sequence[nn.Parameter]) -> contextlib.AbstractContextManager[None]:
        """Makes ``parameters`` whole on every rank within the context. Every rank must enter it."""
        ...

    def whole(self, buckets: Sequence[Sequence[nn.Parameter]]) -> Iterator[list[Tensor]]:
        """Yields the whole, detached values of each bucket of parameters. Every rank must read them all.

        If weights are sharded, a bucket costs one collective, and the next one's runs meanwhile.
        """
        ...

    def num_elements(self, parameter: nn.Parameter) -> int:
        """Returns the number of elements of the whole parameter, even if a rank holds only a shard."""
        ...

    def shape(self, parameter: nn.Parameter) -> torch.Size:
        """Returns the shape of the whole parameter, even if a rank holds only a shard."""
        ...

    @property
    def why_not_resharded(self) -> str | None:
        """Reason why a checkpoint of other ranks or of another stage cannot be loaded; None if it can."""
        ...

    def reads_resharded(self, models: Sequence[nn.Module]) -> contextlib.AbstractContextManager[None]:
        """Within the context, prepared ``models`` load what ``train.resharding`` has converted."""
        ...


class Unsharded:
    """A single process that holds everything."""

    stage = 0

    def engine(self, model: nn.Module, optimizer: AcceleratedOptimizer, *, max_grad_norm: float) -> Engine:
        """See ``Sharding``."""
        del model
        return _PlainEngine(optimizer, max_grad_norm or math.inf)

    def freeze(self, model: nn.Module, device: torch.device) -> nn.Module:
        """See ``Sharding``."""
        return model.requires_grad_(False).to(device).eval()

    def gathered(self, parameters: Sequence[nn.Parameter]) -> contextlib.AbstractContextManager[None]:
        """See ``Sharding``."""
        del parameters
        return contextlib.nullcontext()

    def whole(self, buckets: Sequence[Sequence[nn.Parameter]]) -> Iterator[list[Tensor]]:
        """See ``Sharding``."""
        for bucket in buckets:
            yield [parameter.detach() for parameter in bucket]

    def num_elements(self, parameter: nn.Parameter) -> int:
        """See ``Sharding``."""
        return parameter.numel()

    def shape(self, parameter: nn.Parameter) -> torch.Size:
        """See ``Sharding``."""
        return parameter.shape

    @property
    def why_not_resharded(self) -> str | None:
        """See ``Sharding``."""
        return "a run without DeepSpeed cannot load shards"

    def reads_resharded(self, models: Sequence[nn.Module]) -> contextlib.AbstractContextManager[None]:
        """See ``Sharding``."""
        raise NotImplementedError(self.why_not_resharded)


@dataclass(frozen=True, slots=True)
class _PlainEngine:
    optimizer: AcceleratedOptimizer
    max_grad_norm: float

    def backward(self, loss: Tensor, *, is_last: bool) -> StepOutcome | None:
        loss.backward()
        if not is_last:
            return None
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        norm = cast(Tensor, nn.utils.clip_grad_norm_(parameters, self.max_grad_norm))
        applied = bool(torch.isfinite(norm))
        if applied:
            self.optimizer.step()
        self.optimizer.zero_grad()
        return StepOutcome(grad_norm=float(norm), applied=applied)

    def restore_options(self) -> None:
        """No-op: a checkpoint of one process holds no clipping."""
