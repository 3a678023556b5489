"""A scorer as rollouts call it: with the problem itself, and for votes among answers."""

from dataclasses import dataclass
from typing import Protocol

from rewards.scorer import Scorer
from rewards.verdict import Verdict


class _HasAnswer(Protocol):
    @property
    def answer(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Grader:
    """What the rollout side needs of a verifier (``rollout.records.Grader``)."""

    scorer: Scorer

    async def score(self, problem: _HasAnswer, completion: str) -> Verdict:
        """The verdict on a whole completion, thinking included."""
        return await self.scorer.score(gold=problem.answer, completion=completion)

    def answer(self, completion: str) -> str | None:
        """The answer that a completion gives, whether right or wrong; None if it gives none."""
        return self.scorer.extract_answer(completion)

    async def same(self, first: str, second: str) -> bool:
        """Whether two answers are equivalent; false if the check fails."""
        return (await self.scorer.equivalent(gold=first, answer=second)).is_correct
