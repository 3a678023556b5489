"""Worked examples that a run shows its policy: a file of questions with their answers, some from drafts.

It is read here because prompts (``rollout``) show the examples and plans (``launch``) count them.
"""

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs.json_lines import BrokenRowError, parse_row, read_lines, text_of

SHIPPED = Path(__file__).parent / "operator" / "prompts"
"""Files that come with the project, which its experiments name without a folder."""

_FIELDS = ("question", "answer", "drafts")


@dataclass(frozen=True, slots=True)
class Example:
    """A question, and the whole text that answers it."""

    question: str
    answer: str
    drafts: tuple[str, ...] = ()
    """Earlier solutions that the answer was refined from; empty for an answer to the plain question."""


def read_examples(path: str | None) -> tuple[Example, ...]:
    """Returns the examples of a file of JSON lines, in order; none if there is no file.

    Args:
        path: ``operator.prompts.examples``: a file, or the name of one in ``SHIPPED``.

    Raises:
        ValueError: If the file does not exist or is empty, or a line has no ``question`` or no ``answer``, or
            ``drafts`` that are no list of texts.
    """
    if path is None:
        return ()
    file = Path(path)
    if not file.exists() and file.name == path:
        file = SHIPPED / path
    try:
        found = tuple(_example(path, number, line) for number, line in read_lines(file))
    except FileNotFoundError:
        shipped = ", ".join(sorted(each.name for each in SHIPPED.glob("*.jsonl")))
        raise ValueError(
            f"operator.prompts.examples: the file {path} does not exist; with the project come {shipped}."
        ) from None
    if not found:
        raise ValueError(
            f"operator.prompts.examples: {path} holds no example. Write one JSON object a line, with "
            "question and answer (and drafts for a refinement), or set it to null."
        )
    return found


def _example(path: str, number: int, line: bytes) -> Example:
    try:
        row = parse_row(line)
        question, answer = text_of(row, "question", numbers=False), text_of(row, "answer", numbers=True)
        for name, text in (("question", question), ("answer", answer)):
            if not text:
                raise BrokenRowError(f"Its field '{name}' is a missing value.")
        drafts = _drafts(row)
        _check_fields(row, (question or "", answer or "", *drafts))
    except BrokenRowError as error:
        raise ValueError(f"operator.prompts.examples: {path} line {number}: {error}") from error
    return Example(question=question or "", answer=answer or "", drafts=drafts)


def _check_fields(row: Mapping[str, Any], texts: Iterable[str]) -> None:
    """Checks for slips that would change an example silently: a misspelt ``drafts``, a single backslash."""
    for name in row:
        if name not in _FIELDS and (meant := difflib.get_close_matches(name, _FIELDS, n=1, cutoff=0.8)):
            raise BrokenRowError(f"Its field '{name}' is not read. Did you mean '{meant[0]}'?")
    for text in texts:
        if found := next((sign for sign in text if sign < " " and sign not in "\n\t\r"), None):
            raise BrokenRowError(
                f"It holds the control character {found!r}. In JSON a backslash is written twice, as in "
                '"\\\\boxed".'
            )


def _drafts(row: Mapping[str, Any]) -> tuple[str, ...]:
    if "drafts" not in row:
        return ()
    given = row["drafts"]
    if not isinstance(given, list) or not given or not all(isinstance(d, str) and d.strip() for d in given):
        raise BrokenRowError(
            f"Its field 'drafts' must be a list of at least one text, none empty, got {ascii(given)[:80]}. "
            "Leave it out for an answer to the plain question."
        )
    return tuple(text_of({"drafts": each}, "drafts", numbers=False) or "" for each in given)
