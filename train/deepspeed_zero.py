"""DeepSpeed ZeRO as a ``Sharding``: the only file, with ``zero3_shards``, that depends on DeepSpeed."""

import contextlib
import os
import warnings
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, cast

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils import DeepSpeedEngineWrapper
from torch import Tensor, nn

from train.sharding import Engine, Sharding, StepOutcome, Unsharded
from train.zero3_shards import whole_buckets


@dataclass(frozen=True, slots=True)
class DeepSpeedZero:
    """DeepSpeed ZeRO, as configured by ``accelerate launch``."""

    stage: int
    config: dict[str, Any]
    """DeepSpeed's config, completed by ``configure_deepspeed``."""
    num_processes: int

    def engine(self, model: nn.Module, optimizer: AcceleratedOptimizer, *, max_grad_norm: float) -> Engine:
        """See ``Sharding``. DeepSpeed clips by its own config, completed by ``configure_deepspeed``."""
        wrapper = DeepSpeedEngineWrapper(model)
        return _DeepSpeedEngine(wrapper, optimizer, self.num_processes, max_grad_norm)

    def freeze(self, model: nn.Module, device: torch.device) -> nn.Module:
        """See ``Sharding``."""
        if self.stage < 3:
            return Unsharded().freeze(model, device)
        import deepspeed

        options = deepcopy(self.config)
        # Without an optimizer, DeepSpeed rejects options that describe one.
        for training_only in ("optimizer", "scheduler"):
            options.pop(training_only, None)
        options["zero_optimization"].pop("offload_optimizer", None)
        engine, *_ = deepspeed.initialize(model=model.requires_grad_(False), config=options)
        engine.eval()  # not chained: it returns None under DeepSpeed
        return engine

    def gathered(self, parameters: Sequence[nn.Parameter]) -> contextlib.AbstractContextManager[None]:
        """See ``Sharding``."""
        if self.stage < 3:
            return contextlib.nullcontext()
        import deepspeed

        return deepspeed.zero.GatheredParameters(list(parameters))

    def whole(self, buckets: Sequence[Sequence[nn.Parameter]]) -> Iterator[list[Tensor]]:
        """See ``Sharding``."""
        if self.stage < 3:
            return Unsharded().whole(buckets)
        on_gpu = torch.cuda.is_available()
        return whole_buckets(
            buckets, torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")
        )

    def num_elements(self, parameter: nn.Parameter) -> int:
        """See ``Sharding``."""
        return getattr(parameter, "ds_numel", parameter.numel())  # under ZeRO-3 numel is that of the shard

    def shape(self, parameter: nn.Parameter) -> torch.Size:
        """See ``Sharding``."""
        return getattr(parameter, "ds_shape", parameter.shape)

    @property
    def why_not_resharded(self) -> str | None:
        """See ``Sharding``."""
        options = self.config.get("zero_optimization", {})
        for name in ("offload_optimizer", "offload_param"):
            if (options.get(name) or {}).get("device", "none") != "none":
                return f"with {name} it was not tried"
        return None

    @contextlib.contextmanager
    def reads_resharded(self, models: Sequence[nn.Module]) -> Iterator[None]:
        """See ``Sharding``."""
        configs = [cast(Any, model)._config for model in models]
        for config in configs:
            config.load_universal_checkpoint = True
        try:
            yield
        finally:
            for config in configs:
                config.load_universal_checkpoint = False  # a rollback loads a checkpoint of this run


@dataclass(frozen=True, slots=True)
class _DeepSpeedEngine:
    wrapper: DeepSpeedEngineWrapper
    optimizer: AcceleratedOptimizer
    num_processes: int
    max_grad_norm: float

    def backward(self, loss: Tensor, *, is_last: bool) -> StepOutcome | None:
        # DeepSpeed averages over ranks, so the factor restores the sum. With sync_gradients it also clips,
        # steps and clears the gradient, unless the norm is not finite.
        self.wrapper.backward(loss * self.num_processes, sync_gradients=is_last, scale_wrt_gas=False)
        if not is_last:
            return None
        norm = float(self.wrapper.get_global_grad_norm())
        return StepOutcome(grad_norm=norm, applied=not self.optimizer.step_was_skipped)

    def restore_options(self) -> None:
        # ZeRO-1 and 2 store the limit in the checkpoint and load it from there.
        self.optimizer.optimizer.clip_grad = self.max_grad_norm


def sharding_of(accelerator: Accelerator) -> Sharding:
    """Returns the sharding of the run that ``accelerator`` belongs to."""
    plugin = accelerator.state.deepspeed_plugin
    if plugin is None:
        assert accelerator.num_processes == 1, "several ranks need DeepSpeed"
        return Unsharded()
    return DeepSpeedZero(
        stage=plugin.zero_stage, config=plugin.deepspeed_config, num_processes=accelerator.num_processes
    )


def deepspeed_is_asked_for() -> bool:
    """True if ``accelerate launch`` was given a DeepSpeed config."""
    return os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true"


def prepare_for_deepspeed(*, on_gpu: bool) -> None:
    """Applies process settings that DeepSpeed reads when it is first imported."""
    # DeepSpeed 0.19 calls a collective by a name that torch 2.13 deprecates.
    warnings.filterwarnings("ignore", message=".*all_gather_into_tensor", category=FutureWarning)
    if on_gpu:
        return
    # Set explicitly, so that DeepSpeed does not warn on every rank that it found no GPU.
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    if deepspeed_is_asked_for():
        _leave_out_shared_memory_op()


def configure_deepspeed(accelerator: Accelerator, *, max_grad_norm: float) -> None:
    """Sets the options that DeepSpeed's config leaves to the run; no-op without DeepSpeed."""
    plugin = accelerator.state.deepspeed_plugin
    if plugin is None:
        return
    options = plugin.deepspeed_config
    # Micro-batches vary in size and the loss includes all weights, so DeepSpeed must only sum gradients.
    options["train_micro_batch_size_per_gpu"] = 1
    options["train_batch_size"] = accelerator.num_processes
    options["gradient_accumulation_steps"] = 1
    options["gradient_clipping"] = max_grad_norm
    if options.get("bf16", {}).get("enabled"):
        # Otherwise DeepSpeed would apply a bf16 step with an infinite gradient.
        options["bf16"]["check_grad_overflow"] = True
        # Its default is bf16, in which a sum stops growing once it is 256 times a summand.
        options["data_types"] = {"grad_accum_dtype": "fp32"}


def _leave_out_shared_memory_op() -> None:
    """Prevents DeepSpeed from compiling a collective that only its inference layers call.

    The build takes half a minute on first use, and waits forever for the lock file of a build whose process
    was killed.
    """
    from deepspeed.ops import __compatible_ops__ as compatible

    compatible["deepspeed_shm_comm"] = False
