"""The parts of ``python tests/gpu``, and how one is run."""

import os
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from gpu_figures import Line, NotAFigure, read_line

from rollout.workers.process_guard import end_guarded, start_guarded

HERE = Path(__file__).parent
REPO = HERE.parents[1]
TAIL_LINES = 15
"""Lines of a failed part's output that are repeated."""
SKIPPED = 77
"""Exit status of a part that cannot run on this machine; its last line says why."""


@dataclass(frozen=True, slots=True)
class Part:
    """One script of this folder."""

    name: str
    limit: float
    """Seconds on a GPU until it is ended; what it printed until then counts."""
    takes_model: bool = False


PARTS = (
    Part("machine", 30),
    Part("attention", 60),
    Part("update", 180),
    Part("publishing", 90),
    Part("sleep", 50),
    Part("sampling", 90),
    Part("training", 100, takes_model=True),
)
"""In their order: what others are measured against first, what takes longest last."""


CPU_FACTOR = 4
"""A CPU gets this many times the seconds: workers start slowly there, and no target applies."""


def run_part(part: Part, arguments: Sequence[str], seconds_left: float, tell: Callable[[Line], None]) -> Line:
    """Runs a part until it ends or its limit is reached; hands each figure to ``tell`` when it is printed.

    Args:
        part: The part.
        arguments: Options of its command line.
        seconds_left: Seconds of the whole run that are left; a part with none of them is not begun.
        tell: Receives the part's figures.

    Returns:
        The part's status: ``ok``, or why it is not.
    """
    if seconds_left <= 0:
        return Line(part.name, "status", "not begun: the time was up")
    began, limit = time.monotonic(), min(part.limit, seconds_left)
    reading, writing = os.pipe()
    with os.fdopen(writing, "wb") as out:
        path = os.pathsep.join(filter(None, (str(REPO), os.environ.get("PYTHONPATH"))))
        command = [sys.executable, str(HERE / f"{part.name}.py"), *arguments]
        process = start_guarded(command, out, {**os.environ, "PYTHONPATH": path})
    printed = _Printed(part.name, os.fdopen(reading, encoding="utf-8", errors="replace"), tell)
    printed.start()
    try:
        status = process.wait(limit)
    except subprocess.TimeoutExpired:
        status = None
    end_guarded(process)
    printed.join()  # the pipe is closed: the whole tree has ended
    seconds = round(time.monotonic() - began, 1)
    return Line(part.name, "status", _outcome(status, limit, printed), unit=f"after {seconds} s")


class _Printed(threading.Thread):
    """Reads what a part prints: figures are handed on at once, the last of the other lines are kept."""

    def __init__(self, part: str, file: IO[str], tell: Callable[[Line], None]) -> None:
        super().__init__(daemon=True)
        self._part, self._file, self._tell = part, file, tell
        self.figures = 0
        self.malformed: list[str] = []
        self.others: deque[str] = deque(maxlen=TAIL_LINES)

    def run(self) -> None:
        with self._file:
            for text in self._file:
                if not text.startswith('{"part"'):
                    self.others.append(text.rstrip())
                    continue
                try:
                    self._tell(read_line(self._part, text))
                    self.figures += 1
                except NotAFigure:
                    self.malformed.append(text.rstrip())


def _outcome(status: int | None, limit: float, printed: _Printed) -> str:
    if status is None:
        return f"ended after its limit of {limit:.0f} s, with {printed.figures} figures"
    if status == SKIPPED:
        return f"skipped: {printed.others[-1] if printed.others else 'no reason was printed'}"
    if printed.malformed:
        return f"failed: printed a line that is no figure: {printed.malformed[0]!r}"
    if status:
        return "\n".join([f"failed with status {status}:", *printed.others])
    return "ok" if printed.figures else "failed: printed no figure"
