"""Problems in, scored groups out: what the trainer asks for at every step."""

import asyncio
import logging
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from rollout.operators import Operator
from rollout.policy import PolicySettings, derive_seed
from rollout.records import (
    DISTIL,
    DRAFT,
    REFINE,
    Call,
    Grader,
    Group,
    GroupKey,
    Problem,
    Rollout,
    Sample,
    Verdict,
    context_key,
)
from rollout.run import run_operator
from rollout.sampler import RequestRefused

logger = logging.getLogger(__name__)


class Reward(Protocol):
    """A reward and the terms that it is the weighted sum of."""

    @property
    def total(self) -> float: ...
    @property
    def parts(self) -> Mapping[str, float]: ...


RewardGroup = Callable[[Sequence[Call], Sequence[Verdict], Sequence[str]], Sequence[Reward]]
"""Rewards of the calls of one context, from their verdicts and the texts of the drafts behind them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectedBatch:
    """What one step learns from. ``rollouts`` are for reading; the loss sees only ``groups``."""

    groups: tuple[Group, ...]
    rollouts: tuple[Rollout, ...]
    metrics: Mapping[str, float]


def group_rollout(rollout: Rollout, reward: RewardGroup) -> list[Group]:
    """The answers of a rollout as groups, one for each context.

    Only calls with equal ``prompt_ids`` share a group: refinements of different workspaces never
    share a baseline.
    """
    by_context: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for place in rollout.answers:
        by_context[rollout.calls[place].prompt_ids].append(place)
    groups = []
    for prompt_ids, places in by_context.items():
        calls = [rollout.calls[place] for place in places]
        verdicts = [rollout.verdicts[place] for place in places]
        drafts = [rollout.calls[draft].text for draft in _drafts_behind(rollout, calls[0])]
        rewards = reward(calls, verdicts, drafts)
        samples = tuple(
            Sample(
                call=call,
                reward=given.total,
                is_correct=verdict.is_correct,
                status=verdict.status,
                reward_parts=given.parts,
            )
            for call, verdict, given in zip(calls, verdicts, rewards, strict=True)
        )
        key = GroupKey(
            problem_id=rollout.problem.id,
            role=calls[0].role,
            round=calls[0].round,
            context=context_key(prompt_ids),
        )
        groups.append(Group(key=key, prompt_ids=prompt_ids, samples=samples))
    return groups


def _drafts_behind(rollout: Rollout, call: Call) -> list[int]:
    """The attempts that the call's workspace was made from, be it pasted or summarised."""
    drafts = []
    for parent in call.parents:
        role = rollout.calls[parent].role
        if role in (DRAFT, REFINE):
            drafts.append(parent)
        elif role == DISTIL:
            drafts += _drafts_behind(rollout, rollout.calls[parent])
    return drafts


class Collector:
    """Draws problems in a seeded order and runs trace and operator on them, all side by side."""

    def __init__(
        self,
        problems: Sequence[Problem],
        operator: Operator,
        trace: Operator,
        settings: PolicySettings,
        grader: Grader,
        reward: RewardGroup,
        *,
        problems_per_step: int,
        operator_fraction: float,
        num_generations: int,
        seed: int,
    ) -> None:
        self._problems = problems
        self._operator = operator
        self._trace = trace
        self._num_generations = num_generations
        self._settings = settings
        self._grader = grader
        self._reward = reward
        self._problems_per_step = problems_per_step
        self._num_operator = round(operator_fraction * problems_per_step)
        self._seed = seed
        self._position = 0

    def state_dict(self) -> dict[str, Any]:
        """The data position: problems drawn so far."""
        return {"position": self._position}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._position = int(state["position"])

    async def collect(self, step: int) -> CollectedBatch:
        """The groups of one step.

        A problem whose prompt a worker refuses is left out and counted; a worker that does not
        answer ends the run.

        Raises:
            RuntimeError: If no worker answers, or not one problem gave a rollout.
        """
        problems = self._draw()
        operators = [self._operator if i < self._num_operator else self._trace for i in range(len(problems))]
        # A problem may be drawn twice in one step, and is then sampled anew.
        seeds = [derive_seed(self._seed, step, place) for place in range(len(problems))]
        results = await asyncio.gather(
            *(
                run_operator(problem, operator, self._settings, self._grader, seed, self._num_generations)
                for problem, operator, seed in zip(problems, operators, seeds, strict=True)
            ),
            return_exceptions=True,
        )
        rollouts = [result for result in results if isinstance(result, Rollout)]
        failures = [result for result in results if isinstance(result, BaseException)]
        for failure in failures:
            if not isinstance(failure, RequestRefused):
                raise failure
            logger.warning("A problem was left out: %s", failure)
        if not rollouts:
            raise RuntimeError(f"Not one of {len(problems)} problems gave a rollout: {failures[0]}")
        groups = [group for rollout in rollouts for group in group_rollout(rollout, self._reward)]
        return CollectedBatch(
            groups=tuple(groups),
            rollouts=tuple(rollouts),
            metrics={"collect/refused": len(failures), **_metrics(rollouts)},
        )

    def _draw(self) -> list[Problem]:
        """The next problems; every epoch has its own order."""
        drawn = []
        for _ in range(self._problems_per_step):
            epoch, place = divmod(self._position, len(self._problems))
            order = list(range(len(self._problems)))
            random.Random(derive_seed(self._seed, "epoch", epoch)).shuffle(order)
            drawn.append(self._problems[order[place]])
            self._position += 1
        return drawn


def _metrics(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """What the loss does not see: drafts, workspaces, verdicts."""
    counts: Counter[str] = Counter()
    statuses: Counter[str] = Counter()
    drafts: list[bool] = []
    for rollout in rollouts:
        counts.update(rollout.counts)
        statuses.update(verdict.status for verdict in rollout.verdicts.values())
        drafts += [
            verdict.is_correct
            for place, verdict in rollout.verdicts.items()
            if rollout.calls[place].role == DRAFT
        ]
    metrics: dict[str, float] = {f"collect/{name}": count for name, count in counts.items()}
    metrics |= {f"verdict/{status}": count for status, count in statuses.items()}
    calls = [call for rollout in rollouts for call in rollout.calls]
    metrics["collect/tokens"] = sum(len(call.completion_ids) for call in calls)
    if drafts:
        metrics["draft/accuracy"] = sum(drafts) / len(drafts)
    return metrics
