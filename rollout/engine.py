"""Workers, pool and publisher for synchronous callers: an event loop in a thread of its own."""

import asyncio
import contextlib
import functools
import gc
import logging
import os
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from configs.schema import RolloutConfig
from rollout.endpoints.access import KEY_VARIABLE
from rollout.endpoints.chat import ChatEndpoint
from rollout.endpoints.pool import WorkerPool
from rollout.endpoints.restarts import RESTART_ATTEMPTS
from rollout.endpoints.routing import Endpoint
from rollout.weights.publish import DirectoryPublisher, TransferPublisher, WeightPublisher
from rollout.workers.fleet import Fleet
from rollout.workers.local_worker import LOOPBACK, NEEDED_ELSEWHERE, LocalWorker

logger = logging.getLogger(__name__)

COLLECT_AFTER = 50_000
"""Objects that the garbage collector lets come before it looks at the new ones; Python's own is 700."""
REACH_SECONDS = 60.0
"""The longest that endpoints may take to say that they are there."""
KEY_SECONDS = 30.0
"""The longest that one worker may take to accept our key."""
END_SECONDS = 5.0
"""The longest that a cancelled task may take to end when the engine is left."""

T = TypeVar("T")


class RolloutEngine:
    """Owns the endpoints of a run: local workers, remote ones, or one that chats.

    Use as a context manager: nothing is left behind.

    Raises (on entry):
        ValueError, RuntimeError: If a local worker cannot start, or a remote one does not answer.
    """

    def __init__(self, config: RolloutConfig, model_path: str, log_dir: Path) -> None:
        self._config = config
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True, name="rollout")
        is_local = not (config.urls or config.chats)
        self._fleet = Fleet(config, model_path, log_dir) if is_local else None
        self.sampler = ChatEndpoint(config) if config.chats else WorkerPool(self._endpoints(), config)
        """Where calls are sampled."""
        self._is_begun = False
        self._under_way: set[Future[Any]] = set()
        self._entered = contextlib.ExitStack()

    @property
    def pool(self) -> WorkerPool:
        """The workers, for those who need more than a sampler.

        Raises:
            RuntimeError: If the run uses an endpoint that chats.
        """
        if isinstance(self.sampler, WorkerPool):
            return self.sampler
        raise RuntimeError("An endpoint that chats has no workers: it can be evaluated, not trained.")

    @functools.cached_property
    def publisher(self) -> WeightPublisher[Any]:
        """Sends weights to the workers: of a ``Path``, or by ``rollout.weight_transfer`` of a mapping."""
        config = self._config
        options = (self.pool, config.publish_timeout_seconds, config.pause_mode)
        if config.weight_transfer == "directory":
            return DirectoryPublisher(*options, sleeps=config.enable_sleep_mode)
        return TransferPublisher(*options, sleeps=config.enable_sleep_mode, backend=config.weight_transfer)

    @contextlib.contextmanager
    def begun(self) -> Iterator["RolloutEngine"]:
        """Local workers start when this is entered, so that other work can be done until ``self`` is."""
        if self._fleet is None:
            yield self
            return
        try:
            self._fleet.begin()
            self._is_begun = True
            yield self
        finally:
            self._fleet.close()

    def __enter__(self) -> "RolloutEngine":
        with contextlib.ExitStack() as stack:
            self._thread.start()
            stack.callback(self._stop_loop)
            if self._fleet is not None:
                stack.callback(self._fleet.close)
                if not self._is_begun:
                    self._fleet.begin()
                self._fleet.wait()
                for endpoint, worker in zip(self.pool.endpoints, self._fleet.workers, strict=True):
                    endpoint.url = worker.url
            self.run(self.sampler.__aenter__(), 10, what="opening the sampler's connections")
            stack.callback(
                lambda: self.run(self.sampler.__aexit__(), 10, what="closing the sampler's connections")
            )
            self.run(self._reach(), REACH_SECONDS, what="reaching every endpoint")
            self._entered = stack.pop_all()
        spare_collector()
        return self

    def __exit__(self, *_: object) -> None:
        for future in list(self._under_way):  # nobody waits for ever for a loop that has ended
            future.cancel()
        self._entered.close()

    def submit(self, work: Coroutine[Any, Any, T]) -> "Future[T]":
        """Starts ``work`` on the engine's loop; leaving the engine cancels it."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        self._under_way.add(future)
        future.add_done_callback(self._under_way.discard)
        return future

    def run(self, work: Coroutine[Any, Any, T], timeout_seconds: float | None, *, what: str) -> T:
        """Runs ``work`` on the engine's loop and waits for it.

        Args:
            work: Is cancelled if the wait ends before it does.
            timeout_seconds: The longest wait; None if everything that ``work`` waits for has its own limit.
            what: Names the work in the error, such as ``publishing version 3 to the workers``.

        Raises:
            RuntimeError: If it takes longer than ``timeout_seconds``.
        """
        future = self.submit(work)
        try:
            return future.result(timeout=timeout_seconds)
        except TimeoutError as error:
            if future.done():
                raise  # of the work itself
            future.cancel()
            raise RuntimeError(
                f"The rollout engine did not finish {what} within {timeout_seconds:g} s."
            ) from error
        except BaseException:
            future.cancel()
            raise

    def _endpoints(self) -> list[Endpoint]:
        if self._fleet is None:
            urls = [url.rstrip("/") for url in self._config.urls]
            return [Endpoint(url=url, restart=self._waiting_for(url)) for url in urls]
        return [Endpoint(url="", restart=_restarting(worker)) for worker in self._fleet.workers]

    def _waiting_for(self, url: str) -> Callable[[], Awaitable[str]]:
        """How a worker of somebody else comes back: it is started anew there, and we wait."""
        seconds = self._config.start_timeout_seconds / RESTART_ATTEMPTS

        async def wait() -> str:
            await self.pool.until_healthy(url, seconds)
            return url

        return wait

    async def _reach(self) -> None:
        """Finds what does not answer, or not to our key, before the first call does."""
        if isinstance(self.sampler, ChatEndpoint):
            await self.sampler.check()
        else:
            await asyncio.gather(*(_reach_worker(self.sampler, e) for e in self.sampler.endpoints))

    def _stop_loop(self) -> None:
        self.run(_end_tasks(), 2 * END_SECONDS, what="what was cancelled")
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=10)
        self._loop.close()


async def _end_tasks() -> None:
    """Cancels every other task of the loop and lets it end: what awaits it must not be left half done."""
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        if not task.cancelling():  # a second time would interrupt its end
            task.cancel()
    if tasks:
        await asyncio.wait(tasks, timeout=END_SECONDS)


def spare_collector() -> None:
    """Has the garbage collector leave alone what is there: the libraries' objects, which stay to the end.

    To look at them again and again took a quarter of the client's time (tests/bench/evaluation.py). New ones
    it looks at less often: nearly all of a call's objects end with it, without the collector's help.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(COLLECT_AFTER, 20, 20)


def _restarting(worker: LocalWorker) -> Callable[[], Awaitable[str]]:
    async def restart() -> str:
        await asyncio.to_thread(worker.restart)
        return worker.url

    return restart


async def _reach_worker(pool: WorkerPool, endpoint: Endpoint) -> None:
    host = urlsplit(endpoint.url).hostname or ""
    if host not in LOOPBACK and KEY_VARIABLE not in os.environ:
        logger.warning(
            "%s is not on this machine and VLLM_API_KEY is not set: whoever reaches it can use it and "
            "replace its weights.",
            endpoint.url,
        )
    try:
        await pool.served_version(endpoint)
        await pool.api.check_key(endpoint.url, KEY_SECONDS)
    except Exception as error:
        raise RuntimeError(
            f"The rollout worker {endpoint.url} does not answer: {error} It must run with "
            f"{NEEDED_ELSEWHERE}; leave rollout.urls empty to start one here."
        ) from None
