"""Mathematical answers: the rules of docs/rewards.md."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rewards.answers.algebra import NeedsAlgebraError, NoAlgebra
from rewards.answers.equivalence import equivalent
from rewards.answers.extract import Extraction, Rules, extract
from rewards.answers.ordering import ORDERED_LISTS
from rewards.answers.shapes import UnreadableError
from rewards.facts import Facts
from rewards.gold import check_gold, read_gold
from rewards.solving import Request
from rewards.tasks.task import Prepared, unparsable
from rewards.verdict import Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Math:
    """Equivalence of answers; text and exact fractions in the calling thread, the rest in a worker."""

    rules: Rules
    ordered_lists: str = "auto"

    def __post_init__(self) -> None:
        if self.ordered_lists not in ORDERED_LISTS:
            raise ValueError(
                f"`ordered_lists` is {self.ordered_lists!r}; choose from {', '.join(ORDERED_LISTS)}."
            )

    def check_gold(self, gold: str, columns: Mapping[str, Any]) -> str | None:
        """See ``rewards.gold.check_gold``."""
        return check_gold(gold)

    def prepare(self, gold: str, completion: str, facts: Facts) -> Prepared:
        """See ``Task``."""
        parsed = read_gold(gold)
        found = extract(completion, self.rules, gold_is_choice=parsed.is_choice, gold_parts=parsed.num_parts)
        return unparsable(found) if found.answer is None else (found, self.decide(parsed.answer, found))

    def decide(self, gold: str, found: Extraction) -> Verdict | Request:
        """Returns the verdict if exact tests on the text suffice, else the request for a worker."""
        assert found.answer is not None
        lists = self.ordered_lists
        try:
            right = equivalent(gold=gold, answer=found.answer, algebra=NoAlgebra(), ordered_lists=lists)
        except NeedsAlgebraError:
            body = {"task": "check", "gold": gold, "answer": found.answer, "ordered_lists": lists}
            return Request(body=body, key=(gold, found.answer))
        except UnreadableError as error:
            status, reason = "unparsable", str(error)
        except RecursionError:
            status, reason = "unparsable", "It is nested too deeply."
        else:
            status, reason = "correct" if right else "wrong", ""
        return Verdict(status=status, answer=found.answer, found_by=found.found_by, reason=reason)
