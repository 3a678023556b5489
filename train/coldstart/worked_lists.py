"""Worked solutions for problems composed of several sums (``data.num_parts``).

The forms and ways are those of ``worked_solutions``; what differs is that an answer is a list::

    solve    glance     no work; every value is at best close to the right one
             careful    the running totals of each part, some of them with a slip
    refine   copy       the first answer of the workspace, unchecked
             check      for each part the value that most drafts share, the first of them on a tie
    distil   summarise  the same values, and the parts on which drafts differ
    verify   recompute  computed again, then compared
"""

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from string import ascii_lowercase

from rollout.problems.composed import named, part_questions
from rollout.prompts import PromptTexts, join_drafts
from rollout.records import Problem
from train.coldstart.worked_solutions import (
    CAREFUL,
    CHECK,
    COPY,
    DISTIL,
    GLANCE,
    GLANCE_ERROR,
    KAPPA,
    RECOMPUTE,
    REFINE,
    SOLVE,
    SUMMARISE,
    VERIFY,
    Mix,
    WorkedExample,
    completion_text,
    draft_count,
    plausible_error,
    solution_text,
    terms,
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
    rng = random.Random(seed)
    for _ in range(count):
        yield _ListWriter(problem=rng.choice(problems), prompts=prompts, rng=rng).example(mix)


@dataclass(frozen=True, kw_only=True)
class _ListWriter:
    """Writes examples on one composed problem."""

    problem: Problem
    prompts: PromptTexts
    rng: random.Random

    def example(self, mix: Mix) -> WorkedExample:
        form = self.rng.random()
        if form < mix.solve:
            return self.solve(GLANCE if self.rng.random() < mix.glance else CAREFUL)
        drafts = list_drafts(self.gold, self.rng)
        if form < mix.solve + mix.refine:
            way = COPY if self.rng.random() < mix.copy else CHECK
            return self.refine(way, drafts, from_summary=self.rng.random() < mix.summary)
        return self.distil(drafts) if self.rng.random() < 0.5 else self.verify(drafts[0])

    @cached_property
    def chains(self) -> list[tuple[int, ...]]:
        return [terms(question) for question in part_questions(self.problem.question)]

    @cached_property
    def gold(self) -> Answer:
        return tuple(sum(chain) for chain in self.chains)

    def solve(self, way: str) -> WorkedExample:
        prompt = self.prompts.solve_text(self.problem.question)
        if way == CAREFUL:
            worked = [with_slip(c, self.rng) if self.rng.random() < SLIP else c for c in self.chains]
            return self._made(SOLVE, way, prompt, _steps(worked), tuple(sum(chain) for chain in worked))
        guess = tuple(value + round(self.rng.gauss(0, GLANCE_ERROR)) for value in self.gold)
        return self._made(SOLVE, way, prompt, "At a glance.", guess)

    def refine(self, way: str, drafts: Sequence[Answer], *, from_summary: bool) -> WorkedExample:
        if from_summary:
            workspace = list_summary(drafts)
        else:
            texts = self.prompts.draft_texts([solution_text(named(draft)) for draft in drafts])
            workspace = join_drafts(texts)
        prompt = self.prompts.refine_text(self.problem.question, workspace)
        # A summary has no first draft to copy.
        if way == COPY and not from_summary:
            return self._made(REFINE, way, prompt, "Take the first.", drafts[0])
        return self._made(REFINE, CHECK, prompt, "Part by part.", most_common(drafts))

    def distil(self, drafts: Sequence[Answer]) -> WorkedExample:
        solutions = [solution_text(named(draft)) for draft in drafts]
        prompt = self.prompts.distil_text(self.problem.question, solutions, KAPPA)
        completion = completion_text("Part by part.", list_summary(drafts))
        return self._written(DISTIL, SUMMARISE, prompt, completion, is_correct=True)

    def verify(self, answer: Answer) -> WorkedExample:
        prompt = self.prompts.verify_text(self.problem.question, solution_text(named(answer)))
        verdict = "yes" if answer == self.gold else "no"
        completion = completion_text(_steps(self.chains), solution_text(verdict))
        return self._written(VERIFY, RECOMPUTE, prompt, completion, is_correct=True)

    def _made(self, form: str, way: str, prompt: str, thinking: str, answer: Answer) -> WorkedExample:
        completion = completion_text(thinking, solution_text(named(answer)))
        return self._written(form, way, prompt, completion, is_correct=answer == self.gold)

    def _written(
        self, form: str, way: str, prompt: str, completion: str, *, is_correct: bool
    ) -> WorkedExample:
        return WorkedExample(
            problem_id=self.problem.id,
            form=form,
            way=way,
            prompt=prompt,
            completion=completion,
            is_correct=is_correct,
        )


def _steps(chains: Sequence[Sequence[int]]) -> str:
    lines = zip(ascii_lowercase, chains, strict=False)
    return "\n".join(f"{name}: {running_totals(chain)}" for name, chain in lines)
