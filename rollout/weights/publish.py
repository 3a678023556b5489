"""Makes workers serve new weights, and checks that they do; how weights reach them is each subclass's part.

Requests in flight are frozen and resume with the new weights; their tokens carry both versions, and their
keys and values are computed again. Pause mode ``keep_cache`` leaves these as the previous weights computed
them, and ``wait`` lets the requests end first. Workers that share GPUs with the trainer sleep between
publishes: they lose their weights, so that a publish must replace all of them.
"""

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Collection, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from rollout.endpoints.pool import WorkerPool
from rollout.endpoints.routing import Endpoint

logger = logging.getLogger(__name__)

LABEL_SECONDS = 60.0
"""Time limit for a worker to label its weights, and to resume."""
ATTEMPTS = 2
"""Attempts of a publish; the second is for workers whose transfer another worker's failure broke."""
UNKNOWN = -1
"""Version of a worker that has to be restarted, whatever it reports."""

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

        A worker that fails is checked, restarted if it is broken, and published to once more; if that fails,
        it is restarted in any case. One whose weights may be a mix is left paused: it answers nothing until a
        publish succeeds.

        Raises:
            RuntimeError: If a worker fails again, takes too long, or serves another version afterwards. The
                message names the worker.
        """
        await self._on_all(self._pool.endpoints, self._pool.restarter.settled)
        # Set first: a worker that is restarted meanwhile loads these weights, too.
        self._current = (weights, version)
        self._pool.published_version = version
        left = list(self._pool.endpoints)
        failed: dict[Endpoint, Exception] = {}
        for attempt in range(ATTEMPTS):
            failed = await self._publish_to(left, weights, version, attempt)
            left = await self._still_behind(failed, version, is_last=attempt == ATTEMPTS - 1)
            if not left:
                return
        raise failed[left[0]]

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
    async def _load(
        self, endpoints: Sequence[Endpoint], weights: Source, *, is_first: bool
    ) -> dict[Endpoint, Exception]:
        """Makes paused workers load ``weights`` and returns the failures; ``is_first`` at first attempt."""

    async def _still_behind(
        self, failed: Collection[Endpoint], version: int, *, is_last: bool
    ) -> list[Endpoint]:
        """Has workers that failed checked, and restarted if need be; returns those without ``version``."""
        restarter = self._pool.restarter
        for endpoint in failed:
            if is_last:  # it answers, and cannot load: no check would find it sound now
                endpoint.version = UNKNOWN
            restarter.begin(endpoint)
        await self._on_all(failed, restarter.settled)

        async def serves(endpoint: Endpoint) -> None:
            if (served := await self._pool.served_version(endpoint)) != version:
                raise RuntimeError(served)

        return list(await self._on_all(failed, serves))

    async def _bring_up_to_date(self, endpoint: Endpoint) -> None:
        """Loads the current weights into a worker that was restarted."""
        if self._current is not None:
            for error in (await self._publish_to([endpoint], *self._current, attempt=1)).values():
                raise error

    async def _publish_to(
        self, endpoints: Sequence[Endpoint], weights: Source, version: int, attempt: int
    ) -> dict[Endpoint, Exception]:
        """Publishes to all ``endpoints`` at once and returns the failures."""
        failed = await self._on_all(endpoints, self._pause)
        paused = [endpoint for endpoint in endpoints if endpoint not in failed]
        # Only these were touched: the others still have their old weights whole.
        broken = await self._load(paused, weights, is_first=attempt == 0) if paused else {}
        loaded = [endpoint for endpoint in paused if endpoint not in broken]

        async def finish(endpoint: Endpoint) -> None:
            await self._finish(endpoint, version)

        return failed | broken | await self._on_all(loaded, finish)

    async def _pause(self, endpoint: Endpoint) -> None:
        api = self._pool.api
        if self._sleeps:
            await api.wake_weights(endpoint.url, self._timeout)
        mode = "wait" if self._pause_mode == "wait" else "keep"
        await api.pause(endpoint.url, mode, self._timeout, clear_cache=self._pause_mode != "keep_cache")

    async def _finish(self, endpoint: Endpoint, version: int) -> None:
        """Lets a worker that has loaded its weights serve them as ``version``."""
        api = self._pool.api
        # What the old weights computed is dropped before tokens carry the new version. If a call fails, the
        # worker stays paused: it must not serve new weights under the old version.
        if self._pause_mode != "keep_cache":
            await api.reset_prefix_cache(endpoint.url, self._timeout)
        await api.set_version(endpoint.url, version, LABEL_SECONDS)
        if self._sleeps:  # last: the memory of the reload is free again, and decoding starts here
            await api.wake_cache(endpoint.url, self._timeout)
        await api.resume(endpoint.url, LABEL_SECONDS)
        served = await self._pool.served_version(endpoint)
        if served != version:
            raise RuntimeError(
                f"Rollout worker {endpoint.url} serves policy version {served} after version {version} was "
                "published to it; see its log."
            )

    async def _on_all(
        self, endpoints: Collection[Endpoint], work: Callable[[Endpoint], Awaitable[None]]
    ) -> dict[Endpoint, Exception]:
        """Does ``work`` on all endpoints at once and returns the failures, once all are done."""
        outcomes = await asyncio.gather(*map(work, endpoints), return_exceptions=True)
        failed: dict[Endpoint, Exception] = {}
        for endpoint, outcome in zip(endpoints, outcomes, strict=True):
            if isinstance(outcome, RuntimeError):
                failed[endpoint] = outcome
            elif isinstance(outcome, BaseException):
                raise outcome
        return failed


class DirectoryPublisher(WeightPublisher[Path]):
    """Publishes the safetensors in a directory that every worker can read; works on any device."""

    async def _load(
        self, endpoints: Sequence[Endpoint], weights: Path, *, is_first: bool
    ) -> dict[Endpoint, Exception]:
        del is_first

        async def load(endpoint: Endpoint) -> None:
            await self._pool.api.load(endpoint.url, weights, self._timeout)

        return await self._on_all(endpoints, load)


class AdapterPublisher(WeightPublisher[Path]):
    """Publishes the LoRA adapter in a directory that every worker can read; the model stays as it is."""

    async def _load(
        self, endpoints: Sequence[Endpoint], weights: Path, *, is_first: bool
    ) -> dict[Endpoint, Exception]:
        del is_first

        async def load(endpoint: Endpoint) -> None:
            await self._pool.api.load_adapter(endpoint.url, weights, self._timeout)

        return await self._on_all(endpoints, load)
