"""Worked solutions for problems composed of several sums (``data.num_parts``).

The forms and ways are those of ``worked_solutions``; what differs is that an answer is a list::

    solve    glance     no work; every value is at best close to the right one
             careful    the running totals of each part
    refine   copy       the first answer of the workspace, unchecked
             check      for each part the value that most drafts share; running totals if there is none
    distil   summarise  which parts are agreed, which are open
    verify   recompute  computed again, then compared
"""

import random
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
    draft_set,
    majority,
    plausible_error,
    solution_text,
    terms,
)

Answer = tuple[int, ...]
"""The value of every part."""


def running_totals(values: Sequence[int]) -> str:
    """Returns the total after each term but the first: ``7 -1`` for ``(4, 3, -8)``."""
    return " ".join(str(total) for total in list(accumulate(values))[1:] or values)


def list_drafts(gold: Answer, rng: random.Random) -> list[Answer]:
    """Draws the answers of the drafts of a set; the errors of different parts are independent."""
    count, right = draft_set(rng)
    return [
        tuple(value if rng.random() < right else plausible_error(value, rng) for value in gold)
        for _ in range(count)
    ]


def agreed_parts(drafts: Sequence[Answer]) -> list[int | None]:
    """Returns the majority among the drafts' values of each part, None where there is none."""
    return [majority(values) for values in zip(*drafts, strict=True)]


def list_summary(agreed: Sequence[int | None]) -> str:
    """Returns a distiller's summary: the agreed parts, the open ones, and the next step."""
    pairs = list(zip(ascii_lowercase, agreed, strict=False))
    known = ", ".join(f"{name}={value}" for name, value in pairs if value is not None)
    left = ", ".join(name for name, value in pairs if value is None)
    if not left:
        return f"Agreed: {known}. Next: answer."
    return f"Agreed: {known or 'nothing'}. Open: {left}. Next: work out what is open."


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
            return self._made(SOLVE, way, prompt, self._steps(), self.gold)
        guess = tuple(value + round(self.rng.gauss(0, GLANCE_ERROR)) for value in self.gold)
        return self._made(SOLVE, way, prompt, "At a glance.", guess)

    def refine(self, way: str, drafts: Sequence[Answer], *, from_summary: bool) -> WorkedExample:
        agreed = agreed_parts(drafts)
        if from_summary:
            workspace = list_summary(agreed)
        else:
            texts = self.prompts.draft_texts([solution_text(named(draft)) for draft in drafts])
            workspace = join_drafts(texts)
        prompt = self.prompts.refine_text(self.problem.question, workspace)
        # A summary has no first draft to copy.
        if way == COPY and not from_summary:
            return self._made(REFINE, way, prompt, "Take the first.", drafts[0])
        answer = tuple(right if most is None else most for right, most in zip(self.gold, agreed, strict=True))
        return self._made(REFINE, CHECK, prompt, self._checks(agreed), answer)

    def distil(self, drafts: Sequence[Answer]) -> WorkedExample:
        solutions = [solution_text(named(draft)) for draft in drafts]
        prompt = self.prompts.distil_text(self.problem.question, solutions, KAPPA)
        summary = list_summary(agreed_parts(drafts))
        completion = completion_text("Part by part.", summary)
        return self._written(DISTIL, SUMMARISE, prompt, completion, is_correct=True)

    def verify(self, answer: Answer) -> WorkedExample:
        prompt = self.prompts.verify_text(self.problem.question, solution_text(named(answer)))
        verdict = "yes" if answer == self.gold else "no"
        completion = completion_text(self._steps(), solution_text(verdict))
        return self._written(VERIFY, RECOMPUTE, prompt, completion, is_correct=True)

    def _steps(self) -> str:
        return self._lines([running_totals(chain) for chain in self.chains])

    def _checks(self, agreed: Sequence[int | None]) -> str:
        return self._lines(
            [
                f"no majority, {running_totals(chain)}" if most is None else f"most say {most}"
                for most, chain in zip(agreed, self.chains, strict=True)
            ]
        )

    def _lines(self, texts: Sequence[str]) -> str:
        return "\n".join(f"{name}: {text}" for name, text in zip(ascii_lowercase, texts, strict=False))

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
