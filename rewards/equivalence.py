"""Whether two answers are the same: rules over structure, algebra only where it is needed.

The table of rules is in docs/rewards.md. `gold` and `answer` are not interchangeable (a long gold
decimal may be a rounded value, an answer may not), so both are keyword-only everywhere.
"""

import re
from fractions import Fraction
from typing import Protocol

from rewards.latex import normalise
from rewards.quantity import Quantity, same_quantity
from rewards.shapes import (
    Expression,
    Group,
    Interval,
    Matrix,
    Named,
    Number,
    Relation,
    Shape,
    Text,
    parse_shape,
)

APPROXIMATION = Fraction(1, 100)
"""How far apart, relatively, the sides of `exact \\approx decimal` may be."""


class Algebra(Protocol):
    """What a computer algebra system decides; see `rewards.symbolic`."""

    def same_expression(self, *, gold: str, answer: str) -> bool:
        """Whether two expressions are equal for all values of their variables."""
        ...

    def same_relation(self, *, gold: Relation, answer: Relation) -> bool:
        """Whether two equations or inequalities say the same."""
        ...

    def chain_value(self, *, chain: Relation) -> str | None:
        """The side that `a = b = c` ends in, if it is true; None if it is false or an equation."""
        ...


class NeedsAlgebraError(Exception):
    """Raised by `NoAlgebra`: the question cannot be decided without a worker."""


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
    """The text without spaces and braces that change nothing."""
    text = re.sub(r"\{(\w)\}", r"\1", re.sub(r"\s+", "", text))
    return text.replace(r"\cdot", "*").replace(r"\times", "*")


def equivalent(*, gold: str, answer: str, algebra: Algebra) -> bool:
    """Whether the answer is right, both as they were written.

    Raises:
        UnreadableError: One of them has no structure that an answer can have.
        NeedsAlgebraError: `algebra` is `NoAlgebra` and the texts alone do not decide.
    """
    gold_text, answer_text = normalise(gold), normalise(answer)
    if _same_choice(gold=gold_text, answer=answer_text):
        return True
    gold_shape = parse_shape(gold, is_gold=True)
    answer_shape = parse_shape(answer)
    if _same(gold=gold_shape, answer=answer_shape, algebra=algebra):
        return True
    for other_gold, other_answer in _other_readings(
        gold=(gold_text, gold_shape), answer=(answer_text, answer_shape)
    ):
        if _same(gold=other_gold, answer=other_answer, algebra=algebra):
            return True
    return False


_CHOICE = re.compile(r"(?:\(([A-J])\)|([A-J])(?:[.:)]|(?=\s)))\s*((?:[A-Za-z]{2}|\d|\\|-).*)", re.S)


def _same_choice(*, gold: str, answer: str) -> bool:
    """Multiple choice: the letter counts; text behind it is ignored on one side."""
    gold_choice, answer_choice = _CHOICE.fullmatch(gold), _CHOICE.fullmatch(answer)
    gold_letter = (gold_choice[1] or gold_choice[2]) if gold_choice else gold
    answer_letter = (answer_choice[1] or answer_choice[2]) if answer_choice else answer
    if not re.fullmatch("[A-J]", gold_letter) or not (gold_choice or answer_choice):
        return False
    if gold_choice and answer_choice:
        return gold_letter == answer_letter and squash(gold_choice[3]) == squash(answer_choice[3])
    if answer_choice and not re.match(r"\([A-J]\)|[A-J][.:)]", answer):
        return False
    return gold_letter == answer_letter


def _other_readings(
    *, gold: tuple[str, Shape], answer: tuple[str, Shape]
) -> list[tuple[Shape, Shape]]:
    """Readings of a comma other than the usual one, where the other side settles it.

    `1,22` is a decimal if the other side is one; `100,200` is a list if the other side is one.
    """
    (gold_text, gold_shape), (answer_text, answer_shape) = gold, answer
    readings: list[tuple[Shape, Shape]] = []
    decimal_comma = re.compile(r"-?\d+,(?:\d{1,2}|\d{4,})")
    if _places(gold_shape) and decimal_comma.fullmatch(answer_text):
        readings.append((gold_shape, parse_shape(answer_text.replace(",", "."))))
    if _places(answer_shape) > 1 and decimal_comma.fullmatch(gold_text):
        readings.append((parse_shape(gold_text.replace(",", "."), is_gold=True), answer_shape))
    thousands = re.compile(r"-?\d{1,3}(?:,\d{3})+")
    if isinstance(answer_shape, Group) and thousands.fullmatch(gold_text):
        readings.append((parse_shape(gold_text.replace(",", ", "), is_gold=True), answer_shape))
    if isinstance(gold_shape, Group) and thousands.fullmatch(answer_text):
        readings.append((gold_shape, parse_shape(answer_text.replace(",", ", "))))
    return readings


def _places(shape: Shape) -> int:
    return shape.quantity.places if isinstance(shape, Number) else 0


def _same(*, gold: Shape, answer: Shape, algebra: Algebra) -> bool:
    """Dispatch on the pair of structures; anything not listed is not the same."""
    match gold, answer:
        case Named(), Named():
            return _same_named(gold=gold, answer=answer, algebra=algebra)
        case Named(), Relation() if _is_equation(answer) and not isinstance(
            gold.value, _NOT_A_SIDE
        ):
            if algebra.same_relation(gold=_as_relation(gold), answer=answer):
                return True
            return _same(gold=gold.value, answer=answer, algebra=algebra)
        case Named(), _:
            return _same(gold=gold.value, answer=answer, algebra=algebra)
        case Relation(), Named() if _is_equation(gold):
            return algebra.same_relation(gold=gold, answer=_as_relation(answer))
        case Relation(), Relation():
            return _same_relations(gold=gold, answer=answer, algebra=algebra)
        case _, Named():
            return _same(gold=gold, answer=answer.value, algebra=algebra)
        case Relation(), _:
            return _same_range(gold=gold, answer=answer, algebra=algebra)
        case _, Relation():
            if all(sign in ("=", r"\approx") for sign in answer.signs):
                value = algebra.chain_value(chain=answer)
                return value is not None and _same(
                    gold=gold, answer=parse_shape(value), algebra=algebra
                )
            return _same_range(gold=gold, answer=answer, algebra=algebra)
        case Group(), _:
            return _same_group(gold=gold, answer=answer, algebra=algebra)
        case _, Group():
            return _group_for_single(gold=gold, answer=answer, algebra=algebra)
        case Interval(), Interval():
            return (
                gold.low_closed == answer.low_closed
                and gold.high_closed == answer.high_closed
                and _same(gold=gold.low, answer=answer.low, algebra=algebra)
                and _same(gold=gold.high, answer=answer.high, algebra=algebra)
            )
        case Matrix(), Matrix():
            return _same_matrix(gold=gold, answer=answer, algebra=algebra)
        case ((Number() | Expression() | Text()), (Number() | Expression() | Text())):
            return _same_leaf(gold=gold, answer=answer, algebra=algebra)
        case Matrix(), Expression():
            return algebra.same_expression(gold=_matrix_text(gold), answer=answer.text)
        case _:
            return False


_NOT_A_SIDE = (Group, Relation, Interval, Matrix, Text)


def _same_named(*, gold: Named, answer: Named, algebra: Algebra) -> bool:
    letters = re.fullmatch("[a-zA-Z]", gold.name) and re.fullmatch("[a-zA-Z]", answer.name)
    is_constant = isinstance(gold.value, Number) and isinstance(answer.value, Number)
    if letters and is_constant and gold.name != answer.name:
        return False
    if _same(gold=gold.value, answer=answer.value, algebra=algebra):
        return True
    if is_constant or isinstance(gold.value, _NOT_A_SIDE) or isinstance(answer.value, _NOT_A_SIDE):
        return False
    if "=" not in gold.text or "=" not in answer.text:
        return False
    return algebra.same_relation(gold=_as_relation(gold), answer=_as_relation(answer))


def _as_relation(named: Named) -> Relation:
    left, _, right = named.text.partition("=")
    return Relation(sides=(left, right), signs=("=",))


def _is_equation(relation: Relation) -> bool:
    return relation.signs == ("=",)


def _same_relations(*, gold: Relation, answer: Relation, algebra: Algebra) -> bool:
    gold_range, answer_range = _range_of(gold), _range_of(answer)
    if gold_range is not None and answer_range is not None:
        return _same(gold=gold_range, answer=answer_range, algebra=algebra)
    return algebra.same_relation(gold=gold, answer=answer)


_VARIABLE = re.compile(r"[a-zA-Z](?:_\{?\w\}?)?|\\(?:alpha|beta|theta|lambda|phi)")
_FLIPPED = {"<": ">", ">": "<", r"\le": r"\ge", r"\ge": r"\le"}


def _range_of(relation: Relation) -> Interval | Group | None:
    """The interval that `a < x \\le b`, `x \\ge a` or `a > x` describes; None for anything else."""
    sides, signs = relation.sides, relation.signs
    if any(sign not in _FLIPPED for sign in signs):
        return None
    if len(sides) == 2 and _VARIABLE.fullmatch(sides[1]):
        sides, signs = (sides[1], sides[0]), (_FLIPPED[signs[0]],)
    if len(sides) == 2 and _VARIABLE.fullmatch(sides[0]):
        bound = parse_shape(sides[1])
        infinity = Expression(text=r"\infty")
        minus_infinity = Expression(text=r"-\infty")
        closed = signs[0] in (r"\le", r"\ge")
        if signs[0] in (">", r"\ge"):
            return _interval(bound, infinity, closed, False)
        return _interval(minus_infinity, bound, False, closed)
    if len(sides) == 3 and _VARIABLE.fullmatch(sides[1]):
        if signs[0] in (">", r"\ge"):
            sides, signs = sides[::-1], (_FLIPPED[signs[1]], _FLIPPED[signs[0]])
        if all(sign in ("<", r"\le") for sign in signs):
            low, high = parse_shape(sides[0]), parse_shape(sides[2])
            return _interval(low, high, signs[0] == r"\le", signs[1] == r"\le")
    return None


def _interval(low: Shape, high: Shape, low_closed: bool, high_closed: bool) -> Interval | Group:
    if not low_closed and not high_closed:
        # Written `(a, b)`, which is how a pair is written too.
        return Group(kind="tuple", items=(low, high))
    return Interval(low=low, high=high, low_closed=low_closed, high_closed=high_closed)


def _same_range(*, gold: Shape, answer: Shape, algebra: Algebra) -> bool:
    """A relation on one side, an interval (or a pair in round brackets) on the other."""
    gold_range = _range_of(gold) if isinstance(gold, Relation) else gold
    answer_range = _range_of(answer) if isinstance(answer, Relation) else answer
    if gold_range is None or answer_range is None:
        return False
    if not isinstance(gold_range, Interval | Group) or not isinstance(
        answer_range, Interval | Group
    ):
        return False
    return _same(gold=gold_range, answer=answer_range, algebra=algebra)


def _same_group(*, gold: Group, answer: Shape, algebra: Algebra) -> bool:
    if isinstance(answer, Matrix) and gold.kind == "tuple":
        return _same_in_order(gold.items, _vector(answer), algebra)
    if not isinstance(answer, Group):
        # A list of one value, e.g. a gold `x = 3, x = 3`.
        return gold.kind in ("list", "set") and _same_unordered(gold.items, (answer,), algebra)
    kinds = (gold.kind, answer.kind)
    if "union" in kinds:
        if kinds not in (("union", "union"), ("union", "list"), ("list", "union")):
            return False
        return _same_unordered(gold.items, answer.items, algebra)
    if kinds in (("tuple", "tuple"), ("tuple", "list"), ("list", "tuple")):
        return _same_in_order(gold.items, answer.items, algebra)
    if "tuple" in kinds:
        return False
    return _same_unordered(gold.items, answer.items, algebra)


def _group_for_single(*, gold: Shape, answer: Group, algebra: Algebra) -> bool:
    if isinstance(gold, Matrix):
        vector = _vector(gold)
        return answer.kind == "tuple" and _same_in_order(vector, answer.items, algebra)
    # Several candidates never match one value, unless all are that value.
    return answer.kind in ("list", "set") and _same_unordered((gold,), answer.items, algebra)


def _same_in_order(gold: tuple[Shape, ...], answer: tuple[Shape, ...], algebra: Algebra) -> bool:
    return 0 < len(gold) == len(answer) and all(
        _same(gold=left, answer=right, algebra=algebra)
        for left, right in zip(gold, answer, strict=True)
    )


def _same_unordered(gold: tuple[Shape, ...], answer: tuple[Shape, ...], algebra: Algebra) -> bool:
    """Equal as sets: each gold item is among the answers, and no answer is beside them."""
    if not gold or not answer:
        return False
    covered: set[int] = set()
    for item in answer:
        matches = [
            index
            for index, wanted in enumerate(gold)
            if _same(gold=wanted, answer=item, algebra=algebra)
        ]
        if not matches:
            return False
        covered.update(matches)
    return len(covered) == len(gold)


def _vector(matrix: Matrix) -> tuple[Shape, ...]:
    if len(matrix.rows) == 1:
        return matrix.rows[0]
    if all(len(row) == 1 for row in matrix.rows):
        return tuple(row[0] for row in matrix.rows)
    return ()


def _same_matrix(*, gold: Matrix, answer: Matrix, algebra: Algebra) -> bool:
    return len(gold.rows) == len(answer.rows) and all(
        _same_in_order(left, right, algebra)
        for left, right in zip(gold.rows, answer.rows, strict=True)
    )


def _matrix_text(matrix: Matrix) -> str:
    rows = r" \\ ".join(
        " & ".join(getattr(cell, "text", "?") for cell in row) for row in matrix.rows
    )
    return rf"\begin{{pmatrix}} {rows} \end{{pmatrix}}"


def _same_leaf(
    *, gold: Number | Expression | Text, answer: Number | Expression | Text, algebra: Algebra
) -> bool:
    if isinstance(gold, Number) and isinstance(answer, Number):
        return same_quantity(gold=gold.quantity, answer=answer.quantity)
    if squash(gold.text).casefold() == squash(answer.text).casefold() and (
        isinstance(gold, Text) or squash(gold.text) == squash(answer.text)
    ):
        return True
    clocks = _clock(gold.text), _clock(answer.text)
    if clocks[0] and clocks[1]:
        return _same_clock(clocks[0], clocks[1])
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


def _expression_of(quantity: Quantity) -> str | None:
    """LaTeX for a number that is compared with an expression; degrees become radians."""
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


_DEGREES = re.compile(r"(\d+(?:\.\d+)?)\s*\^\\circ")


def _degrees(text: str) -> str:
    return _DEGREES.sub(r"{(\\frac{\1 \\pi}{180})}", text).replace(
        r"^\circ", r" \cdot \frac{\pi}{180}"
    )


_CLOCK = re.compile(r"(\d{1,2}) ?: ?(\d{2})(?:\s*([ap])\.?\s?m\.?)?", re.I)


def _clock(text: str) -> tuple[int, int, str] | None:
    match = _CLOCK.fullmatch(text)
    return (int(match[1]), int(match[2]), (match[3] or "").lower()) if match else None


def _same_clock(gold: tuple[int, int, str], answer: tuple[int, int, str]) -> bool:
    """Times of day; a missing a.m. or p.m. matches both, and 20:34 is 8:34 p.m."""
    if gold[1] != answer[1]:
        return False
    if gold[2] and answer[2]:
        return (gold[0] % 12, gold[2]) == (answer[0] % 12, answer[2])
    for marked, plain in ((gold, answer), (answer, gold)):
        if marked[2] and plain[0] > 12:
            return marked[2] == "p" and marked[0] % 12 == plain[0] - 12
    return gold[0] % 12 == answer[0] % 12 if gold[2] or answer[2] else gold[0] == answer[0]


def _same_ratio(*, gold: str, answer: str, algebra: Algebra) -> bool:
    """`6:4` is `3:2` and 3/2: neighbouring parts have the same quotients."""
    gold_parts, answer_parts = gold.split(":"), answer.split(":")
    if len(answer_parts) == 1 and len(gold_parts) == 2:
        answer_parts = [answer, "1"]
    if len(gold_parts) != len(answer_parts) or not all([*gold_parts, *answer_parts]):
        return False

    def quotients(parts: list[str]) -> list[str]:
        return [
            rf"\frac{{{left}}}{{{right}}}" for left, right in zip(parts, parts[1:], strict=False)
        ]

    return all(
        _same(gold=parse_shape(left), answer=parse_shape(right), algebra=algebra)
        for left, right in zip(quotients(gold_parts), quotients(answer_parts), strict=True)
    )
