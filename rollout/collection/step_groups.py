"""The groups of one step, selected as its rollouts come in."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from rollout.collection.amortise import Amortiser
from rollout.collection.groups import Credited, DroppedGroup, GroupFilter, RewardGroup, group_rollout
from rollout.collection.teacher import taught
from rollout.grading import Grader
from rollout.groups import Group
from rollout.records import DRAFT, Rollout
from rollout.vote import equivalence_classes


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """What becomes of the rollouts of a step."""

    reward: RewardGroup
    grader: Grader
    credited: Credited = field(default_factory=Credited)
    keep: GroupFilter = field(default_factory=GroupFilter)
    amortise: Amortiser | None = None
    teaches: bool = False
    """Traces get the policy that reads a workspace of their problem as a teacher."""
    majority_wrong_share: float = 0.0
    """Least share of the operator's problems whose drafts' majority is wrong."""


class StepGroups:
    """Rollouts, kept and dropped groups of one step."""

    def __init__(self, selection: Selection, num_operator: int) -> None:
        """``num_operator`` is the number of problems that the operator answers in a step."""
        self.rollouts: list[Rollout] = []
        self.groups: list[Group] = []
        self.dropped: list[DroppedGroup] = []
        self.counts: Counter[str] = Counter()
        self._selection = selection
        self._balances = selection.majority_wrong_share > 0
        self._easy_left = num_operator - math.ceil(selection.majority_wrong_share * num_operator)

    async def add(self, result: Sequence[Rollout], *, has_traces: bool) -> list[bool]:
        """Adds the rollouts of one problem; returns for each whether a group with its answers was kept.

        ``has_traces`` is True if the first rollout holds traces and the last one is the operator's.
        """
        # A rollout's number is its position in the step's ``rollouts``: call ids depend on it.
        first = len(self.rollouts)
        kept = [await self._kept(rollout, number) for number, rollout in enumerate(result, first)]
        if self._selection.teaches and has_traces:
            kept[0] = [self._taught(group, result[-1]) for group in kept[0]]
        self.rollouts += result
        self.groups += [group for of_rollout in kept for group in of_rollout]
        return [_has_answers(*each) for each in zip(result, kept, strict=True)]

    async def _kept(self, rollout: Rollout, number: int) -> list[Group]:
        """Returns the groups of rollout ``number`` that are kept; adds the others to ``dropped``."""
        select, kept = self._selection, []
        groups = group_rollout(rollout, select.reward, select.credited, number=number)
        is_easy = self._balances and await majority_is_right(rollout, select.grader)
        for group in groups:
            reason = select.keep.reason(group, rollout)
            if reason is None and is_easy and self._easy_left <= 0:
                reason = "majority_right"
            if reason is None:
                kept.append(group)
            else:
                self.dropped.append(DroppedGroup(group=group, reason=reason))
        self._easy_left -= is_easy and _has_answers(rollout, kept)
        return kept + self._amortised(rollout, number)

    def _amortised(self, rollout: Rollout, number: int) -> list[Group]:
        """Returns the answers of rollout ``number`` as a group of the plain problem, if there are any."""
        if self._selection.amortise is None:
            return []
        result = self._selection.amortise(rollout, number)
        groups = [] if result.group is None else [result.group]
        self.counts["collect/amortised"] += sum(len(group.samples) for group in groups)
        self.counts["collect/amortise_mentions"] += result.mentions
        return groups

    def _taught(self, traces: Group, operator: Rollout) -> Group:
        """Returns the traces with their teacher's prompts, and counts those that have one."""
        group = taught(traces, operator)
        self.counts["collect/taught"] += sum(bool(sample.teacher_prompt_ids) for sample in group.samples)
        return group


async def majority_is_right(rollout: Rollout, grader: Grader) -> bool:
    """Returns True if the most frequent answer of a rollout's drafts is right; ties go to the first.

    False without drafts that have an answer.
    """
    verdicts = [rollout.verdicts[i] for i, call in enumerate(rollout.calls) if call.role == DRAFT]
    classes = await equivalence_classes([verdict.answer for verdict in verdicts], grader.same)
    return bool(classes) and verdicts[classes[0][0]].is_correct


def _has_answers(rollout: Rollout, kept: Sequence[Group]) -> bool:
    """Returns True if a kept group holds answers of the rollout, and not only drafts or summaries."""
    role = rollout.calls[rollout.answers[0]].role
    return any(group.key.role == role for group in kept)
