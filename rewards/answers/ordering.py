"""Decides whether the elements of a gold list have an order."""

import re

from rewards.answers.shapes import Compound, Named, Shape, Text

ORDERED_LISTS = ("auto", "true", "false")
"""Whether the order of a list without brackets counts: by the gold's form, always, never."""

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
    stems = {re.sub(r"_?\{?\d+\}?$", "", name) for name in names}
    if len(names) != len(gold) or len(stems) != len(gold) or len(gold) < 2:
        return None
    answers = {shape.name: shape for shape in answer if isinstance(shape, Named)}
    if not answers:
        return answer
    if len(answers) < len(answer):
        return ()  # some have a name and some do not: no answer
    return tuple(answers[name] for name in names) if sorted(answers) == sorted(names) else None
