"""What a log tells about a failure: its first error and its end. Loads no other library."""

import re
from collections.abc import Sequence
from pathlib import Path

END_LINES = 30
"""Number of last lines that are shown."""
ERROR_LINES = 5
"""Most lines of the first error that are shown: the message of an exception may have several."""
TRACEBACK = "Traceback (most recent call last)"
ERROR = re.compile(r"\b(ERROR|CRITICAL|FATAL)\b|Error\b|\berror:")


def log_excerpt(log: Path, begin: int = 0) -> str:
    """Returns the first error of a log and its last ``END_LINES`` lines, indented; for error messages.

    The first error is the exception of the first traceback, else the first line that looks like an error. It
    is left out if the last lines show it anyway.

    Args:
        log: Path of the log.
        begin: Offset in bytes from which on the log is read: what precedes is of earlier starts.
    """
    with log.open("rb") as file:
        file.seek(begin)
        lines = file.read().decode(errors="replace").splitlines()
    end = max(len(lines) - END_LINES, 0)
    number, message = _first_error(lines)
    shown = [f"The first error in {log}:", *_indented(message)] if number < end else []
    return "\n".join([*shown, f"The end of {log}:", *_indented(lines[end:])])


def _indented(lines: Sequence[str]) -> list[str]:
    return [f"  {line}" for line in lines]


def _first_error(lines: Sequence[str]) -> tuple[int, Sequence[str]]:
    """Returns the number of the line with the first error, and the lines of its message.

    Without an error the number is that of the line after the last.
    """
    for number, line in enumerate(lines):
        prefix, found, _ = line.partition(TRACEBACK)
        if found and (exception := _exception(lines, number + 1, prefix)) is not None:
            return exception, _message(lines, exception, prefix)
    number = next((number for number, line in enumerate(lines) if ERROR.search(line)), len(lines))
    return number, lines[number : number + 1]


def _exception(lines: Sequence[str], start: int, prefix: str) -> int | None:
    """Returns the number of the line with a traceback's exception: its first line that is not indented.

    A logger and vLLM's processes put a prefix before every line; lines of other processes lie in between.
    """
    for number in range(start, len(lines)):
        body = lines[number].removeprefix(prefix)
        if lines[number].startswith(prefix) and body.strip() and not body[0].isspace():
            return number
    return None


def _message(lines: Sequence[str], number: int, prefix: str) -> Sequence[str]:
    """Returns the line of an exception with the further lines of its message, which are indented."""
    stop = number + 1
    while stop < min(len(lines), number + ERROR_LINES) and lines[stop].startswith(prefix):
        if not lines[stop].removeprefix(prefix)[:1].isspace():
            break
        stop += 1
    return lines[number:stop]
