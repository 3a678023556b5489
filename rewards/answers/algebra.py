"""The interface of a computer algebra system, and a stand-in without one."""

import re
from typing import Protocol

from rewards.answers.shapes import Relation


class Algebra(Protocol):
    """Questions to a computer algebra system; implemented in ``rewards.answers.symbolic``."""

    def same_expression(self, *, gold: str, answer: str) -> bool:
        """Returns True if two expressions are equal for all values of their variables."""
        ...

    def same_relation(self, *, gold: Relation, answer: Relation) -> bool:
        """Returns True if two equations or inequalities are equivalent."""
        ...

    def chain_value(self, *, chain: Relation) -> str | None:
        """Returns the last side of ``a = b = c`` if it is true; None if it is false or has variables."""
        ...


class NeedsAlgebraError(Exception):
    """Raised by ``NoAlgebra`` if the comparison needs a worker."""


class NoAlgebra:
    """Raises ``NeedsAlgebraError``, upon which the caller sends the pair to a worker process."""

    def same_expression(self, *, gold: str, answer: str) -> bool:
        if squash(gold) == squash(answer):
            return True
        raise NeedsAlgebraError

    def same_relation(self, *, gold: Relation, answer: Relation) -> bool:
        raise NeedsAlgebraError

    def chain_value(self, *, chain: Relation) -> str | None:
        raise NeedsAlgebraError


def squash(text: str) -> str:
    """Returns the text without redundant spaces and braces; ``4 2`` does not become ``42``."""
    text = re.sub(r"(?<![A-Za-z0-9])\s+|\s+(?![A-Za-z0-9])", "", text)
    text = re.sub(r"(?<=[}^_])\{(\w)\}", r"\1", text)
    return text.replace(r"\cdot", "*").replace(r"\times", "*")
