"""Publishes over one process group of trainer and all workers: NCCL between GPUs, gloo between CPUs."""

import asyncio
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from urllib.parse import urlsplit

import torch

from rollout.endpoints.pool import WorkerPool
from rollout.endpoints.routing import Endpoint
from rollout.weights.buckets import WeightSource
from rollout.weights.feed import Feed
from rollout.weights.meeting import GivenUp, Meeting, form, listen, own_address
from rollout.weights.publish import UNKNOWN, WeightPublisher
from rollout.weights.transfer import send

ALONE_AT_ONCE = 4
"""Workers that are sent to at once in groups of their own, after the common transfer failed."""


class FeedPublisher(WeightPublisher[Feed]):
    """Publishes from memory, while the trainer's thread still gathers the weights."""

    device: torch.device
    """Device that weights are sent from."""

    async def open(self, weights: WeightSource, version: int) -> Feed:
        """Returns the feed of a version, which the trainer's thread fills while ``publish`` sends it."""
        await self._on_all(self._pool.endpoints, self._pool.restarter.settled)
        return Feed(weights.entries, weights.bucket_bytes, self.device, weights.again)

    async def publish(self, weights: Feed, version: int) -> None:
        """See ``WeightPublisher.publish``; on return or failure the feed no longer waits for a reader."""
        try:
            await super().publish(weights, version)
        finally:
            weights.stop_reading()

    def weights_will_change(self) -> None:
        """Waits, in the trainer's thread, for restarted workers that are still loading the weights."""
        if self._current is not None:
            self._current[0].weights_will_change(self._timeout)

    async def _bring_up_to_date(self, endpoint: Endpoint) -> None:
        """Loads the current weights, or leaves the worker paused if they are being changed.

        A publish follows on a change: it resumes the worker.
        """
        if self._current is None:
            return
        feed, _ = self._current
        if not feed.hold():
            await self._pause(endpoint)
            endpoint.version = UNKNOWN
            return
        try:
            await super()._bring_up_to_date(endpoint)
        finally:
            feed.release()


class TransferPublisher(FeedPublisher):
    """Broadcasts a feed's buckets to every process of every worker, over a group made for the publish."""

    def __init__(
        self,
        pool: WorkerPool,
        timeout_seconds: float,
        pause_mode: str = "keep",
        *,
        sleeps: bool = False,
        backend: str,
    ) -> None:
        """``backend``: ``nccl`` or ``gloo``; the other arguments as for ``WeightPublisher``."""
        super().__init__(pool, timeout_seconds, pause_mode, sleeps=sleeps)
        self._backend = backend
        self.device = current_device() if backend == "nccl" else torch.device("cpu")

    async def _load(
        self, endpoints: Sequence[Endpoint], weights: Feed, *, is_first: bool
    ) -> dict[Endpoint, Exception]:
        places: dict[Endpoint, int] = {}

        async def ask(endpoint: Endpoint) -> None:
            places[endpoint] = await self._pool.api.receivers(endpoint.url, self._timeout)

        try:
            if failed := await self._on_all(endpoints, ask):
                endpoints = [endpoint for endpoint in endpoints if endpoint not in failed]
            if is_first and endpoints:
                return failed | await self._broadcast(endpoints, places, weights)
            # A worker that failed would break a common group again.
            turn = asyncio.Semaphore(ALONE_AT_ONCE)

            async def alone(endpoint: Endpoint) -> None:
                async with turn:
                    for error in (await self._broadcast([endpoint], places, weights)).values():
                        raise error

            return failed | await self._on_all(endpoints, alone)
        finally:
            if is_first:
                weights.stop_reading()

    async def _broadcast(
        self, endpoints: Sequence[Endpoint], places: dict[Endpoint, int], weights: Feed
    ) -> dict[Endpoint, Exception]:
        """Sends to all workers at once and returns the failures; a failure of one breaks the transfer."""
        names, first_rank = {}, {}
        for endpoint in endpoints:
            first_rank[endpoint] = len(names) + 1
            names |= {len(names) + 1 + i: endpoint.url for i in range(places[endpoint])}
        host = own_address(urlsplit(endpoints[0].url).hostname or "")
        server = listen(host)
        meeting = Meeting(
            host=host,
            port=server.getsockname()[1],
            backend=self._backend,
            seconds=self._timeout,
            size=1 + len(names),
            bucket_bytes=weights.bucket_bytes,
        )
        given_up = threading.Event()

        def work() -> None:
            send(weights, form(server, meeting, names, given_up), meeting, names, given_up)

        entries = [asdict(entry) for entry in weights.entries]

        async def take(endpoint: Endpoint) -> None:
            try:
                mine = replace(meeting, first_rank=first_rank[endpoint])
                await self._pool.api.receive(endpoint.url, asdict(mine), entries, self._timeout)
            except RuntimeError as error:
                given_up.set()  # the sender would wait for this worker
                raise RuntimeError(
                    f"Rollout worker {endpoint.url} did not take its weights: {error}"
                ) from error

        sending = asyncio.create_task(_in_thread(work))
        try:
            failed = await self._on_all(endpoints, take)
            if failed:
                given_up.set()
            try:
                await asyncio.wait_for(asyncio.shield(sending), self._timeout)
            except GivenUp:
                pass  # the worker's own error says more
            except RuntimeError as error:  # names who was missing
                failed = failed or dict.fromkeys(endpoints, error)
            return failed
        finally:
            given_up.set()  # ends the sender if the publish was cancelled
            sending.add_done_callback(_retrieved)


def current_device() -> torch.device:
    """Returns the GPU of this process."""
    return torch.device("cuda", torch.cuda.current_device())


async def _in_thread(work: Callable[[], None]) -> None:
    """Does ``work`` in a thread that, unlike an executor's, does not keep the process from ending."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()

    def finish(error: BaseException | None) -> None:
        if done.cancelled():
            return
        if error is None:
            done.set_result(None)
        else:
            done.set_exception(error)

    def run() -> None:
        error = None
        try:
            work()
        except BaseException as raised:
            error = raised
        with suppress(RuntimeError):  # the loop was closed
            loop.call_soon_threadsafe(finish, error)

    threading.Thread(target=run, daemon=True, name="weights").start()
    await done


def _retrieved(task: "asyncio.Task[None]") -> None:
    if not task.cancelled():
        task.exception()  # it was raised, or a worker's own error was
