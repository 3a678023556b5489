"""JSON lines in and out for ``python -m rewards``: streams, and skips broken lines."""

import asyncio
import json
import os
import sys
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm import tqdm

from configs.json_lines import BrokenRowError, check_format, parse_row, read_lines, text_of
from rewards.scorer import Scorer
from rewards.verdict import STATUSES, Verdict

WINDOW = 256
"""Number of lines that are scored at the same time; no others are held in memory."""


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Same as ``read_lines``, with a progress bar."""
    with tqdm(total=path.stat().st_size, unit="B", unit_scale=True, disable=None) as bar:
        for number, line in read_lines(path):
            bar.update(len(line))
            yield number, line


def _completion(row: dict[str, Any]) -> str:
    """Returns the field ``pred``, which may be any string: a policy may write anything.

    Raises:
        BrokenRowError: If there is no such field, or it is not a string.
    """
    if not isinstance(row.get("pred", ""), str):
        raise BrokenRowError(f"Its field 'pred' must be text, got {ascii(row['pred'])[:60]}.")
    if "pred" not in row:
        raise BrokenRowError(f"It has no field 'pred'; it has {ascii(sorted(row))[:200]}.")
    return row["pred"]


def _report(path: Path, number: int, problem: object) -> None:
    tqdm.write(f"{path} line {number}: {problem}", file=sys.stderr)


def check_target(source: Path, target: Path) -> None:
    """Checks, before anything is scored, that the target can be written and may be replaced.

    Raises:
        ValueError: If it is the source, exists and is not a regular file, or its folder does not exist.
    """
    if not target.parent.is_dir():
        raise ValueError(f"{target}: the folder {target.parent} does not exist; create it first.")
    if target.is_symlink() or (target.exists() and not target.is_file()):
        raise ValueError(f"{target} is not a regular file and would be replaced by one; choose another name.")
    if target.exists() and target.samefile(source):
        raise ValueError(f"{target} is the file to score; choose another name for the result.")


async def score_file(source: Path, target: Path, scorer: Scorer) -> tuple[Counter[str], int]:
    """Scores every line of ``source`` and writes the results to ``target``, in order.

    The target appears under its name only when it is complete. Each line keeps its fields and gets a field
    ``verdict``; broken lines are reported and dropped.

    Raises:
        ValueError: If the target is refused by ``check_target``, or the source is not JSON lines.

    Returns:
        Counts by status, and the number of broken lines.
    """
    check_format(source)
    check_target(source, target)
    counts: Counter[str] = Counter(dict.fromkeys(STATUSES, 0))
    num_broken = 0
    waiting: deque[tuple[dict[str, Any], asyncio.Task[Verdict]]] = deque()
    partial = target.with_name(target.name + ".partial")

    with partial.open("w", encoding="ascii") as file:
        # Results are awaited in the order of the lines, whichever is scored first.
        async def write_first() -> None:
            row, task = waiting.popleft()
            verdict = await task
            counts[verdict.status] += 1
            file.write(json.dumps({**row, "verdict": asdict(verdict)}) + "\n")

        for number, line in _lines(source):
            try:
                row = parse_row(line)
                completion, gold = _completion(row), text_of(row, "gold", numbers=True)
            except BrokenRowError as error:
                num_broken += 1
                _report(source, number, error)
                continue
            check = scorer.score(gold=gold or "", completion=completion)
            waiting.append((row, asyncio.create_task(check)))
            if len(waiting) >= WINDOW:
                await write_first()
        while waiting:
            await write_first()
    os.replace(partial, target)
    return counts, num_broken
