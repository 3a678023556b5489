"""What is known of a completion besides its text: the data's columns, and its place in a rollout."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Draft:
    """An earlier attempt that a refinement's workspace was made from."""

    text: str
    """Whole completion, thinking included."""
    status: str
    """Status of its own verdict (``rewards.verdict.STATUSES``)."""
    answer: str | None = None
    """Its answer as written; None if it has none."""

    @property
    def is_correct(self) -> bool:
        """True if its answer is correct."""
        return self.status == "correct"


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """What a reward may know of a completion. Each field is optional: what is not known is None or empty."""

    question: str | None = None
    columns: Mapping[str, Any] = field(default_factory=dict)
    """The other fields of the problem's row in the data, by name."""
    role: str | None = None
    """``trace``, ``draft`` or ``refine``."""
    round: int | None = None
    """Round of the operator, from 0."""
    drafts: tuple[Draft, ...] = ()
    """Drafts behind the workspace; empty for an attempt without a workspace."""
    workspace: str | None = None
    """Text of the workspace in its prompt; None without one."""
    num_tokens: int | None = None
    """Tokens of the completion."""
    prompt_tokens: int | None = None
    finish_reason: str | None = None
    """``stop``, ``length`` (the token limit was reached) or ``abort``."""


NO_FACTS = Facts()
