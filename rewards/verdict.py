"""What a check says: one of five statuses, never a bare number."""

from dataclasses import dataclass

STATUSES = ("correct", "wrong", "unparsable", "timeout", "error")


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """The outcome of checking one completion against one gold answer.

    Example: gold ``42``, completion ``... so \\boxed{42}.`` gives
    ``Verdict(status="correct", answer="42", found_by="box", seconds=0.00002, reason="")``.
    """

    status: str
    """``correct``, ``wrong``, ``unparsable`` (no answer, or one that is no mathematics), ``timeout`` (the
    check was killed at its limit) or ``error`` (our own failure: a gold that does not parse, a
    worker that died again and again, a custom reward that raised)."""

    answer: str | None = None
    """The answer as the completion wrote it; None if there was none."""

    found_by: str = "nothing"
    """How the answer was found: ``box``, ``boxes``, one of ``extract.FORMS``, ``given`` (no extraction was
    asked for) or ``nothing``."""

    seconds: float = 0.0
    """Time spent on this check, without waiting for a free worker."""

    reason: str = ""
    """Why, for a person; empty when the status says it all."""

    value: float | None = None
    """The number that a custom reward returned; None for the built-in check."""

    def __post_init__(self) -> None:
        assert self.status in STATUSES, self.status

    @property
    def is_correct(self) -> bool:
        """Whether the answer earned the reward."""
        return self.status == "correct"

    @property
    def is_failure(self) -> bool:
        """Whether the verifier failed, so that the status says nothing about the answer."""
        return self.status in ("timeout", "error")
