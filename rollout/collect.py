"""Problems in, scored groups out: what the trainer asks for at every step."""

import asyncio
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rollout.draw import ProblemStream
from rollout.grouping import GroupFilter, RewardGroup, group_rollout
from rollout.operators import Operator
from rollout.policy import PolicySettings, derive_seed
from rollout.records import DRAFT, Grader, Group, Rollout
from rollout.run import run_operator
from rollout.sampler import RequestRefused

logger = logging.getLogger(__name__)

MAX_STEPS_WITHOUT_GROUPS = 10
"""So many steps in a row that keep no group end the run: nothing is being learned."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectedBatch:
    """What one step learns from. ``rollouts`` are for reading; the loss sees only ``groups``."""

    groups: tuple[Group, ...]
    rollouts: tuple[Rollout, ...]
    metrics: Mapping[str, float]


class Collector:
    """Runs trace and operator on the next problems, side by side; keeps the groups worth learning from."""

    def __init__(
        self,
        problems: ProblemStream,
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
        keep: GroupFilter | None = None,
        max_refill: int = 0,
    ) -> None:
        self._problems = problems
        self._settings = settings
        self._grader = grader
        self._reward = reward
        num_operator = round(operator_fraction * problems_per_step)
        self._wanted = [(operator, num_operator), (trace, problems_per_step - num_operator)]
        self._num_generations = num_generations
        self._seed = seed
        self._keep = keep or GroupFilter()
        self._max_refill = max_refill
        self._steps_without_groups = 0

    def state_dict(self) -> dict[str, Any]:
        """Where it stands in the data, and what it knows of each problem."""
        return self._problems.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._problems.load_state_dict(state)

    async def collect(self, step: int) -> CollectedBatch:
        """The groups of one step.

        A problem whose prompt a worker refuses is left out and counted; a worker that does not
        answer ends the run.

        Raises:
            RuntimeError: If no worker answers, not one problem gave a rollout, or
                ``MAX_STEPS_WITHOUT_GROUPS`` steps in a row kept no group.
        """
        missing = [operator for operator, num in self._wanted for _ in range(num)]
        rollouts: list[Rollout] = []
        groups: list[Group] = []
        refused: list[RequestRefused] = []
        dropped: Counter[str] = Counter()
        refills = -1
        while missing and refills < self._max_refill:
            refills += 1
            unfilled = []
            for operator, result in zip(missing, await self._run(step, refills, missing), strict=True):
                if isinstance(result, RequestRefused):
                    refused.append(result)
                    kept = []
                else:
                    rollouts.append(result)
                    kept = self._kept(result, dropped)
                groups += kept
                if not kept:
                    unfilled.append(operator)
            missing = unfilled
        if not rollouts:
            raise RuntimeError(f"Not one of {len(refused)} problems gave a rollout: {refused[0]}")
        self._problems.remember(rollouts)
        self._guard(groups, dropped)
        metrics: dict[str, float] = {"collect/refused": len(refused), "collect/refills": refills}
        metrics |= {f"collect/dropped_{reason}": count for reason, count in dropped.items()}
        return CollectedBatch(
            groups=tuple(groups), rollouts=tuple(rollouts), metrics=metrics | _metrics(rollouts)
        )

    async def _run(
        self, step: int, refill: int, operators: Sequence[Operator]
    ) -> list[Rollout | RequestRefused]:
        """Each operator on a problem of its own."""
        problems = self._problems.draw(len(operators))
        # A problem may be drawn twice in one step, and is then sampled anew.
        results = await asyncio.gather(
            *(
                run_operator(
                    problem,
                    operator,
                    self._settings,
                    self._grader,
                    derive_seed(self._seed, step, refill, place),
                    self._num_generations,
                )
                for place, (problem, operator) in enumerate(zip(problems, operators, strict=True))
            ),
            return_exceptions=True,
        )
        for result in results:
            if isinstance(result, RequestRefused):
                logger.warning("A problem was left out: %s", result)
            elif isinstance(result, BaseException):
                raise result
        return [result for result in results if isinstance(result, Rollout | RequestRefused)]

    def _kept(self, rollout: Rollout, dropped: Counter[str]) -> list[Group]:
        kept = []
        for group in group_rollout(rollout, self._reward):
            reason = self._keep.reason(group, rollout)
            if reason is None:
                kept.append(group)
            else:
                dropped[reason] += 1
        return kept

    def _guard(self, groups: Sequence[Group], dropped: Counter[str]) -> None:
        """Raises RuntimeError if no step learned anything for a while."""
        self._steps_without_groups = 0 if groups else self._steps_without_groups + 1
        if self._steps_without_groups >= MAX_STEPS_WITHOUT_GROUPS:
            raise RuntimeError(
                f"{self._steps_without_groups} steps in a row kept no group (the last dropped "
                f"{dict(dropped)}): nothing can be learned from them. Check the difficulty of the problems "
                "and the verdicts in metrics.jsonl; raise collect.max_refill, or widen what collect keeps."
            )


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
