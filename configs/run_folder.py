"""Names in the folder of a training run that commands of several packages use."""

from pathlib import Path

CHECKPOINTS = "checkpoints"
"""Folder of the checkpoints, which are called ``step_000020`` and so on."""
UNFINISHED = ".unfinished"
"""Suffix of a checkpoint's name while it is being written."""
MANIFEST = "manifest.json"
"""File that is written last into a checkpoint; it marks the checkpoint as complete."""

STOPPED = "stopped"
"""File that exists if the last process of the run stopped on request; holds the line that it printed."""
ALARMED = "alarmed"
"""File that exists if an alarm ended the last process of the run (train.on_alarm); holds the line that it
printed."""


def is_whole(checkpoint: Path) -> bool:
    """Returns True if a checkpoint is complete and has its final name. Reads no file."""
    return checkpoint.suffix != UNFINISHED and (checkpoint / MANIFEST).is_file()


def forget_end(output_dir: Path) -> None:
    """Removes what tells how the last process of the run ended."""
    for name in (STOPPED, ALARMED):
        (output_dir / name).unlink(missing_ok=True)


def refuse_used(output_dir: Path) -> None:
    """Checks that the folder of a new run (``resume=none``) holds no complete checkpoint.

    Raises:
        ValueError: If it does; the message names the newest one.
    """
    whole = [path for path in sorted((output_dir / CHECKPOINTS).glob("step_*")) if is_whole(path)]
    if whole:
        raise ValueError(
            f"resume is none, but {whole[-1]} exists: a new run would mix with an earlier one. "
            "Set resume=auto to resume it, or another output_dir, or remove its checkpoints."
        )
