"""The filter of a run's groups, from its options: those of papers, and one of the user's own."""

import asyncio
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from fakes import ScriptedPolicy, operator, roll
from test_rollout_collector import _collector

from configs.schema import CollectConfig
from rollout.collection.filters import group_filter
from rollout.groups import Group
from rollout.operators import Operator
from rollout.records import DRAFT, EMPTY, REFINE, TRACE, Answers, Rollout


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A module of a user, in the folder that commands are started in."""
    (tmp_path / "filters_of_a_user.py").write_text(
        "def no_refinements(group, rollout):\n"
        "    return 'refined' if group.key.role == 'refine' else None\n"
        "def only_true(group, rollout):\n"
        "    return True\n"
        "def two_words(group, rollout):\n"
        "    return 'too long'\n"
        "number = 7\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "filters_of_a_user"
    sys.modules.pop("filters_of_a_user", None)


def _collect(name: str):
    keep = group_filter(CollectConfig(filter=name))
    return asyncio.run(_collector(ScriptedPolicy(), keep=keep, max_refill=1).collect(0))


def test_a_filter_of_ones_own_drops_by_its_reason_which_is_counted(module: str):
    batch = _collect(f"{module}:no_refinements")
    assert {group.key.role for group in batch.groups} == {TRACE}
    assert {(each.reason, each.group.key.role) for each in batch.dropped} == {("refined", REFINE)}
    # Two operator problems, tried again on two others.
    assert batch.metrics["collect/dropped_refined"] == 4
    assert batch.metrics["collect/refills"] == 1


@pytest.mark.parametrize("name", ["only_true", "two_words"])
def test_a_filter_that_returns_no_reason_is_refused_with_what_it_must_return(module: str, name: str):
    with pytest.raises(ValueError, match=r"returned (True|'too long')\. It must return None to keep"):
        _collect(f"{module}:{name}")


def test_a_filter_that_is_no_function_or_does_not_import_is_named(module: str):
    with pytest.raises(ValueError, match=r"collect\.filter is .*:number', which is not a function"):
        group_filter(CollectConfig(filter=f"{module}:number"))
    with pytest.raises(ValueError, match=r"collect\.filter is .*does not import.*package\.module:function"):
        group_filter(CollectConfig(filter=f"{module}:nothing"))
    with pytest.raises(ValueError, match=r"collect\.filter is 'pacore'; choose one of .*, or write package"):
        CollectConfig(filter="pacore")


def test_the_other_options_come_first_and_apply_as_well(module: str):
    seen: list[Group] = []

    def remember(group: Group, rollout: Rollout) -> None:
        seen.append(group)

    collect = CollectConfig(drop_equal_rewards=True, max_pass_rate=0.5, draft_accuracy=[0.1, 0.9])
    keep = group_filter(collect)
    assert (keep.drop_equal_rewards, keep.max_pass_rate, keep.draft_accuracy) == (True, 0.5, (0.1, 0.9))
    assert group_filter(CollectConfig(filter="pacore_stage1")).drafts_between == (0.0, 9 / 24)
    assert group_filter(CollectConfig(filter="pacore_stage2")).answers_between == (0.0, 1.0)
    batch = asyncio.run(_collector(ScriptedPolicy(), keep=replace(keep, own=remember)).collect(0))
    assert batch.dropped and [id(group) for group in seen] == [id(group) for group in batch.groups]


class _One(Operator):
    """An operator that selects: it returns one answer, whatever training asks for."""

    async def answer(self, policy, rng, num_answers=1):
        drafts = await policy.solve([EMPTY] * 3, role=DRAFT, round=0)
        return Answers(calls=drafts[:1], waited_for=drafts)


def test_an_operator_that_returns_another_number_of_answers_than_training_compares_is_refused():
    one = _One(operator((3, 1)).options)
    assert len(roll(ScriptedPolicy(), one).answers) == 1
    with pytest.raises(ValueError, match=r"pdr returned 1 answers, .* group of 4 \(algo\.num_generations\)"):
        roll(ScriptedPolicy(), one, num_answers=4)
