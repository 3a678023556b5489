"""The scorer as a reward function of TRL's ``GRPOTrainer`` (and of its other online trainers).

TRL calls ``function(prompts=..., completions=..., completion_ids=..., **columns)`` with one entry per
completion, and expects one number per completion, or None where there is none.
"""

import asyncio
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeAlias

from rewards.facts import Facts
from rewards.scorer import Scorer
from rewards.shaping import outcome
from rewards.verdict import Verdict

Text: TypeAlias = str | Sequence[Mapping[str, Any]]
"""A prompt or completion: plain text, or a list of chat messages."""

_NO_COLUMNS = ("trainer_state", "log_extra", "log_metric", "environments")
"""What TRL passes besides the columns of the data."""


class TrlReward:
    """A synchronous reward function.

    Example:
        scorer = Scorer(forms=())
        GRPOTrainer(..., reward_funcs=TrlReward(scorer, gold_column="answer"))

    A check that failed (``timeout``, ``error``) has the reward None, so that TRL leaves it out.
    """

    def __init__(self, scorer: Scorer, *, gold_column: str = "answer", wrong_reward: float = 0.0) -> None:
        """Args:

        scorer: Judges the completions; the caller closes it.
        gold_column: Column of the data that holds the gold answer.
        wrong_reward: Reward of an answer that is not correct.
        """
        self.__name__ = "verifier"  # TRL logs its mean as rewards/verifier/mean
        self._scorer = scorer
        self._gold_column = gold_column
        self._wrong_reward = wrong_reward

    def __call__(
        self,
        prompts: Sequence[Text],
        completions: Sequence[Text],
        completion_ids: Sequence[Sequence[int]] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        """Returns one reward per completion.

        Raises:
            ValueError: If the data has no gold column.
        """
        # On a thread of its own: in a notebook the caller's thread runs a loop, which would refuse another.
        with ThreadPoolExecutor(1) as thread:
            work = self._rewards(prompts, completions, completion_ids, columns)
            return thread.submit(asyncio.run, work).result()

    async def _rewards(
        self,
        prompts: Sequence[Text],
        completions: Sequence[Text],
        completion_ids: Sequence[Sequence[int]] | None,
        columns: Mapping[str, Any],
    ) -> list[float | None]:
        data = {name: values for name, values in columns.items() if name not in _NO_COLUMNS}
        if self._gold_column not in data:
            raise ValueError(
                f"The data has no column {self._gold_column!r}; it has {', '.join(sorted(data)) or 'none'}. "
                "Set `gold_column`."
            )
        checks = []
        for place, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
            row = {name: values[place] for name, values in data.items()}
            facts = Facts(
                question=last_text(prompt),
                columns={name: value for name, value in row.items() if name != self._gold_column},
                num_tokens=None if completion_ids is None else len(completion_ids[place]),
            )
            gold = str(row[self._gold_column])
            checks.append(self._scorer.score(gold=gold, completion=last_text(completion), facts=facts))
        return [self._reward(verdict) for verdict in await asyncio.gather(*checks)]

    def _reward(self, verdict: Verdict) -> float | None:
        return None if verdict.is_failure else outcome(verdict, wrong_reward=self._wrong_reward)


class AsyncTrlReward(TrlReward):
    """The same as a coroutine function, which TRL runs beside its other asynchronous rewards."""

    async def __call__(  # type: ignore[override]  # TRL tells the two apart by whether this is a coroutine
        self,
        prompts: Sequence[Text],
        completions: Sequence[Text],
        completion_ids: Sequence[Sequence[int]] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        """Same as ``TrlReward.__call__``."""
        return await self._rewards(prompts, completions, completion_ids, columns)


def last_text(content: Text) -> str:
    """Returns a plain text itself, or the text of the last message of a chat; parts of it are joined."""
    if isinstance(content, str):
        return content
    if not content:
        return ""
    text = content[-1].get("content") or ""
    if isinstance(text, str):
        return text
    return "".join(part.get("text") or "" for part in text if part.get("type") == "text")
