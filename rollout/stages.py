"""Declared cost of an operator: the calls that it makes on one problem, by stage.

``python -m launch.plan`` counts these. Declaring them needs neither a model nor a tokenizer.
"""

from dataclasses import dataclass

from configs.schema.checks import at_least, choice
from rollout.records import ANALYSE, ATTEMPTS, DISTIL, SELECT, VERIFY

ROLES = (*ATTEMPTS, DISTIL, VERIFY, ANALYSE, SELECT)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """Calls of one kind that run at the same time; the next stage waits for them.

    Raises:
        ValueError: If ``role`` is not the role of a call, or a number is too small.
    """

    role: str
    """One of ``rollout.records``: TRACE, DRAFT, REFINE, DISTIL, VERIFY, ANALYSE or SELECT."""
    round: int = 0
    """Round of the calls; for the stages of a distiller the operator sets it."""
    contexts: int = 1
    """Number of different prompts."""
    per_context: int = 1
    """Samples of each prompt."""
    solutions: int = 0
    """Solutions that a prompt holds in addition to the question."""
    chains: int = 0
    """Completions that a prompt holds with their thoughts, in addition to the solutions."""
    chain_tokens: int | None = None
    """Tokens at the end of such a completion that are read; None: all."""
    bound: int | None = None
    """Maximum number of tokens of solutions and chains together (kappa); None if unbounded."""

    def __post_init__(self) -> None:
        choice("Stage.role", self.role, ROLES)
        for name, least in (
            ("round", 0),
            ("contexts", 1),
            ("per_context", 1),
            ("solutions", 0),
            ("chains", 0),
        ):
            at_least(f"Stage.{name}", getattr(self, name), least)

    @property
    def number(self) -> int:
        """Total number of calls: ``contexts * per_context``."""
        return self.contexts * self.per_context
