"""Sends new weights to the workers: through a directory that all can read, or through a process group.

Requests in flight are frozen, not lost: they go on with the new weights, and their tokens carry both
versions. By option they are waited for instead. Workers that share GPUs with the trainer sleep in between.
"""

import asyncio
import threading
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Generic, TypeVar
from urllib.parse import urlsplit

import torch

from rollout.endpoints.pool import WorkerPool
from rollout.endpoints.routing import Endpoint
from rollout.weights.transfer import GivenUp, Meeting, entries_of, listen, own_address, send

LABEL_SECONDS = 60.0
"""The longest that a worker may take to label its weights, or to resume."""

Source = TypeVar("Source")


class WeightPublisher(ABC, Generic[Source]):
    """Makes all workers serve new weights, and checks that they do."""

    def __init__(
        self, pool: WorkerPool, timeout_seconds: float, pause_mode: str = "keep", *, sleeps: bool = False
    ) -> None:
        """``pause_mode``: ``keep`` freezes requests in flight, ``wait`` lets them end first.
        ``sleeps``: whether ``sleep`` is used, so that workers must be woken."""
        self._pool = pool
        self._pause_mode = pause_mode
        self._timeout = timeout_seconds
        self._sleeps = sleeps
        self._current: tuple[Source, int] | None = None
        pool.restarter.after_restart = self._bring_up_to_date

    async def publish(self, weights: Source, version: int) -> None:
        """Loads ``weights`` into every worker and checks that it serves ``version``.

        Raises:
            RuntimeError: If a worker fails, takes too long, or serves another version afterwards. The
                message names the worker.
        """
        self._current = (weights, version)
        self._pool.published_version = version
        work = (self._publish_or_replace(worker, weights, version) for worker in self._pool.endpoints)
        # One that fails does not cut off what the others are being sent.
        for outcome in await asyncio.gather(*work, return_exceptions=True):
            if isinstance(outcome, BaseException):
                raise outcome

    async def sleep(self) -> None:
        """Has every worker give its GPU's memory back until the next publish; requests in flight end first.

        Raises:
            RuntimeError: If a worker does not, or takes too long. The message names it.
        """
        assert self._sleeps, "nothing would wake the workers"
        await asyncio.gather(*map(self._put_to_sleep, self._pool.endpoints))

    async def _put_to_sleep(self, endpoint: Endpoint) -> None:
        api, restarter = self._pool.api, self._pool.restarter
        await restarter.settled(endpoint)
        try:
            await api.sleep(endpoint.url, self._timeout)
        except RuntimeError:
            restarter.begin(endpoint)
            await restarter.settled(endpoint)
            await api.sleep(endpoint.url, self._timeout)

    @abstractmethod
    async def _load(self, endpoint: Endpoint, weights: Source) -> None:
        """Has a worker that is paused load ``weights``."""

    async def _publish_or_replace(self, endpoint: Endpoint, weights: Source, version: int) -> None:
        """A local worker that broke is restarted, which loads the current weights, too."""
        restarter = self._pool.restarter
        await restarter.settled(endpoint)
        try:
            await self._publish_to(endpoint, weights, version)
        except RuntimeError:
            restarter.begin(endpoint)
            await restarter.settled(endpoint)
            if await self._pool.served_version(endpoint) != version:
                raise

    async def _bring_up_to_date(self, endpoint: Endpoint) -> None:
        if self._current is not None:
            await self._publish_to(endpoint, *self._current)

    async def _publish_to(self, endpoint: Endpoint, weights: Source, version: int) -> None:
        api = self._pool.api
        if self._sleeps:
            await api.wake(endpoint.url, self._timeout)
        await api.pause(endpoint.url, self._pause_mode, self._timeout)
        try:
            await self._load(endpoint, weights)
            await api.reset_prefix_cache(endpoint.url, self._timeout)
            await api.set_version(endpoint.url, version, LABEL_SECONDS)
        finally:
            await api.resume(endpoint.url, LABEL_SECONDS)
        served = await self._pool.served_version(endpoint)
        if served != version:
            raise RuntimeError(
                f"Rollout worker {endpoint.url} serves policy version {served} after version {version} was "
                "published to it; see its log."
            )


class DirectoryPublisher(WeightPublisher[Path]):
    """Publishes the safetensors in a directory which every worker can read; works on any device."""

    async def _load(self, endpoint: Endpoint, weights: Path) -> None:
        await self._pool.api.load(endpoint.url, weights, self._timeout)


class TransferPublisher(WeightPublisher[Mapping[str, torch.Tensor]]):
    """Publishes weights that are in our host memory; each worker gets them over a group of its own."""

    def __init__(
        self,
        pool: WorkerPool,
        timeout_seconds: float,
        pause_mode: str = "keep",
        *,
        sleeps: bool = False,
        backend: str,
    ) -> None:
        """``backend``: ``nccl`` or ``gloo``."""
        super().__init__(pool, timeout_seconds, pause_mode, sleeps=sleeps)
        self._backend = backend
        self._device = torch.device("cuda" if backend == "nccl" else "cpu")

    async def _load(self, endpoint: Endpoint, weights: Mapping[str, torch.Tensor]) -> None:
        host = own_address(urlsplit(endpoint.url).hostname or "")
        server = listen(host)
        meeting = Meeting(
            host=host, port=server.getsockname()[1], backend=self._backend, seconds=self._timeout
        )
        given_up = threading.Event()
        sending = asyncio.create_task(
            asyncio.to_thread(send, weights, server, meeting, given_up, self._device)
        )
        entries = [asdict(entry) for entry in entries_of(weights)]
        try:
            await self._pool.api.receive(endpoint.url, asdict(meeting), entries, self._timeout)
            await sending
        except RuntimeError as error:
            given_up.set()
            with suppress(GivenUp):  # it says less than the worker's own error
                await sending
            raise RuntimeError(f"Rollout worker {endpoint.url} did not take its weights: {error}") from error
        finally:
            given_up.set()  # ends the sending of a publish that was cancelled
