"""Decides if two answers are equivalent: by rules over their structure, with algebra only where needed.

The table of rules is in docs/rewards.md. ``gold`` and ``answer`` are not interchangeable (a long gold
decimal may be a rounded value, an answer may not), so both are always keyword-only.
"""

import re

from rewards.answers.algebra import Algebra, squash
from rewards.answers.shapes import (
    Compound,
    Expression,
    Interval,
    Matrix,
    Named,
    Number,
    Relation,
    Shape,
    Text,
)
from rewards.answers.structure import canonical_spelling, parse_shape, parse_spelling
from rewards.answers.values import same_value


def equivalent(*, gold: str, answer: str, algebra: Algebra) -> bool:
    """Returns True if the answer is correct. Both texts are taken as written.

    Raises:
        UnreadableError: If one of them does not have the structure of an answer.
        NeedsAlgebraError: If ``algebra`` is ``NoAlgebra`` and the texts alone do not decide.
    """
    gold_text, answer_text = canonical_spelling(gold), canonical_spelling(answer)
    if _same_choice(gold=gold_text, answer=answer_text):
        return True
    gold_shape = parse_spelling(gold_text, is_gold=True)
    answer_shape = parse_spelling(answer_text)
    if squash(gold_text) == squash(answer_text):
        return True
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
    """Compares multiple-choice answers by their letter; text after it is ignored if only one side has it."""
    gold_choice, answer_choice = _CHOICE.fullmatch(gold), _CHOICE.fullmatch(answer)
    gold_letter = (gold_choice[1] or gold_choice[2]) if gold_choice else gold
    answer_letter = (answer_choice[1] or answer_choice[2]) if answer_choice else answer
    if not re.fullmatch("[A-J]", gold_letter) or not (gold_choice or answer_choice):
        return False
    if gold_choice and answer_choice:
        return gold_letter == answer_letter and squash(gold_choice[3]) == squash(answer_choice[3])
    # ``A cat`` may be prose: an answer with text needs a sign after its letter.
    if answer_choice and not re.match(r"\([A-J]\)|[A-J][.:)]", answer):
        return False
    return gold_letter == answer_letter


def _other_readings(*, gold: tuple[str, Shape], answer: tuple[str, Shape]) -> list[tuple[Shape, Shape]]:
    """Returns other readings of a comma, if the other side decides which one is meant.

    ``1,22`` is a decimal if the other side is one; ``100,200`` is a list if the other side is one.
    """
    (gold_text, gold_shape), (answer_text, answer_shape) = gold, answer
    readings: list[tuple[Shape, Shape]] = []
    decimal_comma = re.compile(r"-?\d+,(?:\d{1,2}|\d{4,})")
    if _places(gold_shape) and decimal_comma.fullmatch(answer_text):
        readings.append((gold_shape, parse_shape(answer_text.replace(",", "."))))
    if _places(answer_shape) > 1 and decimal_comma.fullmatch(gold_text):
        readings.append((parse_shape(gold_text.replace(",", "."), is_gold=True), answer_shape))
    thousands = re.compile(r"-?[1-9]\d{0,2}(?:,[1-9]\d{2})+")
    if isinstance(answer_shape, Compound) and thousands.fullmatch(gold_text):
        readings.append((parse_shape(gold_text.replace(",", ", "), is_gold=True), answer_shape))
    if isinstance(gold_shape, Compound) and thousands.fullmatch(answer_text):
        readings.append((gold_shape, parse_shape(answer_text.replace(",", ", "))))
    return readings


def _places(shape: Shape) -> int:
    return shape.quantity.places if isinstance(shape, Number) else 0


def _same(*, gold: Shape, answer: Shape, algebra: Algebra) -> bool:
    """Dispatches on the pair of structures; any pair that is not listed is different."""
    match gold, answer:
        case Named(), Named():
            return _same_named(gold=gold, answer=answer, algebra=algebra)
        case Named(), Relation() if _is_equation(answer) and not isinstance(gold.value, _NOT_A_SIDE):
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
        case Relation(), _ if all(sign in ("=", r"\approx") for sign in gold.signs):
            value = algebra.chain_value(chain=gold)
            return value is not None and _same(
                gold=parse_shape(value, is_gold=True), answer=answer, algebra=algebra
            )
        case Relation(), _:
            return _same_range(gold=gold, answer=answer, algebra=algebra)
        case _, Relation():
            if all(sign in ("=", r"\approx") for sign in answer.signs):
                value = algebra.chain_value(chain=answer)
                return value is not None and _same(gold=gold, answer=parse_shape(value), algebra=algebra)
            return _same_range(gold=gold, answer=answer, algebra=algebra)
        case Compound(), _:
            return _same_compound(gold=gold, answer=answer, algebra=algebra)
        case _, Compound():
            return _compound_for_single(gold=gold, answer=answer, algebra=algebra)
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
            return same_value(gold=gold, answer=answer, algebra=algebra)
        case Matrix(), Expression():
            return algebra.same_expression(gold=_matrix_text(gold), answer=answer.text)
        case _:
            return False


_NOT_A_SIDE = (Compound, Relation, Interval, Matrix, Text)


def _same_named(*, gold: Named, answer: Named, algebra: Algebra) -> bool:
    # ``x = 3`` and ``y = 3`` differ; other names, such as ``the area``, are ignored.
    letters = re.fullmatch("[a-zA-Z]", gold.name) and re.fullmatch("[a-zA-Z]", answer.name)
    is_constant = isinstance(gold.value, Number) and isinstance(answer.value, Number)
    if letters and is_constant and gold.name != answer.name:
        return False
    if _same(gold=gold.value, answer=answer.value, algebra=algebra):
        return True
    if is_constant or isinstance(gold.value, _NOT_A_SIDE) or isinstance(answer.value, _NOT_A_SIDE):
        return False
    # Values of one name have been compared above; ``y = 2x`` and ``x = y/2`` are the same equation.
    if gold.name == answer.name or "=" not in gold.text or "=" not in answer.text:
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
    if len(gold.signs) > 1 and gold.signs == answer.signs:
        pairs = zip(gold.sides, answer.sides, strict=True)
        return all(_same(gold=parse_shape(a), answer=parse_shape(b), algebra=algebra) for a, b in pairs)
    return algebra.same_relation(gold=gold, answer=answer)


_VARIABLE = re.compile(r"[a-zA-Z](?:_\{?\w\}?)?|\\(?:alpha|beta|theta|lambda|phi)")
_FLIPPED = {"<": ">", ">": "<", r"\le": r"\ge", r"\ge": r"\le"}


def _range_of(relation: Relation) -> Interval | Compound | None:
    """Returns the interval described by ``a < x \\le b``, ``x \\ge a`` or ``a > x``; None for others."""
    sides = relation.sides
    signs: tuple[str, ...] = relation.signs
    if any(sign not in _FLIPPED for sign in signs):
        return None
    if len(sides) == 2 and _VARIABLE.fullmatch(sides[1]):
        sides, signs = sides[::-1], tuple(_FLIPPED[sign] for sign in signs)
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
            sides, signs = sides[::-1], tuple(_FLIPPED[sign] for sign in reversed(signs))
        if all(sign in ("<", r"\le") for sign in signs):
            low, high = parse_shape(sides[0]), parse_shape(sides[2])
            return _interval(low, high, signs[0] == r"\le", signs[1] == r"\le")
    return None


def _interval(low: Shape, high: Shape, low_closed: bool, high_closed: bool) -> Interval | Compound:
    if not low_closed and not high_closed:
        # An open interval is written ``(a, b)``, like a pair, so both have the same shape.
        return Compound(kind="tuple", items=(low, high))
    return Interval(low=low, high=high, low_closed=low_closed, high_closed=high_closed)


def _same_range(*, gold: Shape, answer: Shape, algebra: Algebra) -> bool:
    """Compares a relation with an interval, or with a pair in round brackets."""
    gold_range = _range_of(gold) if isinstance(gold, Relation) else gold
    answer_range = _range_of(answer) if isinstance(answer, Relation) else answer
    if gold_range is None or answer_range is None:
        return False
    if not isinstance(gold_range, Interval | Compound) or not isinstance(answer_range, Interval | Compound):
        return False
    return _same(gold=gold_range, answer=answer_range, algebra=algebra)


def _same_compound(*, gold: Compound, answer: Shape, algebra: Algebra) -> bool:
    if isinstance(answer, Matrix) and gold.kind == "tuple":
        return _same_in_order(gold.items, _vector(answer), algebra)
    if not isinstance(answer, Compound):
        # A list of one value, e.g. a gold ``x = 3, x = 3``.
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


def _compound_for_single(*, gold: Shape, answer: Compound, algebra: Algebra) -> bool:
    if isinstance(gold, Matrix):
        vector = _vector(gold)
        return answer.kind == "tuple" and _same_in_order(vector, answer.items, algebra)
    # Several candidates match one value only if all of them equal it.
    return answer.kind in ("list", "set") and _same_unordered((gold,), answer.items, algebra)


def _same_in_order(gold: tuple[Shape, ...], answer: tuple[Shape, ...], algebra: Algebra) -> bool:
    return 0 < len(gold) == len(answer) and all(
        _same(gold=left, answer=right, algebra=algebra) for left, right in zip(gold, answer, strict=True)
    )


def _same_unordered(gold: tuple[Shape, ...], answer: tuple[Shape, ...], algebra: Algebra) -> bool:
    """Compares as sets: every gold item is among the answers, and every answer is a gold item."""
    if not gold or not answer:
        return False
    covered: set[int] = set()
    for item in answer:
        matches = [
            index for index, wanted in enumerate(gold) if _same(gold=wanted, answer=item, algebra=algebra)
        ]
        if not matches:
            return False
        covered.update(matches)
    return len(covered) == len(gold)


def _vector(matrix: Matrix) -> tuple[Shape, ...]:
    """Returns the entries of a single row or column; empty for any other matrix."""
    if len(matrix.rows) == 1:
        return matrix.rows[0]
    if all(len(row) == 1 for row in matrix.rows):
        return tuple(row[0] for row in matrix.rows)
    return ()


def _same_matrix(*, gold: Matrix, answer: Matrix, algebra: Algebra) -> bool:
    return len(gold.rows) == len(answer.rows) and all(
        _same_in_order(left, right, algebra) for left, right in zip(gold.rows, answer.rows, strict=True)
    )


def _matrix_text(matrix: Matrix) -> str:
    rows = r" \\ ".join(" & ".join(getattr(cell, "text", "?") for cell in row) for row in matrix.rows)
    return rf"\begin{{pmatrix}} {rows} \end{{pmatrix}}"
