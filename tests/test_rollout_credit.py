"""Which calls of a rollout are trained, and with what reward."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean as mean

import pytest
from fakes import Request, ScriptedPolicy, boxed, operator, roll

from rollout.collection.groups import Credited, contributions, group_rollout
from rollout.groups import Group
from rollout.records import DISTIL, DRAFT, REFINE, Call, Rollout
from rollout.verdicts import Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    total: float
    parts: dict[str, float] = field(default_factory=dict)


def _reward(calls: Sequence[Call], verdicts: Sequence[Verdict], drafts: Sequence[str]) -> list[Given]:
    return [Given(total=1.0 if verdict.is_correct else -1.0) for verdict in verdicts]


def _of(groups: Sequence[Group], role: str) -> list[Group]:
    return [group for group in groups if group.key.role == role]


def _summaries(request: Request, rng: random.Random) -> str:
    """Each summary is another text, so that each has readers of its own."""
    if request.kind == "DISTIL":
        return f"<think>hm</think>summary {rng.randrange(10**6)}"
    return boxed(request, rng)


def _distilled(num_answers: int = 12, num_workspaces: int = 3) -> Rollout:
    pdr = operator((4, 1), "global_summary", num_workspaces=num_workspaces)
    return roll(ScriptedPolicy(script=_summaries), pdr, num_answers=num_answers)


@pytest.mark.parametrize("distiller", ["global_summary", "shared_topk", "per_sample_topk", "random_k"])
@pytest.mark.parametrize(("answers", "workspaces"), [(12, 1), (12, 3), (8, 4)])
def test_answers_share_workspaces_evenly(distiller: str, answers: int, workspaces: int):
    pdr = operator((16, 1), distiller, top_k=8, num_workspaces=workspaces)
    rollout = roll(ScriptedPolicy(script=_summaries), pdr, num_answers=answers)
    groups = group_rollout(rollout, _reward)
    assert [len(group.samples) for group in groups] == [answers // workspaces] * workspaces


def test_the_rounds_before_the_last_share_workspaces_as_in_evaluation():
    pdr = operator((6, 4, 1), "global_summary", num_workspaces=3)
    rollout = roll(ScriptedPolicy(script=_summaries), pdr, num_answers=6)
    distils = [call.round for call in rollout.calls if call.role == DISTIL]
    assert distils == [0, 1, 1, 1]


def test_distil_calls_of_the_same_drafts_are_one_group_and_valued_by_their_readers():
    rollout = _distilled()
    (group,) = _of(group_rollout(rollout, _reward, Credited(distil=True)), DISTIL)
    assert len(group.samples) == 3
    for sample in group.samples:
        place = rollout.calls.index(sample.call)
        readers = [i for i in rollout.answers if place in rollout.calls[i].parents]
        right = [rollout.verdicts[i].is_correct for i in readers]
        assert len(readers) == 4
        assert sample.reward == pytest.approx(2 * mean(right) - 1)
        assert sample.is_correct == (mean(right) > 0.5)


def test_a_summary_without_a_solution_is_valued_by_the_plain_attempts_that_it_led_to():
    def script(request: Request, rng: random.Random) -> str:
        if request.kind == "DISTIL" and rng.random() < 0.5:
            return "<think>never closed"
        return _summaries(request, rng)

    pdr = operator((4, 1), "global_summary", num_workspaces=4)
    rollout = roll(ScriptedPolicy(script=script), pdr, num_answers=8, seed=2)
    labels = {call.label for call in rollout.calls if call.role == DISTIL}
    assert labels == {"ok", "unclosed"}
    (group,) = _of(group_rollout(rollout, _reward, Credited(distil=True)), DISTIL)
    assert len(group.samples) == 4


def test_drafts_are_one_group_with_the_rewards_of_their_own_verdicts():
    rollout = roll(ScriptedPolicy(), operator((6, 1)), num_answers=4)
    (group,) = _of(group_rollout(rollout, _reward, Credited(drafts=True)), DRAFT)
    assert [sample.call for sample in group.samples] == list(rollout.calls[:6])
    assert [sample.reward > 0 for sample in group.samples] == [
        rollout.verdicts[place].is_correct for place in range(6)
    ]


def test_attempts_of_every_round_may_be_credited_and_answers_are_never_credited_twice():
    rollout = roll(ScriptedPolicy(), operator((6, 4, 1)), num_answers=4)
    groups = group_rollout(rollout, _reward, Credited(drafts=True, intermediate=True))
    assert [(g.key.role, g.key.round, len(g.samples)) for g in groups] == [
        (REFINE, 2, 4),
        (DRAFT, 0, 6),
        (REFINE, 1, 4),
    ]
    without = group_rollout(rollout, _reward, Credited(drafts=True))
    assert [(g.key.role, g.key.round) for g in without] == [(REFINE, 2), (DRAFT, 0)]


def test_nothing_but_answers_is_credited_unless_asked_for():
    assert {g.key.role for g in group_rollout(_distilled(), _reward)} == {REFINE}


def _leaning_on(number: int):
    """An answer is right if and only if its workspace holds that draft."""

    def script(request: Request, rng: random.Random) -> str:
        if request.kind == "SOLVE":
            return f"<think>x</think>\\boxed{{{2 * rng.randrange(10**6) + 1}}}"
        return f"<think>x</think>\\boxed{{{2 if f'boxed{{{number}}}' in request.prompt else 3}}}"

    return script


def test_a_contribution_is_what_answers_gain_from_reading_a_draft():
    drafted = roll(ScriptedPolicy(script=_leaning_on(-1)), operator((5, 1), "random_k", top_k=2))
    needed = int(drafted.calls[2].text.rpartition("{")[2].rstrip("}"))
    pdr = operator((5, 1), "random_k", top_k=2, num_workspaces=30)
    rollout = roll(ScriptedPolicy(script=_leaning_on(needed)), pdr, num_answers=60)
    (group,) = _of(group_rollout(rollout, _reward, Credited(drafts=True, contribution=True)), DRAFT)
    rewards = [sample.reward for sample in group.samples]
    assert rewards[2] == 2.0  # always right with it, never without
    assert all(reward < 0.5 for place, reward in enumerate(rewards) if place != 2)


def test_a_draft_that_all_answers_read_has_no_contribution():
    rollout = roll(ScriptedPolicy(), operator((4, 1), "all"), num_answers=6)
    rewards = {place: float(place) for place in rollout.answers}
    assert contributions(rollout, rewards) == {0: 0.0, 1: 0.0, 2: 0.0, 3: 0.0}


@pytest.mark.parametrize(("distiller", "sizes"), [("shared_topk", [4]), ("random_k", [1, 1, 1, 1])])
def test_attempts_of_a_middle_round_share_a_baseline_only_where_they_share_a_workspace(
    distiller: str, sizes: list[int]
):
    assert _middle_groups(distiller, (6, 4, 1)) == sizes


@pytest.mark.parametrize("distiller", ["random_k", "per_sample_topk"])
@pytest.mark.parametrize(
    ("width", "readers", "sizes"),
    [(8, 2, [2, 2, 2, 2]), (8, 3, [4, 4]), (5, 2, [5]), (4, 8, [4]), (6, 1, [1] * 6)],
)
def test_attempts_of_a_middle_round_share_workspaces_evenly_where_they_are_to_be_compared(
    distiller: str, width: int, readers: int, sizes: list[int]
):
    assert _middle_groups(distiller, (16, width, 1), middle_readers=readers) == sizes


def test_the_answers_share_workspaces_as_before_whatever_the_middle_rounds_do():
    pdr = operator((16, 8, 1), "random_k", top_k=6, middle_readers=4, num_workspaces=3)
    rollout = roll(ScriptedPolicy(), pdr, num_answers=6)
    groups = group_rollout(rollout, _reward)
    assert [(g.key.round, len(g.samples)) for g in groups] == [(2, 2)] * 3


def _middle_groups(distiller: str, schedule: tuple[int, int, int], **options: int) -> list[int]:
    """Sizes of the groups of the middle round."""
    pdr = operator(schedule, distiller, top_k=min(6, schedule[0] - 1), **options)
    rollout = roll(ScriptedPolicy(), pdr, num_answers=4, seed=1)
    groups = group_rollout(rollout, _reward, Credited(drafts=True, intermediate=True))
    assert {group.key.round for group in _of(groups, DRAFT)} == {0}
    middle = [group for group in groups if group.key.role == REFINE and group.key.round == 1]
    assert all(len({id(sample.call) for sample in group.samples}) == len(group.samples) for group in middle)
    return sorted(len(group.samples) for group in middle)
