"""Operators on a real vLLM worker whose policy answers: budgets against what it counts, collecting ahead."""

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from conftest import REPO
from fakes import EvenIsCorrect
from real_worker import built_operator, sampling_settings
from tiny import byte_tokenizer, schooled_model, tiny_model

from configs.compose import load
from configs.schema import RolloutConfig
from rollout.budget import budget
from rollout.build import build_operator, policy_settings
from rollout.codec import Codec
from rollout.collection.collector import BatchCollector, CollectOptions
from rollout.collection.problem_stream import ProblemStream
from rollout.collection.producer import Producer
from rollout.endpoints.chat import ChatEndpoint
from rollout.engine import RolloutEngine
from rollout.operators import run_operator
from rollout.records import (
    ANALYSE,
    DISTIL,
    DRAFT,
    ENDPOINT,
    REFINE,
    SELECT,
    TRACE,
    VERIFY,
    Call,
    Problem,
    Rollout,
)
from rollout.workspace import DISTILLERS

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def answering(engine: RolloutEngine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RolloutEngine]:
    """The worker with a policy that thinks and answers, so that drafts are usable and every call is made."""
    folder = tmp_path_factory.mktemp("answering")
    schooled_model("<think>so</think>\\boxed{4}").save_pretrained(folder)
    engine.run(engine.publisher.publish(folder, 40), 60, what="a publish")
    yield engine


PDR = "operator=pdr operator.schedule=[3,2,1] operator.top_k=2 operator.distiller="


BUDGETED = [
    ("operator=trace", {TRACE}),
    ("operator=sr", {DRAFT, REFINE}),
    ("operator=sr_error_analysis", {DRAFT, ANALYSE, REFINE}),
    ("operator=majority operator.schedule=[3]", {DRAFT}),
    ("operator=best_of_n operator.schedule=[3]", {DRAFT, VERIFY}),
    ("operator=rsa operator.schedule=[3,3,3] operator.top_k=2", {DRAFT, REFINE}),
    ("operator=markovian_rsa operator.schedule=[3,3,3] operator.tail_tokens=9", {DRAFT, REFINE}),
    ("operator=pacore operator.schedule=[3,2,1]", {DRAFT, REFINE}),
    ("operator=reasoning_cache operator.schedule=[1,1,1]", {DRAFT, DISTIL, REFINE}),
    ("operator=recursive_summary operator.schedule=[3,2,1]", {DRAFT, DISTIL, REFINE}),
    ("operator=genselect operator.schedule=[3]", {DRAFT, SELECT}),
    ("operator=tournament operator.schedule=[4] operator.votes=2", {DRAFT, SELECT}),
    ("operator=solver_judge operator.schedule=[3,1]", {DRAFT, REFINE}),
    ("operator=adaptive operator.schedule=[3,1] operator.max_drafts=3", {DRAFT}),
    (
        "operator=adaptive operator.schedule=[2,1] operator.max_drafts=4 operator.agree_min=9",
        {DRAFT, REFINE},
    ),
    (f"{PDR}global_summary", {DRAFT, DISTIL, REFINE}),
    (f"{PDR}recursive_summary", {DRAFT, DISTIL, REFINE}),
    (f"{PDR}shared_topk", {DRAFT, VERIFY, REFINE}),
    (f"{PDR}per_sample_topk", {DRAFT, VERIFY, REFINE}),
    (f"{PDR}random_k", {DRAFT, REFINE}),
    (f"{PDR}all", {DRAFT, REFINE}),
    (f"{PDR}oracle", {DRAFT, REFINE}),
]


def test_budgets_are_measured_for_every_operator_and_distiller():
    options = [option.partition("=") for overrides, _ in BUDGETED for option in overrides.split()]
    operators = {path.stem for path in (REPO / "configs" / "operator").glob("*.yaml")}
    assert {value for name, _, value in options if name == "operator"} == operators - {"two_policy"}
    assert {value for name, _, value in options if name == "operator.distiller"} == set(DISTILLERS)


@pytest.mark.parametrize(("overrides", "roles"), BUDGETED)
def test_budgets_are_the_sums_of_the_workers_own_usage(
    answering: RolloutEngine, rollout_config: RolloutConfig, overrides: str, roles: set[str]
):
    config = load("evaluation", ["model.path=x", "data.path=x", *overrides.split()])
    problem = Problem(id="p", question="1 + 1 =", answer="2")
    counts = answering.pool.counts
    before = (counts.prompt_tokens, counts.completion_tokens)
    settings = sampling_settings(answering, rollout_config)
    work = run_operator(problem, build_operator(config.operator), settings, EvenIsCorrect(), 1)
    rollout = answering.run(work, 120, what="the operator's rollout")
    assert {call.role for call in rollout.calls} == roles
    sent = {id(call.prompt_ids): len(call.prompt_ids) for call in rollout.calls}
    spent = budget(rollout, rollout.answers[0])
    out_tokens = sum(len(call.completion_ids) for call in rollout.calls)
    assert counts.completion_tokens - before[1] == out_tokens
    # A worker counts the prompt of a request once, we count it for each of its samples.
    assert counts.prompt_tokens - before[0] == sum(sent.values())
    assert spent.b_total == out_tokens + sum(len(call.prompt_ids) for call in rollout.calls)
    last = (rollout.answers[0], *rollout.waited_for)
    assert spent.b_seq == max(max(map(sum, _paths(rollout.calls, call))) for call in last)


def _paths(calls: Sequence[Call], last: int) -> Iterator[list[int]]:
    """The tokens in and out of every call of each path through the parents that ends in ``last``."""
    own = len(calls[last].prompt_ids) + len(calls[last].completion_ids)
    if not calls[last].parents:
        yield [own]
    for parent in calls[last].parents:
        yield from ([*before, own] for before in _paths(calls, parent))


def test_budgets_of_two_policies_are_the_sums_of_what_both_servers_count(
    answering: RolloutEngine, rollout_config: RolloutConfig, monkeypatch: pytest.MonkeyPatch
):
    assert answering._fleet is not None
    monkeypatch.setenv("OPENAI_API_KEY", answering._fleet.key)
    url = f"{answering.pool.endpoints[0].url}/v1"
    options = ["model.path=x", "data.path=x", "operator=two_policy"]
    drafted = [f"rollout.draft_url={url}", "rollout.draft_model=policy"]
    config = load("evaluation", [*options, *drafted])
    chatting = replace(rollout_config, chat_url=url, chat_model="policy")
    problem = Problem(id="p", question="1 + 1 =", answer="2")

    async def rolled() -> tuple[Rollout, ChatEndpoint]:
        async with ChatEndpoint(chatting) as endpoint:
            codec = Codec(tokenizer=byte_tokenizer())
            others = {ENDPOINT: endpoint}
            settings = policy_settings(config.operator, rollout_config, answering.pool, codec, others)
            operator = build_operator(config.operator)
            return await run_operator(problem, operator, settings, EvenIsCorrect(), 1), endpoint

    own = answering.pool.counts
    before = (own.prompt_tokens, own.completion_tokens)
    rollout, endpoint = answering.run(rolled(), 120, what="the operator's rollout")
    drafts = [call for call in rollout.calls if call.role == DRAFT]
    (refine,) = (call for call in rollout.calls if call.role == REFINE)
    # Four samples of one request: the server counts their prompt once.
    prompt = drafts[0].usage.prompt_tokens
    assert len(drafts) == 4 and endpoint.counts.prompt_tokens == prompt * endpoint.counts.requests
    assert sum(call.usage.completion_tokens for call in drafts) == endpoint.counts.completion_tokens > 0
    counted = (own.prompt_tokens - before[0], own.completion_tokens - before[1])
    assert counted == (len(refine.prompt_ids), len(refine.completion_ids))
    spent = budget(rollout, rollout.answers[0])
    assert spent.b_total == 4 * prompt + endpoint.counts.completion_tokens + sum(counted)
    assert spent.b_seq == sum(counted) + max(call.num_tokens for call in drafts)


@dataclass(frozen=True, slots=True)
class NoReward:
    total: float = 0.0
    parts: Mapping[str, float] = field(default_factory=dict)


def test_collecting_ahead_goes_on_while_weights_are_published(
    answering: RolloutEngine, rollout_config: RolloutConfig, tmp_path: Path
):
    """Each batch is at most one version behind; none waits for a worker that is being published to."""
    tiny_model(seed=3).save_pretrained(tmp_path)
    collector = BatchCollector(
        ProblemStream([Problem(id=f"p{i}", question=f"{i} + 1 =", answer="2") for i in range(32)], seed=0),
        built_operator("operator.schedule=[2,1]"),
        built_operator("operator=trace"),
        sampling_settings(answering, rollout_config),
        EvenIsCorrect(),
        lambda calls, verdicts, drafts: [NoReward()] * len(calls),
        CollectOptions(problems_per_step=16, operator_fraction=0.5, num_generations=4, seed=0),
    )
    producer = Producer(collector, max_staleness=1, last_step=4)
    answering.run(answering.publisher.publish(tmp_path, 50), 60, what="a publish")
    behind = []
    for step in range(1, 5):
        version = 49 + step
        batch = answering.run(producer.next(step, version), 60, what="collecting")
        spans = [s for r in batch.rollouts for call in r.calls for s in call.versions]
        assert {span.version for span in spans} <= {version - 1, version}
        assert len(batch.groups) == 16
        behind.append(any(span.version < version for span in spans))
        if step == 2:  # the trainer takes its time: the third batch is whole before the next weights
            answering.run(_whole(producer), 60, what="collecting")
        answering.run(answering.publisher.publish(tmp_path, version + 1), 60, what="a publish")
    answering.run(producer.close(), 60, what="collecting")
    assert behind[0] is False and behind[2] is True


async def _whole(producer: Producer) -> None:
    await asyncio.wait(producer._ahead.values())
