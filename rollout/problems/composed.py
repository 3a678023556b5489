"""Problems composed of others: one question asks for a list of results, right only if every part is."""

from collections.abc import Sequence
from string import ascii_lowercase

MAX_PARTS = len(ascii_lowercase)

_HEAD = "Solve {count} problems. Write the final answer as {form}."


def named(values: Sequence[object]) -> str:
    """Returns the answer of a composed problem, each value with the name of its part: ``a=3, b=-1``.

    The names make it an ordered list for the verifier.
    """
    return ", ".join(f"{name}={value}" for name, value in zip(ascii_lowercase, values, strict=False))


def compose(parts: Sequence[tuple[str, str]]) -> tuple[str, str]:
    """Returns the question and the gold answer of one problem made of ``parts``.

    Args:
        parts: Question and answer of each part, at most ``MAX_PARTS``.

    Raises:
        ValueError: If the answer of a part could be read as several.
    """
    for question, answer in parts:
        if "," in answer or "=" in answer or "\n" in question:
            raise ValueError(
                f"The problem {question!r} with the answer {answer!r} cannot be a part of another: the "
                "question must be one line, the answer one value without comma and equals sign. Set "
                "data.num_parts=1."
            )
    lines = [f"{name}: {question}" for name, (question, _) in zip(ascii_lowercase, parts, strict=False)]
    return f"{_head(len(parts))}\n\n" + "\n".join(lines), named([answer for _, answer in parts])


def is_composed(question: str) -> bool:
    """True if ``compose`` made the question."""
    head, _, body = question.partition("\n\n")
    names = [line[:3] for line in body.split("\n")]
    return head == _head(len(names)) and names == [f"{name}: " for name in ascii_lowercase[: len(names)]]


def part_questions(question: str) -> list[str]:
    """Returns the questions of the parts of a composed problem, in order.

    Raises:
        ValueError: If ``compose`` did not make the question.
    """
    if not is_composed(question):
        raise ValueError(
            f"The question {question!r} is not composed of parts; generate problems with data.num_parts > 1."
        )
    return [line[3:] for line in question.partition("\n\n")[2].split("\n")]


def _head(count: int) -> str:
    return _HEAD.format(count=count, form=named(["..."] * count))
