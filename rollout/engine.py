"""Workers, pool and publisher for synchronous callers: runs an event loop in a separate thread."""

import asyncio
import contextlib
import functools
import gc
import logging
import os
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from configs.schema import RolesConfig, RolloutConfig
from rollout.endpoints.chat import ChatEndpoint
from rollout.endpoints.keys import KEY_VARIABLE, read_key
from rollout.endpoints.pool import WorkerPool
from rollout.endpoints.restarts import RESTART_ATTEMPTS
from rollout.endpoints.routing import Endpoint
from rollout.endpoints.served_model import ServedModel, refuse_other_model
from rollout.records import ENDPOINT, REFERENCE
from rollout.weights.broadcast import TransferPublisher
from rollout.weights.ipc import IpcPublisher
from rollout.weights.publish import AdapterPublisher, DirectoryPublisher, WeightPublisher
from rollout.workers.fleet import Fleet
from rollout.workers.local_worker import NEEDED_ELSEWHERE, LocalWorker
from rollout.workers.loopback import LOOPBACK

logger = logging.getLogger(__name__)

COLLECT_AFTER = 50_000
"""Number of new objects after which the garbage collector runs; Python's default is 700."""
REACH_SECONDS = 60.0
"""Time limit for all endpoints to answer on entry."""
KEY_SECONDS = 30.0
"""Time limit for one worker to accept the key."""
END_SECONDS = 5.0
"""Time limit for cancelled tasks to end when the engine is closed."""

T = TypeVar("T")


class RolloutEngine:
    """Owns the endpoints of a run: local workers, remote workers, or a chat endpoint.

    Use as a context manager; leaving it ends local workers, connections and the event loop.

    Raises (on entry):
        ValueError, RuntimeError: If a local worker cannot start, or an endpoint does not answer or serves
            another model.
    """

    def __init__(self, config: RolloutConfig, model_path: str, log_dir: Path) -> None:
        self._config = config
        self._model_path = model_path
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True, name="rollout")
        self._fleet = _fleet(config, model_path, log_dir)
        workers = self._fleet.workers if self._fleet else []
        num_own = len(workers) - config.num_draft_workers
        self._local = [(Endpoint(url="", restart=_restarting(worker)), worker) for worker in workers]
        endpoints = [endpoint for endpoint, _ in self._local]
        own, others = endpoints[:num_own], endpoints[num_own:]
        if config.urls and config.cast_lm_head_to_fp32:
            logger.warning(
                "model.cast_lm_head_to_fp32 is true: start the workers at rollout.urls with it, too (vLLM: "
                '--hf-overrides \'{"head_dtype": "float32"}\'). Otherwise they round logits that the trainer '
                "does not."
            )
        key = self._fleet.key if self._fleet else None
        if config.chats:
            self.sampler = ChatEndpoint(config)
        else:
            self.sampler = WorkerPool(own or self._remote(), config, key if own else None)
        """Samples the calls: the worker pool or the chat endpoint."""
        self.drafts: dict[str, ChatEndpoint | WorkerPool] = {}
        """Samplers of other policies, which write drafts, by ``Call.policy``. They receive no weights."""
        if others:
            # They serve the initial policy: their requests name no adapter.
            self.drafts[REFERENCE] = WorkerPool(others, replace(config, max_lora_rank=0), key)
        if config.draft_url:
            self.drafts[ENDPOINT] = ChatEndpoint(_of_drafts(config))
        self._is_begun = False
        self._under_way: set[Future[Any]] = set()
        self._entered = contextlib.ExitStack()

    @property
    def pool(self) -> WorkerPool:
        """Worker pool, for callers that need more than a ``Sampler``.

        Raises:
            RuntimeError: If the run uses a chat endpoint.
        """
        if isinstance(self.sampler, WorkerPool):
            return self.sampler
        raise RuntimeError("A chat endpoint has no workers: it can be evaluated, not trained.")

    @functools.cached_property
    def publisher(self) -> WeightPublisher[Any]:
        """Publisher of ``rollout.weight_transfer``: ``directory`` takes a ``Path``, others a ``Feed``."""
        config = self._config
        options = (self.pool, config.publish_timeout_seconds, config.pause_mode)
        if config.max_lora_rank:
            return AdapterPublisher(*options, sleeps=config.enable_sleep_mode)
        if config.weight_transfer == "directory":
            return DirectoryPublisher(*options, sleeps=config.enable_sleep_mode)
        if config.weight_transfer == "ipc":
            return IpcPublisher(*options, sleeps=config.enable_sleep_mode)
        return TransferPublisher(*options, sleeps=config.enable_sleep_mode, backend=config.weight_transfer)

    @contextlib.contextmanager
    def begun(self) -> Iterator["RolloutEngine"]:
        """Context manager that starts local workers without waiting, so that other work can overlap.

        Yields ``self``; entering that waits for the workers.
        """
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
                for endpoint, worker in self._local:
                    endpoint.url = worker.url
            for sampler in (self.sampler, *self.drafts.values()):
                self.run(sampler.__aenter__(), 10, what="opening a sampler's connections")
                stack.callback(self._leave, sampler)
                self.run(self._reach(sampler), REACH_SECONDS, what="reaching every endpoint")
            self._entered = stack.pop_all()
        spare_collector()
        return self

    def __exit__(self, *_: object) -> None:
        for future in list(self._under_way):  # a waiting thread would hang once the loop has ended
            future.cancel()
        self._entered.close()

    def submit(self, work: Coroutine[Any, Any, T]) -> "Future[T]":
        """Schedules ``work`` on the engine's loop; leaving the engine cancels it."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        self._under_way.add(future)
        future.add_done_callback(self._under_way.discard)
        return future

    def run(self, work: Coroutine[Any, Any, T], timeout_seconds: float | None, *, what: str) -> T:
        """Runs ``work`` on the engine's loop and waits for it.

        Args:
            work: Cancelled if the wait ends first.
            timeout_seconds: Limit of the wait; None if everything that ``work`` waits for has its own limit.
            what: Name of the work in the error, such as ``publishing version 3 to the workers``.

        Raises:
            RuntimeError: If it takes longer than ``timeout_seconds``.
        """
        future = self.submit(work)
        try:
            return future.result(timeout=timeout_seconds)
        except TimeoutError as error:
            if future.done():
                raise  # the work itself raised it
            future.cancel()
            raise RuntimeError(
                f"The rollout engine did not finish {what} within {timeout_seconds:g} s."
            ) from error
        except BaseException:
            future.cancel()
            raise

    def _leave(self, sampler: ChatEndpoint | WorkerPool) -> None:
        self.run(sampler.__aexit__(), 10, what="closing a sampler's connections")

    def _remote(self) -> list[Endpoint]:
        urls = [url.rstrip("/") for url in self._config.urls]
        return [Endpoint(url=url, restart=self._waiting_for(url)) for url in urls]

    def _waiting_for(self, url: str) -> Callable[[], Awaitable[str]]:
        """Returns the ``restart`` of a remote worker, which waits until its owner has restarted it."""
        seconds = self._config.start_timeout_seconds / RESTART_ATTEMPTS

        async def wait() -> str:
            await self.pool.until_healthy(url, seconds)
            return url

        return wait

    async def _reach(self, sampler: ChatEndpoint | WorkerPool) -> None:
        """Checks that every endpoint answers, accepts the key and serves the run's model."""
        if isinstance(sampler, ChatEndpoint):
            await sampler.check("rollout.chat_url" if sampler is self.sampler else "rollout.draft_url")
        else:
            served = await asyncio.gather(*(_reach_worker(sampler, e) for e in sampler.endpoints))
            own = {"model_path": self._model_path, "max_model_len": self._config.max_model_len}
            for endpoint, model in zip(sampler.endpoints, served, strict=True):
                refuse_other_model(model, endpoint.url, **own)

    def _stop_loop(self) -> None:
        self.run(_end_tasks(), 2 * END_SECONDS, what="ending the cancelled tasks")
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=10)
        self._loop.close()


async def _end_tasks() -> None:
    """Cancels every other task of the loop and waits, so that their cleanup runs before the loop stops."""
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        if not task.cancelling():  # a second cancel would interrupt its cleanup
            task.cancel()
    if tasks:
        await asyncio.wait(tasks, timeout=END_SECONDS)


def spare_collector() -> None:
    """Excludes existing objects from garbage collection and makes collections rarer.

    The existing objects are mostly those of libraries, which live as long as the process; scanning them
    repeatedly took a quarter of the client's time (tests/bench/evaluation.py). New objects are scanned less
    often, since reference counting frees nearly all of a call's objects when it ends.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(COLLECT_AFTER, 20, 20)


def _fleet(config: RolloutConfig, model_path: str, log_dir: Path) -> Fleet | None:
    """Returns the local workers, those for drafts last; None if there are none."""
    own = 0 if config.urls or config.chats else config.num_workers
    if not own + config.num_draft_workers:
        return None
    local = replace(
        config,
        urls=[],
        chat_url="",
        chat_model="",
        num_workers=own + config.num_draft_workers,
        # Without own workers, rollout.port is that of workers elsewhere.
        port=config.port if own else 0,
    )
    return Fleet(local, model_path, log_dir)


def _of_drafts(config: RolloutConfig) -> RolloutConfig:
    """Returns the options of the chat endpoint that writes drafts."""
    return replace(
        config,
        urls=[],
        num_workers=1,
        chat_url=config.draft_url,
        chat_model=config.draft_model,
        thinking_tokens=0,
        roles=RolesConfig(),
    )


def _restarting(worker: LocalWorker) -> Callable[[], Awaitable[str]]:
    async def restart() -> str:
        await asyncio.to_thread(worker.restart)
        return worker.url

    return restart


async def _reach_worker(pool: WorkerPool, endpoint: Endpoint) -> ServedModel:
    host = urlsplit(endpoint.url).hostname or ""
    if host not in LOOPBACK and not read_key(KEY_VARIABLE, os.environ):
        if KEY_VARIABLE in os.environ:
            raise ValueError(
                f"{endpoint.url} is not on this machine and {KEY_VARIABLE} is empty. Set it to the key of "
                "the workers, or unset it if they have none."
            )
        logger.warning(
            "%s is not on this machine and VLLM_API_KEY is not set: any client that reaches it can use it "
            "and replace its weights.",
            endpoint.url,
        )
    try:
        await pool.served_version(endpoint)
        return await pool.api.served_model(endpoint.url, KEY_SECONDS)  # refused without the key
    except Exception as error:
        raise RuntimeError(
            f"The rollout worker {endpoint.url} does not answer: {error} It must run with "
            f"{NEEDED_ELSEWHERE}; leave rollout.urls empty to start one here."
        ) from None
