"""The scorer's interface for rollouts: scores completions of a problem and compares answers for votes."""

from dataclasses import dataclass
from typing import Protocol

from rewards.scorer import Scorer
from rewards.verdict import Verdict


class _HasAnswer(Protocol):
    @property
    def answer(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Grader:
    """Implements ``rollout.records.Grader``, the verifier interface of the rollout package."""

    scorer: Scorer

    async def score(self, problem: _HasAnswer, completion: str) -> Verdict:
        """Returns the verdict on a whole completion, thinking included."""
        return await self.scorer.score(gold=problem.answer, completion=completion)

    def answer(self, completion: str) -> str | None:
        """Returns the answer of a completion, correct or not; None if there is none."""
        return self.scorer.extract_answer(completion)

    async def same(self, first: str, second: str) -> bool:
        """Returns True if two answers are equivalent; False also if the check fails."""
        return (await self.scorer.equivalent(gold=first, answer=second)).is_correct
