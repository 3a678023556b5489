"""A teacher at an endpoint: which scores are read, what is refused, and those of a real server."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from aiohttp import web
from fakes import ScriptedPolicy, operator, prompt_of, settings
from families import llama
from test_rollout_collector import _collector
from tiny import byte_tokenizer
from transformers import AutoModelForCausalLM

from configs.schema import AlgoConfig, RolloutConfig
from rollout.collection.amortise import Amortiser
from rollout.collection.groups import Credited
from rollout.endpoints.teacher_api import TeacherEndpoint
from rollout.engine import RolloutEngine
from rollout.records import AMORTISE, DRAFT, REFINE, TRACE, Sampling
from rollout.sampler import CallFailed
from train.loss.credit import credit

Scores = Callable[[list[int]], Any]


def _scores(ids: list[int]) -> list[Any]:
    """As vLLM answers: none for the first token; of each other one its place and its id, as a log-prob."""
    entry = {"rank": 3, "decoded_token": "x"}
    return [None, *({str(i): {"logprob": -place - i / 1000, **entry}} for place, i in enumerate(ids[1:], 1))]


@asynccontextmanager
async def _server(
    *,
    scores: Scores = _scores,
    tokenizer: Any = None,
    max_model_len: int = 101,
    busy: int = 0,
    decodes: bool = True,
) -> AsyncIterator[str]:
    """A server with vLLM's answers, which is busy for the first ``busy`` requests; yields its URL."""
    left, reads = [busy], tokenizer or byte_tokenizer()

    async def models(request: web.Request) -> web.Response:
        return web.json_response({"data": [{"root": "teacher", "max_model_len": max_model_len}]})

    async def decode(request: web.Request) -> web.Response:
        return web.json_response({"prompt": reads.decode((await request.json())["tokens"])})

    async def complete(request: web.Request) -> web.Response:
        if left[0]:
            left[0] -= 1
            return web.json_response({"error": "busy"}, status=503)
        body = await request.json()
        assert (body["max_tokens"], body["temperature"], body["prompt_logprobs"]) == (1, 1.0, 0)
        return web.json_response({"choices": [{"text": "!", "prompt_logprobs": scores(body["prompt"])}]})

    app = web.Application()
    app.router.add_get("/v1/models", models)
    app.router.add_post("/v1/completions", complete)
    if decodes:
        app.router.add_post("/detokenize", decode)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


def _config(url: str, **changes: Any) -> RolloutConfig:
    sizes: dict[str, Any] = {"max_model_len": 100, "max_completion_length": 50, "max_retries": 1}
    return RolloutConfig(teacher_model_server_url=url, **sizes | changes)


def _asked(prompt: list[int], completion: list[int], **server: Any) -> tuple[float, ...]:
    async def ask() -> tuple[float, ...]:
        async with _server(**server) as url, TeacherEndpoint(_config(url)) as teacher:
            return await teacher.logprobs(prompt, completion)

    return asyncio.run(ask())


def _check(**server: Any) -> None:
    async def check() -> None:
        async with _server(**server) as url, TeacherEndpoint(_config(url)) as teacher:
            await teacher.check(byte_tokenizer())

    asyncio.run(check())


def test_scores_are_those_of_the_completion_in_its_order():
    assert _asked([7, 8, 9], [40, 41]) == (-3.04, -4.041)


def test_a_busy_teacher_is_asked_again_and_one_that_stays_busy_is_named():
    assert _asked([7], [40], busy=1) == (-1.04,)
    with pytest.raises(CallFailed, match=r"teacher http://127.* did not answer; .* 503"):
        _asked([7], [40], busy=2)


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        (lambda ids: _scores(ids)[:-1], "4 scores of 5 tokens"),
        (lambda ids: [None] * len(ids), "no score of the token 40"),
        (lambda ids: _scores([0] * len(ids)), "no score of the token 40"),
        (lambda ids: [{str(i): {"logprob": 2.5}} for i in ids], "a log-prob of 2.5 for the token 40"),
        (lambda ids: [{str(i): {"logprob": -9999.0}} for i in ids], "a log-prob of -9999.0"),
        (lambda ids: None, "did not return the log-probs of its prompt"),
    ],
)
def test_scores_that_no_softmax_gives_are_refused(scores: Scores, message: str):
    with pytest.raises(CallFailed, match=message):
        _asked([7, 8, 9], [40, 41], scores=scores)


def test_a_teacher_with_the_policys_tokenizer_passes_also_if_it_knows_more_tokens():
    _check()
    larger = byte_tokenizer()
    larger.add_tokens(["<more>"])
    _check(tokenizer=larger)


def test_a_teacher_with_another_tokenizer_is_refused_with_what_it_reads():
    with pytest.raises(ValueError, match=r"another tokenizer than model\.path: of the ids 0 to 260"):
        _check(tokenizer=llama())
    with pytest.raises(ValueError, match=r"of the ids 0 to 260, '.*ab.*' is '.*ba.*' there"):
        _check(tokenizer=_Swapped())  # as large, with two tokens exchanged


class _Swapped:
    """The byte tokenizer, in which a and b have each other's ids."""

    def __init__(self) -> None:
        self._tokenizer = byte_tokenizer()
        (a,), (b,) = (self._tokenizer.encode(letter) for letter in "ab")
        self._other = {a: b, b: a}

    def decode(self, ids: list[int]) -> str | list[str]:
        return self._tokenizer.decode([self._other.get(i, i) for i in ids])


def test_a_teacher_that_takes_no_longer_sequence_than_the_policy_is_refused():
    with pytest.raises(ValueError, match=r"takes 100 tokens, .* --max-model-len 101, .*max_model_len=99"):
        _check(max_model_len=100)


def test_an_endpoint_that_is_no_vllm_server_or_is_not_there_is_named_by_its_option():
    with pytest.raises(ValueError, match=r"teacher_model_server_url: the tokenizer .* must be a vLLM server"):
        _check(decodes=False)

    async def nowhere() -> None:
        async with TeacherEndpoint(_config("http://127.0.0.1:9")) as teacher:
            await teacher.check(byte_tokenizer())

    with pytest.raises(RuntimeError, match=r"rollout\.teacher_model_server_url does not answer"):
        asyncio.run(nowhere())


class _Teacher:
    """Scores a token by its id and the length of its context."""

    async def logprobs(self, prompt_ids, completion_ids):
        return [-len(prompt_ids) - i / 1000 for i in completion_ids]


def test_every_sample_of_its_own_context_has_a_teacher_and_an_amortised_answer_has_none():
    policy = ScriptedPolicy()
    collector = _collector(
        policy,
        pdr=operator((4, 1)),
        problems_per_step=8,
        num_generations=6,
        teacher=_Teacher(),
        amortise=Amortiser(settings(policy)),
    )
    batch = asyncio.run(collector.collect(1))
    assert {group.key.role for group in batch.groups} == {TRACE, REFINE, AMORTISE}
    rows = credit(batch.groups, AlgoConfig(opd_coef=0.1))
    taught = 0
    for group, row in zip(batch.groups, rows, strict=True):
        for sample, branch in zip(group.samples, row.branches, strict=True):
            if group.key.role == AMORTISE:
                assert sample.teacher_logprobs == () and branch.teacher_logprobs is None
                continue
            wanted = [-len(sample.call.prompt_ids) - i / 1000 for i in sample.call.completion_ids]
            assert branch.teacher_logprobs == pytest.approx(wanted)
            taught += 1
    assert batch.metrics["collect/taught"] == taught == 8 * 6


def test_drafts_that_are_credited_are_scored_in_the_plain_context():
    collector = _collector(
        ScriptedPolicy(), pdr=operator((4, 1)), teacher=_Teacher(), credited=Credited(drafts=True)
    )
    groups = asyncio.run(collector.collect(1)).groups
    drafts = [sample for group in groups if group.key.role == DRAFT for sample in group.samples]
    assert drafts
    assert all(int(-sample.teacher_logprobs[0]) == len(sample.call.prompt_ids) for sample in drafts)


@pytest.mark.integration
def test_a_real_servers_scores_are_the_log_probs_of_its_model(
    engine: RolloutEngine, tiny_policy: Path, monkeypatch: pytest.MonkeyPatch
):
    assert engine._fleet is not None
    monkeypatch.setenv("OPENAI_API_KEY", engine._fleet.key)
    config = RolloutConfig(
        teacher_model_server_url=engine.pool.endpoints[0].url, max_model_len=767, max_completion_length=64
    )
    rng = random.Random(0)
    pairs = [
        ([rng.randrange(3, 261) for _ in range(rng.randint(1, 300))], [rng.randrange(261) for _ in range(n)])
        for n in (1, 5, 64, 300)
    ]
    pairs.append((list(range(40, 70)), pairs[2][1]))  # another context of the same completion
    own = Sampling(temperature=1.0, top_p=1.0, max_tokens=16, seed=3)

    async def ask() -> list[tuple[float, ...]]:
        async with TeacherEndpoint(config) as teacher:
            await teacher.check(byte_tokenizer())
            return await asyncio.gather(*(teacher.logprobs(*pair) for pair in pairs))

    engine.run(engine.publisher.publish(tiny_policy, 90), 60, what="a publish")  # whatever it served before
    scored = engine.run(ask(), 120, what="asking the teacher")
    model = AutoModelForCausalLM.from_pretrained(tiny_policy, dtype=torch.float32)
    for (prompt, completion), found in zip(pairs, scored, strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([[*prompt, *completion]])).logits[0, len(prompt) - 1 : -1]
        expected = logits.log_softmax(-1).gather(1, torch.tensor(completion)[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(found), expected, atol=1e-3, rtol=0)
    assert scored[2] != scored[4]
    # What the server samples itself has the log-probs that it then scores.
    prompt = prompt_of(*range(40, 70))
    (sampled,) = engine.run(engine.pool.generate(prompt, own), 60, what="a call")

    async def again() -> tuple[float, ...]:
        async with TeacherEndpoint(config) as teacher:
            return await teacher.logprobs(prompt.ids, sampled.token_ids)

    assert engine.run(again(), 60, what="asking the teacher") == pytest.approx(sampled.logprobs, abs=1e-3)


@pytest.mark.integration
def test_a_real_server_with_another_tokenizer_is_refused(
    engine: RolloutEngine, monkeypatch: pytest.MonkeyPatch
):
    assert engine._fleet is not None
    monkeypatch.setenv("OPENAI_API_KEY", engine._fleet.key)
    config = RolloutConfig(
        teacher_model_server_url=engine.pool.endpoints[0].url, max_model_len=767, max_completion_length=64
    )

    async def check() -> None:
        async with TeacherEndpoint(config) as teacher:
            await teacher.check(llama())

    with pytest.raises(ValueError, match=r"has another tokenizer than model\.path"):
        engine.run(check(), 60, what="asking the teacher")
