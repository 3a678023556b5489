"""The scorer's interface for rollouts: scores completions of a problem and compares answers for votes."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

from rewards.facts import Draft, Facts
from rewards.scorer import Scorer
from rewards.verdict import Verdict


class _HasAnswer(Protocol):
    @property
    def id(self) -> str: ...
    @property
    def source(self) -> str: ...
    @property
    def question(self) -> str: ...
    @property
    def answer(self) -> str: ...
    @property
    def columns(self) -> str: ...


class _HasStatus(Protocol):
    @property
    def status(self) -> str: ...
    @property
    def answer(self) -> str | None: ...


class _Judged(Protocol):
    @property
    def text(self) -> str: ...
    @property
    def verdict(self) -> _HasStatus: ...


class _Usage(Protocol):
    @property
    def prompt_tokens(self) -> int: ...
    @property
    def completion_tokens(self) -> int: ...


class _Attempt(Protocol):
    @property
    def role(self) -> str: ...
    @property
    def round(self) -> int: ...
    @property
    def finish(self) -> str: ...
    @property
    def usage(self) -> _Usage: ...
    @property
    def workspace(self) -> str | None: ...
    @property
    def drafts(self) -> Sequence[_Judged]: ...


@dataclass(frozen=True, slots=True)
class Grader:
    """Implements ``rollout.grading.Grader``, the verifier interface of the rollout package."""

    scorer: Scorer

    async def score(self, problem: _HasAnswer, completion: str, attempt: _Attempt) -> Verdict:
        """Returns the verdict on a whole completion, thinking included."""
        facts = Facts(
            question=problem.question,
            columns={**read_columns(problem.columns), "id": problem.id, "source": problem.source},
            role=attempt.role,
            round=attempt.round,
            drafts=tuple(
                Draft(text=draft.text, status=draft.verdict.status, answer=draft.verdict.answer)
                for draft in attempt.drafts
            ),
            workspace=attempt.workspace,
            num_tokens=attempt.usage.completion_tokens,
            prompt_tokens=attempt.usage.prompt_tokens,
            finish_reason=attempt.finish,
        )
        return await self.scorer.score(gold=problem.answer, completion=completion, facts=facts)

    def answer(self, completion: str) -> str | None:
        """Returns the answer of a completion, correct or not; None if there is none."""
        return self.scorer.extract_answer(completion)

    async def same(self, first: str, second: str) -> bool:
        """Returns True if two answers are equivalent; False also if the check fails."""
        return (await self.scorer.equivalent(gold=first, answer=second)).is_correct


@lru_cache(maxsize=4096)
def read_columns(text: str) -> Mapping[str, Any]:
    """Returns the columns of a problem from their JSON text; empty text: none."""
    return json.loads(text) if text else {}
