"""Worked examples that a run shows its policy: a file of questions with their answers, some from drafts.

It is read here because prompts (``rollout``) show the examples and plans (``launch``) count them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs.json_lines import BrokenRowError, parse_row, read_lines, text_of

SHIPPED = Path(__file__).parent / "operator" / "prompts"
"""Files that come with the project, which its experiments name without a folder."""


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
    except BrokenRowError as error:
        raise ValueError(f"operator.prompts.examples: {path} line {number}: {error}") from error
    return Example(question=question or "", answer=answer or "", drafts=drafts)


def _drafts(row: Mapping[str, Any]) -> tuple[str, ...]:
    given = row.get("drafts", [])
    if not isinstance(given, list) or not all(isinstance(each, str) and each.strip() for each in given):
        raise BrokenRowError(f"Its field 'drafts' must be a list of texts, got {ascii(given)[:80]}.")
    return tuple(text_of({"drafts": each}, "drafts", numbers=False) or "" for each in given)
