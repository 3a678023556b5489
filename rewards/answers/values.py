"""Compares single values: numbers with units, times of day, ratios, words, expressions."""

import itertools
import re
from fractions import Fraction

from rewards.answers.algebra import Algebra, squash
from rewards.answers.notation import same_notation
from rewards.answers.quantity import Quantity, other_unit, same_quantity
from rewards.answers.shapes import Expression, Number, Text
from rewards.answers.structure import parse_shape
from rewards.answers.units import unit_suffix
from rewards.answers.wording import is_algebra, same_text


def same_value(
    *, gold: Number | Expression | Text, answer: Number | Expression | Text, algebra: Algebra
) -> bool:
    """Returns True if two numbers, expressions or words are the same answer."""
    if isinstance(gold, Number) and isinstance(answer, Number):
        return same_quantity(gold=gold.quantity, answer=answer.quantity)
    if other_unit(_unit_of(gold), _unit_of(answer)):
        return False
    if squash(gold.text) == squash(answer.text):
        return True
    by_notation = same_notation(gold=gold.text, answer=answer.text)
    if by_notation is not None:
        return by_notation
    if isinstance(gold, Text):
        return same_text(gold=gold.text, answer=answer.text)
    if isinstance(answer, Text) or (isinstance(gold, Number) and not is_algebra(answer.text)):
        return False
    if isinstance(answer, Expression):
        answer = _comparable(gold, answer)
    if ":" in gold.text:
        return _same_ratio(gold=gold.text, answer=_TO.sub(":", answer.text), algebra=algebra)
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


_LETTER_UNIT = re.compile(
    r"(.*[\d})])(\s*[mgslhLNJWVKA](?:\s*\^\s*\{?\s*[23]\s*\}?)?(?:\s*/\s*[a-z]+)?)", re.S
)
_CONSTANT = re.compile(r"(.+)\+\s*([CcKk](?:_\{?\w\}?)?)", re.S)


def _comparable(gold: Number | Expression, answer: Expression) -> Expression:
    """Returns the answer without what the gold shows to be no variable of it.

    A letter behind a formula is a unit if it denotes one and the gold has no letters (``10\\sqrt{3} m``). The
    constant of integration may have another letter.
    """
    if not re.search("[a-zA-Z]", re.sub(r"\\[a-zA-Z]+", "", gold.text)):
        match = _LETTER_UNIT.fullmatch(answer.text)
        unit = unit_suffix(match[2], is_gold=False) if match else None
        if match and unit and not other_unit(_unit_of(gold), unit):
            return Expression(text=match[1], unit=unit)
    gold_constant, constant = _CONSTANT.fullmatch(gold.text), _CONSTANT.fullmatch(answer.text)
    if gold_constant and constant and constant[2] not in constant[1] and gold_constant[2] not in constant[1]:
        return Expression(text=f"{constant[1]}+ {gold_constant[2]}", unit=answer.unit)
    return answer


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


_TO = re.compile(r"(?<=[\d}])\s+to\s+(?=[\d\\])")
"""The word of a ratio, ``2 to 3``."""


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
