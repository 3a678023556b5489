"""The pool against a small server that does on demand what a real one does not."""

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from aiohttp import web
from fakes import prompt_of

from configs.schema import RolloutConfig
from rollout.endpoints.pool import WorkerPool
from rollout.endpoints.routing import Endpoint
from rollout.endpoints.vllm_api import parse_version
from rollout.records import Completion, Sampling, VersionSpan
from rollout.sampler import CallFailed, RequestRefused
from rollout.workers.loopback import free_port

SAMPLING = Sampling(temperature=1.0, top_p=1.0, max_tokens=8, seed=1)
LIMIT_SECONDS = 30


def _choice(index: int, ids: list[int], versions: list[dict[str, Any]]) -> dict[str, Any]:
    content = [{"token_id": i, "logprob": -0.5 * i} for i in ids]
    return {
        "index": index,
        "token_ids": ids,
        "logprobs": {"content": content},
        "finish_reason": "stop",
        "weight_versions": versions,
    }


def _answer(body: dict[str, Any]) -> dict[str, Any]:
    """Choice i holds the ids [i + 1, 9], all of one version, in reversed order."""
    n = body["sampling_params"]["n"]
    versions = [{"version": "default", "start": 0, "end": 2}]
    choices = [_choice(i, [i + 1, 9], versions) for i in reversed(range(n))]
    usage = {
        "prompt_tokens": len(body["token_ids"]),
        "completion_tokens": 2 * n,
        "prompt_tokens_details": {"cached_tokens": 1},
    }
    return {"choices": choices, "usage": usage}


Handler = Callable[["Stub", dict[str, Any]], Awaitable[web.Response]]


@dataclass(slots=True)
class Stub:
    """A server on loopback that answers /inference/v1/generate as ``handler`` says."""

    handler: Handler
    bodies: list[dict[str, Any]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    at_once: int = 0
    most_at_once: int = 0
    version: str = "7"
    url: str = ""
    transport: asyncio.BaseTransport | None = None
    """Of the latest request."""

    async def start(self, stack: AsyncExitStack) -> None:
        app = web.Application()
        app.router.add_post("/inference/v1/generate", self._generate)
        app.router.add_get("/health", self._other)
        app.router.add_get("/weight_info", self._weight_info)
        app.router.add_get("/v1/models", self._other)
        app.router.add_post("/sleep", self._sleepy)
        app.router.add_post("/resume", self._other)
        app.router.add_post("/reset_prefix_cache", self._broken)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        port = free_port()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        self.url = f"http://127.0.0.1:{port}"

    async def _generate(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.bodies.append(body)
        self.transport = request.transport
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            return await self.handler(self, body)
        finally:
            self.at_once -= 1

    async def _other(self, request: web.Request) -> web.Response:
        self.paths.append(request.path)
        return web.Response()

    async def _weight_info(self, request: web.Request) -> web.Response:
        return web.json_response({"weight_version": self.version})

    async def _sleepy(self, request: web.Request) -> web.Response:
        await asyncio.sleep(LIMIT_SECONDS)
        return web.Response()

    async def _broken(self, request: web.Request) -> web.Response:
        return web.Response(status=500, text="out of cheese")


async def fine(stub: Stub, body: dict[str, Any]) -> web.Response:
    return web.json_response(_answer(body))


def failing(times: int, status: int, headers: dict[str, str] | None = None) -> Handler:
    """Fails the first requests, then answers."""

    async def handle(stub: Stub, body: dict[str, Any]) -> web.Response:
        if len(stub.bodies) <= times:
            return web.Response(status=status, text="no luck today", headers=headers)
        return web.json_response(_answer(body))

    return handle


async def hang(stub: Stub, body: dict[str, Any]) -> web.Response:
    await asyncio.sleep(LIMIT_SECONDS)
    return web.Response()


def _with_pool(
    test: Callable[[WorkerPool, list[Stub]], Coroutine[Any, Any, Any]], *handlers: Handler, **options: Any
) -> Any:
    async def run() -> Any:
        async with AsyncExitStack() as stack:
            stubs = [Stub(handler=handler) for handler in handlers]
            for stub in stubs:
                await stub.start(stack)
            endpoints = [Endpoint(url=stub.url) for stub in stubs]
            pool = await stack.enter_async_context(WorkerPool(endpoints, RolloutConfig(**options)))
            return await asyncio.wait_for(test(pool, stubs), timeout=LIMIT_SECONDS)

    return asyncio.run(run())


def test_a_pool_closes_its_connections_if_what_is_called_before_fails():
    async def run() -> bool:
        async def fail() -> None:
            raise TimeoutError("the group was not left")

        pool = WorkerPool([Endpoint(url="http://127.0.0.1:1")], RolloutConfig())
        with pytest.raises(TimeoutError, match="the group was not left"):
            async with pool:
                pool.before_close = fail
        return pool._client._session.closed

    assert asyncio.run(run())


async def _generate(pool: WorkerPool, stubs: list[Stub]) -> Any:
    return await pool.generate(prompt_of(1, 2, 3), SAMPLING, 2)


def test_ids_and_logprobs_come_back_as_sampled_in_the_order_of_their_index():
    first, second = _with_pool(_generate, fine)
    assert (first.token_ids, second.token_ids) == ((1, 9), (2, 9))
    assert (first.logprobs, second.logprobs) == ((-0.5, -4.5), (-1.0, -4.5))
    assert first.finish == "stop"
    assert first.versions == (VersionSpan(version=0, start=0, end=2),)


def test_a_request_says_how_to_sample_and_carries_ids_only():
    async def test(pool: WorkerPool, stubs: list[Stub]) -> None:
        await pool.generate(prompt_of(4, 5), SAMPLING, 3)
        (body,) = stubs[0].bodies
        assert body["token_ids"] == [4, 5]
        expected = {"n": 3, "temperature": 1.0, "top_p": 1.0, "max_tokens": 8, "seed": 1}
        assert body["sampling_params"].items() >= expected.items()
        assert body["sampling_params"]["stop_token_ids"] == []
        counts = pool.counts
        assert (counts.prompt_tokens, counts.completion_tokens, counts.cached_tokens) == (2, 6, 1)

    _with_pool(test, fine)


def test_greedy_samples_are_asked_for_one_by_one():
    async def test(pool: WorkerPool, stubs: list[Stub]) -> None:
        greedy = Sampling(temperature=0.0, top_p=1.0, max_tokens=8, seed=1)
        assert len(await pool.generate(prompt_of(4, 5), greedy, 3)) == 3
        assert [body["sampling_params"]["n"] for body in stubs[0].bodies] == [1, 1, 1]

    _with_pool(test, fine)


def test_ids_that_stop_a_completion_are_sent_along():
    async def test(pool: WorkerPool, stubs: list[Stub]) -> None:
        await pool.generate(prompt_of(1), replace(SAMPLING, stop_token_ids=(8, 9)))
        assert stubs[0].bodies[0]["sampling_params"]["stop_token_ids"] == [8, 9]

    _with_pool(test, fine)


@pytest.mark.parametrize("status", [500, 503, 429, 408, 401, 404])
def test_a_server_error_is_sent_again(status: int):
    async def test(pool: WorkerPool, stubs: list[Stub]) -> None:
        assert len(await pool.generate(prompt_of(1), SAMPLING, 2)) == 2
        assert stubs[0].bodies[0] == stubs[0].bodies[1]
        assert len(stubs[0].bodies) == 2
        assert (pool.counts.requests, pool.counts.retries) == (2, 1)

    _with_pool(test, failing(1, status))


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_refused_request_is_not_sent_again(status: int):
    async def test(pool: WorkerPool, stubs: list[Stub]) -> None:
        with pytest.raises(RequestRefused, match=f"{stubs[0].url}/.* refused .* {status}: no luck today"):
            await pool.generate(prompt_of(1), SAMPLING)
        assert len(stubs[0].bodies) == 1
        assert pool.counts.retries == 0
        assert pool.endpoints[0].in_flight == 0

    _with_pool(test, failing(99, status))


def test_an_error_after_the_last_attempt_names_the_worker_and_its_failure():
    async def test(pool: WorkerPool, stubs: list[Stub]) -> None:
        with pytest.raises(RuntimeError, match=r"answered after 2 attempts.*500: no luck today"):
            await pool.generate(prompt_of(1), SAMPLING)
        assert len(stubs[0].bodies) == 2

    _with_pool(test, failing(99, 500), max_retries=1)


def test_a_request_that_hangs_is_cut_at_its_limit():
    async def test(pool: WorkerPool, stubs: list[Stub]) -> None:
        with pytest.raises(RuntimeError, match=r"answered after 1 attempts.*did not answer within 0.3 s"):
            await pool.generate(prompt_of(1), SAMPLING)
        assert pool.endpoints[0].in_flight == 0

    _with_pool(test, hang, request_timeout_seconds=0.3, max_retries=0)


@pytest.mark.parametrize("jump", [86_400.0, -86_400.0])
def test_limits_do_not_follow_a_clock_that_jumps(jump: float, monkeypatch: pytest.MonkeyPatch):
    now, reads = time.time, itertools.count()
    monkeypatch.setattr(time, "time", lambda: now() + jump * next(reads))

    async def test(pool: WorkerPool, stubs: list[Stub]) -> None:
        clock = asyncio.get_running_loop().time
        started = clock()
        with pytest.raises(RuntimeError, match=r"did not answer within 0\.3 s"):
            await pool.generate(prompt_of(1), SAMPLING)
        assert 0.3 <= clock() - started < 5

    _with_pool(test, hang, request_timeout_seconds=0.3, max_retries=0)
    assert len(_with_pool(_generate, fine)) == 2


@pytest.mark.component
def test_nothing_is_sent_before_the_time_that_a_worker_asked_to_be_left_alone():
    async def test(pool: WorkerPool, stubs: list[Stub]) -> None:
        clock = asyncio.get_running_loop().time
        started = clock()
        await asyncio.gather(*(pool.generate(prompt_of(i), SAMPLING) for i in range(3)))
        assert clock() - started >= 2.0
        assert len(stubs[0].bodies) == 4
        assert stubs[0].paths == []  # a busy worker is a healthy one

    _with_pool(test, failing(1, 429, {"Retry-After": "2"}), max_concurrency=1)


def test_while_a_worker_wants_to_be_left_alone_another_one_serves():
    async def test(pool: WorkerPool, stubs: list[Stub]) -> None:
        for i in range(4):
            await pool.generate(prompt_of(i), SAMPLING)
        assert (len(stubs[0].bodies), len(stubs[1].bodies)) == (1, 4)

    _with_pool(test, failing(99, 429, {"Retry-After": "3600"}), fine)


def test_a_pause_longer_than_a_request_may_take_fails_the_call_at_once():
    async def test(pool: WorkerPool, stubs: list[Stub]) -> None:
        with pytest.raises(CallFailed, match=r"asks to wait 3600 s .*request_timeout_seconds = 600"):
            await pool.generate(prompt_of(1), SAMPLING)

    _with_pool(test, failing(99, 429, {"Retry-After": "3600"}))


def test_a_connection_that_is_reset_is_sent_again():
    async def reset(stub: Stub, body: dict[str, Any]) -> web.Response:
        if len(stub.bodies) == 1:
            assert stub.transport is not None
            stub.transport.abort()
            await asyncio.sleep(LIMIT_SECONDS)
        return web.json_response(_answer(body))

    async def test(pool: WorkerPool, stubs: list[Stub]) -> None:
        assert len(await pool.generate(prompt_of(1), SAMPLING)) == 1
        assert len(stubs[0].bodies) == 2

    _with_pool(test, reset)


def _spoiled(change: Callable[[dict[str, Any]], None]) -> Handler:
    """Answers with what ``change`` makes of a good answer."""

    async def handle(stub: Stub, body: dict[str, Any]) -> web.Response:
        answer = _answer(body)
        change(answer)
        return web.json_response(answer)

    return handle


def _of_first(**fields: Any) -> Callable[[dict[str, Any]], None]:
    return lambda answer: answer["choices"][0].update(fields)


def _logprob(value: float | None) -> Callable[[dict[str, Any]], None]:
    return lambda answer: answer["choices"][0]["logprobs"]["content"][0].update(logprob=value)


IMPOSSIBLE = {
    "no choice": (lambda answer: answer["choices"].clear(), r"choices of index \[\], and 2 were asked for"),
    "one choice": (lambda answer: answer["choices"].pop(), r"choices of index \[1\], and 2"),
    "three choices": (lambda answer: answer["choices"].append(_choice(2, [9], [])), r"\[0, 1, 2\], and 2"),
    "one index twice": (_of_first(index=0), r"choices of index \[0, 0\]"),
    "log-prob above 0": (_logprob(5.0), r"a logprob of 5\.0"),
    "log-prob of a broken policy": (_logprob(-9999.0), r"a logprob of -9999\.0 .*NaN.*weights .* are broken"),
    "no log-prob": (_logprob(None), "does not answer as vLLM .*logprob"),
    "negative id": (_of_first(token_ids=[-1, 9]), "does not answer as vLLM .*token_ids"),
    "huge id": (_of_first(token_ids=[10**12, 9]), "does not answer as vLLM .*token_ids"),
    "too long": (
        lambda answer: answer["choices"].__setitem__(0, _choice(1, [9] * 5000, [])),
        "5000 token_ids",
    ),
    "ids of others": (_of_first(token_ids=[2, 8]), "logprobs of other tokens"),
    "negative usage": (lambda answer: answer["usage"].update(completion_tokens=-100), "completion_tokens"),
    "newer version": (
        _of_first(weight_versions=[{"version": "999", "start": 0, "end": 2}]),
        "weight version 999, and 0 is the newest",
    ),
    "span outside": (
        _of_first(weight_versions=[{"version": "default", "start": 0, "end": 7}]),
        "weight_versions 0 to 7 of 2 tokens",
    ),
    "unknown finish": (_of_first(finish_reason="tired"), "finish_reason"),
    "no vLLM": (lambda answer: answer.update(choices="none"), "does not answer as vLLM .*choices"),
}


@pytest.mark.parametrize("kind", IMPOSSIBLE)
def test_an_impossible_answer_is_not_believed_and_another_worker_is_asked(kind: str):
    change, message = IMPOSSIBLE[kind]

    async def test(pool: WorkerPool, stubs: list[Stub]) -> None:
        completions = await pool.generate(prompt_of(1), SAMPLING, 2)
        assert [completion.token_ids for completion in completions] == [(1, 9), (2, 9)]
        assert len(stubs[1].bodies) == 1

    _with_pool(test, _spoiled(change), fine)

    async def alone(pool: WorkerPool, stubs: list[Stub]) -> None:
        with pytest.raises(CallFailed, match=rf"http://127\.0\.0\.1:\d+ .*{message}"):
            await pool.generate(prompt_of(1), SAMPLING, 2)

    _with_pool(alone, _spoiled(change), max_retries=0)


def test_a_version_is_believed_once_it_was_published():
    async def test(pool: WorkerPool, stubs: list[Stub]) -> None:
        pool.published_version = 3
        (completion,) = await pool.generate(prompt_of(1), SAMPLING)
        assert completion.versions[0].version == 3

    _with_pool(test, _spoiled(_of_first(weight_versions=[{"version": "3", "start": 0, "end": 2}])))


@pytest.mark.parametrize("status", [401, 404, 200])
def test_a_worker_that_answers_nonsense_at_once_does_not_swallow_the_calls(status: int):
    """It is always the least loaded; nothing that it answers may count as an answer."""

    async def nonsense(stub: Stub, body: dict[str, Any]) -> web.Response:
        return web.Response(status=status, text="<html>hello</html>", content_type="text/html")

    async def test(pool: WorkerPool, stubs: list[Stub]) -> None:
        made = await asyncio.gather(*(pool.generate(prompt_of(i), SAMPLING) for i in range(40)))
        assert len(made) == 40
        assert len(stubs[1].bodies) == 40

    _with_pool(test, nonsense, fine)


def test_what_a_hanging_worker_does_not_answer_another_one_does():
    async def test(pool: WorkerPool, stubs: list[Stub]) -> None:
        assert len(await pool.generate(prompt_of(1), SAMPLING)) == 1
        assert (len(stubs[0].bodies), len(stubs[1].bodies)) == (1, 1)

    _with_pool(test, hang, fine, request_timeout_seconds=0.3)


def test_a_worker_that_always_fails_does_not_swallow_requests():
    async def test(pool: WorkerPool, stubs: list[Stub]) -> None:
        done = await asyncio.gather(*(pool.generate(prompt_of(i), SAMPLING) for i in range(6)))
        assert len(done) == 6
        assert len(stubs[1].bodies) == 6

    _with_pool(test, failing(999, 500), fine, max_retries=1)


def test_a_worker_that_is_gone_does_not_swallow_requests():
    async def test(pool: WorkerPool, stubs: list[Stub]) -> None:
        pool.endpoints.insert(0, Endpoint(url=f"http://127.0.0.1:{free_port()}"))
        done = await asyncio.gather(*(pool.generate(prompt_of(i), SAMPLING) for i in range(4)))
        assert len(done) == len(stubs[0].bodies) == 4

    _with_pool(test, fine, max_retries=1)


def test_requests_go_to_the_least_loaded_worker():
    async def test(pool: WorkerPool, stubs: list[Stub]) -> None:
        release = asyncio.Event()

        async def hold(stub: Stub, body: dict[str, Any]) -> web.Response:
            await release.wait()
            return web.json_response(_answer(body))

        stubs[0].handler = stubs[1].handler = hold
        waiting = [asyncio.create_task(pool.generate(prompt_of(i), SAMPLING)) for i in range(10)]
        while sum(len(stub.bodies) for stub in stubs) < 10:
            await asyncio.sleep(0.005)
        assert [stub.at_once for stub in stubs] == [5, 5]
        release.set()
        await asyncio.gather(*waiting)
        assert [endpoint.in_flight for endpoint in pool.endpoints] == [0, 0]

    _with_pool(test, fine, fine)


def test_calls_of_one_context_go_to_one_worker_and_other_contexts_elsewhere():
    async def test(pool: WorkerPool, stubs: list[Stub]) -> None:
        release = asyncio.Event()

        async def hold(stub: Stub, body: dict[str, Any]) -> web.Response:
            await release.wait()
            return web.json_response(_answer(body))

        stubs[0].handler = stubs[1].handler = hold
        contexts = [1, 2, 1, 2, 1, 2]
        waiting = []
        for context in contexts:  # one by one, so that each sees the load of those before
            waiting.append(asyncio.create_task(pool.generate(prompt_of(context), SAMPLING)))
            await asyncio.sleep(0.02)
        release.set()
        await asyncio.gather(*waiting)
        seen = [{body["token_ids"][0] for body in stub.bodies} for stub in stubs]
        assert seen == [{1}, {2}]

    _with_pool(test, fine, fine)


def test_a_call_that_goes_on_after_its_context_went_to_a_worker_goes_to_that_worker():
    async def test(pool: WorkerPool, stubs: list[Stub]) -> None:
        start = prompt_of(1, 2)
        for ids in ((1, 2), (1, 2, 5), (1, 2, 5, 6)):
            await pool.generate(replace(start, ids=ids), SAMPLING)
        assert sorted(len(stub.bodies) for stub in stubs) == [0, 3]

    _with_pool(test, fine, fine)


def test_a_free_worker_gets_everything_while_the_other_is_stuck():
    async def test(pool: WorkerPool, stubs: list[Stub]) -> None:
        stuck = asyncio.create_task(pool.generate(prompt_of(0), SAMPLING))
        while not stubs[0].bodies:
            await asyncio.sleep(0.005)
        for i in range(5):
            await pool.generate(prompt_of(1 + i), SAMPLING)
        assert (len(stubs[0].bodies), len(stubs[1].bodies)) == (1, 5)
        stuck.cancel()

    _with_pool(test, hang, fine)


@pytest.mark.parametrize("most", [1, 3])
def test_no_more_requests_are_in_flight_than_allowed(most: int):
    async def slow(stub: Stub, body: dict[str, Any]) -> web.Response:
        await asyncio.sleep(0.01)
        return web.json_response(_answer(body))

    async def test(pool: WorkerPool, stubs: list[Stub]) -> None:
        await asyncio.gather(*(pool.generate(prompt_of(i), SAMPLING) for i in range(12)))
        assert len(stubs[0].bodies) == 12
        assert stubs[0].most_at_once == most

    _with_pool(test, slow, max_concurrency=most)


def test_every_span_of_tokens_knows_its_version():
    async def republished(stub: Stub, body: dict[str, Any]) -> web.Response:
        answer = _answer(body)
        answer["choices"] = [
            _choice(
                0,
                [4, 5, 6],
                [
                    {"version": "default", "start": 0, "end": 1},
                    {"version": "12", "start": 1, "end": 3},
                ],
            )
        ]
        return web.json_response(answer)

    async def test(pool: WorkerPool, stubs: list[Stub]) -> list[Completion]:
        pool.published_version = 12
        return await pool.generate(prompt_of(1), SAMPLING)

    (completion,) = _with_pool(test, republished)
    assert completion.versions == (
        VersionSpan(version=0, start=0, end=1),
        VersionSpan(version=12, start=1, end=3),
    )


def test_a_weight_label_that_is_no_version_is_an_error():
    assert [parse_version(label) for label in ("default", "0", "41")] == [0, 0, 41]
    with pytest.raises(ValueError):
        parse_version("main")


def test_the_served_version_is_what_the_worker_says():
    async def test(pool: WorkerPool, stubs: list[Stub]) -> None:
        assert await pool.served_version(pool.endpoints[0]) == 7
        stubs[0].version = "default"
        assert await pool.served_version(pool.endpoints[0]) == 0

    _with_pool(test, fine)


def test_a_control_request_names_worker_and_path_when_it_fails():
    async def test(pool: WorkerPool, stubs: list[Stub]) -> None:
        url = pool.endpoints[0].url
        await pool.api.resume(url, 5.0)
        assert stubs[0].paths == ["/resume"]
        with pytest.raises(RuntimeError, match=rf"{url}/reset_prefix_cache\?.* answered 500: out of cheese"):
            await pool.api.reset_prefix_cache(url, 5.0)
        with pytest.raises(RuntimeError, match=rf"{url}/sleep\S* did not answer within 0.2 s"):
            await pool.api.sleep(url, 0.2)
        gone = Endpoint(url=f"http://127.0.0.1:{free_port()}")
        with pytest.raises(RuntimeError, match=f"{gone.url}/resume failed"):
            await pool.api.resume(gone.url, 5.0)
        with pytest.raises(RuntimeError, match=f"{gone.url}/weight_info failed"):
            await pool.served_version(gone)

    _with_pool(test, fine)


def test_a_dead_local_worker_is_restarted_once_however_many_requests_it_failed():
    async def test(pool: WorkerPool, stubs: list[Stub]) -> None:
        started: list[str] = []
        brought_up: list[str] = []

        async def restart() -> str:
            await asyncio.sleep(0.05)
            started.append(stubs[0].url)
            return stubs[0].url

        async def bring_up(endpoint: Endpoint) -> None:
            assert stubs[0].bodies == []  # current weights first, then requests
            brought_up.append(endpoint.url)

        pool.endpoints = [Endpoint(url=f"http://127.0.0.1:{free_port()}", restart=restart)]
        pool.restarter.after_restart = bring_up
        done = await asyncio.gather(*(pool.generate(prompt_of(i), SAMPLING) for i in range(8)))
        assert len(done) == len(stubs[0].bodies) == 8
        assert started == brought_up == [stubs[0].url]
        assert pool.restarter.restarts == 1

    _with_pool(test, fine)


def test_a_healthy_local_worker_is_not_restarted_for_one_failed_request():
    async def test(pool: WorkerPool, stubs: list[Stub]) -> None:
        async def restart() -> str:
            raise AssertionError("restarted")

        pool.endpoints[0].restart, pool.endpoints[0].version = restart, 7
        assert len(await pool.generate(prompt_of(1), SAMPLING)) == 1
        assert pool.endpoints[0].lost == ""
        assert stubs[0].paths == ["/health", "/v1/models"]

    _with_pool(test, failing(1, 500))
