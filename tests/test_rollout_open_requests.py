"""Aborting requests: what was sampled comes back, once, from the worker that had it."""

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from typing import Any

import pytest
from aiohttp import web
from fakes import prompt_of
from stub_server import StubOptions, StubServer

from configs.schema import RolloutConfig
from rollout.endpoints import open_requests
from rollout.endpoints.pool import WorkerPool
from rollout.endpoints.routing import Endpoint
from rollout.records import Completion, Sampling, VersionSpan
from rollout.sampler import CallFailed

pytestmark = pytest.mark.component

SAMPLING = Sampling(temperature=1.0, top_p=1.0, max_tokens=100_000, seed=1)
LIMIT_SECONDS = 20
SLOW = StubOptions(slots=4, median_tokens=2000, sigma=0.0, seconds_per_token=0.002)
"""A sequence takes four seconds."""

Test = Callable[[WorkerPool, list[StubServer]], Coroutine[Any, Any, Any]]


class Stub(StubServer):
    """Remembers what it was asked; can be told to break in various ways."""

    def __init__(self, options: StubOptions) -> None:
        super().__init__(options)
        self.aborted: list[str] = []
        self.loses_aborts = 0
        self.dies_on_abort = False
        self.transports: list[asyncio.Transport] = []

    async def _abort(self, request: web.Request) -> web.Response:
        self.aborted += (await request.json())["request_ids"]
        if self.dies_on_abort:
            for transport in self.transports:
                transport.abort()
            return web.Response(status=500)
        if self.loses_aborts > 0:
            self.loses_aborts -= 1
            return web.Response()
        return await super()._abort(request)

    async def _generate(self, request: web.Request) -> web.Response:
        assert request.transport is not None
        self.transports.append(request.transport)
        return await super()._generate(request)


def _with_pool(test: Test, *options: StubOptions, **config: Any) -> Any:
    async def run() -> Any:
        async with AsyncExitStack() as stack:
            stubs = [await stack.enter_async_context(Stub(option)) for option in options]
            endpoints = [Endpoint(url=stub.url, version=5) for stub in stubs]
            pool = await stack.enter_async_context(WorkerPool(endpoints, RolloutConfig(**config)))
            return await asyncio.wait_for(test(pool, stubs), timeout=LIMIT_SECONDS)  # type: ignore[arg-type]

    return asyncio.run(run())


async def _under_way(pool: WorkerPool, *names: str, n: int = 1, sampling: Sampling = SAMPLING):
    """Requests of contexts of their own that their workers have had for a moment."""
    tasks = [
        asyncio.create_task(pool.generate(prompt_of(i + 1), sampling, n, name))
        for i, name in enumerate(names)
    ]
    await asyncio.sleep(0.3)
    return tasks


def _is_partial(completion: Completion) -> bool:
    written = len(completion.token_ids)
    return (
        completion.finish == "abort"
        and 0 < written < 2000
        and len(completion.logprobs) == written == completion.usage.completion_tokens
        and completion.versions[-1].end == written
    )


def test_an_aborted_request_returns_what_was_sampled_and_is_not_sent_again():
    async def test(pool: WorkerPool, stubs: list[Stub]) -> None:
        (task,) = await _under_way(pool, "mine", n=3)
        await pool.abort(["mine"])
        completions = await task
        assert [_is_partial(completion) for completion in completions] == [True] * 3
        assert stubs[0].requests == 1
        assert pool.counts.completion_tokens == sum(len(c.token_ids) for c in completions)

    _with_pool(test, SLOW)


def test_only_the_worker_that_has_a_request_is_told_and_others_go_on():
    async def test(pool: WorkerPool, stubs: list[Stub]) -> None:
        first, second = await _under_way(pool, "a", "b")
        await pool.abort(["a"])
        assert [len(stub.aborted) for stub in stubs] == [1, 0]
        assert _is_partial((await first)[0])
        assert not second.done()
        (whole,) = await second
        assert (whole.finish, len(whole.token_ids)) == ("stop", 2000)

    _with_pool(test, SLOW, SLOW)


def test_greedy_samples_are_aborted_under_their_common_name():
    async def test(pool: WorkerPool, stubs: list[Stub]) -> None:
        greedy = Sampling(temperature=0.0, top_p=1.0, max_tokens=100_000, seed=1)
        (task,) = await _under_way(pool, "mine", n=3, sampling=greedy)
        await pool.abort(["mine"])
        assert len(set(stubs[0].aborted)) == 3
        assert [_is_partial(completion) for completion in await task] == [True] * 3

    _with_pool(test, SLOW)


def test_an_abort_that_overtook_its_request_is_repeated():
    async def test(pool: WorkerPool, stubs: list[Stub]) -> None:
        (task,) = await _under_way(pool, "mine")
        stubs[0].loses_aborts = 2
        await pool.abort(["mine"])
        assert len(stubs[0].aborted) == 3
        assert _is_partial((await task)[0])

    _with_pool(test, SLOW)


def test_a_request_that_waits_for_its_turn_is_aborted_without_being_sent():
    async def test(pool: WorkerPool, stubs: list[Stub]) -> None:
        first, second = await _under_way(pool, "first", "second", n=2)
        await pool.abort(["second"])
        nothing = (await second)[0]
        assert len(second.result()) == 2
        assert (nothing.token_ids, nothing.finish) == ((), "abort")
        assert nothing.versions == (VersionSpan(version=5, start=0, end=0),)
        assert (nothing.usage.prompt_tokens, nothing.usage.completion_tokens) == (0, 0)
        assert (stubs[0].requests, stubs[0].aborted) == (1, [])
        assert not first.done()
        await pool.abort(["first"])

    _with_pool(test, SLOW, max_concurrency=1)


def test_a_request_whose_worker_dies_during_the_abort_fails_and_is_not_sent_again():
    async def test(pool: WorkerPool, stubs: list[Stub]) -> None:
        (task,) = await _under_way(pool, "mine")
        stubs[0].dies_on_abort = True
        await pool.abort(["mine"])
        with pytest.raises(CallFailed, match=rf"broke while it aborted.*{stubs[0].url}"):
            await task
        assert [stub.requests for stub in stubs] == [1, 0]

    _with_pool(test, SLOW, SLOW)


def test_a_worker_that_keeps_an_aborted_request_is_not_waited_for_without_end(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(open_requests, "ABORT_SECONDS", 1.0)

    async def test(pool: WorkerPool, stubs: list[Stub]) -> None:
        (task,) = await _under_way(pool, "mine")
        stubs[0].loses_aborts = 99
        await pool.abort(["mine"])
        with pytest.raises(CallFailed, match=rf"{stubs[0].url} did not return an aborted request within 1 s"):
            await task
        assert pool.endpoints[0].in_flight == 0

    _with_pool(test, SLOW)


def test_names_that_are_not_under_way_are_passed_over():
    async def test(pool: WorkerPool, stubs: list[Stub]) -> None:
        await pool.abort(["never", "seen"])
        await pool.generate(prompt_of(1), SAMPLING, 1, "done")
        await pool.abort(["done"])
        assert stubs[0].aborted == []

    _with_pool(test, StubOptions(median_tokens=5))


def test_a_caller_that_is_cancelled_itself_stays_cancelled():
    async def test(pool: WorkerPool, stubs: list[Stub]) -> None:
        (task,) = await _under_way(pool, "mine")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert pool.endpoints[0].in_flight == 0
        await pool.abort(["mine"])

    _with_pool(test, SLOW)


def test_an_abort_that_nobody_asked_for_is_sent_again():
    async def test(pool: WorkerPool, stubs: list[Stub]) -> None:
        (task,) = await _under_way(pool, "mine")
        for event in stubs[0]._aborts.values():  # as a worker does that is told to end
            event.set()
        (completion,) = await task
        assert (completion.finish, len(completion.token_ids)) == ("stop", 2000)
        assert pool.counts.retries == 1

    _with_pool(test, SLOW)
