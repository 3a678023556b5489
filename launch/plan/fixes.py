"""Options that make a run fit that does not, and the cheapest recomputation with which one fits."""

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

from configs.schema import RECOMPUTATIONS, JobConfig
from launch.accelerate_file import AccelerateFile, accelerate_file
from launch.plan.architecture import Architecture, architecture_of
from launch.plan.splits import GpuSplit, fastest, splits_of
from launch.plan.workload import CallsOf, Workload, longest_row, workload_of

LESS_FOR_WORKERS = (0.6, 0.4)
"""Values of rollout.gpu_memory_utilization that are tried if workers share GPUs with the trainer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cheaper:
    """A smaller ``model.gradient_checkpointing`` with which a run fits as well, and is faster."""

    recomputes: str
    split: GpuSplit
    """The fastest split with it."""


def cheaper_recomputation(
    config: JobConfig, model: Architecture, file: AccelerateFile, work: Workload, best: GpuSplit | None
) -> Cheaper | None:
    """Returns the fastest smaller recomputation that fits, if it is faster than ``best``, the run's split.

    Activations that are kept may leave room for slower splits alone.
    """
    found, before = None, best
    for value in RECOMPUTATIONS[: RECOMPUTATIONS.index(config.model.gradient_checkpointing)]:
        changed = copy.deepcopy(config)
        changed.model.gradient_checkpointing = value
        split = fastest(splits_of(changed, model, file, work))
        if before is not None and split is not None and fastest([before, split]) is not before:
            found, before = Cheaper(recomputes=value, split=split), split
    return found


Change = Callable[[JobConfig], None]


def fixes_of(config: JobConfig, calls_of: CallsOf) -> Iterator[str]:
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
        return any(split.fits for split in splits_of(changed, model, file, work))
    except ValueError:
        return False


def _changes(config: JobConfig, calls_of: CallsOf) -> Iterator[tuple[str, Change]]:
    """Yields changes to try on GPUs, as overrides and functions, the cheapest first."""
    work, file = workload_of(config, calls_of), accelerate_file(config)
    longest = longest_row(work)
    more = RECOMPUTATIONS[1 + RECOMPUTATIONS.index(config.model.gradient_checkpointing) :]
    yield from _least(config, calls_of, "model", "gradient_checkpointing", more)
    if config.train.tokens_per_micro_batch > longest:
        yield f"train.tokens_per_micro_batch={longest}", _setter("train", "tokens_per_micro_batch", longest)
    if file.zero_stage < 3:
        yield "launch.accelerate=auto", _setter("launch", "accelerate", "auto")
    if config.nodes == 1 and not file.offloads_optimizer:
        yield "launch.accelerate=gpu_zero3_offload", _setter("launch", "accelerate", "gpu_zero3_offload")
    if config.rollout.enable_sleep_mode:
        less = [share for share in LESS_FOR_WORKERS if share < config.rollout.gpu_memory_utilization]
        yield from _least(config, calls_of, "rollout", "gpu_memory_utilization", less)
    yield _shorter_calls(config, work)
    more = [number for number in (2, 4, 8, 16) if number > config.nodes]
    yield from _least(config, calls_of, "", "nodes", more)


def _least(
    config: JobConfig, calls_of: CallsOf, part: str, name: str, values: Sequence[object]
) -> Iterator[tuple[str, Change]]:
    """Yields the first value that fits alone; if none does, the last, to combine with other changes."""
    for value in values:
        change = _setter(part, name, value)
        if value == values[-1] or _fits_after(config, calls_of, [change]):
            yield f"{part}.{name}={value}".lstrip("."), change
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
