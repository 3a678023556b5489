"""Writes worked examples: the forms of prompt, and what is the same whatever an answer is."""

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Generic, TypeVar

from rollout.prompts import PromptTexts
from rollout.records import Problem
from rollout.turns import Turn

SOLVE = "solve"
REFINE = "refine"
DISTIL = "distil"
VERIFY = "verify"

GLANCE = "glance"
CAREFUL = "careful"
COPY = "copy"
CHECK = "check"
AGAIN = "again"
SUMMARISE = "summarise"
RECOMPUTE = "recompute"

KAPPA = 256
AnswerT = TypeVar("AnswerT", int, tuple[int, ...])
"""An answer: the value of a sum, or the values of several."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mix:
    """Shares, between 0 and 1, of the forms of prompt and ways of answering.

    ``solve + refine <= 1``; the remainder is half distil, half verify.
    """

    solve: float
    refine: float
    glance: float
    """Share of the solve examples; the others are careful."""
    copy: float
    """Share of the refine examples that copy the first draft."""
    solve_again: float
    """Share of the refine examples that work as one without a workspace; the rest check the drafts."""
    summary: float
    """Share of the refine examples whose workspace holds a summary instead of drafts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkedExample:
    """One user message with one completion (thinking and solution, without the end token)."""

    problem_id: str
    form: str
    way: str
    prompt: str
    shots: tuple[Turn, ...] = ()
    """Turns before the prompt: the run's examples of its form (``PromptTexts``)."""
    completion: str
    is_correct: bool
    """True if the box holds the gold answer or the right yes/no; always True for a summary."""


def solution_text(answer: int | str) -> str:
    """Returns the text after the thinking, which is also a draft's text in a workspace."""
    return f"The answer is \\boxed{{{answer}}}."


def completion_text(thinking: str, solution: str) -> str:
    """Returns thinking and solution in the format that the policy learns."""
    return f"<think>\n{thinking}\n</think>\n\n{solution}"


class Writer(ABC, Generic[AnswerT]):
    """Writes examples on one problem. Subclasses know what an answer is, and how one works it out."""

    def __init__(self, problem: Problem, prompts: PromptTexts, rng: random.Random) -> None:
        self.problem = problem
        self.prompts = prompts
        self.rng = rng

    @cached_property
    @abstractmethod
    def gold(self) -> AnswerT:
        """The right answer."""

    @abstractmethod
    def drafts(self) -> list[AnswerT]:
        """Draws the answers of a set of drafts."""

    @abstractmethod
    def steps(self) -> str:
        """Returns the work that leads to the right answer."""

    @abstractmethod
    def shown(self, answer: AnswerT) -> str:
        """Returns an answer as a box holds it."""

    @abstractmethod
    def remark(self, drafts: Sequence[AnswerT]) -> str:
        """Returns the thinking before a summary of drafts."""

    @abstractmethod
    def summary(self, drafts: Sequence[AnswerT]) -> str:
        """Returns a distiller's summary of drafts."""

    @abstractmethod
    def solve(self, way: str) -> WorkedExample:
        """Returns an answer to the plain problem."""

    @abstractmethod
    def refine(self, way: str, drafts: Sequence[AnswerT], *, from_summary: bool) -> WorkedExample:
        """Returns an answer to the problem with a workspace."""

    def example(self, mix: Mix) -> WorkedExample:
        form = self.rng.random()
        if form < mix.solve:
            return self.solve(GLANCE if self.rng.random() < mix.glance else CAREFUL)
        drafts = self.drafts()
        if form < mix.solve + mix.refine:
            drawn = self.rng.random()
            way = COPY if drawn < mix.copy else AGAIN if drawn < mix.copy + mix.solve_again else CHECK
            return self.refine(way, drafts, from_summary=self.rng.random() < mix.summary)
        return self.distil(drafts) if self.rng.random() < 0.5 else self.verify(drafts[0])

    def distil(self, drafts: Sequence[AnswerT]) -> WorkedExample:
        prompt = self.prompts.distil_text(self.problem.question, self.solutions(drafts), KAPPA)
        completion = completion_text(self.remark(drafts), self.summary(drafts))
        return self._written(DISTIL, SUMMARISE, prompt, completion, is_correct=True)

    def verify(self, answer: AnswerT) -> WorkedExample:
        prompt = self.prompts.verify_text(self.problem.question, solution_text(self.shown(answer)))
        verdict = "yes" if answer == self.gold else "no"
        completion = completion_text(self.steps(), solution_text(verdict))
        return self._written(VERIFY, RECOMPUTE, prompt, completion, is_correct=True)

    def solutions(self, drafts: Sequence[AnswerT]) -> list[str]:
        """Returns the solutions of drafts, as a prompt shows them."""
        return [solution_text(self.shown(draft)) for draft in drafts]

    def made(self, form: str, way: str, prompt: str, thinking: str, answer: AnswerT) -> WorkedExample:
        """Returns the example that ends in ``answer``."""
        completion = completion_text(thinking, solution_text(self.shown(answer)))
        return self._written(form, way, prompt, completion, is_correct=answer == self.gold)

    def _written(
        self, form: str, way: str, prompt: str, completion: str, *, is_correct: bool
    ) -> WorkedExample:
        shots = {SOLVE: self.prompts.shots, REFINE: self.prompts.refine_shots}
        return WorkedExample(
            problem_id=self.problem.id,
            form=form,
            way=way,
            prompt=prompt,
            shots=shots.get(form, ()),
            completion=completion,
            is_correct=is_correct,
        )


def drawn_examples(
    writer: Callable[[Problem, PromptTexts, random.Random], Writer[AnswerT]],
    problems: Sequence[Problem],
    prompts: PromptTexts,
    mix: Mix,
    *,
    count: int,
    seed: int,
) -> Iterator[WorkedExample]:
    """Yields ``count`` examples on randomly drawn problems; equal arguments yield equal examples."""
    rng = random.Random(seed)
    for _ in range(count):
        yield writer(rng.choice(problems), prompts, rng).example(mix)
