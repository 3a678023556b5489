"""Problems in, scored groups out."""

import asyncio
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from fakes import EvenIsCorrect, Request, ScriptedPolicy, boxed, operator, problem, roll, settings

from configs.schema import FILTERS
from rollout.collection.collector import (
    FEWEST_REFUSED,
    MAX_STEPS_WITHOUT_GROUPS,
    BatchCollector,
    CollectedBatch,
    CollectOptions,
)
from rollout.collection.groups import GroupFilter, group_rollout
from rollout.collection.problem_stream import ProblemStream
from rollout.collection.step_groups import majority_is_right
from rollout.grading import JudgedDraft
from rollout.operators import Operator
from rollout.records import REFINE, TRACE, Call
from rollout.sampler import RequestRefused, Sampler
from rollout.verdicts import Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    total: float
    parts: dict[str, float] = field(default_factory=dict)


def _reward(calls: Sequence[Call], verdicts: Sequence[Verdict], drafts: Sequence[str]) -> list[Given]:
    totals = [1.0 if verdict.is_correct else -1.0 for verdict in verdicts]
    return [Given(total=total, parts={"outcome": total}) for total in totals]


def _collector(
    sampler: Sampler, *, problems: int = 10, pdr: Operator | None = None, **changes
) -> BatchCollector:
    options: dict[str, Any] = {
        "problems_per_step": 4,
        "operator_fraction": 0.5,
        "num_generations": 3,
        "seed": 0,
    }
    outside = {
        name: changes.pop(name) for name in ("keep", "cache", "amortise", "teacher") if name in changes
    }
    return BatchCollector(
        ProblemStream([problem(f"p{i}") for i in range(problems)], seed=changes.get("seed", 0)),
        pdr or operator((4, 1)),
        operator((1,), name="trace"),
        settings(sampler),
        EvenIsCorrect(),
        _reward,
        CollectOptions(**(options | changes)),
        **outside,
    )


def _names(batch: CollectedBatch) -> list[str]:
    return [rollout.problem.id for rollout in batch.rollouts]


@pytest.mark.parametrize("distiller", ["per_sample_topk", "random_k", "shared_topk"])
def test_a_group_holds_one_context_and_every_answer_is_in_one_group(distiller: str):
    rollout = roll(ScriptedPolicy(), operator((6, 1), distiller, top_k=2), num_answers=9)
    groups = group_rollout(rollout, _reward)
    for group in groups:
        assert {sample.call.prompt_ids for sample in group.samples} == {group.prompt_ids}
        assert (group.key.problem_id, group.key.role, group.key.round) == ("p", REFINE, 1)
    grouped = [sample.call for group in groups for sample in group.samples]
    assert Counter(map(id, grouped)) == Counter(id(rollout.calls[i]) for i in rollout.answers)


def test_groups_of_one_rollout_may_differ_in_size():
    rollout = roll(ScriptedPolicy(), operator((3, 1), "random_k", top_k=1), num_answers=7)
    sizes = [len(group.samples) for group in group_rollout(rollout, _reward)]
    assert sum(sizes) == 7
    assert len(set(sizes)) > 1


def test_a_sample_carries_the_verdict_and_reward_of_its_own_call():
    rollout = roll(ScriptedPolicy(), operator((4, 1)), num_answers=8)
    (group,) = group_rollout(rollout, _reward)
    for sample in group.samples:
        even = int(sample.call.text.rpartition("{")[2].rstrip("}")) % 2 == 0
        assert sample.is_correct == even
        assert sample.reward == sample.reward_parts["outcome"] == (1.0 if even else -1.0)
        assert sample.status == ("correct" if even else "wrong")
    assert {sample.is_correct for sample in group.samples} == {True, False}


@pytest.mark.parametrize("distiller", ["global_summary", "shared_topk", "per_sample_topk", "random_k"])
def test_a_reward_sees_the_drafts_behind_a_workspace_and_neither_verify_calls_nor_summaries(distiller: str):
    rollout = roll(ScriptedPolicy(), operator((5, 1), distiller, top_k=2), num_answers=4)
    seen: list[list[str]] = []

    def reward(
        calls: Sequence[Call], verdicts: Sequence[Verdict], drafts: Sequence[JudgedDraft]
    ) -> list[Given]:
        seen.append([draft.text for draft in drafts])
        return _reward(calls, verdicts, drafts)

    group_rollout(rollout, reward)
    texts = {rollout.calls[i].text for i in range(5)}
    assert seen
    for drafts in seen:
        assert set(drafts) <= texts
        assert len(set(drafts)) == len(drafts) == (5 if distiller == "global_summary" else 2)


@pytest.mark.parametrize(("fraction", "through_operator"), [(0.0, 0), (0.5, 2), (1.0, 4)])
def test_the_operator_gets_its_share_of_problems(fraction: float, through_operator: int):
    collector = _collector(ScriptedPolicy(), operator_fraction=fraction)
    batch = asyncio.run(collector.collect(0))
    names = Counter(rollout.operator for rollout in batch.rollouts)
    assert (names["pdr"], names["trace"]) == (through_operator, 4 - through_operator)
    roles = Counter(group.key.role for group in batch.groups)
    assert (roles[REFINE], roles[TRACE]) == (through_operator, 4 - through_operator)
    assert all(len(group.samples) == 3 for group in batch.groups)


def test_every_problem_comes_once_an_epoch_in_another_order_each_time():
    collector = _collector(ScriptedPolicy(), problems=12)
    epochs = [[n for s in range(3) for n in _names(asyncio.run(collector.collect(s)))] for _ in range(3)]
    assert all(len(set(epoch)) == 12 for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_a_resumed_collector_goes_on_where_the_first_stopped():
    def fingerprint(batch: CollectedBatch) -> list[tuple[str, tuple[int, ...]]]:
        return [(g.key.problem_id, s.call.completion_ids) for g in batch.groups for s in g.samples]

    straight = _collector(ScriptedPolicy(), problems=7)
    expected = [fingerprint(asyncio.run(straight.collect(step))) for step in range(6)]
    first = _collector(ScriptedPolicy(), problems=7)
    for step in range(3):
        asyncio.run(first.collect(step))
    second = _collector(ScriptedPolicy(), problems=7)
    second.stream.load_state_dict(first.stream.state_dict())
    assert [fingerprint(asyncio.run(second.collect(step))) for step in range(3, 6)] == expected[3:]


def test_a_problem_drawn_twice_in_one_step_is_sampled_anew():
    collector = _collector(ScriptedPolicy(), problems=1, operator_fraction=0.0)
    batch = asyncio.run(collector.collect(0))
    samples = [s.call.completion_ids for g in batch.groups for s in g.samples]
    assert len(samples) == len(set(samples)) == 4 * 3


def test_steps_and_seeds_sample_differently():
    def completions(seed: int, step: int) -> list[tuple[int, ...]]:
        batch = asyncio.run(_collector(ScriptedPolicy(), seed=seed).collect(step))
        return sorted(s.call.completion_ids for g in batch.groups for s in g.samples)

    assert completions(0, 0) == completions(0, 0)
    assert not set(completions(0, 0)) & set(completions(0, 1))
    assert not set(completions(0, 0)) & set(completions(1, 0))


def _failing(error: Exception, names: set[str]) -> ScriptedPolicy:
    def script(request: Request, rng: random.Random) -> str:
        if any(request.prompt.startswith(f"SOLVE question {name}") for name in names):
            raise error
        return boxed(request, rng)

    return ScriptedPolicy(script=script)


def test_a_refused_problem_is_left_out_and_counted():
    collector = _collector(_failing(RequestRefused("too long"), {"p1"}), problems=4)
    batch = asyncio.run(collector.collect(0))
    assert sorted(_names(batch)) == ["p0", "p2", "p3"]
    assert batch.metrics["collect/refused"] == 1
    assert {group.key.problem_id for group in batch.groups} == {"p0", "p2", "p3"}


def test_a_step_in_which_every_problem_is_refused_ends_the_run():
    collector = _collector(_failing(RequestRefused("too long"), {"p"}), problems=4)
    with pytest.raises(RuntimeError, match="None of 4 problems has a rollout: too long"):
        asyncio.run(collector.collect(0))


def test_a_run_that_loses_too_many_problems_to_refusals_ends():
    policy = _failing(RequestRefused("too long"), {"p1"})
    for share, ends in ((0.3, False), (0.2, True)):
        collector = _collector(policy, problems=4, max_refused_share=share)  # a quarter is refused
        for step in range(FEWEST_REFUSED - 1):
            asyncio.run(collector.collect(step))
        if not ends:
            asyncio.run(collector.collect(FEWEST_REFUSED))
            continue
        with pytest.raises(
            RuntimeError, match=r"refused 20 of 80 problems.*max_refused_share = 0\.2.*too long"
        ):
            asyncio.run(collector.collect(FEWEST_REFUSED))


def test_a_worker_that_does_not_answer_ends_the_run():
    collector = _collector(_failing(RuntimeError("no worker answered"), {"p1"}), problems=4)
    with pytest.raises(RuntimeError, match="no worker answered"):
        asyncio.run(collector.collect(0))


def test_the_first_failure_ends_the_step_without_waiting_for_the_slowest_rollout():
    policy = _failing(RuntimeError("no worker answered"), {"p1"})
    policy.delay = lambda request: 0.0 if "question p1" in request.prompt else 60.0

    async def test() -> None:
        before = asyncio.all_tasks()
        with pytest.raises(RuntimeError, match="no worker answered"):
            await asyncio.wait_for(_collector(policy, problems=4).collect(0), timeout=5)
        await asyncio.sleep(0.01)
        assert asyncio.all_tasks() == before

    asyncio.run(test())


def test_metrics_count_what_the_loss_does_not_see():
    collector = _collector(ScriptedPolicy(), problems=8)
    batch = asyncio.run(collector.collect(0))
    calls = [call for rollout in batch.rollouts for call in rollout.calls]
    assert batch.metrics["collect/refused"] == 0
    assert batch.metrics["collect/tokens"] == sum(len(call.completion_ids) for call in calls)
    assert batch.metrics["collect/label/ok"] == 2 * 4
    verdicts = [v for rollout in batch.rollouts for v in rollout.verdicts.values()]
    assert batch.metrics["verdict/correct"] == sum(v.is_correct for v in verdicts)
    assert batch.metrics["verdict/correct"] + batch.metrics["verdict/wrong"] == 2 * 7 + 2 * 3
    drafts = [r.verdicts[i].is_correct for r in batch.rollouts if r.operator == "pdr" for i in range(4)]
    assert batch.metrics["draft/accuracy"] == sum(drafts) / 8


def _right_for(*names: str):
    """A script that is always right for these problems, and right half the time for all others."""

    def script(request: Request, rng: random.Random) -> str:
        right = request.prompt.split()[2] in names or rng.random() < 0.5
        return f"<think>x</think>\\boxed{{{2 if right else 3}}}"

    return script


def test_groups_of_equal_rewards_are_dropped_counted_and_replaced():
    easy = [f"p{i}" for i in range(5)]
    keep = GroupFilter(drop_equal_rewards=True)
    options = {"operator_fraction": 0.0, "num_generations": 16, "problems": 30}
    batch = asyncio.run(
        _collector(ScriptedPolicy(script=_right_for(*easy)), keep=keep, max_refill=9, **options).collect(0)
    )
    assert len(batch.groups) == 4
    assert all(len({sample.reward for sample in group.samples}) == 2 for group in batch.groups)
    num_easy = sum(rollout.problem.id in easy for rollout in batch.rollouts)
    assert batch.metrics.get("collect/dropped_equal_rewards", 0) == num_easy
    assert len(batch.rollouts) == 4 + num_easy


def test_a_refill_is_bounded_and_draws_only_what_is_missing():
    keep = GroupFilter(drop_equal_rewards=True)
    policy = ScriptedPolicy(script=lambda request, rng: "<think>x</think>\\boxed{2}")
    collector = _collector(policy, keep=keep, max_refill=2, operator_fraction=0.0)
    batch = asyncio.run(collector.collect(0))
    assert batch.groups == ()
    assert len(batch.rollouts) == 3 * 4
    assert (batch.metrics["collect/refills"], batch.metrics["collect/dropped_equal_rewards"]) == (2, 12)


def test_a_refused_problem_is_replaced_where_refills_are_allowed():
    collector = _collector(_failing(RequestRefused("too long"), {"p1"}), problems=8, max_refill=1)
    for step in range(2):
        batch = asyncio.run(collector.collect(step))
        assert len(batch.rollouts) == 4


def test_a_pass_rate_at_the_bound_is_dropped():
    policy = ScriptedPolicy(script=_right_for("p0", "p1"))
    collector = _collector(
        policy, keep=GroupFilter(max_pass_rate=1.0), problems=4, operator_fraction=0.0, num_generations=16
    )
    batch = asyncio.run(collector.collect(0))
    assert {group.key.problem_id for group in batch.groups} == {"p2", "p3"}
    assert batch.metrics["collect/dropped_pass_rate"] == 2


def test_the_bounds_on_draft_accuracy_concern_operator_groups_only():
    policy = ScriptedPolicy(script=_right_for(*(f"p{i}" for i in range(8))))
    collector = _collector(policy, keep=GroupFilter(draft_accuracy=(0.0, 0.9)), problems=8)
    batch = asyncio.run(collector.collect(0))
    assert {group.key.role for group in batch.groups} == {TRACE}
    assert batch.metrics["collect/dropped_draft_accuracy"] == 2


def test_a_run_that_keeps_no_group_for_long_ends_with_the_reason():
    policy = ScriptedPolicy(script=lambda request, rng: "<think>x</think>\\boxed{2}")
    collector = _collector(policy, keep=GroupFilter(drop_equal_rewards=True))
    for step in range(MAX_STEPS_WITHOUT_GROUPS - 1):
        asyncio.run(collector.collect(step))
    with pytest.raises(RuntimeError, match=r"10 steps in a row kept no group.*'equal_rewards': 4"):
        asyncio.run(collector.collect(9))


def _with_accuracy(kind: str, numbers: Sequence[int]):
    """A script whose calls of one kind box ``numbers`` in turn, the others at random; even is right."""
    left = list(numbers)

    def script(request: Request, rng: random.Random) -> str:
        return f"<think>t</think>\\boxed{{{left.pop(0)}}}" if request.kind == kind else boxed(request, rng)

    return script


@pytest.mark.parametrize(
    ("name", "kind", "right", "reason"),
    [
        ("pacore_stage1", "SOLVE", 0, "draft_accuracy"),
        ("pacore_stage1", "SOLVE", 8, None),
        ("pacore_stage1", "SOLVE", 9, "draft_accuracy"),
        ("pacore_stage2", "REFINE", 0, "answer_accuracy"),
        ("pacore_stage2", "REFINE", 23, None),
        ("pacore_stage2", "REFINE", 24, "answer_accuracy"),
    ],
)
def test_the_filters_of_pacore_exclude_their_bounds(name: str, kind: str, right: int, reason: str | None):
    numbers = [2] * right + [1] * (24 - right)
    pdr = operator((24, 1), "all")
    rollout = roll(ScriptedPolicy(script=_with_accuracy(kind, numbers)), pdr, num_answers=24)
    rule = FILTERS[name]
    keep = GroupFilter(drafts_between=rule.drafts, answers_between=rule.answers)
    (group,) = group_rollout(rollout, _reward)
    assert keep.reason(group, rollout) == reason
    trace = roll(ScriptedPolicy(script=lambda *_: "\\boxed{1}"), operator((1,), name="trace"), num_answers=4)
    (plain,) = group_rollout(trace, _reward)
    assert keep.reason(plain, trace) is None


@pytest.mark.parametrize(
    ("drafts", "is_right"),
    [([2, 2, 1], True), ([1, 1, 2], False), ([2, 1, 4, 1], False), ([2, 1], True), ([1, 2], False)],
)
def test_the_majority_of_drafts_is_the_most_frequent_answer_and_ties_go_to_the_first(drafts, is_right):
    script = _with_accuracy("SOLVE", drafts)
    rollout = roll(ScriptedPolicy(script=script), operator((len(drafts), 1), "all"))
    assert asyncio.run(majority_is_right(rollout, EvenIsCorrect())) == is_right


def test_drafts_without_an_answer_have_no_right_majority():
    silent = ScriptedPolicy(script=lambda *_: "<think>t</think>nothing")
    rollout = roll(silent, operator((3, 1), "all"))
    assert not asyncio.run(majority_is_right(rollout, EvenIsCorrect()))


@pytest.mark.parametrize(("share", "most_easy"), [(0.0, 6), (0.5, 3), (0.67, 1), (1.0, 0)])
def test_problems_with_a_right_majority_fill_no_more_than_their_share(share: float, most_easy: int):
    collector = _collector(
        ScriptedPolicy(),
        problems=40,
        problems_per_step=6,
        operator_fraction=1.0,
        majority_wrong_share=share,
        max_refill=8,
    )
    batch = asyncio.run(collector.collect(1))
    by_problem = {(r.problem.id, tuple(c.completion_ids for c in r.calls)): r for r in batch.rollouts}
    easy = hard = 0
    for group in batch.groups:
        (rollout,) = [r for r in by_problem.values() if group.samples[0].call in r.calls]
        if asyncio.run(majority_is_right(rollout, EvenIsCorrect())):
            easy += 1
        else:
            hard += 1
    assert easy + hard == 6
    assert easy <= most_easy
    if not most_easy:
        assert easy == 0 < batch.metrics["collect/dropped_majority_right"]
