"""Builds intervals and the real line, whole or without some points."""

import itertools
import re
from fractions import Fraction

from rewards.answers.shapes import Compound, Expression, Interval, Number, Shape

MINUS_INFINITY, INFINITY = Expression(text=r"-\infty"), Expression(text=r"\infty")
REAL_LINE = Compound(kind="tuple", items=(MINUS_INFINITY, INFINITY))
"""All real numbers, as the open interval that they are."""

_EXCEPT = re.compile(
    r"^(?:\\mathbb\s*(?:\{\s*R\s*\}|R)\s*-\s*(?=\\\{)"
    r"|(?:all )?(?:real numbers|reals) (?:except|other than|but)(?: for)? +)"
)
"""``\\mathbb R - \\{0\\}`` and ``all real numbers except 0``, for which ``\\setminus`` is written."""


_BUILDER = re.compile(
    r"([a-zA-Z])(?:\s*\\in\s*\\mathbb\s*(?:\{\s*R\s*\}|R))?\s*(?:\||:|\\mid(?![a-z]))\s*(.+)", re.S
)
"""The inside of ``\\{x \\mid x > 2\\}``."""


def condition_of(inside: str) -> str | None:
    """Returns the condition in ``x \\mid x > 2``; None if a text is not a condition on its variable."""
    match = _BUILDER.fullmatch(inside)
    has_variable = match and re.search(rf"(?<![a-zA-Z\\]){match[1]}(?![a-zA-Z])", match[2])
    return match[2] if match and has_variable else None


def with_setminus(text: str) -> str:
    """Returns a text with ``\\setminus`` where points are taken out of the real line in another way."""
    return _EXCEPT.sub(r"\\mathbb{R} \\setminus ", text)


def interval(low: Shape, high: Shape, *, low_closed: bool, high_closed: bool) -> Interval | Compound:
    """Returns an interval; an open one is written ``(a, b)``, like a pair, so both have the same shape."""
    if not low_closed and not high_closed:
        return Compound(kind="tuple", items=(low, high))
    return Interval(low=low, high=high, low_closed=low_closed, high_closed=high_closed)


def punctured_line(left_out: Shape) -> Compound | None:
    """Returns the real numbers except one, or except a set of plain numbers; None for other shapes."""
    items: tuple[Shape, ...] = (left_out,)
    if isinstance(left_out, Compound):
        if left_out.kind not in ("set", "list"):
            return None
        items = left_out.items
    values = [_value(item) for item in items]
    if len(items) > 1:
        if None in values:
            return None
        order = sorted(range(len(items)), key=lambda index: values[index] or Fraction(0))
        items = tuple(items[index] for index in order)
    pairs = itertools.pairwise((MINUS_INFINITY, *items, INFINITY))
    return Compound(kind="union", items=tuple(Compound(kind="tuple", items=pair) for pair in pairs))


def _value(shape: Shape) -> Fraction | None:
    if isinstance(shape, Number) and isinstance(shape.quantity.value, Fraction):
        return shape.quantity.value
    return None
