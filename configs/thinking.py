"""Splits thinking from solution, by one rule for workspaces (``rollout``) and rewards (``rewards``).

It is defined here because both may import ``configs`` and neither may import the other.
"""

from dataclasses import dataclass

UNCLOSED = "unclosed"
"""Problem: thinking was opened and never closed."""
MALFORMED = "malformed"
"""Problem: the text after the thinking holds a mark in another case, so it may be thinking."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ThinkingMarks:
    """The pair of marks around thinking."""

    open: str = "<think>"
    close: str = "</think>"
    opened_by_prompt: bool = False
    """True if the chat template ends in the opening mark: without the closing one, all is thinking."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """The two parts of a completion, or the reason why they cannot be separated."""

    thinking: str
    """The thinking; the whole completion if there is no solution."""
    solution: str | None
    """Everything after the thinking; None if it cannot be separated from the thinking."""
    problem: str = ""
    """``UNCLOSED`` or ``MALFORMED`` if there is no solution, else empty."""


def divide(text: str, marks: ThinkingMarks) -> Parts:
    """Splits a completion at the last closing mark; one without any mark is all solution.

    Marks are tokens of the policy's template, so they match exactly, case included. A mark in another case
    neither opens nor closes thinking, but a solution that holds one is rejected, since it may be thinking.
    """
    thinking, closed, solution = text.rpartition(marks.close)
    is_open = marks.open in solution or (marks.opened_by_prompt and not closed)
    if marks.open == marks.close:  # equal marks open and close in turn
        is_open = (text.count(marks.close) + marks.opened_by_prompt) % 2 == 1
    if is_open:
        return Parts(thinking=text, solution=None, problem=UNCLOSED)
    folded = solution.casefold()
    if marks.open.casefold() in folded or marks.close.casefold() in folded:
        return Parts(thinking=text, solution=None, problem=MALFORMED)
    return Parts(thinking=thinking, solution=solution)
