"""Answers that are one number, compared with a tolerance."""

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from rewards.answers.extract import Rules, extract
from rewards.answers.latex import normalise
from rewards.answers.quantity import Quantity, other_unit, parse_quantity
from rewards.facts import Facts
from rewards.gold import check_gold, gold_answer
from rewards.solving import Request
from rewards.tasks.task import Prepared, judged, unparsable


@dataclass(frozen=True, slots=True, kw_only=True)
class Numeric:
    """A number within ``max(absolute, relative * |gold|)`` of the gold.

    Units and percent signs follow the rules of the math verifier. Expressions (``\\sqrt{2}``) are evaluated
    in a worker process.
    """

    rules: Rules
    relative: float
    absolute: float

    def __post_init__(self) -> None:
        for name in ("relative", "absolute"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"`{name}` tolerance must be at least 0, got {getattr(self, name)}.")

    def check_gold(self, gold: str, columns: Mapping[str, Any]) -> str | None:
        """Raises ValueError if the gold is not a number, nor an expression."""
        return None if _quantity(gold_answer(gold), is_gold=True) else check_gold(gold)

    def prepare(self, gold: str, completion: str, facts: Facts) -> Prepared:
        """See ``Task``."""
        gold = gold_answer(gold)
        found = extract(completion, self.rules)
        if found.answer is None:
            return unparsable(found)
        known, given = _quantity(gold, is_gold=True), _quantity(found.answer)
        if known is not None and given is not None:
            return judged(found, right=self._is_within(known, given))
        body = {
            "task": "numeric",
            "gold": normalise(gold),
            "answer": normalise(found.answer),
            "relative": self.relative,
            "absolute": self.absolute,
        }
        key = ("numeric", gold, found.answer, repr(self.relative), repr(self.absolute))
        return found, Request(body=body, key=key)

    def _is_within(self, gold: Quantity, answer: Quantity) -> bool:
        if other_unit(gold.unit, answer.unit) or other_unit(gold.currency, answer.currency):
            return False
        if gold.base != answer.base:
            return False
        if not isinstance(gold.value, Fraction) or not isinstance(answer.value, Fraction):
            return gold.value == answer.value  # numbers of more than a thousand digits
        allowed = max(Fraction(self.absolute), Fraction(self.relative) * abs(gold.value))
        scales = [Fraction(1)]
        if gold.percent != answer.percent:  # 50% is both 50 and 0.5, as in the math verifier
            scales.append(Fraction(1, 100) if answer.percent else Fraction(100))
        return any(abs(gold.value - scale * answer.value) <= allowed for scale in scales)


def _quantity(text: str, *, is_gold: bool = False) -> Quantity | None:
    return parse_quantity(normalise(text), is_gold=is_gold)
