"""Turns rows into problems, and tells what was understood of them.

A gold answer that does not parse would make every rollout of its problem wrong. ``check_gold`` (passed in;
it raises ``ValueError``) finds it here, before any process starts.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from configs.json_lines import BrokenRowError, text_of
from configs.schema import DataConfig
from rollout.problems.columns import Columns, answer_of, find_columns, has, question_of, system_of, value_at
from rollout.problems.sources import GENERATED, Source
from rollout.records import Problem

CheckGold = Callable[[str, Mapping[str, Any]], str | None]
"""``check_gold(gold, other_columns)`` raises ``ValueError`` for a gold that cannot be used; returns a doubt
about one that can, None if none."""


@dataclass(slots=True)
class Reading:
    """The problems of a source, and what was found while they were read."""

    name: str
    columns: Columns | None = None
    """None if there was no row."""
    other_columns: tuple[str, ...] = ()
    """Columns of the first row that are not read."""
    problems: dict[str, Problem] = field(default_factory=dict)
    """By id, in order."""
    dropped: list[str] = field(default_factory=list)
    """Reason for each problem whose gold answer does not parse."""
    doubts: list[str] = field(default_factory=list)
    """Doubts about gold answers that were kept."""
    system: str = ""
    """System prompt of the first row that has one; system prompts are not used."""


def read(source: Source, config: DataConfig, check_gold: CheckGold, *, drops: bool) -> Reading:
    """Reads all rows of a source.

    Args:
        source: The rows.
        config: Names of the columns.
        check_gold: Checks a gold answer.
        drops: True leaves out problems whose gold answer does not parse, False refuses the data.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If a row is invalid or lacks a field, an id repeats, or a gold answer does not parse and
            ``drops`` is false. The message names file, line and field.
    """
    reading = Reading(source.name, GENERATED if config.source == "reasoning_gym" else None)
    for index, (where, row) in enumerate(source.rows):
        try:
            columns = reading.columns or find_columns(row, config)
            problem = _problem(row, columns, default_id=f"{Path(source.name).stem}-{index}")
            system = system_of(row, columns)
        except BrokenRowError as error:
            raise ValueError(f"{where}: {error}") from error
        if problem.id in reading.problems:
            raise ValueError(f"{where}: the id '{problem.id}' occurs twice; ids must be unique.")
        if not index:
            reading.columns, reading.other_columns = columns, _others(row, columns)
        reading.system = reading.system or system
        gold = value_at(row, columns.answer)
        try:
            doubt = check_gold(_gold(gold, problem.answer), json.loads(problem.columns or "{}"))
        except ValueError as error:
            place = f"{where}: the gold answer {short(gold)} (field '{columns.answer}')"
            if not drops:
                raise ValueError(
                    f"{place} does not parse ({error}), so every rollout of this problem would count as "
                    "wrong. Correct it, or set data.on_bad_gold=drop."
                ) from error
            reading.dropped.append(f"{place} does not parse ({error})")
            continue
        if doubt:
            reading.doubts.append(f"{where}: {doubt}")
        reading.problems[problem.id] = problem
    return reading


def _others(row: Mapping[str, Any], columns: Columns) -> tuple[str, ...]:
    used = {columns.question, columns.answer, "id", "source"}
    used |= {name.partition(".")[0] for name in used if name not in row}
    return tuple(sorted(str(name) for name in row if name not in used))


def _gold(value: object, text: str) -> str:
    """Returns the gold answer ``text`` that a field's ``value`` was read as.

    Raises:
        ValueError: If the field is a missing value.
    """
    if text:
        return text
    hint = ""
    if isinstance(value, str) and value.strip():
        hint = f"; if it is the answer, write \\text{{{value.strip()}}}"
    raise ValueError(f"it is a missing value{hint}")


def _problem(row: Mapping[str, Any], columns: Columns, *, default_id: str) -> Problem:
    """Returns the problem of a row; its answer is empty if the row's gold is a missing value.

    Raises:
        BrokenRowError: If a field is absent or has the wrong type, or the question is missing.
    """
    for name in (columns.question, columns.answer):
        if not has(row, name):
            raise BrokenRowError(f"It has no field '{name}', as the first row has; it has {sorted(row)}.")
    question, answer = question_of(row, columns), answer_of(row, columns)
    if question is None:
        value = short(value_at(row, columns.question))
        raise BrokenRowError(f"Its field '{columns.question}' is a missing value ({value}).")
    own_id, source = (text_of(row, name, numbers=True) if name in row else None for name in ("id", "source"))
    used = (columns.question, columns.answer, "id", "source")
    return Problem(
        id=own_id or default_id,
        question=question,
        answer=answer or "",
        source=source or "",
        columns=_as_json({name: value for name, value in row.items() if name not in used}),
    )


def column_names(problems: Iterable[Problem]) -> set[str]:
    """Returns the names of the columns that every problem has, besides question and answer."""
    found = [set(json.loads(problem.columns or "{}")) for problem in problems]
    return {"id", "source"} | (set.intersection(*found) if found else set())


def _as_json(row: Mapping[str, Any]) -> str:
    """Returns columns as a JSON object, without those that are no JSON data (images, say); empty if none."""
    kept: list[str] = []
    for name, value in row.items():
        try:
            kept.append(f"{json.dumps(name)}:{json.dumps(value)}")
        except (TypeError, ValueError):
            continue
    return "{" + ",".join(kept) + "}" if kept else ""


def short(value: object) -> str:
    """Returns a value as ASCII text of at most 80 characters, for messages."""
    text = ascii(value)
    return text if len(text) <= 80 else f"{text[:60]}...{text[-15:]}"
