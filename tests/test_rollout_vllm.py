"""The rollout side against a real vLLM worker."""

import asyncio
from pathlib import Path

import psutil
import pytest
import torch
from conftest import byte_tokenizer, tiny_model
from evaluation_fakes import Kept
from fakes import EvenIsCorrect, prompt_of
from transformers import AutoModelForCausalLM

from configs.compose import load
from configs.schema import RolloutConfig
from rollout.budget import budget
from rollout.build import build_operator, policy_settings
from rollout.engine import RolloutEngine
from rollout.evaluate import Job, evaluate
from rollout.records import Completion, Problem, Sampling
from rollout.run import run_operator
from rollout.sampler import RequestRefused

pytestmark = pytest.mark.integration

SAMPLING = Sampling(temperature=1.0, top_p=1.0, max_tokens=16, seed=7)
GREEDY = Sampling(temperature=0.0, top_p=1.0, max_tokens=16, seed=7)


PROMPT = prompt_of(*range(40, 70))


def _settings(engine: RolloutEngine, config: RolloutConfig):
    operator = load("training", ["model.path=x", "data.path=x"]).operator
    return policy_settings(operator, config, engine.pool, byte_tokenizer())


def _operator(*overrides: str):
    config = load("training", ["model.path=x", "data.path=x", *overrides])
    return build_operator(config.operator)


def _expected_logprobs(folder: Path, completion: Completion) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = torch.tensor([[*PROMPT.ids, *completion.token_ids]])
    logits = model(ids).logits[0, len(PROMPT.ids) - 1 : -1].float()
    return logits.log_softmax(-1).gather(1, ids[0, len(PROMPT.ids) :, None])[:, 0]


def test_sampled_logprobs_are_the_policys_own(engine: RolloutEngine, tiny_policy: Path):
    (completion,) = engine.run(engine.pool.generate(PROMPT, SAMPLING), 120)
    expected = _expected_logprobs(tiny_policy, completion)
    torch.testing.assert_close(torch.tensor(completion.logprobs), expected, atol=1e-3, rtol=1e-3)


def test_equal_seeds_give_equal_samples_and_samples_of_one_request_differ(engine: RolloutEngine):
    first = engine.run(engine.pool.generate(PROMPT, SAMPLING, 4), 60)
    again = engine.run(engine.pool.generate(PROMPT, SAMPLING, 4), 60)
    assert [c.token_ids for c in first] == [c.token_ids for c in again]
    assert len({c.token_ids for c in first}) == 4


@pytest.mark.parametrize("distiller", ["global_summary", "shared_topk", "per_sample_topk", "random_k"])
def test_budgets_are_the_sums_of_the_workers_own_usage(
    engine: RolloutEngine, rollout_config: RolloutConfig, distiller: str
):
    operator = _operator("operator.schedule=[3,2,1]", f"operator.distiller={distiller}", "operator.top_k=2")
    problem = Problem(id="p", question="1 + 1 =", answer="2")
    counts = engine.pool.counts
    before = (counts.prompt_tokens, counts.completion_tokens)
    rollout = engine.run(
        run_operator(problem, operator, _settings(engine, rollout_config), EvenIsCorrect(), 1), 120
    )
    sent = {id(call.prompt_ids): len(call.prompt_ids) for call in rollout.calls}
    b_total = budget(rollout, rollout.answers[0]).b_total
    out_tokens = sum(len(call.completion_ids) for call in rollout.calls)
    assert counts.completion_tokens - before[1] == out_tokens
    # A worker counts the prompt of a request once, we count it for each of its samples.
    assert counts.prompt_tokens - before[0] == sum(sent.values())
    assert b_total == out_tokens + sum(len(call.prompt_ids) for call in rollout.calls)


def test_published_weights_are_served_and_every_token_knows_its_version(
    engine: RolloutEngine, tmp_path: Path
):
    tiny_model(seed=5).save_pretrained(tmp_path)
    engine.run(engine.publisher.publish(tmp_path, 41), 60)
    (completion,) = engine.run(engine.pool.generate(PROMPT, SAMPLING), 60)
    assert [span.version for span in completion.versions] == [41]
    # Every weight counts, the tied head's too: log-probs are those of the published model.
    expected = _expected_logprobs(tmp_path, completion)
    torch.testing.assert_close(torch.tensor(completion.logprobs), expected, atol=1e-3, rtol=1e-3)


def test_a_prompt_that_does_not_fit_is_refused_and_not_sent_again(engine: RolloutEngine):
    retries = engine.pool.counts.retries
    with pytest.raises(RequestRefused, match="400"):
        engine.run(engine.pool.generate(prompt_of(*[50] * 2000), SAMPLING), 60)
    assert engine.pool.counts.retries == retries


def test_greedy_rollouts_are_the_same_twice(engine: RolloutEngine, rollout_config: RolloutConfig):
    config = RolloutConfig(max_completion_length=24, max_model_len=768, temperature=0.0)
    operator = _operator("operator.schedule=[2,1]")
    problems = [Problem(id=f"p{i}", question=f"{i} + 1 =", answer="0") for i in range(6)]

    def once() -> dict[str, list[tuple[int, ...]]]:
        sink = Kept()
        jobs = [Job(problem=each, operator=operator, sample=0) for each in problems]
        engine.run(evaluate(jobs, _settings(engine, config), EvenIsCorrect(), sink, seed=0), 120)
        return {made.problem.id: [call.completion_ids for call in made.calls] for made in sink.rollouts}

    assert once() == once()


def test_a_killed_worker_is_restarted_with_the_current_weights_and_nothing_is_lost(
    engine: RolloutEngine, rollout_config: RolloutConfig, tmp_path: Path
):
    tiny_model(seed=6).save_pretrained(tmp_path)
    engine.run(engine.publisher.publish(tmp_path, 42), 60)
    operator = _operator("operator.schedule=[4,2,1]")
    problems = [Problem(id=f"p{i}", question=f"{i} + 1 =", answer="0") for i in range(40)]
    guard = engine._worker._process.pid  # type: ignore[union-attr]
    jobs = [Job(problem=each, operator=operator, sample=0) for each in problems]
    sink = Kept()

    async def kill_midway() -> None:
        while not sink.rollouts:
            await asyncio.sleep(0.01)
        for process in psutil.Process(guard).children(recursive=True):
            process.kill()

    async def both() -> None:
        killer = asyncio.create_task(kill_midway())
        await evaluate(jobs, _settings(engine, rollout_config), EvenIsCorrect(), sink, seed=0)
        await killer

    restarts = engine.pool.counts.restarts
    engine.run(both(), 300)
    assert sorted(o.problem_id for o in sink.outcomes) == sorted(p.id for p in problems)
    assert sink.failures == []
    assert engine.pool.counts.restarts == restarts + 1
    (completion,) = engine.run(engine.pool.generate(PROMPT, GREEDY), 60)
    assert completion.versions[0].version == 42
