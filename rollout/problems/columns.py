"""Finds the question and the gold answer in a row, under the names that data sets use.

A column is named by its key; a dot leads into a table: ``reward_model.ground_truth``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any

from configs.json_lines import BrokenRowError, text_of
from configs.schema import DataConfig

QUESTIONS = ("question", "problem", "prompt", "query", "instruction", "messages", "conversations", "input")
"""Names of the question, the most specific first; capitals do not matter."""
ANSWERS = (
    "answer",
    "final_answer",
    "expected_answer",
    "ground_truth",
    "gold",
    "target",
    "reward_model.ground_truth",
    "extra_info.answer",
    "solution",
    "output",
    "response",
)
"""Names of the gold answer, the most specific first. A solution is read for its box or its line ``####``."""
CHATS = ("messages", "conversations")
"""Names of whole conversations, whose last turn answers their first."""
NEAR = 0.7
"""Similarity of two names, of at most 1, from which one may be a spelling of the other."""
ROLES = {"human": "user", "gpt": "assistant"}
"""Spellings of roles in ShareGPT's format."""


@dataclass(frozen=True, slots=True)
class Columns:
    """Names of the two columns, as they are spelled in the data."""

    question: str
    answer: str


def find_columns(row: Mapping[str, Any], config: DataConfig) -> Columns:
    """Returns the columns of a data set from its first row.

    Raises:
        BrokenRowError: If ``config`` names a column that the row lacks, or it names none and none is known.
            The message names all that is missing, the columns that there are, and the options to set.
    """
    question = config.question_field or _first_of(QUESTIONS, row)
    answer = config.answer_field or _first_of(ANSWERS, row, besides=question or "")
    if answer is None and question is not None and question.lower() in CHATS:
        answer = question  # a whole conversation: its last turn is the answer
    lacks: list[str] = []
    options: list[str] = []
    for option, found, named, known in (
        ("data.question_field", question, config.question_field, QUESTIONS),
        ("data.answer_field", answer, config.answer_field, ANSWERS),
    ):
        if found is None or not has(row, found):
            lacks.append(f"no field '{named}'" if named else f"no field of a known name ({', '.join(known)})")
            near = _nearest((named,) if named else known, row, besides=(question, answer))
            options.append(f"{option}={near} (the nearest name)" if near else f"{option}=NAME")
    if question is None or answer is None or lacks:
        raise BrokenRowError(f"It has {' and '.join(lacks)}; it has {_keys(row)}. Set {', '.join(options)}.")
    return Columns(question, answer)


def question_of(row: Mapping[str, Any], columns: Columns) -> str | None:
    """Returns the question of a row: its text, or the user's turn of a chat; None for a missing value.

    Raises:
        BrokenRowError: If the column is neither, or the chat has not one turn of the user at its start.
    """
    value = value_at(row, columns.question)
    if not _is_chat(value):
        return text_of({columns.question: value}, columns.question, numbers=False)
    turns = [(role, text) for role, text in _turns(value, columns.question) if role != "system"]
    roles = [role for role, _ in turns]
    if roles not in (["user"], ["user", "assistant"]):
        raise BrokenRowError(
            f"Its field '{columns.question}' must be a chat of one turn of the user, and the answer at most; "
            f"it has turns of {', '.join(roles) or 'nobody'}. Problems of several turns are not supported."
        )
    return text_of({columns.question: turns[0][1]}, columns.question, numbers=False)


def answer_of(row: Mapping[str, Any], columns: Columns) -> str | None:
    """Returns the gold answer of a row, as written; None for a missing value.

    Raises:
        BrokenRowError: If the column is neither text nor a number, nor a chat that ends in an answer.
    """
    value = value_at(row, columns.answer)
    if _is_chat(value):
        role, value = _turns(value, columns.answer)[-1]
        if role != "assistant":
            raise BrokenRowError(
                f"Its field '{columns.answer}' is a chat that ends in a turn of {role}, without an answer. "
                "Set data.answer_field."
            )
    return text_of({columns.answer: value}, columns.answer, numbers=True)


def system_of(row: Mapping[str, Any], columns: Columns) -> str:
    """Returns the system prompt of a row whose question is a chat; empty if there is none."""
    value = value_at(row, columns.question)
    if not _is_chat(value):
        return ""
    return "\n".join(text for role, text in _turns(value, columns.question) if role == "system")


def has(row: Mapping[str, Any], name: str) -> bool:
    """Returns True if the row has this column."""
    try:
        value_at(row, name)
    except KeyError:
        return False
    return True


def value_at(row: Mapping[str, Any], name: str) -> Any:
    """Returns the value of a column; a key that holds dots itself is found, too.

    Raises:
        KeyError: If there is no such column.
    """
    if name in row:
        return row[name]
    head, dot, rest = name.partition(".")
    if not dot or not isinstance(row.get(head), Mapping):
        raise KeyError(name)
    return value_at(row[head], rest)


def _first_of(names: Sequence[str], row: Mapping[str, Any], *, besides: str = "") -> str | None:
    spelled = {str(key).lower(): str(key) for key in row if key != besides}
    for name in names:
        head, dot, rest = name.partition(".")
        if head in spelled and has(row, spelled[head] + dot + rest):
            return spelled[head] + dot + rest
    return None


def _is_chat(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def _turns(value: Sequence[Any], name: str) -> list[tuple[str, str]]:
    """Returns the turns of a chat, in OpenAI's format or ShareGPT's, as (role, text)."""
    turns: list[tuple[str, str]] = []
    for turn in value:
        if isinstance(turn, Mapping):
            role, text = turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))
            if isinstance(role, str) and isinstance(text, str):
                turns.append((ROLES.get(role, role), text))
                continue
        raise BrokenRowError(
            f"Its field '{name}' is a list, but not a chat: each turn must have a role and a content that "
            f"is text, got {ascii(turn)[:80]}."
        )
    if not turns:
        raise BrokenRowError(f"Its field '{name}' is a chat without turns.")
    return turns


def _nearest(wanted: Sequence[str], row: Mapping[str, Any], besides: Sequence[str | None]) -> str | None:
    """Returns the column whose name is nearest to one that is wanted; None if none is near."""
    near: list[tuple[float, str]] = []
    for column in set(_names(row)) - set(besides) - {"id", "source"}:
        ratios = [SequenceMatcher(None, column.lower(), name.lower()).ratio() for name in wanted]
        near.append((max(ratios), column))
    ratio, column = max(near, default=(0.0, ""))
    return column if ratio >= NEAR else None


def _names(row: Mapping[str, Any]) -> list[str]:
    """Returns the columns of a row, with those of its tables."""
    names: list[str] = []
    for key, value in row.items():
        names += [f"{key}.{name}" for name in value] if isinstance(value, Mapping) else [str(key)]
    return sorted(names)


def _keys(row: Mapping[str, Any]) -> str:
    return ascii(_names(row))[:300]
