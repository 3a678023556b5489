"""Plans a run: memory and time of each split of the GPUs, and options that make the run fit."""

import copy
from dataclasses import dataclass

from configs.schema import JobConfig
from launch.accelerate_file import AccelerateFile, accelerate_file
from launch.plan.architecture import Architecture, architecture_of
from launch.plan.calibration import Measured, calibrated
from launch.plan.fixes import LESS_FOR_WORKERS, Cheaper, cheaper_recomputation, fixes_of
from launch.plan.flops import step_flops
from launch.plan.splits import GpuSplit, fastest, splits_of
from launch.plan.whole_run import WholeRun, whole_run
from launch.plan.workload import CallsOf, Workload, workload_of


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
    cheaper: Cheaper | None = None
    """None if the run does not fit, or recomputes no more than it must."""
    measured: tuple[Measured, ...] = ()
    """Assumptions of ``config`` that ``plan.calibration`` replaced."""

    @property
    def best(self) -> GpuSplit:
        """The fastest split that fits; if none fits, the one with the lowest trainer peak."""
        return fastest(self.splits) or min(self.splits, key=lambda split: split.trainer_memory.peak)

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
        ValueError: If the model's sizes, the accelerate file or ``plan.calibration`` cannot be read, there is
            one GPU for both trainer and workers, or the operator does not declare its calls.
    """
    model, file = architecture_of(config.model.path), accelerate_file(config)
    config, measured = calibrated(config, model)
    work = workload_of(config, calls_of)
    splits = tuple(splits_of(config, model, file, work))
    needs_fix = config.gpus and not any(split.fits for split in splits)
    fixes = tuple(fixes_of(config, calls_of)) if needs_fix else ()
    return Plan(
        config=config,
        model=model,
        file=file,
        work=work,
        flops=step_flops(config, model, work),
        splits=splits,
        fixes=fixes,
        shared=_shared(config, model, file, work),
        measured=measured,
        cheaper=cheaper_recomputation(config, model, file, work, fastest(splits)),
    )


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
        (split,) = splits_of(changed, model, file, work)
        if split.fits:
            return SharedGpus(split=split, gpu_memory_utilization=share)
    return None
