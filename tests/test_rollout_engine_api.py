"""Pool and publisher over an engine that is not vLLM: they ask of it what ``EngineApi`` states, no more."""

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from fakes import prompt_of

from configs.schema import RolloutConfig
from rollout.endpoints.client import Unavailable
from rollout.endpoints.engine_api import Asked, EngineApi
from rollout.endpoints.open_requests import ABORT_SECONDS
from rollout.endpoints.pool import WorkerPool
from rollout.endpoints.routing import Endpoint
from rollout.endpoints.served_model import ServedModel
from rollout.records import Completion, Prompt, Sampling, Usage, VersionSpan
from rollout.sampler import CallFailed
from rollout.weights.publish import ATTEMPTS, DirectoryPublisher

URL = "memory://worker"
SAMPLING = Sampling(temperature=1.0, top_p=1.0, max_tokens=8, seed=1)


@dataclass(slots=True)
class MemoryAnswer:
    """``n`` samples, each the one token 7."""

    n: int
    version: int
    finish: str
    prompt_tokens: int = 3
    cached_tokens: int = 2

    @property
    def completion_tokens(self) -> int:
        return self.n

    @property
    def is_aborted(self) -> bool:
        return self.finish == "abort"

    def completions(self, asked: Asked) -> list[Completion]:
        sampled = Completion(
            token_ids=(7,),
            logprobs=(-0.5,),
            finish=self.finish,
            versions=(VersionSpan(version=self.version, start=0, end=1),),
            usage=Usage(prompt_tokens=asked.prompt_tokens, completion_tokens=1),
        )
        return [sampled] * self.n


@dataclass(slots=True)
class MemoryEngine:
    """An engine in memory; keeps what it was asked, in order."""

    failures: int = 0
    """Requests that fail before one succeeds."""
    holds: bool = False
    """Requests wait until they are aborted."""
    refuses_weights: bool = False
    asked: list[Any] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    version: int = 0
    is_aborted: asyncio.Event = field(default_factory=asyncio.Event)

    def request_body(self, prompt: Prompt, sampling: Sampling, n: int, request_id: str | None) -> bytes:
        self.asked.append(("request_body", n, request_id))
        return bytes([n])

    async def generate(self, url: str, body: bytes) -> MemoryAnswer:
        self.bodies.append(body)
        if self.failures:
            self.failures -= 1
            raise Unavailable("not now")
        if self.holds:
            await self.is_aborted.wait()
        finish = "abort" if self.is_aborted.is_set() else "stop"
        return MemoryAnswer(n=body[0], version=self.version, finish=finish)

    async def abort(self, url: str, request_ids: Sequence[str], timeout_seconds: float) -> None:
        self.asked.append(("abort", *request_ids, timeout_seconds))
        self.is_aborted.set()

    async def weight_version(self, url: str, timeout_seconds: float) -> int:
        return self.version

    async def check_key(self, url: str, timeout_seconds: float) -> None: ...

    async def served_model(self, url: str, timeout_seconds: float) -> ServedModel:
        return ServedModel(path=None, max_model_len=None)

    async def is_healthy(self, url: str, timeout_seconds: float) -> bool:
        return True

    async def pause(self, url: str, mode: str, timeout_seconds: float, *, clear_cache: bool) -> None:
        self.asked.append(("pause", mode, clear_cache))

    async def resume(self, url: str, timeout_seconds: float) -> None:
        self.asked.append(("resume",))

    async def load(self, url: str, folder: Path, timeout_seconds: float) -> None:
        self.asked.append(("load", folder, timeout_seconds))
        if self.refuses_weights:
            raise RuntimeError("no room")

    async def receive(
        self,
        url: str,
        meeting: Mapping[str, Any],
        entries: Sequence[Mapping[str, Any]],
        timeout_seconds: float,
    ) -> None:
        raise AssertionError("the directory is published")

    async def reset_prefix_cache(self, url: str, timeout_seconds: float) -> None:
        self.asked.append(("reset_prefix_cache",))

    async def set_version(self, url: str, version: int, timeout_seconds: float) -> None:
        self.asked.append(("set_version", version))
        self.version = version

    async def sleep(self, url: str, timeout_seconds: float) -> None:
        self.asked.append(("sleep", timeout_seconds))

    async def wake_weights(self, url: str, timeout_seconds: float) -> None:
        self.asked.append(("wake_weights", timeout_seconds))

    async def wake_cache(self, url: str, timeout_seconds: float) -> None:
        self.asked.append(("wake_cache", timeout_seconds))


def _with_engine(
    engine: MemoryEngine, test: Callable[[WorkerPool], Coroutine[Any, Any, Any]], **options: Any
) -> Any:
    async def run() -> Any:
        pool = WorkerPool([Endpoint(url=URL)], RolloutConfig(**options))
        pool.api = _as_api(engine)
        async with pool:
            return await asyncio.wait_for(test(pool), timeout=20)

    return asyncio.run(run())


def _as_api(engine: EngineApi) -> EngineApi:
    return engine


def test_a_call_is_sampled_on_any_engine_and_its_answer_counted():
    async def test(pool: WorkerPool) -> None:
        completions = await pool.generate(prompt_of(1, 2, 3), SAMPLING, 2)
        assert [completion.token_ids for completion in completions] == [(7,), (7,)]
        assert completions[0].usage == Usage(prompt_tokens=3, completion_tokens=1)
        counts = pool.counts
        assert (counts.prompt_tokens, counts.completion_tokens, counts.cached_tokens) == (3, 2, 2)
        assert (counts.requests, counts.retries) == (1, 0)

    _with_engine(MemoryEngine(), test)


def test_a_request_is_encoded_once_however_often_it_is_sent():
    engine = MemoryEngine(failures=1)

    async def test(pool: WorkerPool) -> None:
        await pool.generate(prompt_of(1), SAMPLING, 2)
        assert (pool.counts.requests, pool.counts.retries) == (2, 1)

    _with_engine(engine, test)
    assert engine.asked == [("request_body", 2, None)]
    first, second = engine.bodies
    assert first is second


def test_an_engine_that_never_answers_fails_the_call_with_its_last_reason():
    async def test(pool: WorkerPool) -> None:
        with pytest.raises(CallFailed, match=r"answered after 1 attempts; the last failure: not now"):
            await pool.generate(prompt_of(1), SAMPLING)
        assert pool.endpoints[0].in_flight == 0

    _with_engine(MemoryEngine(failures=1), test, max_retries=0)


def test_an_order_to_abort_takes_no_longer_than_an_abort_may():
    engine = MemoryEngine(holds=True)

    async def test(pool: WorkerPool) -> None:
        task = asyncio.create_task(pool.generate(prompt_of(1), SAMPLING, 1, "mine"))
        while not engine.bodies:
            await asyncio.sleep(0)
        await pool.abort(["mine"])
        assert [completion.finish for completion in await task] == ["abort"]

    _with_engine(engine, test)
    assert engine.asked[1:] == [("abort", "mine", ABORT_SECONDS)]


def test_a_publish_loads_between_a_pause_and_its_end(tmp_path: Path):
    engine = MemoryEngine()

    async def test(pool: WorkerPool) -> None:
        publisher = DirectoryPublisher(pool, 5.0, "wait", sleeps=True)
        await publisher.sleep()
        await publisher.publish(tmp_path, 3)
        assert pool.endpoints[0].version == 3

    _with_engine(engine, test)
    assert engine.asked == [
        ("sleep", 5.0),
        ("wake_weights", 5.0),
        ("pause", "wait", True),
        ("load", tmp_path, 5.0),
        ("reset_prefix_cache",),
        ("set_version", 3),
        ("wake_cache", 5.0),
        ("resume",),
    ]


def test_keys_and_values_of_the_old_weights_are_kept_only_if_asked_for(tmp_path: Path):
    engine = MemoryEngine()

    async def test(pool: WorkerPool) -> None:
        await DirectoryPublisher(pool, 5.0, "keep_cache").publish(tmp_path, 3)

    _with_engine(engine, test)
    assert engine.asked == [
        ("pause", "keep", False),
        ("load", tmp_path, 5.0),
        ("set_version", 3),
        ("resume",),
    ]


def test_a_sleeping_worker_that_does_not_take_its_weights_stays_paused(tmp_path: Path):
    """It lost those that it had."""
    engine = MemoryEngine(refuses_weights=True)

    async def test(pool: WorkerPool) -> None:
        publisher = DirectoryPublisher(pool, 5.0, sleeps=True)
        await publisher.sleep()
        with pytest.raises(RuntimeError, match="no room"):
            await publisher.publish(tmp_path, 3)

    _with_engine(engine, test)
    assert [order[0] for order in engine.asked] == ["sleep", *["wake_weights", "pause", "load"] * ATTEMPTS]


def test_a_worker_that_does_not_take_its_weights_stays_paused(tmp_path: Path):
    engine = MemoryEngine(refuses_weights=True)

    async def test(pool: WorkerPool) -> None:
        with pytest.raises(RuntimeError, match="no room"):
            await DirectoryPublisher(pool, 5.0).publish(tmp_path, 3)

    _with_engine(engine, test)
    assert engine.asked == [("pause", "keep", True), ("load", tmp_path, 5.0)] * ATTEMPTS
    assert engine.version == 0
