"""Drafts that are not sampled for their rollout: traces used again, and those of an earlier evaluation."""

import asyncio
import json
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from evaluation_fakes import open_journal
from fakes import EvenIsCorrect, ScriptedPolicy, operator, problem, roll, settings
from test_rollout_collector import _collector

from configs.thinking import ThinkingMarks
from rollout.build import Ranges
from rollout.collection.draft_cache import DraftCache
from rollout.collection.groups import GroupFilter
from rollout.collection.problem_stream import ProblemStream
from rollout.evaluation.outcomes import reduce
from rollout.operators import run_operator
from rollout.records import DRAFT, REFINE, TRACE


def _rolled(policy: ScriptedPolicy, width: int, given: int):
    calls = list(roll(ScriptedPolicy(), operator((given, 1))).calls[:given])
    work = run_operator(
        problem(), operator((width, 1)), settings(policy), EvenIsCorrect(), 3, 2, given_drafts=calls
    )
    return calls, asyncio.run(work)


@pytest.mark.parametrize(("width", "given", "sampled"), [(4, 4, 0), (4, 3, 1), (2, 3, 0)])
def test_given_drafts_are_read_before_any_is_sampled(width: int, given: int, sampled: int):
    policy = ScriptedPolicy()
    calls, rollout = _rolled(policy, width, given)
    drafts = [call for call in rollout.calls if call.role == DRAFT]
    assert len(drafts) == width
    assert sum(not call.is_given for call in drafts) == sampled
    assert sum(request.n for request in policy.of("SOLVE")) == sampled
    assert [call.text for call in drafts if call.is_given] == [call.text for call in calls[: width - sampled]]
    prompt = policy.of("REFINE")[0].prompt
    assert all(call.text.partition("</think>")[2] in prompt for call in drafts)


def test_with_reuse_an_operator_group_costs_only_its_refinements():
    policy = ScriptedPolicy()
    collector = _collector(policy, reuse_traces=True, num_generations=6, pdr=operator((4, 1)))
    batch = asyncio.run(collector.collect(0))
    assert Counter(group.key.role for group in batch.groups) == {TRACE: 2, REFINE: 2}
    assert len({group.key.problem_id for group in batch.groups}) == 2
    assert sum(request.n for request in policy.requests) == 4 * 6
    traces = {
        r.problem.id: {c.completion_ids for c in r.calls} for r in batch.rollouts if r.operator == "trace"
    }
    for rollout in batch.rollouts:
        if rollout.operator == "pdr":
            drafts = [call for call in rollout.calls if call.role == DRAFT]
            assert all(call.is_given for call in drafts)
            assert {call.completion_ids for call in drafts} < traces[rollout.problem.id]
    sampled = [call for rollout in batch.rollouts for call in rollout.calls if not call.is_given]
    assert batch.metrics["collect/tokens"] == sum(len(call.completion_ids) for call in sampled)
    assert batch.metrics["collect/given_drafts"] == 8


def test_reused_traces_count_once_in_a_problems_history():
    stream = ProblemStream([problem()], seed=0)
    collector = _collector(ScriptedPolicy(), reuse_traces=True, problems=1, problems_per_step=2)
    collector.stream = stream
    stream.remember(asyncio.run(collector.collect(0)).rollouts)
    attempts = {name: history[1] for name, history in stream.state_dict()["history"].items()}
    assert attempts == {"p": 3 + 1}  # three traces, and the fourth draft that had to be sampled


def test_an_operator_group_that_was_dropped_is_made_again_with_traces_of_another_problem():
    collector = _collector(
        ScriptedPolicy(),
        reuse_traces=True,
        problems=40,
        num_generations=4,
        keep=GroupFilter(draft_accuracy=(0.4, 0.6)),
        max_refill=20,
    )
    batch = asyncio.run(collector.collect(0))
    roles = Counter(group.key.role for group in batch.groups)
    assert roles[REFINE] == 2 and roles[TRACE] >= 2
    traced = {rollout.problem.id for rollout in batch.rollouts if rollout.operator == "trace"}
    assert {rollout.problem.id for rollout in batch.rollouts if rollout.operator == "pdr"} <= traced


def _journal(path: Path, names: list[str]) -> Path:
    file = path / "rollouts.jsonl"
    with open_journal(file) as journal:
        for name in names:
            rollout = roll(ScriptedPolicy(), operator((3, 1)), name=name)
            journal.add(reduce(rollout, 0, ThinkingMarks()), rollout)
    return file


def test_cached_drafts_stand_in_for_sampled_ones_where_there_are_any(tmp_path: Path):
    cache = DraftCache(_journal(tmp_path, ["p0", "p1"]), [problem("p0")])
    policy = ScriptedPolicy()
    collector = _collector(policy, problems=4, operator_fraction=1.0, cache=cache, pdr=operator((3, 1)))
    batch = asyncio.run(collector.collect(0))
    given = {r.problem.id: sum(call.is_given for call in r.calls) for r in batch.rollouts}
    assert given == {"p0": 3, "p1": 3, "p2": 0, "p3": 0}
    assert sum(request.n for request in policy.of("SOLVE")) == 2 * 3
    assert {group.key.role for group in batch.groups} == {REFINE}


def test_a_cache_that_cannot_serve_names_file_line_and_cause(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"does not exist\. It is the rollouts\.jsonl"):
        DraftCache(tmp_path / "nothing.jsonl", [])
    file = _journal(tmp_path, ["p0"])
    lines = file.read_text().splitlines()
    file.write_text(lines[0] + "\n" + json.dumps({"outcome": 1}) + "\n")
    with pytest.raises(ValueError, match="line 2 is not a rollout"):
        DraftCache(file, [])
    file.write_text("")
    with pytest.raises(ValueError, match="contains no attempt"):
        DraftCache(file, [])


def test_drafts_of_another_question_with_the_same_id_are_refused(tmp_path: Path):
    file = _journal(tmp_path, ["p0", "p1"])
    data = [problem("p0"), replace(problem("p1"), question="another question")]
    with pytest.raises(
        ValueError, match="the question of problem 'p1' is 'question p1', in the data 'another question'"
    ):
        DraftCache(file, data)


def test_ranges_draw_every_value_and_leave_the_rest_of_the_operator_alone():
    ranges = Ranges(drafts=(2, 4), top_k=(1, 2), distillers=("all", "random_k"))
    rng = random.Random(0)
    original = operator((8, 4, 1), quorum=0.5)
    drawn = [ranges.draw(original, rng).options for _ in range(200)]
    assert {options.schedule for options in drawn} == {(n, 4, 1) for n in (2, 3, 4)}
    assert {options.distil.top_k for options in drawn} == {1, 2}
    assert {options.distil.name for options in drawn} == {"all", "random_k"}
    assert {options.quorum for options in drawn} == {0.5}
    assert Ranges().draw(original, rng).options == original.options


def test_a_collector_draws_the_operator_anew_for_each_problem_and_the_same_for_the_same_seed():
    def widths() -> list[int]:
        ranges = Ranges(drafts=(1, 8))
        collector = _collector(
            ScriptedPolicy(), problems=20, problems_per_step=16, operator_fraction=1.0, ranges=ranges
        )
        batch = asyncio.run(collector.collect(0))
        return [sum(call.role == DRAFT for call in rollout.calls) for rollout in batch.rollouts]

    first = widths()
    assert len(set(first)) > 3
    assert first == widths()


def _subsets(collector_seed: int, pool: int, width: int, **changes) -> list[list[tuple[int, ...]]]:
    """For each problem of a step, the drafts behind each of its workspaces, in their order in the prompt."""
    collector = _collector(
        ScriptedPolicy(),
        problems=6,
        problems_per_step=6,
        operator_fraction=1.0,
        seed=collector_seed,
        num_generations=16,
        num_workspaces=8,
        cache=_Pool(pool),  # type: ignore[arg-type]
        pdr=operator((width, 1), "random_k"),
        **changes,
    )
    rollouts = asyncio.run(collector.collect(0)).rollouts
    assert all(sum(call.is_given for call in rollout.calls) == width for rollout in rollouts)
    read = []
    for rollout in rollouts:
        parents = {rollout.calls[place].parents for place in rollout.answers}
        assert 5 < len(parents) <= 8  # small subsets of a small part may coincide
        read.append([tuple(int(_number(rollout.calls[i].text)) for i in each) for each in sorted(parents)])
    return read


def _number(text: str) -> str:
    return text.rpartition("{")[2].rstrip("}")


class _Pool:
    """A cache of ``size`` messages of every problem, numbered."""

    def __init__(self, size: int) -> None:
        (call,) = roll(ScriptedPolicy(), operator((1,), name="trace")).calls
        self._calls = [replace(call, text=f"<think>t</think>m \\boxed{{{i}}}") for i in range(size)]

    def draw(self, problem_id: str, num: int, rng: random.Random):
        return rng.sample(self._calls, min(num, len(self._calls)))


def test_each_workspace_of_a_pool_draws_the_size_of_its_subset_anew_and_shuffles_it():
    problems = [each for seed in range(4) for each in _subsets(seed, 24, 24, ranges=Ranges(top_k=(16, 24)))]
    sizes = Counter(len(subset) for workspaces in problems for subset in workspaces)
    assert set(sizes) == set(range(16, 25))  # 192 draws: one of nine sizes is missing with p < 1e-8
    assert all(len({len(subset) for subset in workspaces}) > 1 for workspaces in problems)
    subsets = [subset for workspaces in problems for subset in workspaces]
    assert all(len(set(subset)) == len(subset) for subset in subsets)
    # Neither sorted nor in one order for all: two messages stand either way round about equally often.
    first = [subset.index(0) < subset.index(1) for subset in subsets if {0, 1} <= set(subset)]
    assert 0.25 < sum(first) / len(first) < 0.75


def test_a_pool_may_be_larger_than_the_width_and_every_problem_reads_its_own_part_of_it():
    problems = _subsets(0, 60, 8, ranges=Ranges(top_k=(2, 5)))
    drawn = [set().union(*map(set, workspaces)) for workspaces in problems]
    assert all(len(each) <= 8 for each in drawn)
    assert len(set().union(*drawn)) > 20
    assert {len(subset) for workspaces in problems for subset in workspaces} == {2, 3, 4, 5}


@pytest.mark.parametrize("distiller", ["shared_topk", "per_sample_topk"])
def test_rankings_draw_the_number_of_drafts_that_they_keep_for_each_workspace(distiller: str):
    pdr = Ranges(top_k=(1, 6)).draw(operator((8, 1), distiller, num_workspaces=6), random.Random(0))
    rollout = roll(ScriptedPolicy(), pdr, num_answers=12)
    kept = {len(rollout.drafts_behind(place)) for place in rollout.answers}
    assert len(kept) > 2 and kept <= set(range(1, 7))
