"""Writes the page at the end of a run, which must not fail for it."""

from collections.abc import Callable
from pathlib import Path


def try_write(write: Callable[[Path], Path], folder: Path) -> str:
    """Writes a page; returns one line that names the file, or why there is none."""
    try:
        return f"Run page: {write(folder)}"
    except Exception as error:  # whatever it is, the run itself is done and must end well
        reason = " ".join(str(error).split())
        return f"The run page of {folder} was not written: {type(error).__name__}: {reason}"
