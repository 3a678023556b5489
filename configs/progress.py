"""Progress bars: drawn in a terminal; in a file or pipe one line each time, without cursor codes."""

import re
import sys
from typing import Any, TextIO

from tqdm import tqdm

SECONDS_BETWEEN_LINES = 10.0
"""Least interval between two lines in a file; a terminal's bar moves at once."""


_CURSOR = re.compile(r"\x1b\[\w")  # tqdm moves it between bars


class _Lines:
    """A stream that receives each state of a bar as a line of its own."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        if state := _CURSOR.sub("", text).strip():
            self._stream.write(f"{state}\n")
        return len(text)

    def flush(self) -> None:
        self._stream.flush()


def progress_bar(*, title: str, total: int, done: int, unit: str) -> "tqdm[Any]":
    """Returns a bar on stderr that stands at ``done`` of ``total``."""
    if sys.stderr.isatty():
        return tqdm(total=total, initial=done, unit=unit, desc=title, dynamic_ncols=True)
    return tqdm(
        total=total,
        initial=done,
        unit=unit,
        desc=title,
        file=_Lines(sys.stderr),
        mininterval=SECONDS_BETWEEN_LINES,
        miniters=1,
        bar_format="{desc}: {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]",
    )
