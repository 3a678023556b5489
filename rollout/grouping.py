"""From a rollout to groups: samples of one context, with their rewards; and why a group is left out."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from rollout.records import (
    DRAFT,
    Call,
    Group,
    GroupKey,
    Rollout,
    Sample,
    Verdict,
    context_key,
)


class Reward(Protocol):
    """A reward and the terms that it is the weighted sum of."""

    @property
    def total(self) -> float: ...
    @property
    def parts(self) -> Mapping[str, float]: ...


RewardGroup = Callable[[Sequence[Call], Sequence[Verdict], Sequence[str]], Sequence[Reward]]
"""Rewards of the calls of one context, from their verdicts and the texts of the drafts behind them."""


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
        drafts = [rollout.calls[draft].text for draft in rollout.drafts_behind(places[0])]
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


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupFilter:
    """Which groups are not worth a step. The defaults keep all."""

    drop_equal_rewards: bool = False
    max_pass_rate: float | None = None
    """Groups in which at least this share is right are dropped."""
    draft_accuracy: tuple[float, float] = (0.0, 1.0)
    """Bounds on the share of right drafts behind a group; for groups that have drafts."""

    def reason(self, group: Group, rollout: Rollout) -> str | None:
        """Why ``group`` of ``rollout`` is dropped; None if it is kept."""
        right = [sample.is_correct for sample in group.samples]
        if self.max_pass_rate is not None and sum(right) >= self.max_pass_rate * len(right):
            return "pass_rate"
        drafts = [rollout.verdicts[i].is_correct for i, c in enumerate(rollout.calls) if c.role == DRAFT]
        low, high = self.draft_accuracy
        if drafts and not low <= sum(drafts) / len(drafts) <= high:
            return "draft_accuracy"
        if self.drop_equal_rewards and len({sample.reward for sample in group.samples}) == 1:
            return "equal_rewards"
        return None
