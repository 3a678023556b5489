"""Worked solutions for the cold start: several ways of answering a prompt, of different quality.

For the sums of reasoning-gym (``4 + 3 - 8 =``); ``worked_lists`` has those for several sums at once.
Reinforcement learning can only reinforce what the policy already does occasionally, so each form of prompt is
answered in more than one way::

    solve    glance     no work; an answer that is at best close to the right one
             careful    running totals, term by term
    refine   copy       the first answer of the workspace, unchecked
             again      worked out as without a workspace
             check      the answer that most drafts share; computed again if there is none
    distil   summarise  which answer is agreed, which contradict it, what to do next
    verify   recompute  computed again, then compared

All functions are pure in their arguments and a seeded ``random.Random``.
"""

import random
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cached_property

from rollout.prompts import PromptTexts, join_drafts
from rollout.records import Problem
from train.coldstart.writer import (
    AGAIN,
    CAREFUL,
    COPY,
    REFINE,
    SOLVE,
    Mix,
    WorkedExample,
    Writer,
    drawn_examples,
)

MAX_DRAFTS = 4
"""Maximum number of drafts in an example; most examples show this many, as PDR [4, 1] does."""

GLANCE_ERROR = 8.0
"""Standard deviation of a guess, which is then right about once in twenty times."""

_CHAIN = re.compile(r"(?:^|: |Calculate )(-?\d+(?: [+-] -?\d+)*)(?: =|\.)\s*$")


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
    """Yields ``count`` examples on randomly drawn sums; equal arguments yield equal examples.

    Raises:
        ValueError: If a question is not a chain of additions and subtractions.
    """
    return drawn_examples(_SumWriter, problems, prompts, mix, count=count, seed=seed)


class _SumWriter(Writer[int]):
    """Writes examples on one sum."""

    @cached_property
    def gold(self) -> int:
        return sum(terms(self.problem.question))

    def drafts(self) -> list[int]:
        return draft_answers(self.gold, self.rng)

    def steps(self) -> str:
        return careful_steps(terms(self.problem.question))

    def shown(self, answer: int) -> str:
        return str(answer)

    def remark(self, drafts: Sequence[int]) -> str:
        return f"Drafts say {', '.join(map(str, drafts))}."

    def summary(self, drafts: Sequence[int]) -> str:
        return summary_text(drafts)

    def solve(self, way: str) -> WorkedExample:
        prompt = self.prompts.solve_text(self.problem.question)
        if way == CAREFUL:
            return self.made(SOLVE, way, prompt, self.steps(), self.gold)
        guess = self.gold + round(self.rng.gauss(0, GLANCE_ERROR))
        return self.made(SOLVE, way, prompt, "At a glance.", guess)

    def refine(self, way: str, drafts: Sequence[int], *, from_summary: bool) -> WorkedExample:
        agreed = majority(drafts)
        if from_summary:
            workspace = self.summary(drafts)
            seen = "The summary."
            first = drafts[0] if agreed is None else agreed
        else:
            workspace = join_drafts(self.prompts.draft_texts(self.solutions(drafts)))
            seen = self.remark(drafts)
            first = drafts[0]
        prompt = self.prompts.refine_text(self.problem.question, workspace)
        if way == COPY:
            return self.made(REFINE, way, prompt, "Take the first.", first)
        if way == AGAIN:
            return self.made(REFINE, way, prompt, self.steps(), self.gold)
        if agreed is None:
            return self.made(REFINE, way, prompt, f"{seen}\nNo majority.\n{self.steps()}", self.gold)
        return self.made(REFINE, way, prompt, f"{seen}\nMost say {agreed}.", agreed)
