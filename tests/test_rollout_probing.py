"""A worker that falls silent is noticed while its calls wait; a slow one is left alone."""

import asyncio
import socket
import time
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from typing import Any

import pytest
from aiohttp import web
from fakes import prompt_of
from stub_server import StubOptions, StubServer, stub_process

from configs.schema import RolloutConfig
from rollout.endpoints import client, probing
from rollout.endpoints.client import Client, Unavailable
from rollout.endpoints.pool import WorkerPool
from rollout.endpoints.routing import Endpoint
from rollout.records import Sampling
from rollout.sampler import CallFailed

SAMPLING = Sampling(temperature=1.0, top_p=1.0, max_tokens=8, seed=1)
LIMIT_SECONDS = 20
EVEN = {"median_tokens": 5, "sigma": 0.0}
SLOW = StubOptions(seconds_per_token=0.3, **EVEN)
"""A call takes 1.5 s, as long as ten health checks in these tests."""


class Silent(StubServer):
    """Accepts connections and answers no request."""

    @web.middleware
    async def _guard(self, request: web.Request, handler: Any) -> web.StreamResponse:
        self.requests += request.path.startswith("/inference")
        await asyncio.sleep(LIMIT_SECONDS)
        return web.Response()


class Unhealthy(StubServer):
    """Answers calls; its health checks fail."""

    async def _health(self, request: web.Request) -> web.Response:
        return web.Response(status=503)


@pytest.fixture(autouse=True)
def _hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probing, "PROBE_SECONDS", 0.1)
    monkeypatch.setattr(probing, "HEALTH_SECONDS", 0.1)
    monkeypatch.setattr("rollout.endpoints.pool.HEALTH_SECONDS", 0.1)


def _with_pool(
    test: Callable[[WorkerPool], Coroutine[Any, Any, Any]], *stubs: StubServer, **options: Any
) -> Any:
    async def run() -> Any:
        async with AsyncExitStack() as stack:
            for stub in stubs:
                await stack.enter_async_context(stub)
            endpoints = [Endpoint(url=stub.url) for stub in stubs]
            pool = await stack.enter_async_context(WorkerPool(endpoints, RolloutConfig(**options)))
            return await asyncio.wait_for(test(pool), timeout=LIMIT_SECONDS)

    return asyncio.run(run())


def test_calls_at_a_worker_that_falls_silent_are_answered_by_another_one():
    silent, good = Silent(), StubServer(StubOptions(**EVEN))

    async def test(pool: WorkerPool) -> float:
        began = time.monotonic()
        made = await asyncio.gather(*(pool.generate(prompt_of(i), SAMPLING) for i in range(8)))
        assert len(made) == 8
        return time.monotonic() - began

    assert _with_pool(test, silent, good) < 5
    assert silent.requests and good.requests == 8


def test_a_silent_worker_is_down_and_its_calls_wait_for_its_restart():
    silent, good = Silent(), StubServer(StubOptions(**EVEN))

    async def test(pool: WorkerPool) -> None:
        release = asyncio.Event()

        async def restart() -> str:
            await release.wait()
            return good.url

        endpoint = Endpoint(url=silent.url, restart=restart)
        pool.endpoints = [endpoint]
        calls = [asyncio.create_task(pool.generate(prompt_of(i), SAMPLING)) for i in range(4)]
        while not endpoint.is_down:
            await asyncio.sleep(0.02)
        assert endpoint.in_flight == 0
        release.set()
        assert len(await asyncio.gather(*calls)) == 4
        assert (pool.restarter.restarts, endpoint.url, good.requests) == (1, good.url, 4)

    _with_pool(test, silent, good)


def test_a_call_without_another_worker_fails_with_the_name_of_the_silent_one():
    async def test(pool: WorkerPool) -> None:
        (endpoint,) = pool.endpoints
        with pytest.raises(CallFailed, match=rf"{endpoint.url} failed 3 health checks in a row"):
            await pool.generate(prompt_of(1), SAMPLING)

    _with_pool(test, Silent(), max_retries=0)


def test_a_slow_call_at_a_healthy_worker_is_not_cut():
    slow = StubServer(SLOW)

    async def test(pool: WorkerPool) -> None:
        assert len(await pool.generate(prompt_of(1), SAMPLING, 2)) == 2
        assert pool.counts.retries == 0

    _with_pool(test, slow)
    assert slow.requests == 1


def test_a_worker_that_answers_calls_is_not_silent_whatever_its_health_checks_say():
    """As one whose server is too busy for them."""
    busy = Unhealthy(StubOptions(seconds_per_token=0.2 / 5, slots=1, **EVEN))

    async def test(pool: WorkerPool) -> None:
        made = await asyncio.gather(*(pool.generate(prompt_of(i), SAMPLING) for i in range(8)))
        assert len(made) == 8 and pool.counts.retries == 0

    _with_pool(test, busy)


@pytest.mark.component
@pytest.mark.parametrize("is_patient", [True, False])
def test_a_worker_that_is_busy_with_building_answers_is_neither_failed_over_nor_restarted(
    is_patient: bool, monkeypatch: pytest.MonkeyPatch
):
    """40 tokens of 50 ms each: 2 s in which it answers nothing; 0.6 s of silence are enough otherwise."""
    monkeypatch.setattr(probing, "ANSWER_SECONDS_PER_TOKEN", 0.06 if is_patient else 0.0)

    async def test(url: str) -> tuple[bool, int]:
        async def restart() -> str:
            return url

        endpoint = Endpoint(url=url, restart=restart)
        async with WorkerPool([endpoint], RolloutConfig(max_retries=0)) as pool:
            call = pool.generate(prompt_of(1), SAMPLING, 8)
            (made,) = await asyncio.gather(call, return_exceptions=True)
            await pool.restarter.settled(endpoint)
            return isinstance(made, CallFailed), pool.restarter.restarts

    with stub_process(StubOptions(answer_seconds_per_token=0.05, **EVEN)) as url:
        has_failed, restarts = asyncio.run(asyncio.wait_for(test(url), timeout=LIMIT_SECONDS))
    assert (has_failed, restarts) == ((False, 0) if is_patient else (True, 1))


@pytest.mark.component
def test_a_call_that_fails_beside_long_answers_does_not_restart_their_worker(
    monkeypatch: pytest.MonkeyPatch,
):
    """The check after a failed call is as patient as the health checks are."""
    monkeypatch.setattr(probing, "ANSWER_SECONDS_PER_TOKEN", 0.06)

    async def test(url: str) -> None:
        async def restart() -> str:
            raise AssertionError("restarted")

        endpoint = Endpoint(url=url, restart=restart)
        async with WorkerPool([endpoint], RolloutConfig()) as pool:
            call = asyncio.create_task(pool.generate(prompt_of(1), SAMPLING, 8))
            await asyncio.sleep(0.3)  # it builds the answer by now
            pool.restarter.begin(endpoint)  # as any failed call does
            await call
            await pool.restarter.settled(endpoint)
            assert (endpoint.lost, pool.restarter.restarts) == ("", 0)

    with stub_process(StubOptions(answer_seconds_per_token=0.05, **EVEN)) as url:
        asyncio.run(asyncio.wait_for(test(url), timeout=LIMIT_SECONDS))


def test_patience_grows_with_the_tokens_that_can_be_answered_in_one_step():
    async def test() -> None:
        endpoint = Endpoint(url="http://a")

        async def never(url: str, seconds: float) -> bool:
            raise AssertionError("not asked")

        prober = probing.Prober(never, max_num_seqs=10)
        assert prober.patience(endpoint) == 0
        async with prober.watching(endpoint, 8, 1000):
            assert prober.patience(endpoint) == pytest.approx(8_000 * probing.ANSWER_SECONDS_PER_TOKEN)
            async with prober.watching(endpoint, 8, 3000):  # of all, only ten end at once
                assert prober.patience(endpoint) == pytest.approx(30_000 * probing.ANSWER_SECONDS_PER_TOKEN)
        assert prober.patience(endpoint) == 0
        await prober.close()

    asyncio.run(test())


def test_a_worker_is_not_probed_while_it_has_no_calls():
    checked: list[str] = []

    class Counting(StubServer):
        async def _health(self, request: web.Request) -> web.Response:
            checked.append(request.path)
            return web.Response()

    async def test(pool: WorkerPool) -> None:
        await pool.generate(prompt_of(1), SAMPLING)
        await asyncio.sleep(0.5)
        assert checked == []

    _with_pool(test, Counting(StubOptions(**EVEN)))


def test_a_call_that_its_caller_cancels_is_not_sent_again():
    silent = Silent()

    async def test(pool: WorkerPool) -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(pool.generate(prompt_of(1), SAMPLING), timeout=0.2)
        assert pool.endpoints[0].in_flight == 0
        await asyncio.sleep(0.5)

    _with_pool(test, silent)
    assert silent.requests == 1


def test_a_machine_that_accepts_no_connection_is_given_up_within_seconds(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(client, "CONNECT_SECONDS", 0.3)

    async def test(url: str) -> None:
        async with Client("VLLM_API_KEY", 600.0) as asking:
            with pytest.raises(Unavailable, match=rf"{url} accepted no connection within 0\.3 s\.$"):
                await asking.sample(url, b"{}")

    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        address = full.getsockname()
        waiting = [socket.socket() for _ in range(4)]  # fill the queue, after which the kernel is silent
        for each in waiting:
            each.setblocking(False)
            each.connect_ex(address)
        asyncio.run(asyncio.wait_for(test(f"http://127.0.0.1:{address[1]}"), timeout=LIMIT_SECONDS))
        for each in waiting:
            each.close()


def test_a_connection_notices_that_the_other_machine_vanished(monkeypatch: pytest.MonkeyPatch):
    made: list[socket.socket] = []
    make = client._socket

    def keep(address: Any) -> socket.socket:
        made.append(make(address))
        return made[-1]

    monkeypatch.setattr(client, "_socket", keep)

    async def test(pool: WorkerPool) -> list[int]:
        await pool.generate(prompt_of(1), SAMPLING)
        return [made[0].getsockopt(level, option) for level, option, _ in client.TCP_OPTIONS]

    assert _with_pool(test, StubServer(StubOptions(**EVEN))) == [1, 15, 5, 3, 30_000]
