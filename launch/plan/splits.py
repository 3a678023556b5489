"""Memory and time of each way to split the GPUs between trainer and workers."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from configs.schema import JobConfig
from launch.accelerate_file import AccelerateFile
from launch.plan.architecture import Architecture
from launch.plan.memory import (
    ShardLayout,
    TrainerMemory,
    WorkerMemory,
    largest,
    trainer_memory,
    worker_memory,
)
from launch.plan.timing import StepSeconds, step_seconds
from launch.plan.whole_run import BYTES
from launch.plan.workload import Workload, adapters_of, companions_of, largest_micro_batches

GIB = 2**30


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuSplit:
    """A split of the GPUs between trainer and workers, with the resulting memory and time."""

    trainer: int
    workers: int
    trainer_memory: TrainerMemory
    worker_memory: WorkerMemory
    trainer_limit: float
    """Bytes that a rank may use."""
    seconds: StepSeconds | None
    """None on CPU, or if a worker cannot hold one sequence."""
    longest_context: int
    """rollout.max_model_len, in tokens; a worker must hold at least one sequence of this length."""
    room_beside_worker: float = math.inf
    """Bytes that a rank may hold while the worker on its GPU samples."""

    @property
    def peak_fits(self) -> bool:
        """True if the peak of a rank is within its limit."""
        return self.trainer_memory.peak <= self.trainer_limit

    @property
    def leaves_room(self) -> bool:
        """True if the memory that a rank always holds leaves enough for the worker on its GPU."""
        return self.trainer_memory.static <= self.room_beside_worker

    @property
    def trainer_fits(self) -> bool:
        """True if the trainer fits: ``peak_fits`` and ``leaves_room``."""
        return self.peak_fits and self.leaves_room

    @property
    def workers_fit(self) -> bool:
        """True if a worker can hold one sequence of ``longest_context`` tokens."""
        return self.worker_memory.tokens >= self.longest_context

    @property
    def fits(self) -> bool:
        """True if both trainer and workers fit."""
        return self.trainer_fits and self.workers_fit


def fastest(splits: Iterable[GpuSplit]) -> GpuSplit | None:
    """Returns the fastest split that fits; None if none fits, or on CPU."""
    fitting = [split for split in splits if split.fits and split.seconds is not None]
    return min(fitting, key=lambda split: split.seconds.total if split.seconds else math.inf, default=None)


def possible_splits(config: JobConfig, file: AccelerateFile) -> list[tuple[int, int]]:
    """Returns all pairs (trainer GPUs, worker GPUs). If there are several machines, each is on one side.

    With ``rollout.enable_sleep_mode`` both use all GPUs. Without GPUs the pair is the number of ranks of the
    accelerate file and ``rollout.num_workers``.

    Raises:
        ValueError: If there is only one GPU and workers do not sleep, or ``rollout.tensor_parallel_size``
            does not divide the GPUs of a machine whose GPUs all sample.
    """
    if not config.gpus:
        return [(file.num_processes, config.rollout.num_workers)]
    total, each = config.nodes * config.gpus, config.rollout.tensor_parallel_size
    if config.gpus % each and (config.nodes > 1 or config.rollout.enable_sleep_mode):
        raise ValueError(f"rollout.tensor_parallel_size is {each}, which does not divide gpus={config.gpus}.")
    if config.rollout.enable_sleep_mode:
        return [(total, total)]
    step = each if config.nodes == 1 else config.gpus
    splits = [(total - workers, workers) for workers in reversed(range(step, total, step))]
    if not splits:
        needed = "a GPU each" if each == 1 else f"one GPU and {each} (rollout.tensor_parallel_size)"
        raise ValueError(
            f"gpus is {config.gpus}: trainer and workers need {needed}. Set gpus to at least {1 + each}, or "
            "nodes, or share it: rollout.enable_sleep_mode=true."
        )
    return splits


def splits_of(
    config: JobConfig, model: Architecture, file: AccelerateFile, work: Workload
) -> Iterator[GpuSplit]:
    """Yields memory and time of each of ``possible_splits``.

    Raises:
        ValueError: As ``possible_splits``.
    """
    size = BYTES[config.model.dtype]
    limit = config.hardware.memory_gib * GIB
    trainer_limit = limit - (config.plan.runtime_gib * GIB if config.gpus else 0)
    shares = config.gpus and config.rollout.enable_sleep_mode
    for trainer, workers in possible_splits(config, file):
        sharding = ShardLayout(
            zero_stage=file.zero_stage,
            ranks=trainer,
            offloads_optimizer=file.offloads_optimizer,
            offloads_weights=file.offloads_weights,
            on_cpu=not config.gpus,
        )
        memory = largest(
            trainer_memory(
                model,
                sharding,
                micro,
                bytes_per_value=size,
                recomputes=config.model.gradient_checkpointing,
                companions=companions_of(config),
                adapters=adapters_of(config, model),
            )
            for micro in largest_micro_batches(config, work)
        )
        worker = _worker(config, model, limit)
        holds_one = worker.tokens >= config.rollout.max_model_len
        yield GpuSplit(
            trainer=trainer,
            workers=workers,
            trainer_memory=memory,
            worker_memory=worker,
            trainer_limit=trainer_limit,
            seconds=step_seconds(config, model, work, worker, trainer, workers)
            if config.gpus and holds_one
            else None,
            longest_context=config.rollout.max_model_len,
            room_beside_worker=trainer_limit - config.rollout.gpu_memory_utilization * limit
            if shares
            else math.inf,
        )


def _worker(config: JobConfig, model: Architecture, limit: float) -> WorkerMemory:
    """Returns a worker's memory: a share of a GPU, or on CPU the weights plus ``rollout.kv_cache_gib``."""
    size = BYTES[config.model.dtype if config.rollout.dtype == "auto" else config.rollout.dtype]
    if config.gpus:
        activations = config.plan.worker_activation_gib * GIB
        available = config.rollout.gpu_memory_utilization * limit
    else:
        activations = 0.0
        available = model.parameters * size + config.rollout.kv_cache_gib * GIB
    return worker_memory(
        model,
        available=available,
        activations=activations,
        bytes_per_value=size,
        gpus=config.rollout.tensor_parallel_size if config.gpus else 1,
    )
