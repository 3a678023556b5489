"""What a run starts from: rank 0 decides, before anything is started, and tells the other ranks.

Checking a checkpoint reads all of it: on every rank of a large run that would be terabytes.
"""

import json
from dataclasses import asdict, dataclass

from configs.schema import TrainingConfig
from train.checkpoint_files import find_checkpoint, read_state
from train.distributed import tell_ranks
from train.phases import AFTER, is_complete


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """Rank 0's decision, equal on every rank."""

    checkpoint: str | None = None
    """Folder of the checkpoint to resume from; None for a new run."""
    is_done: bool = False
    """True if the last step and the evaluation after it are complete."""
    error: str | None = None
    """Why rank 0 could not decide."""


def decide_start(config: TrainingConfig, *, is_main: bool) -> Start:
    """Returns rank 0's decision on every rank. Every rank must call it.

    Raises:
        ValueError, FileNotFoundError: On rank 0, as ``find_checkpoint`` does.
        RuntimeError: If rank 0 failed, or another rank was not there within
            ``train.collective_timeout_seconds``.
    """
    decided, failure = Start(), None
    if is_main:
        try:
            decided = _decide(config)
        except (ValueError, OSError) as error:
            decided, failure = Start(error=str(error)), error
    told = tell_ranks(
        json.dumps(asdict(decided)),
        what="the checkpoint to resume from",
        timeout_seconds=config.train.collective_timeout_seconds,
    )
    if failure is not None:
        raise failure
    start = Start(**json.loads(told))
    if start.error is not None:
        raise RuntimeError(f"Rank 0 could not choose the checkpoint to resume from: {start.error}")
    return start


def _decide(config: TrainingConfig) -> Start:
    path = find_checkpoint(config)
    if path is None:
        return Start()
    evaluated = is_complete(config, AFTER) or not config.train.eval_at_end
    made_all = read_state(path).step >= config.train.max_steps
    return Start(checkpoint=str(path), is_done=made_all and evaluated)
