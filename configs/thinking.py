"""Where thinking ends: the one rule that workspaces (``rollout``) and rewards (``rewards``) both follow.

It stands here because both may import ``configs`` and neither may import the other.
"""

from dataclasses import dataclass

UNCLOSED = "unclosed"
"""Thinking was opened and never closed."""
MALFORMED = "malformed"
"""What would be the solution holds a mark in another case, so it may be thinking."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ThinkingMarks:
    """The pair of marks around thinking."""

    open: str = "<think>"
    close: str = "</think>"
    opened_by_prompt: bool = False
    """The chat template ends in the opening mark: a completion without the closing one is all thinking."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """The two parts of a completion, or why they cannot be told apart."""

    thinking: str
    """The whole completion if there is no solution."""
    solution: str | None
    """Everything after the thinking; None if it could not be told from the thinking."""
    problem: str = ""
    """``UNCLOSED`` or ``MALFORMED`` if there is no solution, else empty."""


def divide(text: str, marks: ThinkingMarks) -> Parts:
    """Divides at the last closing mark; a completion without any mark is all solution.

    Marks are tokens of the policy's template, so they match exactly, case included. A mark in another case
    neither opens nor closes anything, but a solution that holds one is refused: it may be thinking.
    """
    thinking, closed, solution = text.rpartition(marks.close)
    is_open = marks.open in solution or (marks.opened_by_prompt and not closed)
    if marks.open == marks.close:  # every other one closes
        is_open = (text.count(marks.close) + marks.opened_by_prompt) % 2 == 1
    if is_open:
        return Parts(thinking=text, solution=None, problem=UNCLOSED)
    folded = solution.casefold()
    if marks.open.casefold() in folded or marks.close.casefold() in folded:
        return Parts(thinking=text, solution=None, problem=MALFORMED)
    return Parts(thinking=thinking, solution=solution)
