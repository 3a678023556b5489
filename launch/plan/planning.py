"""Plans a run: memory and time of each split of the GPUs, and options that make the run fit."""

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import combinations

from configs.schema import JobConfig
from launch.accelerate_file import AccelerateFile, accelerate_file
from launch.plan.architecture import Architecture, architecture_of
from launch.plan.flops import step_flops
from launch.plan.memory import (
    ShardLayout,
    TrainerMemory,
    WorkerMemory,
    largest,
    trainer_memory,
    worker_memory,
)
from launch.plan.timing import StepSeconds, step_seconds
from launch.plan.whole_run import BYTES, WholeRun, whole_run
from launch.plan.workload import (
    CallsOf,
    Workload,
    adapters_of,
    companions_of,
    largest_micro_batches,
    longest_row,
    workload_of,
)

GIB = 2**30
LESS_FOR_WORKERS = (0.6, 0.4)
"""Values of rollout.gpu_memory_utilization that are tried if workers share GPUs with the trainer."""


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


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedGpus:
    """The alternative to a split: all GPUs sample, then train (``rollout.enable_sleep_mode``)."""

    split: GpuSplit
    gpu_memory_utilization: float
    """Largest of the shares that were tried with which both fit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Estimated memory, work and time of a run."""

    config: JobConfig
    model: Architecture
    file: AccelerateFile
    work: Workload
    flops: float
    splits: tuple[GpuSplit, ...]
    fixes: tuple[str, ...]
    """Overrides that make the run fit; empty if it fits already."""
    shared: SharedGpus | None = None
    """None if the run shares its GPUs already, has none or several machines, or both do not fit on them."""

    @property
    def best(self) -> GpuSplit:
        """The fastest split that fits; if none fits, the one with the lowest trainer peak."""
        fitting = [split for split in self.splits if split.fits and split.seconds is not None]
        if fitting:
            return min(fitting, key=lambda split: split.seconds.total if split.seconds else math.inf)
        return min(self.splits, key=lambda split: split.trainer_memory.peak)

    @property
    def run(self) -> WholeRun:
        """What the whole run takes on the best split; its time is not known if that does not fit."""
        best = self.best
        seconds = best.seconds.total if best.fits and best.seconds is not None else None
        return whole_run(self.config, self.model, seconds)


def make_plan(config: JobConfig, calls_of: CallsOf) -> Plan:
    """Plans a run.

    Args:
        config: The run.
        calls_of: Returns the stages that the operator of a run declares.

    Raises:
        ValueError: If the model's sizes or the accelerate file cannot be found, there is one GPU for both
            trainer and workers, or the operator does not declare its calls.
    """
    model, file = architecture_of(config.model.path), accelerate_file(config)
    work = workload_of(config, calls_of)
    splits = tuple(_splits(config, model, file, work))
    needs_fix = config.gpus and not any(split.fits for split in splits)
    fixes = tuple(_fixes(config, calls_of)) if needs_fix else ()
    return Plan(
        config=config,
        model=model,
        file=file,
        work=work,
        flops=step_flops(config, model, work),
        splits=splits,
        fixes=fixes,
        shared=_shared(config, model, file, work),
    )


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


def _shared(
    config: JobConfig, model: Architecture, file: AccelerateFile, work: Workload
) -> SharedGpus | None:
    rollout = config.rollout
    if not config.gpus or config.nodes > 1 or rollout.enable_sleep_mode or rollout.weight_transfer == "nccl":
        return None
    if config.gpus % rollout.tensor_parallel_size:
        return None
    for share in (rollout.gpu_memory_utilization, *LESS_FOR_WORKERS):
        changed = copy.deepcopy(config)
        changed.rollout.enable_sleep_mode = True
        changed.rollout.gpu_memory_utilization = min(share, rollout.gpu_memory_utilization)
        (split,) = _splits(changed, model, file, work)
        if split.fits:
            return SharedGpus(split=split, gpu_memory_utilization=share)
    return None


def _splits(
    config: JobConfig, model: Architecture, file: AccelerateFile, work: Workload
) -> Iterator[GpuSplit]:
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
                checkpointing=config.model.gradient_checkpointing,
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


Change = Callable[[JobConfig], None]


def _fixes(config: JobConfig, calls_of: CallsOf) -> Iterator[str]:
    """Yields the single changes after which some split fits; if none suffices, one smallest combination."""
    changes = list(_changes(config, calls_of))
    single = [text for text, change in changes if _fits_after(config, calls_of, [change])]
    yield from single
    for count in range(2, len(changes) + 1) if not single else ():
        for chosen in combinations(changes, count):
            if _fits_after(config, calls_of, [change for _, change in chosen]):
                yield " ".join(text for text, _ in chosen)
                return


def _fits_after(config: JobConfig, calls_of: CallsOf, changes: list[Change]) -> bool:
    """Returns True if some split fits after the changes; False also if the changed run is invalid."""
    changed = copy.deepcopy(config)
    for change in changes:
        change(changed)
    try:
        model, file = architecture_of(changed.model.path), accelerate_file(changed)
        work = workload_of(changed, calls_of)
        return any(split.fits for split in _splits(changed, model, file, work))
    except ValueError:
        return False


def _changes(config: JobConfig, calls_of: CallsOf) -> Iterator[tuple[str, Change]]:
    """Yields changes to try on GPUs, as overrides and functions, the cheapest first."""
    work, file = workload_of(config, calls_of), accelerate_file(config)
    longest = longest_row(work)
    if not config.model.gradient_checkpointing:
        yield "model.gradient_checkpointing=true", _setter("model", "gradient_checkpointing", True)
    if config.train.tokens_per_micro_batch > longest:
        yield f"train.tokens_per_micro_batch={longest}", _setter("train", "tokens_per_micro_batch", longest)
    if file.zero_stage < 3:
        yield "launch.accelerate=auto", _setter("launch", "accelerate", "auto")
    if config.nodes == 1 and not file.offloads_optimizer:
        yield "launch.accelerate=gpu_zero3_offload", _setter("launch", "accelerate", "gpu_zero3_offload")
    if config.rollout.enable_sleep_mode:
        for share in LESS_FOR_WORKERS:
            if share < config.rollout.gpu_memory_utilization:
                name = f"rollout.gpu_memory_utilization={share}"
                yield name, _setter("rollout", "gpu_memory_utilization", share)
    yield _shorter_calls(config, work)
    # The smallest number of nodes that fits alone; else the largest, for combinations with other changes.
    nodes = [number for number in (2, 4, 8, 16) if number > config.nodes]
    for number in nodes:
        if _fits_after(config, calls_of, [_setter("", "nodes", number)]) or number == nodes[-1]:
            yield f"nodes={number}", _setter("", "nodes", number)
            return


def _shorter_calls(config: JobConfig, work: Workload) -> tuple[str, Change]:
    """Returns the change that halves the tokens of a call and lowers the limits that follow from it."""
    rollout = config.rollout
    name = "thinking_tokens" if rollout.thinking_tokens else "max_completion_length"
    half = max(1, getattr(rollout, name) // 2)
    call = half + (rollout.answer_tokens if rollout.thinking_tokens else 0)
    room = max(calls.longest_prompt for calls in work.calls) + call
    bound = min(config.train.tokens_per_micro_batch, room)

    def change(config: JobConfig) -> None:
        setattr(config.rollout, name, half)
        config.rollout.max_model_len = room
        config.train.tokens_per_micro_batch = bound

    options = (f"rollout.{name}={half}", f"rollout.max_model_len={room}")
    return " ".join((*options, f"train.tokens_per_micro_batch={bound}")), change


def _setter(part: str, name: str, value: object) -> Change:
    return lambda config: setattr(getattr(config, part) if part else config, name, value)
