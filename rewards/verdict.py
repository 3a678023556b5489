"""The result of a check: one of five statuses, never a bare number."""

from collections.abc import Mapping
from dataclasses import dataclass, field

STATUSES = ("correct", "wrong", "unparsable", "timeout", "error")


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """The outcome of checking one completion against one gold answer.

    Example: gold ``42``, completion ``... so \\boxed{42}.`` gives
    ``Verdict(status="correct", answer="42", found_by="box", seconds=0.00002, reason="")``.
    """

    status: str
    """``correct``, ``wrong``, ``unparsable`` (no answer, or one that is not mathematics), ``timeout``
    (the check was killed at its limit) or ``error`` (a failure of the verifier: a gold that does
    not parse, a worker that died repeatedly, a custom reward that raised)."""

    answer: str | None = None
    """The answer as written in the completion; None if there is none."""

    found_by: str = "nothing"
    """How the answer was found: ``box``, ``boxes``, one of ``extract.FORMS``, ``code`` (a block of code),
    ``solution`` (all of it), ``given`` (passed in, not extracted) or ``nothing``."""

    seconds: float = 0.0
    """Time spent on this check, without the wait for a free worker."""

    reason: str = ""
    """Human-readable reason; empty if the status needs none."""

    value: float | None = None
    """The number that a custom reward or a scorer of reasoning-gym returned; None for the built-in checks."""

    undecided: bool = False
    """True for an ``error`` of the language model that judges: nobody has looked at the answer."""

    measures: Mapping[str, float] = field(default_factory=dict)
    """Cost of this check beyond the machine's own, by name (``judge/prompt_tokens``)."""

    def __post_init__(self) -> None:
        assert self.status in STATUSES, self.status

    @property
    def is_correct(self) -> bool:
        """True if the answer is correct."""
        return self.status == "correct"

    @property
    def is_failure(self) -> bool:
        """True if the verifier failed, so that the status says nothing about the answer."""
        return self.status in ("timeout", "error")
