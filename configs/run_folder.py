"""The folder of a training run, as far as commands of several packages must know it."""

from pathlib import Path

CHECKPOINTS = "checkpoints"
"""Its folder of checkpoints, ``step_000020`` and the like."""
UNFINISHED = ".unfinished"
"""Suffix of a checkpoint's name while it is written."""
MANIFEST = "manifest.json"
"""What is written last into a checkpoint."""


def is_whole(checkpoint: Path) -> bool:
    """Whether a checkpoint was written to its end and has its final name. No file is read."""
    return checkpoint.suffix != UNFINISHED and (checkpoint / MANIFEST).is_file()


def refuse_used(output_dir: Path) -> None:
    """Refuses a folder to a new run, one with ``resume=none``, if it holds a whole checkpoint.

    Raises:
        ValueError: If it does; with the newest one.
    """
    whole = [path for path in sorted((output_dir / CHECKPOINTS).glob("step_*")) if is_whole(path)]
    if whole:
        raise ValueError(
            f"resume is none, but {whole[-1]} exists: a new run would mix with an earlier one. "
            "Set resume=auto to go on with it, or another output_dir, or remove its checkpoints."
        )
