"""The rollout side against a real vLLM worker."""

import asyncio
import json
import shutil
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import psutil
import pytest
import torch
from conftest import REPO
from evaluation_fakes import Kept
from fakes import EvenIsCorrect, prompt_of
from tiny import byte_tokenizer, schooled_model, tiny_model
from transformers import AutoModelForCausalLM

from configs.compose import load
from configs.schema import RolloutConfig
from rollout import open_policy, pdr
from rollout.budget import budget
from rollout.build import build_operator, policy_settings
from rollout.collection.collector import BatchCollector, CollectOptions
from rollout.collection.problem_stream import ProblemStream
from rollout.collection.producer import Producer
from rollout.endpoints.chat import ChatEndpoint
from rollout.endpoints.pool import WorkerPool
from rollout.endpoints.routing import Endpoint
from rollout.engine import RolloutEngine
from rollout.evaluation.evaluate import PlannedRollout, evaluate
from rollout.operators import Operator, run_operator
from rollout.prompts import Codec
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
    Completion,
    Problem,
    Prompt,
    Rollout,
    Sampling,
)
from rollout.sampler import RequestRefused
from rollout.weights import broadcast
from rollout.weights.broadcast import TransferPublisher
from rollout.weights.buckets import BUCKET_BYTES
from rollout.weights.feed import Feed
from rollout.weights.publish import DirectoryPublisher
from rollout.workspace import DISTILLERS
from train.model.weights import PolicyWeights
from train.sharding import Unsharded

pytestmark = pytest.mark.integration

SAMPLING = Sampling(temperature=1.0, top_p=1.0, max_tokens=16, seed=7)
GREEDY = Sampling(temperature=0.0, top_p=1.0, max_tokens=16, seed=7)

PROMPT = prompt_of(*range(40, 70))


@dataclass(frozen=True, slots=True)
class NoReward:
    total: float = 0.0
    parts: Mapping[str, float] = field(default_factory=dict)


def _settings(engine: RolloutEngine, config: RolloutConfig):
    operator = load("training", ["model.path=x", "data.path=x"]).operator
    return policy_settings(operator, config, engine.pool, Codec(tokenizer=byte_tokenizer()))


def _operator(*overrides: str):
    config = load("training", ["model.path=x", "data.path=x", *overrides])
    return build_operator(config.operator)


def _expected_logprobs(folder: Path, completion: Completion, prompt: Prompt = PROMPT) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = torch.tensor([[*prompt.ids, *completion.token_ids]])
    logits = model(ids).logits[0, len(prompt.ids) - 1 : -1].float()
    return logits.log_softmax(-1).gather(1, ids[0, len(prompt.ids) :, None])[:, 0]


def test_sampled_logprobs_are_the_policys_own(engine: RolloutEngine, tiny_policy: Path):
    (completion,) = engine.run(engine.pool.generate(PROMPT, SAMPLING), 120, what="a call")
    expected = _expected_logprobs(tiny_policy, completion)
    torch.testing.assert_close(torch.tensor(completion.logprobs), expected, atol=1e-3, rtol=1e-3)


def test_equal_seeds_give_equal_samples_and_samples_of_one_request_differ(engine: RolloutEngine):
    first = engine.run(engine.pool.generate(PROMPT, SAMPLING, 4), 60, what="a call")
    again = engine.run(engine.pool.generate(PROMPT, SAMPLING, 4), 60, what="a call")
    assert [c.token_ids for c in first] == [c.token_ids for c in again]
    assert len({c.token_ids for c in first}) == 4


@pytest.mark.parametrize("samples_per_request", [1, 4])
def test_samples_of_a_group_are_the_same_however_it_is_split(
    engine: RolloutEngine, rollout_config: RolloutConfig, samples_per_request: int
):
    assert engine._fleet is not None
    config = replace(rollout_config, samples_per_request=samples_per_request)

    async def split() -> list[Completion]:
        endpoints = [Endpoint(url=endpoint.url, version=endpoint.version) for endpoint in pool.endpoints]
        async with WorkerPool(endpoints, config, engine._fleet.key) as other:  # type: ignore[union-attr]
            made = await other.generate(PROMPT, SAMPLING, 8)
            assert other.counts.requests == 8 // samples_per_request
            assert other.counts.prompt_tokens == len(PROMPT.ids) * other.counts.requests
            return made

    pool = engine.pool
    whole = engine.run(pool.generate(PROMPT, SAMPLING, 8), 240, what="a call")
    parts = engine.run(split(), 60, what="a call")
    assert [c.token_ids for c in parts] == [c.token_ids for c in whole]


def test_thinking_is_closed_by_force_and_only_what_was_sampled_is_trained(
    engine: RolloutEngine, rollout_config: RolloutConfig, tiny_policy: Path
):
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = f"{tokenizer.chat_template}<think>"  # the template opens the thinking
    config = replace(rollout_config, thinking_tokens=8, answer_tokens=6)
    operator = load("training", ["model.path=x", "data.path=x"]).operator
    settings = policy_settings(operator, config, engine.pool, Codec(tokenizer=tokenizer))
    problem = Problem(id="p", question="1 + 1 =", answer="2")
    work = run_operator(problem, _operator("operator=trace"), settings, EvenIsCorrect(), 3, 16)
    calls = engine.run(work, 120, what="the operator's rollout").calls
    forced = tuple(tokenizer(operator.thinking.force, add_special_tokens=False).input_ids)
    closed = [call for call in calls if not all(call.train_mask)]
    assert closed
    model = AutoModelForCausalLM.from_pretrained(tiny_policy, dtype=torch.float32)
    for call in closed:
        masked = [i for i, trained in enumerate(call.train_mask) if not trained]
        assert tuple(call.completion_ids[i] for i in masked) == forced
        assert masked[0] == 8
        assert len(call.completion_ids) <= 8 + len(forced) + 6
        assert call.usage.completion_tokens == len(call.completion_ids)
        ids = torch.tensor([[*call.prompt_ids, *call.completion_ids]])
        start = len(call.prompt_ids)
        logprobs = model(ids).logits[0, start - 1 : -1].float().log_softmax(-1)
        expected = logprobs.gather(1, ids[0, start:, None])[:, 0]
        sampled = torch.tensor(call.train_mask)
        found = torch.tensor(call.sampler_logprobs)
        torch.testing.assert_close(found[sampled], expected[sampled], atol=1e-3, rtol=1e-3)


def test_late_drafts_are_aborted_on_the_worker_and_paid_for(
    engine: RolloutEngine, rollout_config: RolloutConfig
):
    config = replace(rollout_config, max_completion_length=600)
    operator = _operator("operator.schedule=[8,1]", "operator.quorum=0.25")
    problem = Problem(id="p", question="1 + 1 =", answer="2")
    work = run_operator(problem, operator, _settings(engine, config), EvenIsCorrect(), 5)
    before = engine.pool.counts.completion_tokens
    rollout = engine.run(work, 120, what="the operator's rollout")
    late = [call for call in rollout.calls if call.finish == "abort"]
    assert 0 < len(late) <= 6 and rollout.counts["draft/aborted"] == len(late)
    assert any(0 < len(call.completion_ids) < 600 for call in late)
    written = sum(call.usage.completion_tokens for call in rollout.calls)
    assert engine.pool.counts.completion_tokens - before == written
    total = sum(len(call.prompt_ids) for call in rollout.calls) + written
    assert budget(rollout, rollout.answers[0]).b_total == total


LONG = replace(SAMPLING, max_tokens=600)


_LONG_COMPLETIONS: dict[int, tuple[Sampling, Completion]] = {}


def _long_completion(engine: RolloutEngine) -> tuple[Sampling, Completion]:
    """A completion that takes its time, and how to sample it again; found once for each set of weights."""
    endpoint = engine.pool.endpoints[0]
    version = engine.run(engine.pool.served_version(endpoint), 30, what="asking for the version")
    if version not in _LONG_COMPLETIONS:
        _LONG_COMPLETIONS[version] = _find_long_completion(engine)
    return _LONG_COMPLETIONS[version]


def _find_long_completion(engine: RolloutEngine) -> tuple[Sampling, Completion]:
    # vLLM samples completion i of a request with the request's seed plus i.
    many = engine.run(engine.pool.generate(PROMPT, replace(LONG, seed=0), 48), 120, what="a call")
    seed = next(i for i, completion in enumerate(many) if completion.finish == "length")
    sampling = replace(LONG, seed=seed)
    (completion,) = engine.run(engine.pool.generate(PROMPT, sampling), 120, what="a call")
    assert len(completion.token_ids) == LONG.max_tokens
    return sampling, completion


@pytest.mark.parametrize("n", [1, 3])
def test_an_aborted_request_gives_what_was_sampled_with_its_logprobs_and_usage(
    engine: RolloutEngine, tiny_policy: Path, n: int
):
    sampling, whole = _long_completion(engine)
    pool = engine.pool

    async def abort_soon() -> list[Completion]:
        task = asyncio.create_task(pool.generate(PROMPT, sampling, n, f"aborted-{n}"))
        await asyncio.sleep(0.15)
        await pool.abort([f"aborted-{n}"])
        return await task

    before, requests = pool.counts.completion_tokens, pool.counts.requests
    completions = engine.run(abort_soon(), 60, what="an abort")
    first = completions[0]
    written = len(first.token_ids)
    assert first.finish == "abort"
    assert 0 < written < len(whole.token_ids)
    assert first.token_ids == whole.token_ids[:written]
    torch.testing.assert_close(
        torch.tensor(first.logprobs), _expected_logprobs(tiny_policy, first), atol=1e-3, rtol=1e-3
    )
    for completion in completions:
        assert len(completion.logprobs) == len(completion.token_ids) == completion.usage.completion_tokens
        assert completion.versions[-1].end == len(completion.token_ids)
    assert pool.counts.completion_tokens - before == sum(len(c.token_ids) for c in completions)
    assert pool.counts.requests == requests + 1


def test_an_abort_at_once_reaches_its_request_and_the_answer_has_a_version(engine: RolloutEngine):
    sampling, _ = _long_completion(engine)
    pool = engine.pool

    async def abort_at_once() -> list[Completion]:
        task = asyncio.create_task(pool.generate(PROMPT, sampling, 2, "at-once"))
        while pool.endpoints[0].in_flight == 0:
            await asyncio.sleep(0)
        await pool.abort(["at-once"])
        return await task

    completions = engine.run(abort_at_once(), 60, what="an abort")
    assert completions[0].finish == "abort"
    assert all(completion.versions for completion in completions)


def test_an_id_that_stops_a_completion_is_kept(engine: RolloutEngine):
    sampling, whole = _long_completion(engine)
    stop = whole.token_ids[40]
    end = whole.token_ids.index(stop) + 1
    stopping = replace(sampling, stop_token_ids=(stop,))
    (completion,) = engine.run(engine.pool.generate(PROMPT, stopping), 60, what="a call")
    assert completion.token_ids == whole.token_ids[:end]
    assert len(completion.logprobs) == completion.usage.completion_tokens == end
    assert completion.finish == "stop"


def test_a_completion_that_goes_on_finds_its_beginning_in_the_prefix_cache(engine: RolloutEngine):
    sampling, whole = _long_completion(engine)
    start = replace(PROMPT, ids=(*PROMPT.ids, *whole.token_ids[:400]))
    (written,) = engine.run(engine.pool.generate(start, replace(sampling, max_tokens=100)), 60, what="a call")
    before = engine.pool.counts.cached_tokens
    following = replace(start, ids=(*start.ids, *written.token_ids))
    engine.run(engine.pool.generate(following, replace(sampling, max_tokens=8)), 60, what="a call")
    cached = engine.pool.counts.cached_tokens - before
    # All but the last block of what went in and came out before.
    assert len(start.ids) + len(written.token_ids) - 128 <= cached <= len(following.ids)


def test_a_worker_asked_as_an_endpoint_that_chats_says_as_much(
    engine: RolloutEngine, monkeypatch: pytest.MonkeyPatch
):
    assert engine._fleet is not None
    monkeypatch.setenv("OPENAI_API_KEY", engine._fleet.key)
    config = RolloutConfig(chat_url=f"{engine.pool.endpoints[0].url}/v1", chat_model="policy")
    prompt = Codec(tokenizer=byte_tokenizer()).prompt("1 + 1 =")

    async def chat(sampling: Sampling, n: int) -> tuple[list[Completion], ChatEndpoint]:
        async with ChatEndpoint(config) as endpoint:
            await endpoint.check()
            return await endpoint.generate(prompt, sampling, n), endpoint

    many = engine.run(engine.pool.generate(prompt, SAMPLING, 3), 60, what="a call")
    said, endpoint = engine.run(chat(SAMPLING, 3), 60, what="a call")
    assert [completion.finish for completion in said] == [completion.finish for completion in many]
    assert all(completion.usage.prompt_tokens == len(prompt.ids) for completion in said)
    assert endpoint.counts.completion_tokens == sum(len(completion.token_ids) for completion in many)
    assert endpoint.counts.requests == 1
    # vLLM refuses n > 1 when greedy.
    (one,) = engine.run(engine.pool.generate(prompt, GREEDY), 60, what="a call")
    greedy, endpoint = engine.run(chat(GREEDY, 3), 60, what="a call")
    assert len({completion.text for completion in greedy}) == 1
    assert [c.usage.completion_tokens for c in greedy] == [len(one.token_ids)] * 3
    assert endpoint.counts.requests == 4


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
    settings = _settings(answering, rollout_config)
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


def test_collecting_ahead_goes_on_while_weights_are_published(
    answering: RolloutEngine, rollout_config: RolloutConfig, tmp_path: Path
):
    """Each batch is at most one version behind; none waits for a worker that is being published to."""
    tiny_model(seed=3).save_pretrained(tmp_path)
    collector = BatchCollector(
        ProblemStream([Problem(id=f"p{i}", question=f"{i} + 1 =", answer="2") for i in range(32)], seed=0),
        _operator("operator.schedule=[2,1]"),
        _operator("operator=trace"),
        _settings(answering, rollout_config),
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


def test_published_weights_are_served_and_every_token_knows_its_version(
    engine: RolloutEngine, tmp_path: Path
):
    tiny_model(seed=5).save_pretrained(tmp_path)
    engine.run(engine.publisher.publish(tmp_path, 41), 60, what="a publish")
    (completion,) = engine.run(engine.pool.generate(PROMPT, SAMPLING), 60, what="a call")
    assert [span.version for span in completion.versions] == [41]
    # Every weight counts, the tied head's too: log-probs are those of the published model.
    expected = _expected_logprobs(tmp_path, completion)
    torch.testing.assert_close(torch.tensor(completion.logprobs), expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("pause_mode", ["keep", "keep_cache"])
def test_what_is_sampled_after_a_publish_reads_keys_and_values_of_the_new_weights_unless_they_are_kept(
    engine: RolloutEngine, tmp_path: Path, pause_mode: str
):
    """The prompt is in the cache, and a request is half done, when the weights change."""
    for seed in (8, 9):
        tiny_model(seed=seed).save_pretrained(tmp_path / str(seed))
    by_directory = engine.pool.restarter.after_restart
    publisher = DirectoryPublisher(engine.pool, 60, pause_mode)
    number = 60 if pause_mode == "keep" else 70
    prompt = prompt_of(*(40 + i % 31 for i in range(300)))  # two full blocks of the prefix cache

    async def publish_midway() -> tuple[Completion, Completion]:
        await publisher.publish(tmp_path / "8", number)
        for seed in range(100):  # until one does not end by itself
            running = replace(SAMPLING, max_tokens=400, seed=1000 + seed)
            (whole,) = await engine.pool.generate(prompt, running)
            if len(whole.token_ids) == running.max_tokens:
                break
        task = asyncio.create_task(engine.pool.generate(prompt, running))
        await asyncio.sleep(0.15)
        await publisher.publish(tmp_path / "9", number + 1)
        (after,) = await engine.pool.generate(prompt, GREEDY)
        return (await task)[0], after

    try:
        midway, after = engine.run(publish_midway(), 240, what="a publish")
    finally:
        engine.pool.restarter.after_restart = by_directory
    assert [span.version for span in midway.versions] == [number, number + 1]
    new = tmp_path / "9"
    start = midway.versions[1].start
    assert 0 < start < len(midway.token_ids) - 8
    for completion, first in ((midway, start), (after, 0)):
        expected = _expected_logprobs(new, completion, prompt)[first:]
        apart = (torch.tensor(completion.logprobs)[first:] - expected).abs().max()
        assert (apart < 1e-3) == (pause_mode == "keep")
    # Leaves no key of old weights behind.
    engine.run(engine.publisher.publish(new, number + 2), 60, what="a publish")


def test_the_models_own_generation_config_changes_nothing_that_is_sampled(
    tiny_policy: Path, rollout_config: RolloutConfig, tmp_path: Path
):
    folder = tmp_path / "policy"
    shutil.copytree(tiny_policy, folder)
    own = json.loads((folder / "generation_config.json").read_text())
    own |= {"repetition_penalty": 1.3, "top_k": 20, "temperature": 0.3, "do_sample": True}
    (folder / "generation_config.json").write_text(json.dumps(own))
    with RolloutEngine(rollout_config, str(folder), tmp_path / "logs") as engine:
        made = engine.run(engine.pool.generate(PROMPT, SAMPLING, 8), 120, what="a call")
    for completion in made:
        expected = _expected_logprobs(tiny_policy, completion)
        torch.testing.assert_close(torch.tensor(completion.logprobs), expected, atol=1e-3, rtol=1e-3)


def test_weights_over_a_process_group_are_served_as_those_of_a_directory(
    engine: RolloutEngine, tmp_path: Path
):
    model = tiny_model(seed=6)
    model.save_pretrained(tmp_path)
    by_directory = engine.pool.restarter.after_restart
    try:
        publisher = TransferPublisher(engine.pool, 60, backend="gloo")
        _send(engine, publisher, PolicyWeights(model, Unsharded(), BUCKET_BYTES["gloo"]), 43)
    finally:
        engine.pool.restarter.after_restart = by_directory
    (completion,) = engine.run(engine.pool.generate(PROMPT, SAMPLING), 60, what="a call")
    assert [span.version for span in completion.versions] == [43]
    expected = _expected_logprobs(tmp_path, completion)
    torch.testing.assert_close(torch.tensor(completion.logprobs), expected, atol=1e-3, rtol=1e-3)


def test_a_worker_whose_transfer_broke_in_the_middle_serves_the_next_one_whole(
    engine: RolloutEngine, tmp_path: Path
):
    """vLLM has taken a part of the weights when the transfer ends; the retry replaces all of them."""
    model = tiny_model(seed=8)
    model.save_pretrained(tmp_path)
    by_directory = engine.pool.restarter.after_restart
    restarts = engine.pool.restarter.restarts
    try:
        publisher = TransferPublisher(engine.pool, 60, backend="gloo")
        weights = PolicyWeights(model, Unsharded(), bucket_bytes=2**14)
        send, broken = broadcast.send, []

        def break_once(feed: Feed, *arguments: Any) -> None:
            if not broken:
                broken.append(len(feed.buckets))
                feed = _Breaking(feed)  # type: ignore[assignment]
            send(feed, *arguments)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(broadcast, "send", break_once)
            _send(engine, publisher, weights, 44)
        assert broken and broken[0] > 4
    finally:
        engine.pool.restarter.after_restart = by_directory
    assert engine.pool.restarter.restarts == restarts
    (completion,) = engine.run(engine.pool.generate(PROMPT, SAMPLING), 60, what="a call")
    assert [span.version for span in completion.versions] == [44]
    expected = _expected_logprobs(tmp_path, completion)
    torch.testing.assert_close(torch.tensor(completion.logprobs), expected, atol=1e-3, rtol=1e-3)


class _Breaking:
    """A feed that fails at its fourth bucket."""

    def __init__(self, feed: Feed) -> None:
        self._feed = feed

    def __getattr__(self, name: str) -> Any:
        return getattr(self._feed, name)

    def bucket(self, index: int, seconds: float, given_up: threading.Event) -> torch.Tensor:
        if index == 3:
            raise RuntimeError("out of memory")
        return self._feed.bucket(index, seconds, given_up)


def _send(engine: RolloutEngine, publisher: TransferPublisher, weights: PolicyWeights, version: int) -> None:
    """Publishes as ``EnginePublisher`` does."""
    feed = engine.run(publisher.open(weights, version), 60, what="a publish")
    sent = engine.submit(publisher.publish(feed, version))
    for part in weights.parts():
        feed.put(part)
    sent.result(timeout=120)


def test_workers_sleep_until_the_next_publish(engine: RolloutEngine, tmp_path: Path):
    """A CPU worker keeps its memory, but else does as one that gives it back."""
    tiny_model(seed=7).save_pretrained(tmp_path)
    by_directory = engine.pool.restarter.after_restart
    try:
        publisher = DirectoryPublisher(engine.pool, 60, sleeps=True)
        engine.run(publisher.sleep(), 60, what="putting the workers to sleep")
        waiting = engine.pool.generate(PROMPT, SAMPLING)
        answer = asyncio.run_coroutine_threadsafe(waiting, engine._loop)
        with pytest.raises(TimeoutError):
            answer.result(timeout=1)
        engine.run(publisher.publish(tmp_path, 47), 60, what="a publish")
        assert len(answer.result(timeout=60)) == 1
        (completion,) = engine.run(engine.pool.generate(PROMPT, SAMPLING), 60, what="a call")
    finally:
        engine.pool.restarter.after_restart = by_directory
    assert [span.version for span in completion.versions] == [47]
    expected = _expected_logprobs(tmp_path, completion)
    torch.testing.assert_close(torch.tensor(completion.logprobs), expected, atol=1e-3, rtol=1e-3)


def test_a_prompt_that_does_not_fit_is_refused_and_not_sent_again(engine: RolloutEngine):
    retries = engine.pool.counts.retries
    with pytest.raises(RequestRefused, match="400"):
        engine.run(engine.pool.generate(prompt_of(*[50] * 2000), SAMPLING), 60, what="a call")
    assert engine.pool.counts.retries == retries


def test_greedy_rollouts_are_the_same_twice(engine: RolloutEngine, rollout_config: RolloutConfig):
    config = RolloutConfig(max_completion_length=24, max_model_len=768, temperature=0.0)
    operator = _operator("operator.schedule=[2,1]")
    problems = [Problem(id=f"p{i}", question=f"{i} + 1 =", answer="0") for i in range(6)]

    def once() -> dict[str, list[tuple[int, ...]]]:
        sink = Kept()
        jobs = [PlannedRollout(problem=each, operator=operator, sample=0) for each in problems]
        work = evaluate(jobs, _settings(engine, config), EvenIsCorrect(), sink, seed=0)
        engine.run(work, 120, what="an evaluation")
        return {made.problem.id: [call.completion_ids for call in made.calls] for made in sink.rollouts}

    assert once() == once()


def test_a_killed_worker_is_restarted_with_the_current_weights_and_nothing_is_lost(
    engine: RolloutEngine, rollout_config: RolloutConfig, tmp_path: Path
):
    tiny_model(seed=6).save_pretrained(tmp_path)
    engine.run(engine.publisher.publish(tmp_path, 42), 60, what="a publish")
    operator = _operator("operator.schedule=[4,2,1]")
    restarts = engine.pool.restarter.restarts
    _evaluate_and_kill(engine, rollout_config, operator)
    assert engine.pool.restarter.restarts == restarts + 1
    (completion,) = engine.run(engine.pool.generate(PROMPT, GREEDY), 60, what="a call")
    assert completion.versions[0].version == 42


def test_two_workers_share_a_run_and_when_one_is_killed_the_other_goes_on(
    tiny_policy: Path, rollout_config: RolloutConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("VLLM_API_KEY", raising=False)  # the workers require a key all the same
    config = replace(rollout_config, num_workers=2)
    before = {process.pid for process in psutil.Process().children(recursive=True)}
    with RolloutEngine(config, str(tiny_policy), tmp_path / "logs") as engine:
        assert engine._fleet is not None
        key = engine._fleet.key
        shown = " ".join(" ".join(p.cmdline()) for p in psutil.Process().children(recursive=True))
        assert "RequireKey" in shown and key not in shown
        weights = tmp_path / "weights"
        tiny_model(seed=6).save_pretrained(weights)
        engine.run(engine.publisher.publish(weights, 3), 120, what="a publish")
        for path in ("/weight_info", "/v1/models", "/pause", "/collective_rpc"):
            with pytest.raises(HTTPError, match="401"):
                urlopen(Request(engine.pool.endpoints[0].url + path), timeout=10)
        requests = engine.pool.counts.requests
        needed = _evaluate_and_kill(engine, config, _operator("operator.schedule=[4,2,1]"))
        pool = engine.pool
        # Only what the killed worker had not answered was sent again.
        assert pool.counts.requests - requests == needed + pool.counts.retries
        assert 0 < pool.counts.retries <= 40
        settled = (pool.restarter.settled(endpoint) for endpoint in pool.endpoints)
        for waiting in settled:
            engine.run(waiting, config.start_timeout_seconds, what="a restart")
        assert pool.restarter.restarts == 1
        asked = "asking for the version"
        assert [engine.run(pool.served_version(e), 30, what=asked) for e in pool.endpoints] == [3, 3]
    logs = [(tmp_path / "logs" / f"worker_{i}.log").read_text() for i in range(2)]
    assert all(log and key not in log for log in logs)
    assert {process.pid for process in psutil.Process().children(recursive=True)} <= before


def test_five_lines_of_python_start_a_worker_ask_it_and_end_it(tmp_path: Path):
    schooled_model("<think>so</think>\\boxed{4}").save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    options = {"dtype": "float32", "kv_cache_gib": 1, "max_completion_length": 48, "max_model_len": 768}
    with open_policy(tmp_path / "model", temperature=0.0, **options) as policy:
        result = pdr(policy, "What is 1 + 3?", schedule=[3, 1])
        counts = policy._engine.pool.counts
        (worker,) = policy._engine._fleet.workers  # type: ignore[union-attr]
        assert worker.is_alive
        assert sum(call.completion_tokens for call in result.graph) == counts.completion_tokens
    assert result.answer == "4" and result.text == "\\boxed{4}"
    assert [call.role for call in result.graph] == [DRAFT] * 3 + [REFINE]
    assert result.graph[3].workspace.count("\\boxed{4}") == 3
    assert not worker.is_alive


def _evaluate_and_kill(engine: RolloutEngine, config: RolloutConfig, operator: Operator) -> int:
    """40 problems; the first worker is killed after the first rollout. Every problem has its one rollout.

    Returns:
        The number of requests that the rollouts are made of.
    """
    problems = [Problem(id=f"p{i}", question=f"{i} + 1 =", answer="0") for i in range(40)]
    guard = engine._fleet.workers[0]._process.pid  # type: ignore[union-attr]
    jobs = [PlannedRollout(problem=each, operator=operator, sample=0) for each in problems]
    sink = Kept()

    async def kill_midway() -> None:
        while not sink.rollouts:
            await asyncio.sleep(0.01)
        for process in psutil.Process(guard).children(recursive=True):
            process.kill()

    async def both() -> None:
        killer = asyncio.create_task(kill_midway())
        await evaluate(jobs, _settings(engine, config), EvenIsCorrect(), sink, seed=0)
        await killer

    engine.run(both(), 300, what="both workers' answers")
    assert sorted(o.problem_id for o in sink.outcomes) == sorted(p.id for p in problems)
    assert sink.failures == []
    # Calls of one request share its prompt object.
    return sum(len({id(call.prompt_ids) for call in rollout.calls}) for rollout in sink.rollouts)
