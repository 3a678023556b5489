"""The process groups of the ranks, and collectives on objects and sums with a time limit.

Tensors go over the default group. Objects go over a gloo group of their own: ranks wait on it for rank 0's
rollouts, for minutes to hours. A wait in NCCL would keep a kernel spinning on the GPU, which a worker may be
using meanwhile. That another rank is gone is noticed by ``train.lifelines``.
"""

import logging
import os
import sys
from datetime import timedelta
from typing import NoReturn, TypeVar, cast

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs
from torch.distributed.rendezvous import rendezvous

from configs.schema import TrainingConfig
from train.deepspeed_zero import configure_deepspeed, deepspeed_is_asked_for, prepare_for_deepspeed
from train.interfaces import VARIABLE, interface_of_ranks
from train.lifelines import Lifelines, accept_all, end_rank, invite, join

logger = logging.getLogger(__name__)

WORD_SECONDS = 7 * 24 * 3600
"""Time limit of a wait for rank 0's word: only a last resort. Each of rank 0's own waits has a shorter one
(``train.collective_timeout_seconds`` for a batch), and a dead rank is noticed at once."""

_objects: torch.distributed.ProcessGroup | None = None
"""Group for objects; one per process, as torch's default group is. None in a run of one process."""
_lifelines: Lifelines | None = None
"""Connections to other ranks; one per process. None in a run of one process."""

T = TypeVar("T")


def make_accelerator(config: TrainingConfig) -> Accelerator:
    """Joins the process group and sets the options that DeepSpeed's config leaves to the run.

    Call it before loading the model: under ZeRO-3 weights are then sharded while they load. Without
    ``accelerate launch`` there is one process and no DeepSpeed.

    Raises:
        ValueError: If several ranks, or a bfloat16 model, are launched without DeepSpeed, or the interface
            between machines is not known.
        RuntimeError: If a rank cannot reach rank 0.
    """
    uses_deepspeed = deepspeed_is_asked_for()
    if config.model.dtype != "float32" and not uses_deepspeed:
        raise ValueError(
            f"model.dtype is {config.model.dtype}, which needs DeepSpeed: it keeps fp32 master weights, "
            "without which small updates vanish. Start with accelerate launch --config_file (see "
            "launch/accelerate), or set model.dtype=float32."
        )
    on_gpu = torch.cuda.is_available()
    if not on_gpu:
        torch.set_num_threads(config.train.num_threads)
    elif config.model.dtype == "float32":
        logger.warning(
            "model.dtype is float32: on a GPU this has no flash attention and takes many times as long as "
            "bfloat16, which keeps fp32 master weights."
        )
    prepare_for_deepspeed(on_gpu=on_gpu)
    if (interface := interface_of_ranks()) is not None:
        os.environ[VARIABLE] = interface
    group = InitProcessGroupKwargs(
        # Set explicitly: without a GPU, accelerate would assume a single process.
        backend="nccl" if on_gpu else "gloo",
        timeout=timedelta(seconds=config.train.collective_timeout_seconds),
    )
    accelerator = Accelerator(
        # With bf16, DeepSpeed keeps fp32 master weights, independently of the launch file.
        mixed_precision="bf16" if config.model.dtype == "bfloat16" else "no",
        # The trainer steps the scheduler once per update; accelerate would step it once per process.
        step_scheduler_with_optimizer=False,
        kwargs_handlers=[group] if "LOCAL_RANK" in os.environ else [],
    )
    if accelerator.num_processes > 1 and not uses_deepspeed:
        raise ValueError(
            f"{accelerator.num_processes} ranks were launched as {accelerator.distributed_type.value}, "
            "but several ranks need distributed_type: DEEPSPEED in the file passed to "
            "accelerate launch --config_file; launch/accelerate has such files."
        )
    configure_deepspeed(accelerator, max_grad_norm=config.algo.max_grad_norm)
    if accelerator.num_processes > 1 and _objects is None:
        _connect(accelerator)
    return accelerator


def _connect(accelerator: Accelerator) -> None:
    """Forms the group for objects, and the connections that notice a lost rank."""
    global _objects, _lifelines
    made = torch.distributed.new_group(backend="gloo", timeout=timedelta(seconds=WORD_SECONDS))
    _objects = cast(torch.distributed.ProcessGroup, made)
    rank = accelerator.process_index
    listener, place = invite() if rank == 0 else (None, None)
    place = from_rank_zero(accelerator, place, what="where ranks connect to it")
    assert place is not None
    peers = join(place, rank) if listener is None else accept_all(listener, place, accelerator.num_processes)
    _lifelines = Lifelines(rank, peers, end=end_rank)


def refuse_shared_gpus(config: TrainingConfig) -> None:
    """Raises ``ValueError`` if ranks and local workers would use the same GPUs although none ever sleeps.

    Both take the visible GPUs from the first one on. ``python -m launch`` splits them instead and passes
    ``rollout.urls``.
    """
    rollout = config.rollout
    if not torch.cuda.is_available() or rollout.urls or rollout.chats or rollout.enable_sleep_mode:
        return
    raise ValueError(
        "The trainer and its local rollout workers would both use the first GPU, where neither leaves memory "
        "to the other. Start with python -m launch, which splits the GPUs; or set "
        "rollout.enable_sleep_mode=true to share them in turns; or set rollout.urls to workers elsewhere."
    )


def give_back_cached_memory(accelerator: Accelerator) -> None:
    """Frees the GPU memory that torch caches; returns once every rank has done so."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    wait_for_all(accelerator)


def wait_for_all(accelerator: Accelerator) -> None:
    """Returns once every rank has called it; unlike a wait in NCCL, it leaves the GPU alone."""
    if accelerator.num_processes > 1:
        torch.distributed.barrier(group=_objects)


def leave(status: int = 0) -> NoReturn:
    """Ends a rank that has finished and closed everything, without the interpreter's shutdown.

    Threads of gloo outlive the process group if DeepSpeed still refers to one. If such a thread acquires the
    interpreter's lock during shutdown, the process aborts, and a finished run counts as failed.
    """
    if _lifelines is not None:
        _lifelines.close()
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def tell_ranks(text: str, *, what: str, timeout_seconds: float) -> str:
    """Returns rank 0's ``text`` on every rank, before there is a process group; ``what`` is for the error.

    It uses the store through which the ranks will meet, and no device. Rank 0 returns when all have read.

    Raises:
        RuntimeError: If rank 0, or for rank 0 another rank, is not there within ``timeout_seconds``.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return text
    limit = timedelta(seconds=timeout_seconds)
    rank = int(os.environ["RANK"])
    try:
        store, _, ranks = next(iter(rendezvous("env://", timeout=limit)))
        if rank == 0:
            store.set(what, text)
            # A store that rank 0 serves ends with this function: the others must have read before.
            store.wait([f"{what}/read by {other}" for other in range(1, ranks)], limit)
            return text
        store.wait([what], limit)
        told = store.get(what).decode()
        store.set(f"{what}/read by {rank}", "")
    except RuntimeError as error:  # torch's DistError is one, too
        waited = "the other ranks to read" if rank == 0 else "rank 0 to send"
        raise RuntimeError(
            f"Rank {rank} waited {timeout_seconds:g} s for {waited} {what}: {error} See the output of the "
            "other ranks for the cause, or raise train.collective_timeout_seconds if one was slow."
        ) from error
    return told


def from_rank_zero(accelerator: Accelerator, value: T | None, *, what: str) -> T:
    """Broadcasts rank 0's ``value`` and returns it on every rank.

    Raises:
        RuntimeError: If rank 0 is gone or sends nothing within ``WORD_SECONDS``; the message names ``what``.
    """
    if accelerator.num_processes == 1:
        return cast(T, value)
    box = [value]
    try:
        torch.distributed.broadcast_object_list(box, src=0, group=_objects)
    except RuntimeError as error:
        raise RuntimeError(
            f"Rank {accelerator.process_index} waited for rank 0 to send {what} and got nothing: {error} "
            "See rank 0's output for the cause."
        ) from error
    return cast(T, box[0])


def gather_objects(accelerator: Accelerator, value: T) -> list[T]:
    """Returns the ``value`` of every rank, in rank order, on rank 0; an empty list on the other ranks."""
    if accelerator.num_processes == 1:
        return [value]
    is_main = accelerator.is_main_process
    values: list[T | None] | None = [None] * accelerator.num_processes if is_main else None
    torch.distributed.gather_object(value, values, dst=0, group=_objects)
    return cast(list[T], values or [])


def sum_over_ranks(accelerator: Accelerator, values: torch.Tensor) -> torch.Tensor:
    """Returns the sum of ``values`` over ranks, on every rank."""
    if accelerator.num_processes == 1:
        return values
    return cast(torch.Tensor, accelerator.reduce(values, reduction="sum"))


def max_over_ranks(accelerator: Accelerator, values: torch.Tensor) -> torch.Tensor:
    """Returns the elementwise maximum of ``values`` over ranks, on every rank."""
    if accelerator.num_processes > 1:
        torch.distributed.all_reduce(values, op=torch.distributed.ReduceOp.MAX)
    return values


def any_rank(accelerator: Accelerator, value: bool) -> bool:
    """Returns True on every rank if ``value`` is True on any; waits as ``from_rank_zero`` does.

    Ranks call it while rank 0 evaluates, for minutes to hours.
    """
    if accelerator.num_processes == 1:
        return value
    flag = torch.tensor(int(value))
    torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX, group=_objects)
    return bool(flag)
