"""How ``python -m launch`` splits the GPUs of its machine between workers and trainer."""

from collections.abc import Sequence

from configs.schema import JobConfig, RolloutConfig
from launch.plan.planning import make_plan
from launch.plan.splits import GpuSplit
from launch.plan.workload import CallsOf

OPTION = "rollout.num_workers"


def choose_split(config: JobConfig, overrides: Sequence[str], calls_of: CallsOf) -> str | None:
    """Sets ``rollout.num_workers`` to the plan's best split, unless the user has set it.

    Returns:
        The line that tells what was chosen and why, or what the user's choice costs; None if nothing is
        split.
    """
    if not config.gpus or config.nodes > 1 or config.rollout.urls or config.rollout.enable_sleep_mode:
        return None
    is_named = any(item.lstrip("+").startswith(f"{OPTION}=") for item in overrides)
    is_named = is_named or config.rollout.num_workers != RolloutConfig().num_workers
    gpus = config.rollout.num_workers * config.rollout.tensor_parallel_size
    try:
        plan = make_plan(config, calls_of)
    except ValueError as error:
        return f"launch: {_split(config, gpus)}; no plan could be made: {error}"
    mine = next((split for split in plan.splits if split.workers == gpus), None)
    best = plan.best
    if not best.fits or best.seconds is None:
        return (
            f"launch: {_split(config, gpus)}; according to the plan no split fits, see "
            "python -m launch.plan with the same options."
        )
    if not is_named:
        config.rollout.num_workers = _workers(config, best.workers)
        return f"launch: {_split(config, best.workers)}, the plan's best: {_compared(best, mine)}"
    if mine is None or mine is best:
        return None
    better = f"{OPTION}={_workers(config, best.workers)}"
    return f"launch: {_split(config, mine.workers)}; with {better} {_compared(best, mine)}"


def _split(config: JobConfig, gpus: int) -> str:
    return f"{gpus} GPUs sample and {config.gpus - gpus} train ({OPTION}={_workers(config, gpus)})"


def _workers(config: JobConfig, gpus: int) -> int:
    """Returns the number of workers on this many GPUs."""
    return gpus // config.rollout.tensor_parallel_size


def _compared(best: GpuSplit, other: GpuSplit | None) -> str:
    assert best.seconds is not None, "a split that fits has a time"
    text = f"the plan expects {best.seconds.total:.0f} s a step"
    if other is None or other is best:
        return text + "."
    if not other.fits or other.seconds is None:
        return f"{text}; with {other.workers} of them for workers it does not fit."
    return f"{text} instead of {other.seconds.total:.0f} s with {other.workers} GPUs that sample."
