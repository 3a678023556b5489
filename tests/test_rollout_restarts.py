"""Local workers that break: restarted in the background, brought up to date, given up at last."""

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.typedefs import Handler
from fakes import prompt_of
from stub_server import StubOptions, StubServer

from configs.schema import RolloutConfig
from rollout.endpoints.pool import WorkerPool
from rollout.endpoints.restarts import RESTART_ATTEMPTS, Restarter
from rollout.endpoints.routing import Endpoint
from rollout.records import Sampling
from rollout.sampler import CallFailed
from rollout.weights.publish import DirectoryPublisher
from rollout.workers.loopback import free_port

SAMPLING = Sampling(temperature=1.0, top_p=1.0, max_tokens=8, seed=1)
LIMIT_SECONDS = 20


class Stub(StubServer):
    """A worker that can be published to; remembers where its weights came from."""

    def __init__(self) -> None:
        super().__init__(StubOptions(median_tokens=5))
        self.loaded: list[str] = []
        self.load_status = 200
        self.load_seconds = 0.0
        self.is_asleep = False
        self.health_text = ""
        self.loaded_asleep = False
        self.asked: list[str] = []
        """Path and query of each control request, in order."""

    def add_routes(self, app: web.Application) -> None:
        super().add_routes(app)
        for path in ("/pause", "/resume"):
            app.router.add_post(path, self._health)
        for path in ("/sleep", "/wake_up"):
            app.router.add_post(path, self._lie_down_or_get_up)
        app.router.add_post("/collective_rpc", self._load)
        app.router.add_post("/update_weight_version", self._relabel)

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.method == "POST" and not request.path.startswith("/inference"):
            self.asked.append(request.path_qs)
        return await super()._guard(request, handler)

    async def _health(self, request: web.Request) -> web.Response:
        return web.Response(text=self.health_text if request.path == "/health" else "")

    async def _load(self, request: web.Request) -> web.Response:
        self.loaded_asleep |= self.is_asleep
        self.loaded.append((await request.json())["kwargs"]["weights_path"])
        await asyncio.sleep(self.load_seconds)
        return web.Response(status=self.load_status)

    async def _lie_down_or_get_up(self, request: web.Request) -> web.Response:
        self.is_asleep = request.path == "/sleep"
        return web.Response()

    async def _relabel(self, request: web.Request) -> web.Response:
        self.version = (await request.json())["new_version"]
        return web.Response()


Test = Callable[[WorkerPool, Stub], Coroutine[Any, Any, Any]]


def _with_pool(test: Test, **options: Any) -> Any:
    async def run() -> Any:
        async with AsyncExitStack() as stack:
            stub = Stub()
            await stack.enter_async_context(stub)
            endpoints = [Endpoint(url=stub.url)]
            pool = await stack.enter_async_context(WorkerPool(endpoints, RolloutConfig(**options)))
            return await asyncio.wait_for(test(pool, stub), timeout=LIMIT_SECONDS)

    return asyncio.run(run())


def _dead(restart: Callable[[], Coroutine[Any, Any, str]]) -> Endpoint:
    return Endpoint(url=f"http://127.0.0.1:{free_port()}", restart=restart)


def test_while_one_worker_is_restarted_the_other_serves():
    async def test(pool: WorkerPool, stub: Stub) -> None:
        release = asyncio.Event()

        async def restart() -> str:
            await release.wait()
            return stub.url

        dead = _dead(restart)
        pool.endpoints.insert(0, dead)
        done = await asyncio.gather(*(pool.generate(prompt_of(i), SAMPLING) for i in range(6)))
        assert len(done) == stub.requests == 6
        assert dead.is_down
        release.set()
        await pool.restarter.settled(dead)
        assert (dead.is_down, dead.url, pool.restarter.restarts) == (False, stub.url, 1)

    _with_pool(test)


def test_a_worker_that_does_not_come_back_is_given_up_and_calls_say_why():
    async def test(pool: WorkerPool, stub: Stub) -> None:
        attempts = 0

        async def restart() -> str:
            nonlocal attempts
            attempts += 1
            raise RuntimeError("no memory left\nand thirty lines of its log")

        pool.endpoints = [_dead(restart)]
        for _ in range(2):
            with pytest.raises(
                CallFailed, match=r"No rollout worker is left: .* last error: no memory left$"
            ):
                await pool.generate(prompt_of(1), SAMPLING)
        assert attempts == RESTART_ATTEMPTS

    _with_pool(test)


def test_a_restart_that_fails_once_is_tried_again():
    async def test(pool: WorkerPool, stub: Stub) -> None:
        attempts = 0

        async def restart() -> str:
            nonlocal attempts
            attempts += 1
            if attempts == 1:
                raise RuntimeError("not yet")
            return stub.url

        pool.endpoints = [_dead(restart)]
        assert len(await pool.generate(prompt_of(1), SAMPLING)) == 1
        assert (attempts, pool.restarter.restarts) == (2, 1)

    _with_pool(test)


@pytest.mark.parametrize("error", [KeyError("port"), AttributeError("url"), EOFError("end")])
def test_a_restart_that_fails_in_any_way_ends_in_restarted_or_lost(error: Exception):
    async def test(pool: WorkerPool, stub: Stub) -> None:
        errors = [error]

        async def restart() -> str:
            if errors:
                raise errors.pop()
            return stub.url

        back = _dead(restart)
        pool.endpoints = [back]
        assert len(await pool.generate(prompt_of(1), SAMPLING)) == 1
        assert (back.is_down, back.lost, pool.restarter.restarts) == (False, "", 1)

        async def fail(_: Endpoint) -> None:
            raise error

        pool.restarter.after_restart = fail
        gone = _dead(restart)
        pool.endpoints = [gone]
        text = f"No rollout worker is left: .* last error: {type(error).__name__}: {error}"
        with pytest.raises(CallFailed, match=text):
            await pool.generate(prompt_of(1), SAMPLING)
        assert not gone.is_down

    _with_pool(test)


def test_a_check_that_fails_in_any_way_restarts_the_worker():
    async def test(pool: WorkerPool, stub: Stub) -> None:
        async def unsound(_: Endpoint) -> bool:
            raise KeyError("weight_version")

        async def restart() -> str:
            return stub.url

        restarter, endpoint = Restarter(unsound), _dead(restart)
        restarter.begin(endpoint)
        await restarter.settled(endpoint)
        assert (endpoint.url, endpoint.lost, restarter.restarts) == (stub.url, "", 1)

    _with_pool(test)


def test_a_worker_whose_check_is_cut_off_does_not_count_as_up():
    async def test(pool: WorkerPool, stub: Stub) -> None:
        async def restart() -> str:
            raise asyncio.CancelledError  # as when the thread that starts it is shut down

        endpoint = _dead(restart)
        pool.endpoints = [endpoint]
        with pytest.raises(CallFailed, match="its check was cancelled"):
            await pool.generate(prompt_of(1), SAMPLING)

    _with_pool(test)


@pytest.mark.parametrize("body", ["", "OK", '{"status": "ok"}'])
def test_a_worker_is_healthy_by_its_status_whatever_text_comes_with_it(body: str):
    async def test(pool: WorkerPool, stub: Stub) -> None:
        async def restart() -> str:
            raise AssertionError("restarted")

        stub.health_text = body
        (endpoint,) = pool.endpoints
        endpoint.restart = restart
        pool.restarter.begin(endpoint)
        await pool.restarter.settled(endpoint)
        assert (endpoint.is_down, endpoint.lost) == (False, "")

    _with_pool(test)


def test_a_pool_that_closes_does_not_wait_for_a_restart():
    started = asyncio.Event()

    async def test(pool: WorkerPool, stub: Stub) -> None:
        async def restart() -> str:
            started.set()
            await asyncio.sleep(LIMIT_SECONDS)
            return stub.url

        dead = _dead(restart)
        pool.endpoints = [dead]
        pool.restarter.begin(dead)
        await started.wait()

    _with_pool(test)  # leaving it closes it
    assert started.is_set()


def test_a_restarted_worker_serves_the_weights_that_were_published_last(tmp_path: Path):
    async def test(pool: WorkerPool, stub: Stub) -> None:
        publisher = DirectoryPublisher(pool, 5.0)
        await publisher.publish(tmp_path / "7", 7)
        stub.version, stub.loaded = "default", []  # as after a restart

        async def restart() -> str:
            return stub.url

        pool.endpoints = [_dead(restart)]
        (completion,) = await pool.generate(prompt_of(1), SAMPLING)
        assert completion.versions[0].version == 7
        assert stub.loaded == [str(tmp_path / "7")]

    _with_pool(test)


def test_a_worker_that_broke_before_a_publish_is_restarted_with_the_new_weights(tmp_path: Path):
    async def test(pool: WorkerPool, stub: Stub) -> None:
        async def restart() -> str:
            return stub.url

        pool.endpoints = [_dead(restart)]
        publisher = DirectoryPublisher(pool, 5.0)
        await publisher.publish(tmp_path / "8", 8)
        assert (stub.version, stub.loaded) == ("8", [str(tmp_path / "8")])
        assert pool.restarter.restarts == 1

    _with_pool(test)


def test_a_worker_that_sleeps_is_woken_before_it_is_published_to(tmp_path: Path):
    async def test(pool: WorkerPool, stub: Stub) -> None:
        publisher = DirectoryPublisher(pool, 5.0, sleeps=True)
        await publisher.sleep()
        assert stub.is_asleep
        await publisher.publish(tmp_path, 3)
        assert (stub.version, stub.is_asleep, stub.loaded_asleep) == ("3", False, False)
        assert stub.asked == [
            "/sleep?level=2&mode=wait",
            "/wake_up?tags=weights",
            "/pause?mode=keep&clear_cache=true",
            "/collective_rpc",
            "/reset_prefix_cache?reset_running_requests=true",
            "/update_weight_version",
            "/wake_up?tags=kv_cache",
            "/resume",
        ]
        await publisher.publish(tmp_path, 4)  # awake already
        assert stub.version == "4"

    _with_pool(test)


def test_a_worker_that_broke_is_restarted_and_then_put_to_sleep(tmp_path: Path):
    async def test(pool: WorkerPool, stub: Stub) -> None:
        publisher = DirectoryPublisher(pool, 5.0, sleeps=True)
        await publisher.publish(tmp_path, 3)
        stub.version = "default"

        async def restart() -> str:
            return stub.url

        pool.endpoints = [_dead(restart)]
        await publisher.sleep()
        assert (stub.version, stub.is_asleep, pool.restarter.restarts) == ("3", True, 1)

    _with_pool(test)


def test_a_worker_that_does_not_take_weights_fails_the_publish_by_name(tmp_path: Path):
    async def test(pool: WorkerPool, stub: Stub) -> None:
        stub.load_status = 500
        with pytest.raises(RuntimeError, match=rf"{stub.url}/collective_rpc answered 500"):
            await DirectoryPublisher(pool, 5.0).publish(tmp_path, 9)
        assert pool.restarter.restarts == 0

    _with_pool(test)


def test_a_worker_that_hangs_while_it_is_published_to_is_named_at_the_limit(tmp_path: Path):
    async def test(pool: WorkerPool, stub: Stub) -> None:
        stub.load_seconds = LIMIT_SECONDS
        with pytest.raises(RuntimeError, match=rf"{stub.url}/collective_rpc .* 0\.2 s"):
            await DirectoryPublisher(pool, 0.2).publish(tmp_path, 9)

    _with_pool(test)


def test_a_hanging_worker_of_ours_is_restarted_with_the_new_weights(tmp_path: Path):
    async def test(pool: WorkerPool, stub: Stub) -> None:
        async def restart() -> str:
            stub.load_seconds, stub.version = 0.0, "default"
            return stub.url

        stub.load_seconds = LIMIT_SECONDS
        (endpoint,) = pool.endpoints
        endpoint.restart, endpoint.version = restart, 8  # it says another version than it is known by
        await DirectoryPublisher(pool, 0.2).publish(tmp_path / "9", 9)
        assert stub.version == "9"
        assert pool.restarter.restarts == 1

    _with_pool(test)


def test_a_worker_that_came_back_with_other_weights_gets_the_current_ones_before_it_is_asked(tmp_path: Path):
    """As one of somebody else does: it answers again, but serves what it was started with."""

    async def test(pool: WorkerPool, stub: Stub) -> None:
        (endpoint,) = pool.endpoints
        endpoint.restart = lambda: _back(pool, stub)
        publisher = DirectoryPublisher(pool, 5.0)
        await publisher.publish(tmp_path / "7", 7)
        stub.version, stub.loaded = "default", []
        pool.restarter.begin(endpoint)
        (completion,) = await pool.generate(prompt_of(1), SAMPLING)
        assert completion.versions[0].version == 7
        assert stub.loaded == [str(tmp_path / "7")]
        pool.restarter.begin(endpoint)  # it is sound now
        await pool.restarter.settled(endpoint)
        assert pool.restarter.restarts == 1

    _with_pool(test)


async def _back(pool: WorkerPool, stub: Stub) -> str:
    await pool.until_healthy(stub.url, 5.0)
    return stub.url


def test_a_worker_that_stays_away_is_named_with_the_time_it_was_waited_for():
    async def test(pool: WorkerPool, stub: Stub) -> None:
        url = f"http://127.0.0.1:{free_port()}"
        with pytest.raises(RuntimeError, match=rf"{url} was not back within 0\.1 s\."):
            await pool.until_healthy(url, 0.1)

    _with_pool(test)
