"""Publishes over one process group of trainer and all workers: NCCL between GPUs, gloo between CPUs."""

import asyncio
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, TypeVar
from urllib.parse import urlsplit

import torch

from rollout.endpoints.engine_api import Receivers
from rollout.endpoints.pool import WorkerPool
from rollout.endpoints.routing import Endpoint
from rollout.weights.buckets import WeightSource
from rollout.weights.feed import Feed
from rollout.weights.meeting import GivenUp, Meeting, Member, form, listen, own_address
from rollout.weights.publish import UNKNOWN, WeightPublisher
from rollout.weights.transfer import send

T = TypeVar("T")

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


@dataclass(frozen=True, slots=True)
class _Kept:
    """The group of the last publish, in which nothing failed."""

    member: Member
    meeting: Meeting
    names: Mapping[int, str]
    """Worker of each receiver's rank."""

    def open_member(self) -> Member:
        """Returns the sender's end, as ``form`` does for a new group."""
        return self.member


class TransferPublisher(FeedPublisher):
    """Broadcasts a feed's buckets to every process of every worker.

    The group stays open until the next publish, which uses it if every worker reports that it still has it:
    it is formed anew if a worker was replaced, or if a transfer failed or took too long.
    """

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
        self._kept: _Kept | None = None
        pool.before_close = self.close
        self.device = current_device() if backend == "nccl" else torch.device("cpu")

    async def close(self) -> None:
        """Leaves the kept group; the next publish forms another."""
        kept, self._kept = self._kept, None
        if kept is not None:
            await asyncio.wait_for(_in_thread(kept.member.leave), self._timeout)

    async def _load(
        self, endpoints: Sequence[Endpoint], weights: Feed, *, is_first: bool
    ) -> dict[Endpoint, Exception]:
        found: dict[Endpoint, Receivers] = {}

        async def ask(endpoint: Endpoint) -> None:
            found[endpoint] = await self._pool.api.receivers(endpoint.url, self._timeout)

        try:
            if failed := await self._on_all(endpoints, ask):
                endpoints = [endpoint for endpoint in endpoints if endpoint not in failed]
            if is_first and endpoints:
                return failed | await self._broadcast(endpoints, found, weights, is_kept=True)
            # A worker that failed would break a common group again.
            turn = asyncio.Semaphore(ALONE_AT_ONCE)

            async def alone(endpoint: Endpoint) -> None:
                async with turn:
                    sent = await self._broadcast([endpoint], found, weights, is_kept=False)
                    for error in sent.values():
                        raise error

            return failed | await self._on_all(endpoints, alone)
        finally:
            if is_first:
                weights.stop_reading()

    async def _broadcast(
        self,
        endpoints: Sequence[Endpoint],
        found: Mapping[Endpoint, Receivers],
        weights: Feed,
        *,
        is_kept: bool,
    ) -> dict[Endpoint, Exception]:
        """Sends to all workers at once and returns the failures; a failure of one breaks the transfer.

        With ``is_kept`` over the kept group if there is one, and the group is kept.
        """
        names, first_rank = {}, {}
        for endpoint in endpoints:
            first_rank[endpoint] = len(names) + 1
            names |= {len(names) + 1 + i: endpoint.url for i in range(found[endpoint].count)}
        given_up = threading.Event()
        if is_kept:
            await self._leave_unless(names, {found[endpoint].group for endpoint in endpoints})
        meeting, enter = self._entrance(names, weights.bucket_bytes, given_up, is_kept=is_kept)

        def work() -> Member:
            member = enter()
            send(weights, member, meeting, names, given_up)
            return member

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
                member = await asyncio.wait_for(asyncio.shield(sending), self._timeout)
            except GivenUp:
                pass  # the worker's own error says more
            except RuntimeError as error:  # names who was missing
                failed = failed or dict.fromkeys(endpoints, error)
            else:
                if is_kept and not failed:
                    self._kept = _Kept(member, meeting, names)
                elif is_kept:  # a worker failed after the transfer
                    await _in_thread(member.leave)
            return failed
        finally:
            given_up.set()  # ends the sender if the publish was cancelled
            sending.add_done_callback(_retrieved)

    async def _leave_unless(self, names: Mapping[int, str], groups: set[str]) -> None:
        """Leaves the kept group unless all these receivers have it, and they alone."""
        kept = self._kept
        if kept is not None and (kept.names != names or groups != {kept.meeting.group}):
            await self.close()

    def _entrance(
        self, names: Mapping[int, str], bucket_bytes: int, given_up: threading.Event, *, is_kept: bool
    ) -> tuple[Meeting, Callable[[], Member]]:
        """Returns the meeting, and what enters its group: the kept one with ``is_kept``, or a new one."""
        if is_kept and self._kept is not None:
            kept, self._kept = self._kept, None  # kept again after a transfer without failure
            again = replace(kept.meeting, transfer=kept.meeting.transfer + 1, bucket_bytes=bucket_bytes)
            return again, kept.open_member
        server = listen(own_address(urlsplit(names[1]).hostname or ""))
        host, port = server.getsockname()
        meeting = Meeting(
            host=host,
            port=port,
            backend=self._backend,
            seconds=self._timeout,
            size=1 + len(names),
            bucket_bytes=bucket_bytes,
            is_kept=is_kept,
        )
        return meeting, partial(form, server, meeting, names, given_up)


def current_device() -> torch.device:
    """Returns the GPU of this process."""
    return torch.device("cuda", torch.cuda.current_device())


async def _in_thread(work: Callable[[], T]) -> T:
    """Does ``work`` in a thread that, unlike an executor's, does not keep the process from ending."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def finish(put: Callable[[Any], None], outcome: Any) -> None:
        if not done.cancelled():
            put(outcome)

    def run() -> None:
        try:
            told = partial(finish, done.set_result, work())
        except BaseException as raised:
            told = partial(finish, done.set_exception, raised)
        with suppress(RuntimeError):  # the loop was closed
            loop.call_soon_threadsafe(told)

    threading.Thread(target=run, daemon=True, name="weights").start()
    return await done


def _retrieved(task: "asyncio.Task[Member]") -> None:
    if not task.cancelled():
        task.exception()  # it was raised, or a worker's own error was
