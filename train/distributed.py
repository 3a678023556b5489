"""The ranks: the process group, and words from rank 0 to all with a time limit."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from datetime import timedelta
from typing import NoReturn, TypeVar, cast

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs

from configs.schema import TrainingConfig

T = TypeVar("T")


def make_accelerator(config: TrainingConfig) -> Accelerator:
    """Joins the process group and fills in what DeepSpeed's config leaves to the run.

    Make it before the model: under ZeRO-3 weights are then sharded while they load. Started without
    ``accelerate launch`` there is one process and no DeepSpeed.

    Raises:
        ValueError: If several ranks, or a bfloat16 model, are launched without DeepSpeed.
    """
    uses_deepspeed = os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true"
    if config.model.dtype != "float32" and not uses_deepspeed:
        raise ValueError(
            f"model.dtype is {config.model.dtype}, which needs DeepSpeed: it keeps fp32 master weights, "
            "without which small updates vanish. Start with accelerate launch --config_file (see "
            "launch/accelerate), or set model.dtype=float32."
        )
    on_gpu = torch.cuda.is_available()
    if not on_gpu:
        torch.set_num_threads(config.train.num_threads)
        # Said once here, DeepSpeed does not warn on every rank that it found no GPU.
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
        if uses_deepspeed:
            _leave_out_shared_memory_op()
    # DeepSpeed 0.19 calls a collective by the name that torch 2.13 deprecates.
    warnings.filterwarnings("ignore", message=".*all_gather_into_tensor", category=FutureWarning)
    group = InitProcessGroupKwargs(
        # Named because accelerate, seeing no GPU, would take this for a single process.
        backend="nccl" if on_gpu else "gloo",
        timeout=timedelta(seconds=config.train.collective_timeout_seconds),
    )
    accelerator = Accelerator(
        # DeepSpeed then keeps master weights in fp32, whatever the launch file says.
        mixed_precision="bf16" if config.model.dtype == "bfloat16" else "no",
        # The loop steps the scheduler once per update, not once per update and process.
        step_scheduler_with_optimizer=False,
        kwargs_handlers=[group] if "LOCAL_RANK" in os.environ else [],
    )
    if accelerator.num_processes > 1 and not uses_deepspeed:
        raise ValueError(
            f"{accelerator.num_processes} ranks were launched as {accelerator.distributed_type.value}, "
            "but several ranks need distributed_type: DEEPSPEED in the file given to "
            "accelerate launch --config_file; launch/accelerate has such files."
        )
    if uses_deepspeed:
        plugin = accelerator.state.deepspeed_plugin
        assert plugin is not None
        options = plugin.deepspeed_config
        # Micro-batches vary in size; the loss carries all weights, so DeepSpeed only has to add up.
        options["train_micro_batch_size_per_gpu"] = 1
        options["train_batch_size"] = accelerator.num_processes
        options["gradient_accumulation_steps"] = 1
        options["gradient_clipping"] = config.algo.max_grad_norm
        if options.get("bf16", {}).get("enabled"):
            # Without it a bf16 step with an infinite gradient would be taken.
            options["bf16"]["check_grad_overflow"] = True
    return accelerator


def give_back_cached_memory(accelerator: Accelerator) -> None:
    """Returns what torch holds of a GPU without using it, on every rank before any goes on."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    accelerator.wait_for_everyone()


def zero_stage(accelerator: Accelerator) -> int:
    """ZeRO stage of the run; 0 without DeepSpeed."""
    plugin = accelerator.state.deepspeed_plugin
    return 0 if plugin is None else plugin.zero_stage


def _leave_out_shared_memory_op() -> None:
    """Keeps DeepSpeed from compiling a collective that only its inference layers call.

    The build takes half a minute on first use, and waits for ever for the lock file of a build whose
    process was killed.
    """
    from deepspeed.ops import __compatible_ops__ as compatible

    compatible["deepspeed_shm_comm"] = False


def leave(status: int = 0) -> NoReturn:
    """Ends a rank that has done and closed everything, without the interpreter's shutdown.

    Threads of gloo outlive the process group where DeepSpeed still refers to one. If such a thread asks for
    the interpreter's lock while that shuts down, the process aborts, and a finished run counts as failed.
    """
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def from_rank_zero(accelerator: Accelerator, value: T | None, *, what: str) -> T:
    """Rank 0's ``value`` on every rank.

    Raises:
        RuntimeError: If rank 0 did not come within ``train.collective_timeout_seconds``; names ``what``.
    """
    if accelerator.num_processes == 1:
        return cast(T, value)
    box = [value]
    try:
        torch.distributed.broadcast_object_list(box, src=0, device=accelerator.device)
    except RuntimeError as error:
        raise RuntimeError(
            f"Rank {accelerator.process_index} waited for rank 0 to send {what} and got nothing: {error} "
            "See rank 0's output for why, or raise train.collective_timeout_seconds if it was only slow."
        ) from error
    return cast(T, box[0])


def sum_over_ranks(accelerator: Accelerator, values: torch.Tensor) -> torch.Tensor:
    """The sum of ``values`` over ranks, on every rank."""
    if accelerator.num_processes == 1:
        return values
    return cast(torch.Tensor, accelerator.reduce(values, reduction="sum"))


def max_over_ranks(accelerator: Accelerator, values: torch.Tensor) -> torch.Tensor:
    """The largest of each of ``values`` over ranks, on every rank."""
    if accelerator.num_processes > 1:
        torch.distributed.all_reduce(values, op=torch.distributed.ReduceOp.MAX)
    return values
