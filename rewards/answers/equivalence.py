"""Decides if two answers are equivalent: by rules over their structure, with algebra only where needed.

The table of rules is in docs/rewards.md. ``gold`` and ``answer`` are not interchangeable (a long gold
decimal may be a rounded value, an answer may not), so both are always keyword-only.
"""

import re

from rewards.answers.algebra import Algebra, squash
from rewards.answers.naming import denote_others
from rewards.answers.ordering import assignments, by_names, num_named, with_order
from rewards.answers.ranges import range_of, variable_of
from rewards.answers.readings import other_readings, same_choice
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
from rewards.answers.spelling import canonical_spelling
from rewards.answers.structure import parse_shape, parse_spelling
from rewards.answers.values import same_value


def equivalent(*, gold: str, answer: str, algebra: Algebra, ordered_lists: str = "auto") -> bool:
    """Returns True if the answer is correct. Both texts are taken as written.

    Args:
        gold: The correct answer.
        answer: The answer to judge.
        algebra: What compares expressions.
        ordered_lists: One of ``ordering.ORDERED_LISTS``.

    Raises:
        UnreadableError: If one of them does not have the structure of an answer.
        NeedsAlgebraError: If ``algebra`` is ``NoAlgebra`` and the texts alone do not decide.
    """
    gold_text, answer_text = canonical_spelling(gold), canonical_spelling(answer)
    if same_choice(gold=gold_text, answer=answer_text):
        return True
    gold_shape = with_order(
        parse_spelling(gold_text, is_gold=True), text=gold_text, ordered_lists=ordered_lists
    )
    answer_shape = parse_spelling(answer_text)
    if squash(gold_text) == squash(answer_text):
        return True
    if _same(gold=gold_shape, answer=answer_shape, algebra=algebra):
        return True
    for other_gold, other_answer in other_readings(
        gold=(gold_text, gold_shape), answer=(answer_text, answer_shape)
    ):
        if _same(gold=other_gold, answer=other_answer, algebra=algebra):
            return True
    return False


def _same(*, gold: Shape, answer: Shape, algebra: Algebra) -> bool:
    """Dispatches on the pair of structures; any pair that is not listed is different."""
    gold, answer = _spread(gold, beside=answer), _spread(answer, beside=gold)
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


def _spread(shape: Shape, *, beside: Shape) -> Shape:
    """Returns ``x = y = 2`` as the list ``x = 2, y = 2``, beside another such chain or list."""
    spread = assignments(shape)
    if spread is None:
        return shape
    is_list = isinstance(beside, Compound) and num_named(beside.items) > 1
    return spread if is_list or assignments(beside) is not None else shape


_NOT_A_SIDE = (Compound, Relation, Interval, Matrix, Text)


def _same_named(*, gold: Named, answer: Named, algebra: Algebra) -> bool:
    is_constant = _is_constant(gold.value) and _is_constant(answer.value)
    if is_constant and denote_others(gold.name, answer.name):
        return False
    renamed = _with_argument(gold, answer)
    if renamed is None:
        return False
    if _same(gold=gold.value, answer=renamed.value, algebra=algebra):
        return True
    if is_constant or isinstance(gold.value, _NOT_A_SIDE) or isinstance(answer.value, _NOT_A_SIDE):
        return False
    # Values of one name have been compared above; ``y = 2x`` and ``x = y/2`` are the same equation.
    if gold.name == answer.name or "=" not in gold.text or "=" not in answer.text:
        return False
    return algebra.same_relation(gold=_as_relation(gold), answer=_as_relation(answer))


def _with_argument(gold: Named, answer: Named) -> Named | None:
    """Returns the answer with its function's arguments named as in the gold: ``f(t)=t^2`` as ``f(x)=x^2``.

    None if such a name has another meaning in the answer: ``f(t)=x^2`` is constant.
    """
    heads = [re.fullmatch(r"[a-zA-Z]+'*\(([a-zA-Z](?:,[a-zA-Z])*)\)", named.name) for named in (gold, answer)]
    if not heads[0] or not heads[1] or heads[0][1] == heads[1][1]:
        return answer
    wanted, found = heads[0][1].split(","), heads[1][1].split(",")
    if len(wanted) != len(found):
        return None
    tokens: list[str] = re.findall(r"\\[a-zA-Z]+|.", answer.text, re.S)
    if set(wanted) - set(found) & set(tokens):
        return None
    names: dict[str, str] = dict(zip(found, wanted, strict=True))
    renamed = parse_shape("".join(names.get(token, token) for token in tokens))
    return renamed if isinstance(renamed, Named) else answer


def _is_constant(value: Shape) -> bool:
    if isinstance(value, Compound):
        return all(map(_is_constant, value.items))
    if isinstance(value, Interval):
        return _is_constant(value.low) and _is_constant(value.high)
    if isinstance(value, Expression | Text):
        return not re.search("[a-zA-Z]", re.sub(r"\\[a-zA-Z]+", "", value.text))
    return isinstance(value, Number)


def _as_relation(named: Named) -> Relation:
    left, _, right = named.text.partition("=")
    return Relation(sides=(left, right), signs=("=",))


def _is_equation(relation: Relation) -> bool:
    return relation.signs == ("=",)


def _same_relations(*, gold: Relation, answer: Relation, algebra: Algebra) -> bool:
    gold_range, answer_range = range_of(gold), range_of(answer)
    if variable_of(gold) != variable_of(answer):
        gold_range = None  # ``x < 3`` is not ``y < 3``
    if gold_range is not None and answer_range is not None:
        return _same(gold=gold_range, answer=answer_range, algebra=algebra)
    if len(gold.signs) > 1 and gold.signs == answer.signs:
        pairs = zip(gold.sides, answer.sides, strict=True)
        return all(_same(gold=parse_shape(a), answer=parse_shape(b), algebra=algebra) for a, b in pairs)
    return algebra.same_relation(gold=gold, answer=answer)


def _same_range(*, gold: Shape, answer: Shape, algebra: Algebra) -> bool:
    """Compares a relation with an interval, or with a pair in round brackets."""
    gold_range = range_of(gold) if isinstance(gold, Relation) else gold
    answer_range = range_of(answer) if isinstance(answer, Relation) else answer
    if gold_range is None or answer_range is None:
        return False
    if not isinstance(gold_range, Interval | Compound) or not isinstance(answer_range, Interval | Compound):
        return False
    return _same(gold=gold_range, answer=answer_range, algebra=algebra)


def _same_compound(*, gold: Compound, answer: Shape, algebra: Algebra) -> bool:
    if isinstance(answer, Matrix) and gold.kind == "tuple":
        return _same_in_order(gold.items, _vector(answer), algebra)
    if not isinstance(answer, Compound):
        if _is_empty_set(answer):
            return False
        # A list of one value, e.g. a gold ``x = 3, x = 3``, but not ``x = 3, y = 3``.
        is_one = gold.kind in ("list", "set") and num_named(gold.items) < 2
        return is_one and _same_unordered(gold.items, (answer,), algebra)
    if num_named(gold.items) > max(1, len(answer.items)):
        return False
    if (named := by_names(gold.items, answer.items)) is not None and "set" not in (gold.kind, answer.kind):
        return _same_in_order(gold.items, named, algebra)
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
    if _is_empty_set(gold):
        return False
    # Several candidates match one value only if all of them equal it; ``x = 3, y = 3`` are two values.
    is_one = answer.kind in ("list", "set") and num_named(answer.items) < 2
    return is_one and _same_unordered((gold,), answer.items, algebra)


def _is_empty_set(shape: Shape) -> bool:
    return isinstance(shape, Expression) and shape.text == r"\emptyset"


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
