"""An endpoint that chats, against a small server that is as fussy as real ones are."""

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from aiohttp import web
from fakes import plain_policy, problem

from configs.schema import RolloutConfig
from rollout.budget import budget
from rollout.endpoints.chat import ChatEndpoint, Dialect
from rollout.records import EMPTY, Completion, Prompt, Rollout, Sampling
from rollout.sampler import CallFailed, RequestRefused

PROMPT = Prompt(text="What is 1 + 1?", ids=(1, 2, 3), context="c")
SAMPLING = Sampling(temperature=1.0, top_p=1.0, max_tokens=64, seed=5)
KEY = "sk-a-secret-nobody-may-see"
LIMIT_SECONDS = 20


@dataclass(slots=True)
class ChatServer:
    """Answers /v1/chat/completions; ``refuse`` gives the reason to refuse a body with, or None."""

    refuse: Callable[[dict[str, Any]], str | None] = lambda body: None
    usage: dict[str, Any] = field(default_factory=lambda: {"prompt_tokens": 7, "completion_tokens": 30})
    texts: tuple[str, ...] = ("two", "it is two", "2")
    finish: str = "stop"
    honours_n: bool = True
    statuses: list[int] = field(default_factory=list)
    """Of the next requests, before it answers again."""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    at_once: int = 0
    most_at_once: int = 0
    url: str = ""

    async def start(self, stack: AsyncExitStack) -> None:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", self._complete)
        app.router.add_get("/v1/models", self._models)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"

    async def _models(self, request: web.Request) -> web.Response:
        return web.Response(status=self.statuses.pop(0) if self.statuses else 200)

    async def _complete(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.bodies.append(body)
        self.keys.append(request.headers.get("Authorization", ""))
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        await asyncio.sleep(0.01)
        self.at_once -= 1
        if self.statuses:
            echoed = f"no luck with {self.keys[-1]}"  # as some servers do
            return web.Response(status=self.statuses.pop(0), text=echoed)
        reason = self.refuse(body)
        if reason is not None:
            return web.json_response({"error": {"message": reason}}, status=400)
        n = body.get("n", 1) if self.honours_n else 1
        choices = [
            {
                "index": i,
                "message": {"role": "assistant", "content": self.texts[i]},
                "finish_reason": self.finish,
            }
            for i in reversed(range(n))
        ]
        return web.json_response({"choices": choices, "usage": self.usage})


Test = Callable[[ChatEndpoint, ChatServer], Coroutine[Any, Any, Any]]


def _with_endpoint(test: Test, server: ChatServer | None = None, **options: Any) -> Any:
    server = server or ChatServer()

    async def run() -> Any:
        async with AsyncExitStack() as stack:
            await server.start(stack)
            config = RolloutConfig(chat_url=server.url, chat_model="gpt", **options)
            endpoint = await stack.enter_async_context(ChatEndpoint(config))
            return await asyncio.wait_for(test(endpoint, server), timeout=LIMIT_SECONDS)

    return asyncio.run(run())


def _sample(server: ChatServer, n: int = 1, **options: Any) -> list[Completion]:
    async def test(endpoint: ChatEndpoint, _: ChatServer) -> list[Completion]:
        return await endpoint.generate(PROMPT, SAMPLING, n)

    return _with_endpoint(test, server, **options)


def test_text_goes_in_and_text_comes_out_in_order():
    server = ChatServer()
    completions = _sample(server, n=3)
    assert [completion.text for completion in completions] == ["two", "it is two", "2"]
    assert all((c.token_ids, c.logprobs, c.finish) == ((), (), "stop") for c in completions)
    (body,) = server.bodies
    assert body == {
        "model": "gpt",
        "messages": [{"role": "user", "content": "What is 1 + 1?"}],
        "max_tokens": 64,
        "n": 3,
        "seed": 5,
    }


def test_sampling_other_than_the_default_is_said():
    async def test(endpoint: ChatEndpoint, server: ChatServer) -> None:
        await endpoint.generate(PROMPT, replace(SAMPLING, temperature=0.0, top_p=0.5))
        assert (server.bodies[0]["temperature"], server.bodies[0]["top_p"]) == (0.0, 0.5)

    _with_endpoint(test)


def test_the_tokens_of_a_request_are_shared_out_to_its_samples_without_loss():
    server = ChatServer(usage={"prompt_tokens": 7, "completion_tokens": 31})
    usages = [completion.usage for completion in _sample(server, n=3)]
    assert sum(usage.completion_tokens for usage in usages) == 31
    assert usages[1].completion_tokens > usages[0].completion_tokens > usages[2].completion_tokens
    assert [usage.prompt_tokens for usage in usages] == [7, 7, 7]


@pytest.mark.parametrize(
    "usage",
    [
        {"prompt_tokens": 7, "completion_tokens": 30, "completion_tokens_details": {"reasoning_tokens": 25}},
        {"prompt_tokens": 7, "completion_tokens": 30, "total_tokens": 37},
        {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 37},
    ],
)
def test_hidden_reasoning_counts_as_tokens_out(usage: dict[str, Any]):
    async def test(endpoint: ChatEndpoint, server: ChatServer) -> None:
        (completion,) = await endpoint.generate(PROMPT, SAMPLING)
        assert completion.usage.completion_tokens == endpoint.counts.completion_tokens == 30

    _with_endpoint(test, ChatServer(usage=usage))


def test_an_endpoint_that_refuses_n_is_asked_once_for_each_sample_with_seeds_of_their_own():
    async def test(endpoint: ChatEndpoint, server: ChatServer) -> None:
        for _ in range(2):
            assert len(await endpoint.generate(PROMPT, SAMPLING, 3)) == 3
        assert [body.get("n", 1) for body in server.bodies] == [3, 1, 1, 1, 1, 1, 1]
        assert {body["seed"] for body in server.bodies[1:4]} == {5, 6, 7}

    _with_endpoint(test, ChatServer(refuse=lambda body: "'n' must be 1." if body.get("n", 1) > 1 else None))


def test_an_endpoint_that_ignores_n_is_asked_for_the_rest():
    server = ChatServer(honours_n=False)
    assert len(_sample(server, n=3)) == 3
    assert [body.get("n", 1) for body in server.bodies] == [3, 1, 1]


def test_a_limit_or_a_seed_that_a_model_refuses_is_said_in_its_own_way():
    def refuse(body: dict[str, Any]) -> str | None:
        if "max_tokens" in body:
            return "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."
        return "Unrecognized request argument supplied: seed" if "seed" in body else None

    server = ChatServer(refuse=refuse)
    _sample(server)
    assert server.bodies[-1].keys() == {"model", "messages", "max_completion_tokens"}
    assert len(server.bodies) == 3


def test_a_refusal_that_no_option_of_ours_explains_is_final():
    server = ChatServer(refuse=lambda body: "The prompt is too long.")
    with pytest.raises(RequestRefused, match=r"400.*too long"):
        _sample(server)
    assert len(server.bodies) == 1


def test_refusals_change_a_dialect_at_most_once_each():
    refusal = "n seed max_completion_tokens"
    spoken, steps = Dialect(), 0
    while (following := spoken.without(refusal)) is not None:
        spoken, steps = following, steps + 1
    assert (spoken, steps) == (Dialect(many=False, limit="max_completion_tokens", seed=False), 3)


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_failure_that_may_pass_is_sent_again(status: int):
    server = ChatServer(statuses=[status])
    (completion,) = _sample(server)
    assert (completion.text, len(server.bodies)) == ("two", 2)


def test_a_call_fails_after_its_attempts_with_address_count_and_cause():
    server = ChatServer(statuses=[503] * 9)
    with pytest.raises(CallFailed, match=rf"{'127.0.0.1'}.*after 2 attempts.*503"):
        _sample(server, max_retries=1)
    assert len(server.bodies) == 2


@pytest.mark.parametrize("finish", ["content_filter", "tool_calls"])
def test_a_text_that_ended_for_another_reason_fails_its_call(finish: str):
    with pytest.raises(CallFailed, match=finish):
        _sample(ChatServer(finish=finish))


def test_a_text_that_ran_into_its_limit_says_so():
    (completion,) = _sample(ChatServer(finish="length"))
    assert completion.finish == "length"


def test_no_more_requests_are_in_flight_than_allowed():
    async def test(endpoint: ChatEndpoint, server: ChatServer) -> None:
        await asyncio.gather(*(endpoint.generate(PROMPT, SAMPLING) for _ in range(8)))
        assert (len(server.bodies), server.most_at_once) == (8, 2)

    _with_endpoint(test, max_concurrency=2)


def test_what_needs_ids_is_refused():
    async def test(endpoint: ChatEndpoint, server: ChatServer) -> None:
        assert not endpoint.continues
        with pytest.raises(RequestRefused, match="cannot stop at token ids"):
            await endpoint.generate(PROMPT, replace(SAMPLING, stop_token_ids=(1,)))
        with pytest.raises(NotImplementedError, match="cannot abort"):
            await endpoint.abort(["x"])

    _with_endpoint(test)


def test_a_key_is_sent_and_never_shown(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    server = ChatServer(statuses=[401])
    with pytest.raises(CallFailed, match=r"401.*\[OPENAI_API_KEY\].*Set OPENAI_API_KEY") as error:
        _sample(server, max_retries=0)
    assert server.keys == [f"Bearer {KEY}"]
    failing = ChatServer(statuses=[500] * 2)
    with pytest.raises(CallFailed) as failed:
        _sample(failing, max_retries=1)
    for text in (str(error.value), repr(failed.value), caplog.text):
        assert KEY not in text


def test_a_key_that_the_endpoint_refuses_is_found_before_the_first_problem():
    async def test(endpoint: ChatEndpoint, server: ChatServer) -> None:
        await endpoint.check()
        server.statuses = [404]  # has no list of models
        await endpoint.check()
        server.statuses = [401]
        with pytest.raises(RuntimeError, match="set OPENAI_API_KEY"):
            await endpoint.check()

    _with_endpoint(test)


def test_a_recorded_call_has_budgets_and_a_version():
    async def test(endpoint: ChatEndpoint, server: ChatServer) -> None:
        policy = plain_policy(endpoint)
        await policy.solve([EMPTY], role="trace", round=0)
        (call,) = policy.calls
        assert (call.text, call.policy_version, call.num_tokens) == ("two", 0, 37)
        rollout = Rollout(problem=problem(), operator="trace", calls=(call,), answers=(0,))
        assert budget(rollout, 0).b_total == 37

    _with_endpoint(test)
