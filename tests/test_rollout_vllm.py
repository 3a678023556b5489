"""Sampling from a real vLLM worker: log-probs, seeds, aborts, stops, the prefix cache, forced closes.

The worker serves the weights that it started with: files that publish others come later in the alphabet.
"""

import asyncio
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from evaluation_fakes import Kept
from fakes import EvenIsCorrect, prompt_of
from real_worker import GREEDY, PROMPT, SAMPLING, built_operator, expected_logprobs, sampling_settings
from tiny import byte_tokenizer, schooled_model
from transformers import AutoModelForCausalLM

from configs.compose import load
from configs.schema import RolloutConfig
from rollout import open_policy, pdr
from rollout.budget import budget
from rollout.build import policy_settings
from rollout.codec import Codec
from rollout.endpoints.chat import ChatEndpoint
from rollout.endpoints.pool import WorkerPool
from rollout.endpoints.routing import Endpoint
from rollout.engine import RolloutEngine
from rollout.evaluation.evaluate import PlannedRollout, evaluate
from rollout.operators import run_operator
from rollout.records import (
    DRAFT,
    REFINE,
    Completion,
    Problem,
    Sampling,
)
from rollout.sampler import RequestRefused

pytestmark = pytest.mark.integration


def test_sampled_logprobs_are_the_policys_own(engine: RolloutEngine, tiny_policy: Path):
    (completion,) = engine.run(engine.pool.generate(PROMPT, SAMPLING), 120, what="a call")
    expected = expected_logprobs(tiny_policy, completion)
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
    work = run_operator(problem, built_operator("operator=trace"), settings, EvenIsCorrect(), 3, 16)
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
    operator = built_operator("operator.schedule=[8,1]", "operator.quorum=0.25")
    problem = Problem(id="p", question="1 + 1 =", answer="2")
    work = run_operator(problem, operator, sampling_settings(engine, config), EvenIsCorrect(), 5)
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
        torch.tensor(first.logprobs), expected_logprobs(tiny_policy, first), atol=1e-3, rtol=1e-3
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
        expected = expected_logprobs(tiny_policy, completion)
        torch.testing.assert_close(torch.tensor(completion.logprobs), expected, atol=1e-3, rtol=1e-3)


def test_a_prompt_that_does_not_fit_is_refused_and_not_sent_again(engine: RolloutEngine):
    retries = engine.pool.counts.retries
    with pytest.raises(RequestRefused, match="400"):
        engine.run(engine.pool.generate(prompt_of(*[50] * 2000), SAMPLING), 60, what="a call")
    assert engine.pool.counts.retries == retries


def test_greedy_rollouts_are_the_same_twice(engine: RolloutEngine, rollout_config: RolloutConfig):
    config = RolloutConfig(max_completion_length=24, max_model_len=768, temperature=0.0)
    operator = built_operator("operator.schedule=[2,1]")
    problems = [Problem(id=f"p{i}", question=f"{i} + 1 =", answer="0") for i in range(6)]

    def once() -> dict[str, list[tuple[int, ...]]]:
        sink = Kept()
        jobs = [PlannedRollout(problem=each, operator=operator, sample=0) for each in problems]
        work = evaluate(jobs, sampling_settings(engine, config), EvenIsCorrect(), sink, seed=0)
        engine.run(work, 120, what="an evaluation")
        return {made.problem.id: [call.completion_ids for call in made.calls] for made in sink.rollouts}

    assert once() == once()


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
