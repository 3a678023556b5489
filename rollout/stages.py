"""What an operator costs before it runs: the calls that it makes on one problem, stage after stage.

``python -m launch.plan`` counts these. Declaring them takes neither a model nor a tokenizer.
"""

from dataclasses import dataclass

from configs.schema.checks import at_least, choice
from rollout.records import ANALYSE, ATTEMPTS, DISTIL, VERIFY

ROLES = (*ATTEMPTS, DISTIL, VERIFY, ANALYSE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """Calls of one kind that run at the same time; the next stage waits for them.

    Raises:
        ValueError: If the role is none of a call, or a number is too small.
    """

    role: str
    """``rollout.records``: TRACE, DRAFT, REFINE, DISTIL, VERIFY or ANALYSE."""
    round: int = 0
    """An operator sets it for the stages of its distiller, too."""
    contexts: int = 1
    """Different prompts."""
    per_context: int = 1
    """Samples of each prompt."""
    solutions: int = 0
    """Solutions that a prompt holds beside the question."""
    bound: int | None = None
    """The most tokens that these solutions have together (kappa); None: as many as they may have."""

    def __post_init__(self) -> None:
        choice("Stage.role", self.role, ROLES)
        for name, least in (("round", 0), ("contexts", 1), ("per_context", 1), ("solutions", 0)):
            at_least(f"Stage.{name}", getattr(self, name), least)

    @property
    def number(self) -> int:
        """Calls in all."""
        return self.contexts * self.per_context
