"""What the comparison asks of a computer algebra system, and how to do without one."""

import re
from typing import Protocol

from rewards.answers.shapes import Relation


class Algebra(Protocol):
    """What a computer algebra system decides; see ``rewards.answers.symbolic``."""

    def same_expression(self, *, gold: str, answer: str) -> bool:
        """Whether two expressions are equal for all values of their variables."""
        ...

    def same_relation(self, *, gold: Relation, answer: Relation) -> bool:
        """Whether two equations or inequalities say the same."""
        ...

    def chain_value(self, *, chain: Relation) -> str | None:
        """The side that ``a = b = c`` ends in, if it is true; None if it is false or an equation."""
        ...


class NeedsAlgebraError(Exception):
    """Raised by ``NoAlgebra``: the question cannot be decided without a worker."""


class NoAlgebra:
    """Refuses, so that the caller hands the pair to a worker process."""

    def same_expression(self, *, gold: str, answer: str) -> bool:
        if squash(gold) == squash(answer):
            return True
        raise NeedsAlgebraError

    def same_relation(self, *, gold: Relation, answer: Relation) -> bool:
        raise NeedsAlgebraError

    def chain_value(self, *, chain: Relation) -> str | None:
        raise NeedsAlgebraError


def squash(text: str) -> str:
    """The text without spaces and braces that change nothing; ``4 2`` does not become ``42``."""
    text = re.sub(r"(?<![A-Za-z0-9])\s+|\s+(?![A-Za-z0-9])", "", text)
    text = re.sub(r"(?<=[}^_])\{(\w)\}", r"\1", text)
    return text.replace(r"\cdot", "*").replace(r"\times", "*")
