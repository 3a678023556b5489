"""Groups in several requests: the same samples, spread over workers, within a limit of sequences."""

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from typing import Any

import pytest
from aiohttp import web
from fakes import prompt_of
from stub_server import StubOptions, StubServer

from configs.schema import RolloutConfig
from rollout.endpoints.pool import WorkerPool
from rollout.endpoints.routing import Endpoint
from rollout.endpoints.slots import SequenceSlots
from rollout.records import Sampling
from rollout.sampler import CallFailed, RequestRefused

SAMPLING = Sampling(temperature=1.0, top_p=1.0, max_tokens=100, seed=5)
LIMIT_SECONDS = 20
OPTIONS = StubOptions(median_tokens=20, sigma=0.5)


class Stub(StubServer):
    """Remembers what it was asked for, and can refuse or break a request by its seed."""

    def __init__(
        self, options: StubOptions = OPTIONS, status: Callable[[int], int] = lambda seed: 200
    ) -> None:
        super().__init__(options)
        self.status = status
        self.asked: list[tuple[int, int]] = []
        """Seed and samples of each request."""
        self.in_flight = self.most_in_flight = 0
        self.aborted: set[str] = set()

    async def _generate(self, request: web.Request) -> web.Response:
        params = (await request.json())["sampling_params"]
        self.asked.append((params["seed"], params["n"]))
        self.in_flight += params["n"]
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            if (status := self.status(params["seed"])) != 200:
                return web.Response(status=status)
            await asyncio.sleep(0.02)
            return await super()._generate(request)
        finally:
            self.in_flight -= params["n"]

    async def _abort(self, request: web.Request) -> web.Response:
        self.aborted |= set((await request.json())["request_ids"])
        return await super()._abort(request)


def _with_pool(test: Callable[[WorkerPool], Coroutine[Any, Any, Any]], *stubs: Stub, **options: Any) -> Any:
    async def run() -> Any:
        async with AsyncExitStack() as stack:
            for stub in stubs:
                await stack.enter_async_context(stub)
            endpoints = [Endpoint(url=stub.url) for stub in stubs]
            pool = await stack.enter_async_context(WorkerPool(endpoints, RolloutConfig(**options)))
            return await asyncio.wait_for(test(pool), timeout=LIMIT_SECONDS)

    return asyncio.run(run())


def test_a_group_is_split_into_requests_whose_seeds_go_on():
    stub = Stub()

    async def test(pool: WorkerPool) -> None:
        assert len(await pool.generate(prompt_of(1, 2, 3), SAMPLING, 20)) == 20
        # A prompt counts once for each request, as the workers count it.
        assert (pool.counts.requests, pool.counts.prompt_tokens) == (3, 9)

    _with_pool(test, stub, samples_per_request=8)
    assert stub.asked == [(5, 6), (11, 7), (18, 7)]


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("samples_per_request", [1, 3, 8, 64])
def test_samples_do_not_depend_on_how_they_are_split(samples_per_request: int, workers: int):
    async def test(pool: WorkerPool) -> list[tuple[int, ...]]:
        made = await pool.generate(prompt_of(1), SAMPLING, 20)
        assert pool.counts.completion_tokens == sum(len(one.token_ids) for one in made)
        return [one.token_ids for one in made]

    whole = _with_pool(test, Stub(), samples_per_request=20)
    assert len(set(whole)) > 10
    stubs = [Stub() for _ in range(workers)]
    assert _with_pool(test, *stubs, samples_per_request=samples_per_request) == whole


def test_a_large_group_is_spread_over_workers_and_a_small_one_keeps_to_one_prefix():
    stubs = [Stub(), Stub()]

    async def test(pool: WorkerPool) -> None:
        await pool.generate(prompt_of(1), SAMPLING, 32)
        shares = [sum(n for _, n in stub.asked) for stub in stubs]
        assert sum(shares) == 32 and min(shares) >= 12
        for stub in stubs:
            stub.asked.clear()
        await pool.generate(prompt_of(2), SAMPLING, 8)
        assert sorted(len(stub.asked) for stub in stubs) == [0, 2]

    _with_pool(test, *stubs, samples_per_request=4)


def test_only_the_samples_of_a_lost_request_are_asked_for_again():
    lost = [9]
    stub = Stub(status=lambda seed: 503 if seed in lost and lost.remove(seed) is None else 200)

    async def test(pool: WorkerPool) -> list[tuple[int, ...]]:
        return [one.token_ids for one in await pool.generate(prompt_of(1), SAMPLING, 8)]

    made = _with_pool(test, stub, samples_per_request=4)
    assert stub.asked == [(5, 4), (9, 4), (9, 4)]
    assert made == _with_pool(test, Stub())


def test_a_refused_request_ends_the_others_of_its_group():
    stub = Stub(
        StubOptions(median_tokens=50, sigma=0, seconds_per_token=10),
        status=lambda seed: 422 if seed == 9 else 200,
    )

    async def test(pool: WorkerPool) -> None:
        with pytest.raises(RequestRefused):
            await pool.generate(prompt_of(1), SAMPLING, 8)
        await asyncio.sleep(0)
        assert pool.endpoints[0].in_flight == 0

    _with_pool(test, stub, samples_per_request=4)


def test_all_requests_of_an_aborted_group_are_aborted_under_ids_of_their_own():
    slow = Stub(StubOptions(median_tokens=90, sigma=0, seconds_per_token=0.1))

    async def test(pool: WorkerPool) -> None:
        call = asyncio.create_task(pool.generate(prompt_of(1), SAMPLING, 8, "mine"))
        await asyncio.sleep(0.3)
        await pool.abort(["mine"])
        assert [one.finish for one in await call] == ["abort"] * 8

    _with_pool(test, slow, samples_per_request=4)
    assert slow.aborted == {"generate-tokens-mine-0", "generate-tokens-mine-4"}


@pytest.mark.parametrize(("limit", "most"), [(6, 4), (8, 8), (3, 2)])
def test_the_limit_counts_sequences_and_a_larger_request_is_split_to_fit(limit: int, most: int):
    stub = Stub()

    async def test(pool: WorkerPool) -> None:
        await asyncio.gather(*(pool.generate(prompt_of(i), SAMPLING, 4) for i in range(6)))

    _with_pool(test, stub, max_concurrency=limit, samples_per_request=4)
    assert sum(n for _, n in stub.asked) == 24
    assert stub.most_in_flight == most


def test_a_group_fails_with_the_reason_of_the_request_that_failed():
    stub = Stub(status=lambda seed: 500 if seed == 9 else 200)

    async def test(pool: WorkerPool) -> None:
        with pytest.raises(CallFailed, match="answered 500"):
            await pool.generate(prompt_of(1), SAMPLING, 8)

    _with_pool(test, stub, samples_per_request=4, max_retries=0)


def test_slots_are_given_in_the_order_of_asking_whatever_their_number():
    async def test() -> list[str]:
        slots, order = SequenceSlots(4), []

        async def hold(name: str, number: int) -> None:
            async with slots.of(number):
                order.append(name)
                await asyncio.sleep(0)

        await asyncio.gather(hold("a", 3), hold("large", 4), hold("small", 1), hold("b", 2))
        return order

    assert asyncio.run(test()) == ["a", "large", "small", "b"]


@pytest.mark.parametrize("at_the_same_time", [False, True])
def test_slots_of_a_request_that_gives_up_while_it_waits_are_not_lost(at_the_same_time: bool):
    async def test() -> None:
        slots = SequenceSlots(4)
        waiting: list[asyncio.Task[None]] = []

        async def hold(number: int) -> None:
            async with slots.of(number):
                pass

        async with slots.of(3):
            waiting += [asyncio.create_task(hold(4)), asyncio.create_task(hold(1))]
            await asyncio.sleep(0)
            if not at_the_same_time:
                waiting[0].cancel()
                await asyncio.sleep(0)
                await asyncio.wait_for(waiting[1], 1)  # it no longer waits behind the large one
        if at_the_same_time:
            waiting[0].cancel()
        await asyncio.wait(waiting, timeout=1)
        assert [task.cancelled() for task in waiting] == [True, False]
        async with asyncio.timeout(1), slots.of(4):
            pass

    asyncio.run(test())
