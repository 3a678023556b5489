"""Drafts that another policy writes: an endpoint's, or the frozen initial policy's."""

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
from fakes import (
    EvenIsCorrect,
    SamplerOf,
    ScriptedPolicy,
    boxed,
    operator,
    problem,
    settings,
)
from stub_server import StubOptions, stub_process
from test_rollout_collector import Given, _collector
from tiny import byte_tokenizer

from configs.compose import load
from configs.schema import RolloutConfig
from configs.thinking import ThinkingMarks
from rollout.budget import budget
from rollout.build import policy_settings
from rollout.codec import Codec
from rollout.collection.groups import Credited, group_rollout
from rollout.collection.problem_stream import ProblemStream
from rollout.endpoints.chat import ChatEndpoint
from rollout.engine import RolloutEngine
from rollout.operators import run_operator
from rollout.policy_settings import PolicySettings, RoleSettings
from rollout.records import DRAFT, ENDPOINT, OWN, REFERENCE, REFINE, Completion, Rollout, Usage, VersionSpan
from train.metrics import staleness_metrics


def _chat(text: str = "It is \\boxed{4}.") -> SamplerOf:
    """An endpoint that returns text: no ids, no log-probs, tokens of a tokenizer of its own."""

    async def generate(prompt, sampling, n):
        assert not sampling.stop_token_ids
        return [
            Completion(
                token_ids=(),
                logprobs=(),
                finish="stop",
                versions=(VersionSpan(version=0, start=0, end=0),),
                usage=Usage(prompt_tokens=11, completion_tokens=5),
                text=text,
            )
        ] * n

    return SamplerOf(generate, continues=False)


def _two(own: ScriptedPolicy, other, name: str = ENDPOINT) -> PolicySettings:
    base = settings(own)
    elsewhere = RoleSettings(sampling=base.sampling, limit=None, sampler=other)
    return replace(base, drafts={name: elsewhere})


def _rolled(own: ScriptedPolicy, shared: PolicySettings, policy: str = ENDPOINT) -> Rollout:
    pdr = operator((3, 1), draft_policy=policy)
    return asyncio.run(run_operator(problem(), pdr, shared, EvenIsCorrect(), 0, num_answers=4))


def test_the_endpoint_writes_the_drafts_and_the_policy_the_refinements():
    own = ScriptedPolicy()
    rollout = _rolled(own, _two(own, _chat()))
    assert {request.kind for request in own.requests} == {"REFINE"}
    assert [(call.role, call.policy) for call in rollout.calls] == [(DRAFT, ENDPOINT)] * 3 + [
        (REFINE, OWN)
    ] * 4
    assert "It is \\boxed{4}." in own.requests[0].prompt
    assert all(verdict.is_correct for place, verdict in rollout.verdicts.items() if place < 3)
    (group,) = group_rollout(rollout, _rewards)
    assert {sample.call.role for sample in group.samples} == {REFINE}


def _rewards(calls, verdicts, drafts) -> list[Given]:
    return [Given(total=1.0)] * len(calls)


def test_drafts_of_another_policy_cost_their_tokens_and_are_never_trained():
    own = ScriptedPolicy()
    rollout = _rolled(own, _two(own, _chat()))
    refinements = [call for call in rollout.calls if call.role == REFINE]
    total = 3 * (11 + 5) + sum(call.num_tokens for call in refinements)
    assert budget(rollout, rollout.answers[0]).b_total == total
    everything = Credited(drafts=True, intermediate=True)
    groups = group_rollout(rollout, _rewards, everything)
    assert {group.key.role for group in groups} == {REFINE}


def test_other_policies_have_no_staleness_and_no_part_in_a_problems_history():
    own = ScriptedPolicy()
    rollout = _rolled(own, _two(own, _chat()))
    assert set(staleness_metrics([rollout], version=9)) == {"staleness/refine", "staleness/max"}
    stream = ProblemStream([problem()], seed=0, max_pass_rate=0.5)
    stream.remember([rollout])
    assert stream.state_dict()["history"]["p"] == [0, 0]


def test_an_operator_without_its_endpoint_names_the_option():
    own = ScriptedPolicy()
    with pytest.raises(ValueError, match=r"rollout\.draft_url"):
        _rolled(own, settings(own))


def test_a_text_without_thinking_is_a_solution_where_the_policys_own_template_opens_thinking():
    own = ScriptedPolicy(script=lambda request, rng: boxed(request, rng).removeprefix("<think>"))
    opened = replace(_two(own, _chat()), marks=ThinkingMarks(opened_by_prompt=True))
    rollout = _rolled(own, opened)
    assert {call.label for call in rollout.calls} == {"ok"}
    assert "It is \\boxed{4}." in own.requests[0].prompt


def test_drafts_on_text_are_not_stopped_or_forced_at_ids_and_those_on_workers_are():
    base = load("evaluation", ["model.path=x", "data.path=x"]).operator
    config = RolloutConfig(thinking_tokens=9, answer_tokens=7)
    codec = Codec(tokenizer=byte_tokenizer(), stop_ids=(2,))
    others = {ENDPOINT: _chat(), REFERENCE: ScriptedPolicy()}
    shared = policy_settings(base, config, ScriptedPolicy(), codec, others)
    on_text, on_ids = shared.of(DRAFT, ENDPOINT), shared.of(DRAFT, REFERENCE)
    assert (on_text.sampling.stop_token_ids, on_text.limit) == ((), None)
    assert on_ids.sampling.stop_token_ids == (2,) and on_ids.limit is not None
    assert shared.of(REFINE, REFERENCE) == shared.of(REFINE)


def test_a_collector_with_reference_drafts_asks_the_frozen_policy_for_drafts_alone():
    def says(number: int):
        return lambda request, rng: f"<think>t</think>it is \\boxed{{{number}{rng.randrange(9)}}}"

    own, frozen = ScriptedPolicy(script=says(1)), ScriptedPolicy(script=says(7))
    collector = _collector(own, reference_drafts=True)
    collector._settings = _two(own, frozen, REFERENCE)
    batch = asyncio.run(collector.collect(1))
    assert {request.kind for request in frozen.requests} == {"SOLVE"}
    drafts = [call for r in batch.rollouts for call in r.calls if call.role == DRAFT]
    assert drafts and {call.policy for call in drafts} == {REFERENCE}
    assert all("\\boxed{7" in call.text for call in drafts)
    # The traces are the policy's own, as are the refinements.
    assert {request.kind for request in own.requests} == {"SOLVE", "REFINE"}


def test_an_engine_asks_the_endpoint_of_its_drafts_with_the_key_of_endpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("OPENAI_API_KEY", "of-the-endpoint")
    monkeypatch.setenv("VLLM_API_KEY", "of-the-workers")
    with (
        stub_process(StubOptions(key="of-the-workers")) as workers,
        stub_process(StubOptions(key="of-the-endpoint")) as endpoint,
    ):
        config = RolloutConfig(urls=[workers], draft_url=f"{endpoint}/v1", draft_model="strong")
        with RolloutEngine(config, "model", tmp_path) as engine:
            drafts = engine.drafts[ENDPOINT]
            assert isinstance(drafts, ChatEndpoint) and drafts is not engine.sampler
            assert engine.pool.endpoints[0].url == workers


def test_an_endpoint_for_drafts_that_is_not_there_is_named_by_its_option(tmp_path: Path):
    with stub_process(StubOptions()) as workers:
        config = RolloutConfig(urls=[workers], draft_url="http://127.0.0.1:9/v1", draft_model="strong")
        with pytest.raises(RuntimeError, match=r"rollout\.draft_url does not answer"):
            RolloutEngine(config, "model", tmp_path).__enter__()


def test_workers_for_drafts_are_no_endpoints_of_the_pool_that_gets_the_weights(tmp_path: Path):
    engine = RolloutEngine(RolloutConfig(num_workers=2, num_draft_workers=1), "model", tmp_path)
    drafts = engine.drafts[REFERENCE]
    assert (len(engine.pool.endpoints), len(drafts.endpoints)) == (2, 1)
    assert not set(engine.pool.endpoints) & set(drafts.endpoints)
    remote = RolloutEngine(RolloutConfig(urls=["http://a"], num_draft_workers=1), "model", tmp_path)
    assert [each.url for each in remote.pool.endpoints] == ["http://a"]
    assert len(remote.drafts[REFERENCE].endpoints) == 1
