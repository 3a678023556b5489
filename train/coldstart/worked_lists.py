"""Worked solutions for problems composed of several sums (``data.num_parts``).

The forms and ways are those of ``worked_solutions``; what differs is that an answer is a list::

    solve    glance     no work; every value is at best close to the right one
             careful    the running totals of each part, some of them with a slip
    refine   copy       the first answer of the workspace, unchecked
             again      worked out as without a workspace, slips included
             check      for each part the value that most drafts share, the first of them on a tie
    distil   summarise  the same values, and the parts on which drafts differ
    verify   recompute  computed again, then compared
"""

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import accumulate
from string import ascii_lowercase

from rollout.problems.composed import named, part_questions
from rollout.prompts import PromptTexts, join_drafts
from rollout.records import Problem
from train.coldstart.worked_solutions import GLANCE_ERROR, draft_count, plausible_error, terms
from train.coldstart.writer import (
    AGAIN,
    CAREFUL,
    CHECK,
    COPY,
    REFINE,
    SOLVE,
    Mix,
    WorkedExample,
    Writer,
    drawn_examples,
)

SLIP = 0.15
"""Share of the parts in whose totals a careful solution slips, at random: so the policy's errors, too, differ
between its drafts, as those of a sampled model do."""

Answer = tuple[int, ...]
"""The value of every part."""


def running_totals(values: Sequence[int]) -> str:
    """Returns the total after each term but the first: ``7 -1`` for ``(4, 3, -8)``."""
    return " ".join(str(total) for total in list(accumulate(values))[1:] or values)


def with_slip(chain: Sequence[int], rng: random.Random) -> tuple[int, ...]:
    """Returns the terms with one of them misread, as in a slip of mental arithmetic."""
    slipped = list(chain)
    slipped[rng.randrange(1, len(chain))] += rng.choice((-10, -3, -2, -1, 1, 2, 3, 10))
    return tuple(slipped)


def list_drafts(gold: Answer, rng: random.Random) -> list[Answer]:
    """Draws the answers of a set of drafts; the errors of different parts are independent.

    A part is right with a probability drawn for the set, from a range about that of the policy itself: where
    fewer parts were right, few of their values would occur twice.
    """
    count = draft_count(rng)
    right = rng.uniform(0.4, 0.95)
    return [
        tuple(value if rng.random() < right else plausible_error(value, rng) for value in gold)
        for _ in range(count)
    ]


def most_common(drafts: Sequence[Answer]) -> Answer:
    """Returns the most frequent of the drafts' values of each part, the first of them on a tie."""
    return tuple(Counter(values).most_common(1)[0][0] for values in zip(*drafts, strict=True))


def list_summary(drafts: Sequence[Answer]) -> str:
    """Returns a distiller's summary: the most frequent values, and the parts on which drafts differ."""
    parts = zip(ascii_lowercase, zip(*drafts, strict=True), strict=False)
    differ = ", ".join(name for name, values in parts if len(set(values)) > 1)
    return f"Most drafts: {named(most_common(drafts))}. They differ on: {differ or 'nothing'}. Next: answer."


def worked_lists(
    problems: Sequence[Problem], prompts: PromptTexts, mix: Mix, *, count: int, seed: int
) -> Iterator[WorkedExample]:
    """Yields ``count`` examples on randomly drawn composed problems; equal arguments yield equal examples.

    Raises:
        ValueError: If a question is not composed, or a part is not a chain of additions and subtractions.
    """
    return drawn_examples(_ListWriter, problems, prompts, mix, count=count, seed=seed)


class _ListWriter(Writer[Answer]):
    """Writes examples on one composed problem."""

    @cached_property
    def chains(self) -> list[tuple[int, ...]]:
        return [terms(question) for question in part_questions(self.problem.question)]

    @cached_property
    def gold(self) -> Answer:
        return tuple(sum(chain) for chain in self.chains)

    def drafts(self) -> list[Answer]:
        return list_drafts(self.gold, self.rng)

    def steps(self) -> str:
        return _steps(self.chains)

    def shown(self, answer: Answer) -> str:
        return named(answer)

    def remark(self, drafts: Sequence[Answer]) -> str:
        return "Part by part."

    def summary(self, drafts: Sequence[Answer]) -> str:
        return list_summary(drafts)

    def solve(self, way: str) -> WorkedExample:
        prompt = self.prompts.solve_text(self.problem.question)
        if way == CAREFUL:
            return self._worked_out(SOLVE, way, prompt)
        guess = tuple(value + round(self.rng.gauss(0, GLANCE_ERROR)) for value in self.gold)
        return self.made(SOLVE, way, prompt, "At a glance.", guess)

    def refine(self, way: str, drafts: Sequence[Answer], *, from_summary: bool) -> WorkedExample:
        if from_summary:
            workspace = self.summary(drafts)
        else:
            workspace = join_drafts(self.prompts.draft_texts(self.solutions(drafts)))
        prompt = self.prompts.refine_text(self.problem.question, workspace)
        # A summary has no first draft to copy.
        if way == COPY and not from_summary:
            return self.made(REFINE, way, prompt, "Take the first.", drafts[0])
        if way == AGAIN:
            return self._worked_out(REFINE, way, prompt)
        return self.made(REFINE, CHECK, prompt, self.remark(drafts), most_common(drafts))

    def _worked_out(self, form: str, way: str, prompt: str) -> WorkedExample:
        worked = [with_slip(c, self.rng) if self.rng.random() < SLIP else c for c in self.chains]
        return self.made(form, way, prompt, _steps(worked), tuple(sum(chain) for chain in worked))


def _steps(chains: Sequence[Sequence[int]]) -> str:
    lines = zip(ascii_lowercase, chains, strict=False)
    return "\n".join(f"{name}: {running_totals(chain)}" for name, chain in lines)
