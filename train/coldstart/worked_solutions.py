"""Worked solutions for the cold start: several ways of answering a prompt, of different quality.

For the sums of reasoning-gym (``4 + 3 - 8 =``); ``worked_lists`` has those for several sums at once.
Reinforcement learning can only reinforce what the policy already does occasionally, so each form of prompt is
answered in more than one way::

    solve    glance     no work; an answer that is at best close to the right one
             careful    running totals, term by term
    refine   copy       the first answer of the workspace, unchecked
             check      the answer that most drafts share; computed again if there is none
    distil   summarise  which answer is agreed, which contradict it, what to do next
    verify   recompute  computed again, then compared

All functions are pure in their arguments and a seeded ``random.Random``.
"""

import random
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rollout.prompts import PromptTexts, join_drafts
from rollout.records import Problem

SOLVE = "solve"
REFINE = "refine"
DISTIL = "distil"
VERIFY = "verify"

GLANCE = "glance"
CAREFUL = "careful"
COPY = "copy"
CHECK = "check"
SUMMARISE = "summarise"
RECOMPUTE = "recompute"

MAX_DRAFTS = 4
"""Maximum number of drafts in an example; most examples show this many, as PDR [4, 1] does."""

GLANCE_ERROR = 8.0
"""Standard deviation of a guess, which is then right about once in twenty times."""

KAPPA = 256
_CHAIN = re.compile(r"(?:^|: |Calculate )(-?\d+(?: [+-] -?\d+)*)(?: =|\.)\s*$")


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
    """Share of the refine examples; the others check."""
    summary: float
    """Share of the refine examples whose workspace holds a summary instead of drafts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkedExample:
    """One user message with one completion (thinking and solution, without the end token)."""

    problem_id: str
    form: str
    way: str
    prompt: str
    completion: str
    is_correct: bool
    """True if the box holds the gold answer or the right yes/no; always True for a summary."""


def terms(question: str) -> tuple[int, ...]:
    """Returns the signed terms of a sum: ``(42, -25)`` for ``"... 42 - 25 ="`` or ``"Calculate 42 - 25."``.

    These are the questions of reasoning-gym's ``chain_sum``, and of its ``basic_arithmetic`` with the
    operators + and - and without parentheses.

    Raises:
        ValueError: If the question does not end in a chain of additions and subtractions.
    """
    found = _CHAIN.search(question)
    if found is None:
        raise ValueError(
            f"The question {question!r} does not end in a chain such as '42 - 25 ='. The cold start writes "
            "worked solutions for reasoning-gym's chain_sum, and for plain sums of its basic_arithmetic; "
            "set data.task=chain_sum."
        )
    first, *rest = found.group(1).split(" ")
    signs = [1 if sign == "+" else -1 for sign in rest[::2]]
    return (int(first), *(sign * int(term) for sign, term in zip(signs, rest[1::2], strict=True)))


def careful_steps(values: Sequence[int]) -> str:
    """Returns the running totals, one line per term; correct by construction.

    Example: ``(4, 3, -8)`` yields the lines ``4``, ``+ 3 = 7``, ``- 8 = -1``.
    """
    total = values[0]
    lines = [str(total)]
    for value in values[1:]:
        total += value
        lines.append(f"{'-' if value < 0 else '+'} {abs(value)} = {total}")
    return "\n".join(lines)


def solution_text(answer: int | str) -> str:
    """Returns the text after the thinking, which is also a draft's text in a workspace."""
    return f"The answer is \\boxed{{{answer}}}."


def completion_text(thinking: str, solution: str) -> str:
    """Returns thinking and solution in the format that the policy learns."""
    return f"<think>\n{thinking}\n</think>\n\n{solution}"


def majority(answers: Sequence[int]) -> int | None:
    """Returns the most frequent answer, or None if it is tied or only one draft has it."""
    ranked = Counter(answers).most_common(2)
    if ranked[0][1] < 2 or (len(ranked) == 2 and ranked[1][1] == ranked[0][1]):
        return None
    return ranked[0][0]


def summary_text(answers: Sequence[int]) -> str:
    """Returns a distiller's summary: agreement, contradictions and the next step."""
    agreed = majority(answers)
    others = ", ".join(str(answer) for answer in dict.fromkeys(answers) if answer != agreed)
    if agreed is None:
        return f"Nothing agreed; proposed: {others}. Next: work it out anew."
    if not others:
        return f"Agreed: {agreed}. No contradiction. Next: answer."
    return f"Agreed: {agreed}. Contradicted by: {others}. Next: answer."


def plausible_error(gold: int, rng: random.Random) -> int:
    """Draws an answer with an error typical of this policy: a small slip, a lost sign, or a bad guess."""
    kind = rng.random()
    if kind < 0.5:
        return gold + rng.choice((-10, -3, -2, -2, -1, -1, 1, 1, 2, 2, 3, 10))
    if kind < 0.6 and gold != 0:
        return -gold
    return gold + rng.choice((-1, 1)) * rng.randint(1, 20)


def draft_count(rng: random.Random) -> int:
    """Draws a number of drafts: mostly four, as in PDR [4, 1]; a quarter one, as in Sequential Refinement."""
    return rng.choices((1, 2, 3, MAX_DRAFTS), weights=(25, 5, 5, 65))[0]


def draft_answers(gold: int, rng: random.Random) -> list[int]:
    """Draws the answers of a set of drafts, each right with a probability drawn for the set."""
    count = draft_count(rng)
    right = rng.uniform(0.05, 0.95)
    return [gold if rng.random() < right else plausible_error(gold, rng) for _ in range(count)]


def worked_examples(
    problems: Sequence[Problem], prompts: PromptTexts, mix: Mix, *, count: int, seed: int
) -> Iterator[WorkedExample]:
    """Yields ``count`` examples on randomly drawn problems; equal arguments yield equal examples.

    Raises:
        ValueError: If a question is not a chain of additions and subtractions.
    """
    rng = random.Random(seed)
    for _ in range(count):
        yield _Writer(problem=rng.choice(problems), prompts=prompts, rng=rng).example(mix)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Writer:
    """Writes examples on one problem."""

    problem: Problem
    prompts: PromptTexts
    rng: random.Random

    def example(self, mix: Mix) -> WorkedExample:
        form = self.rng.random()
        if form < mix.solve:
            return self.solve(GLANCE if self.rng.random() < mix.glance else CAREFUL)
        answers = draft_answers(self.gold, self.rng)
        if form < mix.solve + mix.refine:
            way = COPY if self.rng.random() < mix.copy else CHECK
            return self.refine(way, answers, from_summary=self.rng.random() < mix.summary)
        return self.distil(answers) if self.rng.random() < 0.5 else self.verify(answers[0])

    @property
    def gold(self) -> int:
        return sum(terms(self.problem.question))

    def solve(self, way: str) -> WorkedExample:
        prompt = self.prompts.solve_text(self.problem.question)
        if way == CAREFUL:
            return self._made(SOLVE, way, prompt, self._steps(), self.gold)
        guess = self.gold + round(self.rng.gauss(0, GLANCE_ERROR))
        return self._made(SOLVE, way, prompt, "At a glance.", guess)

    def refine(self, way: str, answers: Sequence[int], *, from_summary: bool) -> WorkedExample:
        agreed = majority(answers)
        if from_summary:
            workspace = summary_text(answers)
            shown = "The summary."
            first = answers[0] if agreed is None else agreed
        else:
            drafts = self.prompts.draft_texts([solution_text(answer) for answer in answers])
            workspace = join_drafts(drafts)
            shown = f"Drafts say {', '.join(map(str, answers))}."
            first = answers[0]
        prompt = self.prompts.refine_text(self.problem.question, workspace)
        if way == COPY:
            return self._made(REFINE, way, prompt, "Take the first.", first)
        if agreed is None:
            return self._made(REFINE, way, prompt, f"{shown}\nNo majority.\n{self._steps()}", self.gold)
        return self._made(REFINE, way, prompt, f"{shown}\nMost say {agreed}.", agreed)

    def distil(self, answers: Sequence[int]) -> WorkedExample:
        solutions = [solution_text(answer) for answer in answers]
        prompt = self.prompts.distil_text(self.problem.question, solutions, KAPPA)
        thinking = f"Drafts say {', '.join(map(str, answers))}."
        return self._written(
            DISTIL, SUMMARISE, prompt, completion_text(thinking, summary_text(answers)), is_correct=True
        )

    def verify(self, answer: int) -> WorkedExample:
        prompt = self.prompts.verify_text(self.problem.question, solution_text(answer))
        verdict = "yes" if answer == self.gold else "no"
        completion = completion_text(self._steps(), solution_text(verdict))
        return self._written(VERIFY, RECOMPUTE, prompt, completion, is_correct=True)

    def _steps(self) -> str:
        return careful_steps(terms(self.problem.question))

    def _made(self, form: str, way: str, prompt: str, thinking: str, answer: int) -> WorkedExample:
        completion = completion_text(thinking, solution_text(answer))
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
