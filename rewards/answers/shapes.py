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
    """Mathematics that needs a computer algebra system, e.g. ``3\\sqrt{2}``; optionally with a unit."""

    text: str
    unit: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Text:
    """Words, e.g. ``Tuesday``; compared ignoring case and spacing."""

    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Compound:
    """Several answers in one; ``kind`` is ``list``, ``set``, ``tuple``, ``union`` or ``row``."""

    kind: str
    items: tuple["Shape", ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Interval:
    """An interval, e.g. ``[1, 2)``; the brackets show which ends are included."""

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
    """A value with a name, e.g. ``x = 3``, ``f(x) = 2x``, ``|AB| = 5``."""

    name: str
    value: "Shape"
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Relation:
    """Two or more sides and the signs between them: ``x < 3``, ``2x + y = 1``, ``1 < x \\le 5``."""

    sides: tuple[str, ...]
    signs: tuple[str, ...]


Shape = Number | Expression | Text | Compound | Interval | Matrix | Named | Relation


class UnreadableError(ValueError):
    """The text does not have the structure of an answer; the message names the reason."""
