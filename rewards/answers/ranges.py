"""Reads inequalities of one variable as the intervals that they describe."""

import re

from rewards.answers.intervals import INFINITY, MINUS_INFINITY, interval, punctured_line
from rewards.answers.shapes import Compound, Interval, Relation
from rewards.answers.structure import parse_shape

_VARIABLE = re.compile(r"[a-zA-Z](?:_\{?\w\}?)?|\\(?:alpha|beta|theta|lambda|phi)")
_FLIPPED = {"<": ">", ">": "<", r"\le": r"\ge", r"\ge": r"\le"}


def variable_of(relation: Relation) -> str | None:
    """Returns the variable that the relation confines; None if no side is a variable."""
    sides = relation.sides if len(relation.sides) == 2 else relation.sides[1:-1]
    return next((side for side in sides if _VARIABLE.fullmatch(side)), None)


def range_of(relation: Relation) -> Interval | Compound | None:
    """Returns the interval described by ``a < x \\le b``, ``x \\ge a`` or ``a > x``; None for others."""
    sides = relation.sides
    signs: tuple[str, ...] = relation.signs
    if signs == (r"\ne",) and _VARIABLE.fullmatch(sides[0]):
        return punctured_line(parse_shape(sides[1]))
    if any(sign not in _FLIPPED for sign in signs):
        return None
    if len(sides) == 2 and _VARIABLE.fullmatch(sides[1]):
        sides, signs = sides[::-1], tuple(_FLIPPED[sign] for sign in signs)
    if len(sides) == 2 and _VARIABLE.fullmatch(sides[0]):
        bound = parse_shape(sides[1])
        closed = signs[0] in (r"\le", r"\ge")
        if signs[0] in (">", r"\ge"):
            return interval(bound, INFINITY, low_closed=closed, high_closed=False)
        return interval(MINUS_INFINITY, bound, low_closed=False, high_closed=closed)
    if len(sides) == 3 and _VARIABLE.fullmatch(sides[1]):
        if signs[0] in (">", r"\ge"):
            sides, signs = sides[::-1], tuple(_FLIPPED[sign] for sign in reversed(signs))
        if all(sign in ("<", r"\le") for sign in signs):
            low, high = parse_shape(sides[0]), parse_shape(sides[2])
            return interval(low, high, low_closed=signs[0] == r"\le", high_closed=signs[1] == r"\le")
    return None
