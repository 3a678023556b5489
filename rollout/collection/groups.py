"""Turns a rollout into groups: samples of one context with their rewards, filtered by ``GroupFilter``.

Credit is decided in two places. This module decides *which calls* are trained on, and with *which reward*:
an answer has the reward of its own verdict; a summary the mean reward of the answers that read it; a draft
that of its own verdict, or the gain of the answers that read it. ``train.loss.credit`` decides which
*baseline* turns the rewards of a group into advantages, and the weight of each token in the loss.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean as mean
from typing import Protocol

from rollout.grading import JudgedDraft
from rollout.groups import Group, GroupKey, Sample, call_id
from rollout.records import ATTEMPTS, DISTIL, DRAFT, OWN, Call, Rollout, context_key
from rollout.verdicts import Verdict


class Reward(Protocol):
    """A reward, and the terms whose weighted sum it is."""

    @property
    def total(self) -> float: ...
    @property
    def parts(self) -> Mapping[str, float]: ...


RewardGroup = Callable[[Sequence[Call], Sequence[Verdict], Sequence[JudgedDraft]], Sequence[Reward]]
"""``reward(calls, verdicts, drafts)``: rewards of the calls of one context, in order.

``drafts`` are the drafts that the context was made from.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Credited:
    """Calls of a rollout that are trained on in addition to its answers."""

    distil: bool = False
    """The calls that wrote the workspaces of the answers."""
    drafts: bool = False
    """The drafts of the first round."""
    intermediate: bool = False
    """With ``drafts``: also the attempts of every other round before the last."""
    contribution: bool = False
    """Reward a draft by the gain of the answers that read it, and not by its own verdict."""


def group_rollout(
    rollout: Rollout, reward: RewardGroup, credited: Credited | None = None, *, number: int = 0
) -> list[Group]:
    """Returns the groups of a rollout: its answers, one group per context, then the other credited calls.

    Only calls with equal ``prompt_ids`` share a group: refinements of different workspaces never
    share a baseline.

    Args:
        rollout: A scored rollout.
        reward: Returns the rewards of the calls of one context.
        credited: Calls that are trained on in addition to the answers; None for the answers alone.
        number: The rollout's number within its step, for call ids.
    """
    credited = credited or Credited()
    samples = _scored(rollout, rollout.answers, reward, number)
    groups = _by_context(rollout, samples)
    if credited.distil:
        groups += _by_context(rollout, _distillations(rollout, samples, number))
    if credited.drafts:
        drafts = _scored(rollout, _drafts(rollout, intermediate=credited.intermediate), reward, number)
        if credited.contribution:
            # A draft that no answer read has no gain to be credited with.
            gained = contributions(rollout, {place: sample.reward for place, sample in samples.items()})
            drafts = {
                place: replace(draft, reward=gained.get(place, 0.0), reward_parts={})
                for place, draft in drafts.items()
            }
        groups += _by_context(rollout, drafts)
    return groups


def contributions(rollout: Rollout, rewards: Mapping[int, float]) -> dict[int, float]:
    """Returns for each call behind the answers what it contributed to them, by its position.

    c(i) = mean reward of the answers with call i among their ancestors - mean reward of the others,

    an estimate from the rollout's own answers. It differs between drafts only where workspaces hold
    different drafts (``random_k``, or several rankings). It is 0 for a draft that all answers read.

    Args:
        rollout: A rollout with several answers.
        rewards: Rewards of its answers, by position.
    """
    # behind: answer -> the calls that it was built from.
    behind = {answer: ancestors(rollout, answer) for answer in rewards}
    gained: dict[int, float] = {}
    for place in set().union(*behind.values()):
        read = [reward for answer, reward in rewards.items() if place in behind[answer]]
        unread = [reward for answer, reward in rewards.items() if place not in behind[answer]]
        gained[place] = mean(read) - mean(unread) if read and unread else 0.0
    return gained


def ancestors(rollout: Rollout, place: int) -> set[int]:
    """Returns all calls that a call's prompt was built from, directly or through other calls."""
    found: set[int] = set()
    waiting = list(rollout.calls[place].parents)
    while waiting:
        parent = waiting.pop()
        if parent not in found:
            found.add(parent)
            waiting += rollout.calls[parent].parents
    return found


def _scored(rollout: Rollout, places: Iterable[int], reward: RewardGroup, number: int) -> dict[int, Sample]:
    """Returns samples of the attempts at ``places``, rewarded by their own verdicts.

    ``reward`` gets all calls of one context at once, since it may compare them.
    """
    samples: dict[int, Sample] = {}
    for of_context in _contexts(rollout, places):
        calls = [rollout.calls[place] for place in of_context]
        verdicts = [rollout.verdicts[place] for place in of_context]
        drafts = [
            JudgedDraft(text=rollout.calls[draft].text, verdict=rollout.verdicts[draft])
            for draft in rollout.drafts_behind(of_context[0])
        ]
        for place, given in zip(of_context, reward(calls, verdicts, drafts), strict=True):
            samples[place] = Sample(
                call_id=call_id(number, place),
                call=rollout.calls[place],
                reward=given.total,
                is_correct=rollout.verdicts[place].is_correct,
                status=rollout.verdicts[place].status,
                reward_parts=given.parts,
            )
    return samples


def _distillations(rollout: Rollout, answers: Mapping[int, Sample], number: int) -> dict[int, Sample]:
    """Returns the distil calls, each rewarded by the mean of the answers that read it.

    That mean is the call's Monte-Carlo value. It counts as right if more than half of its readers are right.
    """
    readers: dict[int, list[Sample]] = defaultdict(list)
    for place, sample in answers.items():
        for parent in rollout.calls[place].parents:
            if rollout.calls[parent].role == DISTIL:
                readers[parent].append(sample)
    return {
        place: Sample(
            call_id=call_id(number, place),
            call=rollout.calls[place],
            reward=mean(sample.reward for sample in of_place),
            is_correct=mean(sample.is_correct for sample in of_place) > 0.5,
            status=rollout.calls[place].label,
        )
        for place, of_place in readers.items()
    }


def _drafts(rollout: Rollout, *, intermediate: bool) -> list[int]:
    """Returns the positions of the attempts before the answers that were sampled here and not aborted.

    An aborted attempt is left out: it was cut before it could answer.
    """
    last = rollout.calls[rollout.answers[0]].round
    return [
        place
        for place, call in enumerate(rollout.calls)
        if call.role in ATTEMPTS
        and call.round < last
        and (intermediate or call.round == 0)
        and call.finish != "abort"
        and not call.is_given
        and call.policy == OWN
    ]


def _by_context(rollout: Rollout, samples: Mapping[int, Sample]) -> list[Group]:
    """Returns one group per context of ``samples``, which are keyed by position."""
    groups = []
    for places in _contexts(rollout, samples):
        first = rollout.calls[places[0]]
        key = GroupKey(
            problem_id=rollout.problem.id,
            role=first.role,
            round=first.round,
            context=context_key(first.prompt_ids),
        )
        of_context = tuple(samples[place] for place in places)
        groups.append(Group(key=key, prompt_ids=first.prompt_ids, samples=of_context))
    return groups


def _contexts(rollout: Rollout, places: Iterable[int]) -> list[list[int]]:
    """Returns lists of the positions that share a role, a round and a prompt."""
    by_context: dict[tuple[str, int, tuple[int, ...]], list[int]] = defaultdict(list)
    for place in places:
        call = rollout.calls[place]
        by_context[call.role, call.round, call.prompt_ids].append(place)
    return list(by_context.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class DroppedGroup:
    """A group that is not trained on; ``reason`` is that of ``GroupFilter.reason``, or ``stale``."""

    group: Group
    reason: str


OwnFilter = Callable[[Group, Rollout], str | None]
"""``reason(group, rollout)``: the reason to drop ``group`` of ``rollout``; None if it is kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupFilter:
    """Drops groups that are not worth training on. The defaults keep all."""

    drop_equal_rewards: bool = False
    """Drop groups whose rewards are all equal: a group baseline makes their advantages zero."""
    max_pass_rate: float | None = None
    """Drop groups in which at least this share of the samples is right."""
    draft_accuracy: tuple[float, float] = (0.0, 1.0)
    """Bounds on the share of right drafts in the group's rollout, if it has drafts."""
    drafts_between: tuple[float, float] | None = None
    """The same, but the share must lie strictly between these."""
    answers_between: tuple[float, float] | None = None
    """The share of right samples must lie strictly between these, if the group's rollout has drafts."""
    own: OwnFilter | None = None
    """A filter of the user's."""

    def reason(self, group: Group, rollout: Rollout) -> str | None:
        """Returns the reason to drop ``group`` of ``rollout``; None if it is kept."""
        right = [sample.is_correct for sample in group.samples]
        if self.max_pass_rate is not None and sum(right) >= self.max_pass_rate * len(right):
            return "pass_rate"
        drafts = [rollout.verdicts[i].is_correct for i, c in enumerate(rollout.calls) if c.role == DRAFT]
        low, high = self.draft_accuracy
        if drafts:
            accuracy = sum(drafts) / len(drafts)
            if not (low <= accuracy <= high and _between(accuracy, self.drafts_between)):
                return "draft_accuracy"
            if not _between(sum(right) / len(right), self.answers_between):
                return "answer_accuracy"
        if self.drop_equal_rewards and len({sample.reward for sample in group.samples}) == 1:
            return "equal_rewards"
        return self.own(group, rollout) if self.own is not None else None


def _between(value: float, bounds: tuple[float, float] | None) -> bool:
    return bounds is None or bounds[0] < value < bounds[1]
