"""Decides whether the elements of a gold list have an order, and how many values names stand for."""

import re

from rewards.answers.shapes import Compound, Named, Relation, Shape, Text
from rewards.answers.structure import parse_shape

ORDERED_LISTS = ("auto", "true", "false")
"""Whether the order of a list without brackets counts: by the gold's form, always, never."""

_VARIABLE = re.compile(r"(?:[a-zA-Z]|\\(?!pi(?![a-z]))[a-zA-Z]+)(?:_\{?\w+\}?)?'*|[A-Z]{2}")
_CONNECTIVE = re.compile(r"(?<![\\a-zA-Z])(?:or|and)(?![a-zA-Z])(?!\s*,)", re.I)


def with_order(gold: Shape, *, text: str, ordered_lists: str) -> Shape:
    """Returns the gold with its list as a tuple if its order counts.

    By its form, a list of words separated by commas is ordered; a list of numbers, or one with ``and`` or
    ``or``, is not.
    """
    if not isinstance(gold, Compound) or gold.kind != "list" or ordered_lists == "false":
        return gold
    has_words = any(isinstance(item, Text) for item in gold.items)
    if ordered_lists == "true" or (has_words and not _CONNECTIVE.search(text)):
        return Compound(kind="tuple", items=gold.items)
    return gold


def by_names(gold: tuple[Shape, ...], answer: tuple[Shape, ...]) -> tuple[Shape, ...] | None:
    """Returns the answer's values in the order of the gold's names; None if names do not give an order.

    ``a=1, b=2`` has an order, which unnamed answers keep; ``x_1=1, x_2=2`` has none, as its names may be
    swapped.
    """
    names = [shape.name for shape in gold if isinstance(shape, Named)]
    if num_named(gold) < len(gold) or len(gold) < 2:
        return None
    answers = {shape.name: shape for shape in answer if isinstance(shape, Named)}
    if not answers:
        return answer
    if len(answers) < len(answer):
        return ()  # some have a name and some do not: no answer
    return tuple(answers[name] for name in names) if sorted(answers) == sorted(names) else None


def num_named(items: tuple[Shape, ...]) -> int:
    """Returns the number of names, if each item has one: ``a=3, b=3`` are two values, and not one.

    ``x_1=1, x_2=1`` count as one name, since they are solutions for one variable. 0 if an item has no name.
    """
    names = [shape.name for shape in items if isinstance(shape, Named)]
    return len({re.sub(r"_?\{?\d+\}?$", "", name) for name in names}) if len(names) == len(items) else 0


def assignments(shape: Shape) -> Compound | None:
    """Returns ``x = y = 2`` as the list ``x = 2, y = 2``; None for any other shape."""
    if not isinstance(shape, Named) or not isinstance(shape.value, Relation):
        return None
    *names, value = shape.value.sides
    if set(shape.value.signs) != {"="} or not all(_VARIABLE.fullmatch(name) for name in names):
        return None
    parsed = parse_shape(value)
    named = tuple(
        Named(name=re.sub(r"[\s{}]", "", name), value=parsed, text=f"{name} = {value}")
        for name in (shape.name, *names)
    )
    return Compound(kind="list", items=named)
