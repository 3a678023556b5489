"""Splits a completion into thinking and solution, and labels what is malformed.

Nothing is repaired: thinking that was never closed has no solution, whatever it says.
"""

from dataclasses import dataclass

OK = "ok"
UNCLOSED = "unclosed"
"""Thinking was opened and never closed."""
TRUNCATED = "truncated"
"""The completion ran into its token limit, or was aborted, after the thinking: the solution is cut."""
EMPTY = "empty"
"""Nothing follows the thinking."""
NO_ANSWER = "no_answer"
"""The solution has no boxed answer."""
LABELS = (OK, UNCLOSED, TRUNCATED, EMPTY, NO_ANSWER)


@dataclass(frozen=True, slots=True, kw_only=True)
class ThinkingMarks:
    """The pair of marks around thinking."""

    open: str = "<think>"
    close: str = "</think>"
    opened_by_prompt: bool = False
    """The chat template ends in the opening mark: a completion without the closing one is all thinking."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """The parts of a completion. ``solution`` is empty unless it could be told from the thinking."""

    label: str
    thinking: str
    solution: str


def split(text: str, *, finish: str, marks: ThinkingMarks, needs_answer: bool = True) -> Split:
    """Splits at the last closing mark; a completion without any mark is all solution.

    Summaries, verifications and error analyses need no boxed answer to be ``ok``.
    """
    thinking, closed, rest = text.rpartition(marks.close)
    if marks.open in rest or (marks.opened_by_prompt and not closed):
        return Split(label=UNCLOSED, thinking=text, solution="")
    solution = rest.strip()
    if finish != "stop":
        label = TRUNCATED
    elif not solution:
        label = EMPTY
    elif needs_answer and "\\boxed" not in solution:
        label = NO_ANSWER
    else:
        label = OK
    return Split(label=label, thinking=thinking.replace(marks.open, "").strip(), solution=solution)
