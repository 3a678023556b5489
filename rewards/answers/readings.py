"""Readings that need both sides: letters of multiple choice, and commas that the other side explains."""

import re

from rewards.answers.algebra import squash
from rewards.answers.shapes import Compound, Number, Shape
from rewards.answers.structure import parse_shape
from rewards.answers.units import CURRENCY_SIGNS

_DECIMAL_COMMA = re.compile(
    rf"(?:[{CURRENCY_SIGNS}] ?)?-?\d+,(?:\d{{1,2}}|\d{{4,}})(?: ?[{CURRENCY_SIGNS}])?"
)
_THOUSANDS = re.compile(r"-?[1-9]\d{0,2}(?:,[1-9]\d{2})+")
_CHOICE = re.compile(r"(?:\(([A-J])\)|([A-J])(?:[.:)]|(?=\s)))\s*((?:[A-Za-z]{2}|\d|\\|-).*)", re.S)


def same_choice(*, gold: str, answer: str) -> bool:
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


def other_readings(*, gold: tuple[str, Shape], answer: tuple[str, Shape]) -> list[tuple[Shape, Shape]]:
    """Returns other readings of a comma, if the other side decides which one is meant.

    ``1,22`` is a decimal if the other side is one; ``100,200`` is a list if the other side is one.
    """
    (gold_text, gold_shape), (answer_text, answer_shape) = gold, answer
    readings: list[tuple[Shape, Shape]] = []
    if _places(gold_shape) and _DECIMAL_COMMA.fullmatch(answer_text):
        readings.append((gold_shape, parse_shape(answer_text.replace(",", "."))))
    if _places(answer_shape) > 1 and _DECIMAL_COMMA.fullmatch(gold_text):
        readings.append((parse_shape(gold_text.replace(",", "."), is_gold=True), answer_shape))
    if isinstance(answer_shape, Compound) and _THOUSANDS.fullmatch(gold_text):
        readings.append((parse_shape(gold_text.replace(",", ", "), is_gold=True), answer_shape))
    if isinstance(gold_shape, Compound) and _THOUSANDS.fullmatch(answer_text):
        readings.append((gold_shape, parse_shape(answer_text.replace(",", ", "))))
    return readings


def _places(shape: Shape) -> int:
    return shape.quantity.places if isinstance(shape, Number) else 0
