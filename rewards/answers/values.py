"""Compares single values: numbers with units, times of day, ratios, words, expressions."""

import itertools
import re
from fractions import Fraction

from rewards.answers.algebra import Algebra, squash
from rewards.answers.quantity import Quantity, other_unit, same_quantity
from rewards.answers.shapes import Expression, Number, Text
from rewards.answers.structure import CLOCK, parse_shape


def same_value(
    *, gold: Number | Expression | Text, answer: Number | Expression | Text, algebra: Algebra
) -> bool:
    """Returns True if two numbers, expressions or words are the same answer."""
    if isinstance(gold, Number) and isinstance(answer, Number):
        return same_quantity(gold=gold.quantity, answer=answer.quantity)
    if other_unit(_unit_of(gold), _unit_of(answer)):
        return False
    if squash(gold.text).casefold() == squash(answer.text).casefold() and (
        isinstance(gold, Text) or squash(gold.text) == squash(answer.text)
    ):
        return True
    clocks = _clock(gold.text), _clock(answer.text)
    if clocks[0] and clocks[1]:
        if _same_clock(clocks[0], clocks[1]):
            return True
        if clocks[0][2] or clocks[1][2]:
            return False  # ``3:10`` may still be a ratio, but not with a.m. or p.m.
    if isinstance(gold, Text) or isinstance(answer, Text):
        return False
    if ":" in gold.text:
        return _same_ratio(gold=gold.text, answer=answer.text, algebra=algebra)
    if isinstance(gold, Number):
        bare = _expression_of(gold.quantity)
        return bare is not None and algebra.same_expression(gold=bare, answer=_degrees(answer.text))
    if isinstance(answer, Number):
        bare = _expression_of(answer.quantity)
        return bare is not None and algebra.same_expression(gold=_degrees(gold.text), answer=bare)
    return algebra.same_expression(gold=_degrees(gold.text), answer=_degrees(answer.text))


def _unit_of(leaf: Number | Expression | Text) -> str:
    match leaf:
        case Number():
            return leaf.quantity.unit
        case Expression():
            return leaf.unit
        case Text():
            return ""


def _expression_of(quantity: Quantity) -> str | None:
    """Returns the LaTeX of a number for the comparison with an expression; degrees become radians.

    The prefix ``rounded:PLACES:`` marks a decimal, see ``rewards.answers.symbolic``.
    """
    value = quantity.value
    if isinstance(value, Fraction):
        text = str(value.numerator)
        if value.denominator != 1:
            text = rf"\frac{{{value.numerator}}}{{{value.denominator}}}"
        if quantity.places:
            text = f"rounded:{quantity.places}:{text}"
    else:
        sign, digits, exponent = value
        text = f"{sign}{digits} \\cdot 10^{{{exponent}}}"
    return rf"{text} \cdot \frac{{\pi}}{{180}}" if quantity.degree else text


_DEGREES = re.compile(r"(?<![\d.])(\d++(?:\.\d++)?)\s*+\^\\circ")


def _degrees(text: str) -> str:
    return _DEGREES.sub(r"{(\\frac{\1 \\pi}{180})}", text).replace(r"^\circ", r" \cdot \frac{\pi}{180}")


def _clock(text: str) -> tuple[int, str, str] | None:
    match = CLOCK.fullmatch(text)
    return (int(match[1]), match[2].replace(" ", ""), (match[3] or "").lower()) if match else None


def _same_clock(gold: tuple[int, str, str], answer: tuple[int, str, str]) -> bool:
    """Compares times of day; a missing a.m. or p.m. matches both, and 20:34 is 8:34 p.m."""
    if gold[1] != answer[1]:
        return False
    if gold[2] and answer[2]:
        return (gold[0] % 12, gold[2]) == (answer[0] % 12, answer[2])
    for marked, plain in ((gold, answer), (answer, gold)):
        if marked[2] and plain[0] > 12:
            return marked[2] == "p" and marked[0] % 12 == plain[0] - 12
    return gold[0] % 12 == answer[0] % 12 if gold[2] or answer[2] else gold[0] == answer[0]


def _same_ratio(*, gold: str, answer: str, algebra: Algebra) -> bool:
    """Compares ratios by the quotients of neighbouring parts: ``6:4`` equals ``3:2`` and 3/2."""
    gold_parts, answer_parts = gold.split(":"), answer.split(":")
    if len(answer_parts) == 1 and len(gold_parts) == 2:
        answer_parts = [answer, "1"]
    if len(gold_parts) != len(answer_parts) or not all([*gold_parts, *answer_parts]):
        return False

    def quotients(parts: list[str]) -> list[str]:
        return [rf"\frac{{{left}}}{{{right}}}" for left, right in itertools.pairwise(parts)]

    for left, right in zip(quotients(gold_parts), quotients(answer_parts), strict=True):
        gold_leaf, answer_leaf = parse_shape(left), parse_shape(right)
        if not isinstance(gold_leaf, Number | Expression) or not isinstance(answer_leaf, Number | Expression):
            return False
        if not same_value(gold=gold_leaf, answer=answer_leaf, algebra=algebra):
            return False
    return True
