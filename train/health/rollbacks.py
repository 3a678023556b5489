"""Rollbacks of a run: ``rollbacks.jsonl``, the rate that they leave, and the checkpoint to return to."""

import json
import os
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

ROLLBACKS_FILE = "rollbacks.jsonl"
RATE_FACTOR = 0.5
"""Each rollback multiplies the learning rates by this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollback:
    """A return to an earlier checkpoint; one line of ``rollbacks.jsonl``."""

    from_step: int
    """The step that raised the alarms."""
    to_step: int
    """Step of the checkpoint from which the run resumed; the steps after it were made again."""
    policy_version: int
    """Version under which the weights of ``to_step`` were published again."""
    alarms: tuple[str, ...]
    metrics: str
    """Name of the copy of ``metrics.jsonl`` that has the steps that were given up."""

    def __str__(self) -> str:
        return f"rolled back from step {self.from_step} to step {self.to_step}: {'; '.join(self.alarms)}"


def read_rollbacks(output_dir: Path) -> list[Rollback]:
    """Returns the rollbacks of a run, oldest first."""
    path = output_dir / ROLLBACKS_FILE
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").splitlines()
    return [Rollback(**{**line, "alarms": tuple(line["alarms"])}) for line in map(json.loads, lines)]


def record_rollback(output_dir: Path, rollback: Rollback) -> None:
    """Adds a rollback to the file, which is on disk when this returns."""
    path = output_dir / ROLLBACKS_FILE
    aside = path.with_suffix(".tmp")
    everything = [*read_rollbacks(output_dir), rollback]
    with aside.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(asdict(item)) + "\n" for item in everything)
        file.flush()
        os.fsync(file.fileno())
    # Renamed when complete: the number of lines decides the learning rate.
    os.replace(aside, path)


def forget_rollbacks(output_dir: Path) -> None:
    """Removes the file, for a run that starts from the beginning."""
    (output_dir / ROLLBACKS_FILE).unlink(missing_ok=True)


def rate_scale(rollbacks: Sequence[Rollback]) -> float:
    """Returns the factor of the learning rates after the run's rollbacks."""
    return RATE_FACTOR ** len(rollbacks)


def measured_at(checkpoint: int, max_staleness: int) -> int:
    """Returns the first step whose samples all come from the policy of a checkpoint, or from later ones.

    The samples of step t come from the policies after the steps t - 1 - ``max_staleness`` to t - 1.
    """
    return checkpoint + 1 + max_staleness


def last_healthy(
    checkpoints: Sequence[int], unhealthy: Collection[int], *, step: int, max_staleness: int
) -> int | None:
    """Returns the newest checkpoint that was measured before ``step`` and raised no alarm, or None.

    A step measures the policies before it: if step 4 raises an alarm, the policy of checkpoint 3 has failed.
    The initial policy (step 0) is healthy by definition.

    Args:
        checkpoints: Steps of the checkpoints.
        unhealthy: Steps with an alarm.
        step: The step that raised the alarm.
        max_staleness: The run's ``collect.max_staleness``.
    """
    for checkpoint in sorted(checkpoints, reverse=True):
        measured = measured_at(checkpoint, max_staleness)
        if checkpoint == 0 or (
            measured < step and not any(s in unhealthy for s in range(checkpoint, measured + 1))
        ):
            return checkpoint
    return None
