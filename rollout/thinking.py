"""Splits a completion into thinking and solution, and labels malformed completions.

Nothing is repaired: thinking that was never closed has no solution, whatever its text.
"""

from collections.abc import Collection
from dataclasses import dataclass

from configs.thinking import MALFORMED, UNCLOSED, ThinkingMarks, divide

OK = "ok"
TRUNCATED = "truncated"
"""The completion reached its token limit, or was aborted, after the thinking: the solution is cut."""
EMPTY = "empty"
"""Nothing follows the thinking."""
NO_ANSWER = "no_answer"
"""The solution has no boxed answer."""
LABELS = (OK, UNCLOSED, MALFORMED, TRUNCATED, EMPTY, NO_ANSWER)


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """The parts of a completion. ``solution`` is empty unless it could be separated from the thinking."""

    label: str
    thinking: str
    solution: str


def split(
    text: str,
    *,
    finish: str,
    marks: ThinkingMarks,
    needs_answer: bool = True,
    control: Collection[str] = (),
) -> Split:
    """Splits a completion with ``configs.thinking.divide`` and labels the result.

    Args:
        text: The completion, without the token that ended it.
        finish: As in ``records.Completion``.
        marks: Marks around the thinking.
        needs_answer: False for summaries, verifications and error analyses, which are ``ok`` without a box.
        control: Spellings of the control tokens that were sampled before the completion's last token. A
            solution that holds one is malformed: the policy wrote a turn that is not its own.
    """
    parts = divide(text, marks)
    if parts.solution is None:
        return Split(label=parts.problem, thinking=text, solution="")
    solution = parts.solution.strip()
    if any(spelling in solution for spelling in control):
        return Split(label=MALFORMED, thinking=text, solution="")
    if finish != "stop":
        label = TRUNCATED
    elif not solution:
        label = EMPTY
    elif needs_answer and "\\boxed" not in solution:
        label = NO_ANSWER
    else:
        label = OK
    return Split(label=label, thinking=parts.thinking.replace(marks.open, "").strip(), solution=solution)
