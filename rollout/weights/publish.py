"""Sends new weights to the workers: through a directory that all can read, or through a process group.

Requests in flight are frozen and resume with the new weights; their tokens carry both versions, and their
keys and values are computed again. Pause mode ``keep_cache`` leaves these as the previous weights computed
them, and ``wait`` lets the requests end first. Workers that share GPUs with the trainer sleep between
publishes: they lose their weights, so that a publish must replace all of them.
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
"""Time limit for a worker to label its weights, and to resume."""

Source = TypeVar("Source")


class WeightPublisher(ABC, Generic[Source]):
    """Loads new weights into all workers and checks the version that they serve."""

    def __init__(
        self, pool: WorkerPool, timeout_seconds: float, pause_mode: str = "keep", *, sleeps: bool = False
    ) -> None:
        """``pause_mode``: ``keep`` freezes requests in flight, ``keep_cache`` keeps their keys and values as
        well, ``wait`` lets them end first.
        ``sleeps``: True if ``sleep`` is used, so that workers must be woken before a publish."""
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
        # Set first: a worker that is restarted meanwhile loads these weights, too.
        self._current = (weights, version)
        self._pool.published_version = version
        work = (self._publish_or_replace(worker, weights, version) for worker in self._pool.endpoints)
        # A failure is raised only after all workers are done: it must not interrupt the other transfers.
        for outcome in await asyncio.gather(*work, return_exceptions=True):
            if isinstance(outcome, BaseException):
                raise outcome

    async def sleep(self) -> None:
        """Frees the GPU memory of every worker until the next publish, once requests in flight have ended.

        Raises:
            RuntimeError: If a worker fails or takes too long. The message names the worker.
        """
        assert self._sleeps, "publish wakes workers only with sleeps=True"
        await asyncio.gather(*map(self._put_to_sleep, self._pool.endpoints))

    async def _put_to_sleep(self, endpoint: Endpoint) -> None:
        api, restarter = self._pool.api, self._pool.restarter
        await restarter.settled(endpoint)
        try:
            await api.sleep(endpoint.url, self._timeout)
        except RuntimeError:
            # Second attempt after a check, which restarts a broken worker.
            restarter.begin(endpoint)
            await restarter.settled(endpoint)
            await api.sleep(endpoint.url, self._timeout)

    @abstractmethod
    async def _load(self, endpoint: Endpoint, weights: Source) -> None:
        """Makes a paused worker load ``weights``."""

    async def _publish_or_replace(self, endpoint: Endpoint, weights: Source, version: int) -> None:
        """Publishes to one worker; on failure has it checked: a restart loads the current weights, too."""
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
        api, keeps_cache = self._pool.api, self._pause_mode == "keep_cache"
        if self._sleeps:
            await api.wake_weights(endpoint.url, self._timeout)
        mode = "wait" if self._pause_mode == "wait" else "keep"
        await api.pause(endpoint.url, mode, self._timeout, clear_cache=not keeps_cache)
        has_weights = not self._sleeps
        try:
            await self._load(endpoint, weights)
            # What the old weights computed is dropped before tokens carry the new version.
            if not keeps_cache:
                await api.reset_prefix_cache(endpoint.url, self._timeout)
            await api.set_version(endpoint.url, version, LABEL_SECONDS)
            if self._sleeps:  # last: the memory of the reload is free again, and decoding starts here
                await api.wake_cache(endpoint.url, self._timeout)
                has_weights = True
        finally:
            if has_weights:  # a worker whose weights were lost in its sleep must not decode
                await api.resume(endpoint.url, LABEL_SECONDS)
        served = await self._pool.served_version(endpoint)
        if served != version:
            raise RuntimeError(
                f"Rollout worker {endpoint.url} serves policy version {served} after version {version} was "
                "published to it; see its log."
            )


class DirectoryPublisher(WeightPublisher[Path]):
    """Publishes the safetensors in a directory that every worker can read; works on any device."""

    async def _load(self, endpoint: Endpoint, weights: Path) -> None:
        await self._pool.api.load(endpoint.url, weights, self._timeout)


class TransferPublisher(WeightPublisher[Mapping[str, torch.Tensor]]):
    """Publishes weights from this process's host memory, over a separate process group for each worker."""

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
        self._device = torch.device("cuda" if backend == "nccl" else "cpu")

    async def _load(self, endpoint: Endpoint, weights: Mapping[str, torch.Tensor]) -> None:
        host = own_address(urlsplit(endpoint.url).hostname or "")
        server = listen(host)
        meeting = Meeting(
            host=host, port=server.getsockname()[1], backend=self._backend, seconds=self._timeout
        )
        # The sender blocks in a thread, which cannot be cancelled: this event ends it.
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
            with suppress(GivenUp):  # the worker's own error, raised below, says more
                await sending
            raise RuntimeError(f"Rollout worker {endpoint.url} did not take its weights: {error}") from error
        finally:
            given_up.set()  # ends the sender if the publish was cancelled
