"""The structure of an answer: number, expression, text, list, set, tuple, interval, relation, ..."""

from dataclasses import dataclass

from rewards.answers.quantity import Quantity


@dataclass(frozen=True, kw_only=True, slots=True)
class Number:
    """A plain number, e.g. ``7.5\\%``."""

    quantity: Quantity
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Expression:
    """Mathematics that needs a computer algebra system, e.g. ``3\\sqrt{2}``; perhaps with a unit."""

    text: str
    unit: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Text:
    """Words, e.g. ``Tuesday``; compared without regard to case and spacing."""

    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Compound:
    """Several answers in one: kind is ``list``, ``set``, ``tuple``, ``union`` or ``row``."""

    kind: str
    items: tuple["Shape", ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Interval:
    """``[1, 2)``: the brackets tell which ends belong to it."""

    low: "Shape"
    high: "Shape"
    low_closed: bool
    high_closed: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Matrix:
    """Rows of equal or unequal length."""

    rows: tuple[tuple["Shape", ...], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Named:
    """``x = 3``, ``f(x) = 2x``, ``|AB| = 5``: a value and the name it was given."""

    name: str
    value: "Shape"
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Relation:
    """``x < 3``, ``2x + y = 1``, ``1 < x \\le 5``, ``3 + 4 = 7``: two or more sides and their signs."""

    sides: tuple[str, ...]
    signs: tuple[str, ...]


Shape = Number | Expression | Text | Compound | Interval | Matrix | Named | Relation


class UnreadableError(ValueError):
    """The text has no structure that an answer can have; the message says why."""
