"""The interface of a verifier: what it is given of an attempt, and what it returns."""

from dataclasses import dataclass
from typing import Protocol

from rollout.records import Problem, Usage
from rollout.verdicts import Verdict


@dataclass(frozen=True, slots=True)
class JudgedDraft:
    """A draft behind a workspace, with its own verdict."""

    text: str
    verdict: Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """Place and cost of an attempt, for rewards that depend on more than its text."""

    role: str
    round: int
    finish: str
    usage: Usage
    workspace: str | None = None
    """Text of the workspace in its prompt; None without one."""
    drafts: tuple[JudgedDraft, ...] = ()
    """Drafts behind that workspace."""


class Grader(Protocol):
    """Interface of a verifier. It is passed in: ``rollout`` does not import ``rewards``."""

    async def score(self, problem: Problem, completion: str, attempt: Attempt) -> Verdict:
        """Returns the verdict on a whole completion, thinking included."""
        ...

    def answer(self, completion: str) -> str | None:
        """Returns the answer of a completion, right or wrong; None if it has no answer."""
        ...

    async def same(self, first: str, second: str) -> bool:
        """Returns True if two answers are mathematically equivalent."""
        ...
