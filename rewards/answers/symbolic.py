"""Algebra on expressions with SymPy. Runs only in worker processes.

The grammar builds nothing large, so a call takes milliseconds; the limits of the worker end any other.
"""

import logging
import re
from functools import lru_cache
from typing import Any

import sympy
from math_verify import verify
from sympy.core.evalf import PrecisionExhausted

from rewards.answers.algebra import squash
from rewards.answers.fallback import read_with_latex2sympy
from rewards.answers.grammar import read_expression
from rewards.answers.guarded import Guard, NotInGrammarError
from rewards.answers.naming import occurs
from rewards.answers.points import points
from rewards.answers.shapes import Relation, UnreadableError

DIGITS = 120
"""Number of decimal digits in numeric comparisons."""
TOLERANCE = sympy.Float(10) ** -100
"""Relative difference up to which two numbers of ``DIGITS`` digits are equal."""
TINY = sympy.Float(10) ** -100
"""Absolute difference below which two numbers near zero are equal."""
PROOF_DIGITS = 1000
"""Number of digits in which constants must agree if simplification does not show that they are equal."""
MAX_PROOF_DIGITS = 6000
"""Constants that would need more digits are equal only if simplification shows it."""
MAX_CHARS = 2000
"""Length limit of an expression, in characters."""

_BIG_OPERATOR = re.compile(r"\\(?:sum|prod|int|iint|lim)(?![a-zA-Z])")
# Texts that latex2sympy would misread instead of rejecting them.
_MISREAD = (
    (re.compile(r"(?<![_^\d.])[\d.]+\s+[\d.]"), "It has two numbers side by side."),
    (
        re.compile(r"(?<![A-Za-z_\d])\d+\s*(?:_|'|\^\s*\{?\s*\\prime)"),
        "It has a number with an index or a prime.",
    ),
    (re.compile(r"\\[lcdv]?dots|\.\."), "It has an ellipsis."),
    (re.compile(r"%\s*%"), "It has two percent signs."),
)
_CROSS = re.compile(r"(?:[a-zA-Z]|\})\s*\\times\s*(?:[a-zA-Z]|\\[a-zA-Z])")
"""A product sign between two letters: a cross product if the gold has it."""
_DERIVATIVE = re.compile(r"\bd\s?([a-z])\s*/\s*d\s?([a-z])\b")
_CURRENCY = re.compile(r"(?<![A-Za-z])usd (?=[+\-]?\s*[\d.])")  # how ``latex.normalise`` writes a dollar sign
_ROUNDED = re.compile(r"rounded:(\d+):(.*)", re.S)

logging.getLogger("math_verify").setLevel(logging.CRITICAL)


@lru_cache(maxsize=20_000)
def parse_expression(text: str, *, crosses: bool = False) -> Any:
    """Parses a LaTeX expression to a SymPy object.

    Args:
        text: LaTeX as ``latex.normalise`` returns it.
        crosses: True if ``a \\times b`` is a cross product, which does not commute.

    Raises:
        UnreadableError: If it is too long, or has no meaning.
    """
    if len(text) > MAX_CHARS:
        raise UnreadableError(f"It is longer than {MAX_CHARS} characters.")
    if reason := next((reason for pattern, reason in _MISREAD if pattern.search(text)), ""):
        raise UnreadableError(reason)
    text = _CURRENCY.sub("", text).replace("%", r" \cdot \frac{1}{100}")
    text = _DERIVATIVE.sub(r"\\frac{d\1}{d\2}", text)
    parts = re.split(r"\\(?:bmod|mod)(?![a-zA-Z])", text)
    if len(parts) == 2:
        return Guard().remainder(parse_expression(parts[0]), parse_expression(parts[1]))
    try:
        return read_expression(text, crosses=crosses)
    except NotInGrammarError as error:
        return read_with_latex2sympy(text, str(error))


class SymPyAlgebra:
    """The implementation of ``Algebra`` in worker processes."""

    def same_expression(self, *, gold: str, answer: str) -> bool:
        """Returns True if equal for all values of the variables, by exact or 120-digit arithmetic."""
        if squash(gold) == squash(answer):
            return True
        rounded = _ROUNDED.fullmatch(gold)
        crosses = bool(_CROSS.search(gold))
        gold_value = parse_expression(rounded[2] if rounded else gold, crosses=crosses)
        answer = _ROUNDED.sub(r"\2", answer)
        answer_value = parse_expression(answer, crosses=crosses)
        if _BIG_OPERATOR.search(answer) and not gold_value.free_symbols:
            return False  # An unevaluated sum only restates the question.
        if not isinstance(gold_value, sympy.Expr) or not isinstance(answer_value, sympy.Expr):
            return bool(verify(gold_value, answer_value, strict=True, timeout_seconds=None))
        if rounded and not answer_value.free_symbols:
            return _is_rounded(gold_value, answer_value, int(rounded[1]))
        return _same(gold_value, answer_value)

    def same_relation(self, *, gold: Relation, answer: Relation) -> bool:
        """Returns True if equal up to a constant factor: positive for inequalities, negative if flipped."""
        if len(gold.signs) != 1 or len(answer.signs) != 1:
            return False
        gold_sign, answer_sign = gold.signs[0], answer.signs[0]
        left, right = _difference(gold), _difference(answer)
        if not left.free_symbols or left.free_symbols != right.free_symbols:
            return False
        factor = _constant_ratio(left, right)
        if factor is None:
            return False
        if gold_sign in ("=", r"\ne"):
            return gold_sign == answer_sign
        flipped = {"<": ">", ">": "<", r"\le": r"\ge", r"\ge": r"\le"}
        return gold_sign == (answer_sign if factor > 0 else flipped.get(answer_sign))

    def chain_value(self, *, chain: Relation) -> str | None:
        """Returns the value of ``a = b = c``; None if a side contradicts it or has a variable.

        Sides after the first ``\\approx`` need to agree to 1% only.
        """
        exact = chain.sides[: len(chain.signs) + 1]
        if r"\approx" in chain.signs:
            exact = chain.sides[: chain.signs.index(r"\approx") + 1]
        value_text = exact[-1]
        value = parse_expression(value_text)
        if not isinstance(value, sympy.Expr):
            return None
        for side in chain.sides:
            # ``x = y = 2`` names its value twice.
            is_name = re.fullmatch("[a-zA-Z]", side) and not occurs(side, [value_text])
            if side == value_text or _BIG_OPERATOR.search(side) or is_name:
                continue
            other = parse_expression(side)
            if other.free_symbols:
                return None
            if not isinstance(other, sympy.Expr):
                continue
            near = side not in exact and _is_near(value, other)
            if not near and not _same(value, other):
                return None
        return value_text


def _difference(relation: Relation) -> sympy.Expr:
    left, right = (parse_expression(side.strip()) for side in relation.sides)
    if not isinstance(left, sympy.Expr) or not isinstance(right, sympy.Expr):
        raise UnreadableError("A side of the relation is not an expression.")
    return left - right


_REAL = (sympy.Float, sympy.Rational)


def _number_at(expression: sympy.Expr, point: dict[Any, Any]) -> sympy.Expr | None:
    try:
        value = expression.evalf(DIGITS, subs=point) if point else expression.evalf(DIGITS)
        if point and not value.is_number:
            value = expression.subs(point).doit().evalf(DIGITS)
        parts = value.as_real_imag() if value.is_number else ()
    except (ArithmeticError, TypeError, ValueError, PrecisionExhausted):
        return None  # SymPy found no digits of it
    # Other values, e.g. an integral that diverges, cannot be compared.
    return value if parts and all(isinstance(part, _REAL) and part.is_finite for part in parts) else None


def _close(left: sympy.Expr, right: sympy.Expr) -> bool:
    scale = max(abs(left), abs(right))
    return bool(abs(left - right) <= TOLERANCE * scale) if scale else True


def _same(gold: sympy.Expr, answer: sympy.Expr) -> bool:
    if gold == answer:
        return True
    if gold.has(sympy.nan, sympy.zoo) or answer.has(sympy.nan, sympy.zoo):
        return False
    if gold.has(sympy.oo, -sympy.oo) or answer.has(sympy.oo, -sympy.oo):
        return gold.doit() == answer.doit()
    symbols = gold.free_symbols | answer.free_symbols
    return _same_at_points(gold, answer, symbols) if symbols else _same_constant(gold, answer)


def _same_constant(gold: sympy.Expr, answer: sympy.Expr) -> bool:
    if isinstance(gold, sympy.Rational) and isinstance(answer, sympy.Rational):
        return gold == answer
    left, right = _number_at(gold, {}), _number_at(answer, {})
    if left is None or right is None:
        return False
    if not _close(left, right) and abs(left - right) > TINY:
        return False
    # Equal to ``DIGITS`` digits, or both near zero. Equality must now be exact, or hold for all digits of the
    # integer part and a thousand more: 2^{1/2^{1000}} is not 1.
    exact_gold, exact_answer = gold.doit(), answer.doit()
    if exact_gold == exact_answer:
        return True
    if isinstance(exact_gold, sympy.Rational) and isinstance(exact_answer, sympy.Rational):
        return False
    digits = PROOF_DIGITS + max(0, int(sympy.log(abs(left) + 1, 10).evalf(5)))
    if digits > MAX_PROOF_DIGITS:
        return False
    difference = (exact_gold - exact_answer).evalf(DIGITS, maxn=4 * digits)
    return bool(abs(difference) < sympy.Float(10) ** -PROOF_DIGITS)


def _same_at_points(gold: sympy.Expr, answer: sympy.Expr, symbols: set[Any]) -> bool:
    """Tests identity at several points: equal at all, and at least three, at which both have a value."""
    agreed = 0
    for point in points(symbols, gold, answer):
        left, right = _number_at(gold, point), _number_at(answer, point)
        if left is None or right is None:
            continue
        if not _close(left, right) and not (abs(left) < TINY and abs(right) < TINY):
            return False
        agreed += 1
    return agreed >= 3


def _constant_ratio(left: sympy.Expr, right: sympy.Expr) -> sympy.Expr | None:
    """Returns the nonzero real constant c with left = c * right; None if there is none."""
    ratio = None
    for point in points(left.free_symbols, left, right):
        top, bottom = _number_at(left, point), _number_at(right, point)
        if top is None or bottom is None or not bottom:
            continue
        value = top / bottom
        if ratio is not None and not _close(ratio, value):
            return None
        ratio = value
    return ratio if ratio is not None and ratio.is_real and ratio != 0 else None


def _is_rounded(gold: sympy.Expr, answer: sympy.Expr, places: int) -> bool:
    """Returns True if the gold decimal is the answer, or the answer rounded to the gold's places."""
    if _same(gold, answer):
        return True
    value = _number_at(answer, {})
    if places < 6 or value is None or isinstance(answer, sympy.Float):
        return False
    return bool(2 * abs(value - gold) <= sympy.Float(10) ** -places)


def _is_near(value: sympy.Expr, other: sympy.Expr) -> bool:
    """Returns True if two constants agree to 1%."""
    left, right = _number_at(value, {}), _number_at(other, {})
    if left is None or right is None:
        return False
    return bool(100 * abs(left - right) <= max(abs(left), abs(right)))


def check_value(text: str) -> None:
    """Checks that an expression of a gold answer is a value.

    Raises:
        UnreadableError: If it cannot be read, or is undefined, like ``\\frac{0}{0}``.
    """
    for part in re.split(r"(?<!\\):", text):
        value = parse_expression(part)
        if value.has(sympy.nan, sympy.zoo) or value.doit() in (sympy.nan, sympy.zoo):
            raise UnreadableError("It is undefined.")


def is_within(gold: str, answer: str, *, relative: float, absolute: float) -> bool:
    """Returns True if two constants differ by at most ``max(absolute, relative * |gold|)``.

    Raises:
        UnreadableError: If one of them is not the expression of a number.
    """
    left, right = (_number_at(parse_expression(text), {}) for text in (gold, answer))
    if left is None or right is None:
        raise UnreadableError("It is not a number.")
    return bool(abs(left - right) <= max(sympy.Float(absolute), sympy.Float(relative) * abs(left)))
