"""The interface of a kind of task."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from configs.thinking import divide
from rewards.answers.extract import Extraction, Rules, extract
from rewards.facts import Facts
from rewards.solving import Request
from rewards.verdict import Verdict

Prepared = tuple[Extraction, Verdict | Request]
"""The answer that was found, and either its verdict or the request that decides it."""


class Task(Protocol):
    """One kind of task: which golds it can use, and how an answer is judged."""

    def check_gold(self, gold: str, columns: Mapping[str, Any]) -> str | None:
        """Returns a doubt about a gold; None if there is none. Raises ValueError if it cannot be used."""
        ...

    def prepare(self, gold: str, completion: str, facts: Facts) -> Prepared:
        """Returns the answer of a completion, and what decides its verdict.

        Raises:
            ValueError: If the gold, or a fact that the kind needs, cannot be used.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Limits of one check in a worker process."""

    seconds: float
    memory_mb: int


def found_answer(completion: str, rules: Rules, *, is_choice: bool = False) -> Extraction:
    """Extracts an answer that is text: as ``extract``, without the ``\\text{}`` around the whole of it."""
    found = extract(completion, rules, gold_is_choice=is_choice)
    if found.answer is None:
        return found
    return Extraction(answer=unwrapped(found.answer), found_by=found.found_by)


_WRAPPED = re.compile(r"\\(?:text(?:bf|it|tt|rm)?|mathrm|mathbf|mbox)\s*\{([^{}]*)\}")


def unwrapped(text: str) -> str:
    """Returns the content of a ``\\text{}`` that is the whole text; any other text unchanged."""
    match = _WRAPPED.fullmatch(text.strip())
    return match[1] if match else text


def solution_of(completion: str, rules: Rules) -> Extraction:
    """Returns the whole text after the thinking as the answer."""
    found = extract(completion, rules)
    parts = divide(completion, rules.marks)
    if parts.solution is None or not parts.solution.strip() or found.reason.startswith("The completion has"):
        return Extraction(answer=None, reason=found.reason or "The solution is empty.")
    return Extraction(answer=parts.solution.strip(), found_by="solution")


def unparsable(found: Extraction) -> Prepared:
    """Returns the verdict on a completion without an answer."""
    return found, Verdict(status="unparsable", reason=found.reason)


def judged(found: Extraction, *, right: bool, reason: str = "") -> Prepared:
    """Returns the verdict on an answer that was compared in the calling thread."""
    status = "correct" if right else "wrong"
    return found, Verdict(status=status, answer=found.answer, found_by=found.found_by, reason=reason)
