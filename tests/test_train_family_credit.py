"""Credit of every operator that can be trained, from its own YAML: groups, baselines, advantages by round."""

import asyncio
import functools
import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean, stdev

import pytest
import yaml
from fakes import EvenIsCorrect, Request, ScriptedPolicy, boxed, problem, settings

from configs.compose import load
from configs.schema import TrainingConfig
from configs.schema.operator import EVALUATION_ONLY
from rollout.build import build_operator, training_calls
from rollout.collection.collector import BatchCollector, CollectedBatch
from rollout.collection.groups import contributions
from rollout.collection.problem_stream import ProblemStream
from rollout.grading import JudgedDraft
from rollout.policy_settings import RoleSettings
from rollout.records import AMORTISE, ENDPOINT, Call
from rollout.verdicts import Verdict
from train.batch.rows import Row
from train.loss.advantages import STD_EPSILON
from train.loss.credit import credit, weigh
from train.rank_zero import collect_options

OPERATORS = Path(__file__).parents[1] / "configs" / "operator"
FOUR = "algo.problems_per_step=24 algo.num_generations=4 "
TWO_WORKSPACES = FOUR + "algo.num_workspaces=2 "
ALL_ROUNDS = TWO_WORKSPACES + "algo.credit=[refine,draft] algo.credit_rounds=all "
CASES: dict[str, tuple[str, dict[tuple[str, int], list[int]]]] = {
    "trace": (FOUR, {("trace", 0): [4]}),
    "sr": (FOUR + "operator.schedule=[1,1,1]", {("refine", 2): [4]}),
    "sr_error_analysis": (FOUR + "operator.schedule=[1,1,1]", {("refine", 2): [4]}),
    "pdr": (FOUR + "algo.credit=[refine,draft]", {("draft", 0): [4], ("refine", 1): [4]}),
    "adaptive": (FOUR + "algo.credit=[refine,draft]", {("draft", 0): [4], ("refine", 1): [4]}),
    "rsa": (
        ALL_ROUNDS + "operator.schedule=[6,6,6,6] operator.top_k=3",
        {("draft", 0): [6], ("refine", 1): [2] * 3, ("refine", 2): [2] * 3, ("refine", 3): [2, 2]},
    ),
    "markovian_rsa": (
        ALL_ROUNDS + "operator.schedule=[6,6,6] operator.top_k=3 operator.tail_tokens=40",
        {("draft", 0): [6], ("refine", 1): [2] * 3, ("refine", 2): [2, 2]},
    ),
    "pacore": (
        ALL_ROUNDS + "operator.schedule=[6,4,1]",
        {("draft", 0): [6], ("refine", 1): [4], ("refine", 2): [2, 2]},
    ),
    "reasoning_cache": (
        TWO_WORKSPACES + "algo.credit=[refine,distil] operator.schedule=[1,1,1]",
        {("distil", 1): [2], ("refine", 2): [2, 2]},
    ),
    "recursive_summary": (
        TWO_WORKSPACES + "algo.credit=[refine,draft,distil] algo.credit_rounds=all operator.schedule=[3,2,1]",
        {("draft", 0): [3], ("refine", 1): [2], ("distil", 1): [2], ("refine", 2): [2, 2]},
    ),
    "solver_judge": (
        FOUR + "algo.credit=[refine,draft] algo.draft_credit=verdict",
        {("draft", 0): [4], ("refine", 1): [4]},
    ),
    "two_policy": (FOUR + "rollout.draft_url=http://a rollout.draft_model=m", {("refine", 1): [4]}),
}
"""Options, and the sizes of the groups of one problem by role and round."""


@dataclass(frozen=True, slots=True)
class Given:
    total: float
    parts: dict[str, float] = field(default_factory=dict)


def _reward(calls: Sequence[Call], verdicts: Sequence[Verdict], drafts: Sequence[JudgedDraft]) -> list[Given]:
    return [Given(1.0 if verdict.is_correct else -1.0) for verdict in verdicts]


def _script(request: Request, rng: random.Random) -> str:
    """Attempts that are right half of the time; summaries differ, so that each has readers of its own."""
    if request.kind in ("DISTIL", "UPDATE"):
        return f"<think>hm</think>summary {rng.randrange(10**6)}"
    return boxed(request, rng)


@functools.cache
def _config(name: str, *options: str) -> TrainingConfig:
    given = [f"operator={name}", *CASES[name][0].split(), *options]
    return load("training", ["model.path=m", "data.path=d", *given])


@functools.cache
def _collected(name: str, *options: str) -> CollectedBatch:
    config = _config(name, *options)
    policy = ScriptedPolicy(script=_script)
    shared = settings(policy)
    elsewhere = RoleSettings(sampling=shared.sampling, limit=None, sampler=policy)
    collector = BatchCollector(
        ProblemStream([problem(f"p{i}") for i in range(24)], seed=0),
        build_operator(config.operator),
        build_operator(_config("trace").operator),
        replace(shared, drafts={ENDPOINT: elsewhere}),
        EvenIsCorrect(),
        _reward,
        collect_options(config),
    )
    return asyncio.run(collector.collect(1))


def _by_problem(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The rows of each problem that the operator answered."""
    found: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        found[row.key.problem_id].append(row)
    return {name: of_problem for name, of_problem in found.items() if of_problem[0].key.role != "trace"}


def test_every_operator_that_writes_answers_has_its_case():
    kinds = {file.stem: yaml.safe_load(file.read_text())["kind"] for file in OPERATORS.glob("*.yaml")}
    assert set(CASES) == {name for name, kind in kinds.items() if kind not in EVALUATION_ONLY}


@pytest.mark.parametrize("name", CASES)
def test_the_groups_of_a_problem_are_those_of_its_roles_and_rounds(name: str):
    _, expected = CASES[name]
    problems = _by_problem(credit(_collected(name).groups, _config(name).algo))
    if name == "trace":  # a trace of the operator and one of the trace half are alike
        assert not problems
        return
    assert len(problems) == 12
    for rows in problems.values():
        sizes: dict[tuple[str, int], list[int]] = defaultdict(list)
        for row in rows:
            sizes[row.key.role, row.key.round].append(len(row.branches))
        assert dict(sizes) == expected


@pytest.mark.parametrize("name", CASES)
def test_an_advantage_is_the_reward_against_the_mean_of_one_context_and_some_of_every_round_differ(name: str):
    groups = _collected(name).groups
    moved = set()
    for group, row in zip(groups, credit(groups, _config(name).algo), strict=True):
        assert len({sample.call.prompt_ids for sample in group.samples}) == 1
        rewards = [sample.reward for sample in group.samples]
        for reward, branch in zip(rewards, row.branches, strict=True):
            wanted = (reward - fmean(rewards)) / (stdev(rewards) + STD_EPSILON)
            assert branch.advantages == pytest.approx([wanted] * len(branch.advantages))
        if len(set(rewards)) > 1:
            moved.add((row.key.role, row.key.round))
    # No round is credited in vain: with 12 problems each has a group whose rewards differ.
    assert moved == {*CASES[name][1], ("trace", 0)}


@pytest.mark.parametrize("name", CASES)
def test_the_plan_declares_the_groups_that_are_trained(name: str):
    stages = training_calls(_config(name))
    for (role, round), sizes in CASES[name][1].items():
        (stage,) = [stage for stage in stages if (stage.role, stage.round) == (role, round)]
        assert [stage.per_context] * stage.contexts == sizes


def test_each_role_has_its_own_share_of_the_loss_whatever_its_number_of_rounds():
    algo = replace(_config("rsa").algo, draft_coef=0.5, beta=1.0)
    weighed = weigh(credit(_collected("rsa").groups, algo), algo, max_completion_length=64)
    shares: dict[str, float] = defaultdict(float)
    for row in weighed:
        shares[row.key.role] += sum(branch.policy_weight * branch.num_trained for branch in row.branches)
    assert shares["trace"] == pytest.approx(0.5)
    assert shares["refine"] == pytest.approx(2 * shares["draft"])
    assert shares["refine"] + shares["draft"] == pytest.approx(0.5)


def test_with_contributions_each_round_is_credited_by_the_answers_that_read_it():
    # Of few parents each, so that early members differ in the answers that stem from them.
    few = ("operator.top_k=1", "algo.num_generations=12", "algo.num_workspaces=6")
    batch = _collected("rsa", "algo.draft_credit=contribution", *few)
    differing = set()
    for group in batch.groups:
        if group.key.role == "trace" or group.key.round == 3:
            continue
        for sample in group.samples:
            number, _, place = sample.call_id.partition(".")
            rollout = batch.rollouts[int(number)]
            rewards = {i: 1.0 if rollout.verdicts[i].is_correct else -1.0 for i in rollout.answers}
            assert sample.reward == contributions(rollout, rewards).get(int(place), 0.0)
        if len({sample.reward for sample in group.samples}) > 1:
            differing.add(group.key.round)
    assert differing == {0, 1, 2}


def test_without_credit_of_the_rounds_every_slot_of_rsa_reads_its_own_members_as_in_evaluation():
    batch = _collected("rsa", "algo.credit=[refine]", "algo.credit_rounds=last")
    for rollout in batch.rollouts:
        if rollout.operator != "rsa":
            continue
        middle = [call.parents for call in rollout.calls if call.round == 1]
        assert len(middle) == 6 and len(set(middle)) > 3
    assert AMORTISE not in {group.key.role for group in batch.groups}
