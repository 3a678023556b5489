"""Health checks of the workers that have calls in flight, so that a silent worker does not hold its calls.

A worker counts as silent when it failed ``PROBES`` health checks in a row and answered no call meanwhile,
which takes 15 s if they fail at once and 45 s if they run into their limit. A slow call is not cut: vLLM
answers ``/health`` from its HTTP server's process, also while the engine computes. The limit of one check is
generous because on a CPU that process shares its cores with the engine.
"""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from rollout.endpoints.client import Unavailable
from rollout.endpoints.routing import Endpoint

HEALTH_SECONDS = 10.0
"""Time limit of a worker's health check."""
PROBE_SECONDS = 5.0
"""Pause before each health check of a worker that has calls in flight."""
PROBES = 3
"""Health checks that fail in a row before the calls in flight are failed over."""


class Prober:
    """Fails the calls in flight at a worker that has fallen silent. Bound to one event loop."""

    def __init__(self, is_healthy: Callable[[str, float], Awaitable[bool]]) -> None:
        """``is_healthy(url, timeout_seconds)`` returns False instead of raising."""
        self._is_healthy = is_healthy
        self._calls: defaultdict[Endpoint, set[asyncio.Timeout]] = defaultdict(set)
        self._answers: defaultdict[Endpoint, int] = defaultdict(int)
        self._tasks: dict[Endpoint, asyncio.Task[None]] = {}

    @asynccontextmanager
    async def watching(self, endpoint: Endpoint) -> AsyncIterator[None]:
        """Async context manager around one call at ``endpoint``.

        Raises:
            Unavailable: If the worker falls silent before the call returns.
        """
        calls = self._calls[endpoint]
        if endpoint not in self._tasks:
            self._tasks[endpoint] = asyncio.create_task(self._watch(endpoint))
        limit = asyncio.timeout(None)  # without an end, until ``_watch`` sets one
        calls.add(limit)
        try:
            async with limit:
                yield
            self._answers[endpoint] += 1
        except TimeoutError:
            if not limit.expired():
                raise
            raise Unavailable(
                f"{endpoint.url} failed {PROBES} health checks in a row while a call waited for its answer."
            ) from None
        finally:
            calls.remove(limit)

    async def close(self) -> None:
        """Ends the checks."""
        tasks = list(self._tasks.values())
        self._tasks.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _watch(self, endpoint: Endpoint) -> None:
        failed = 0
        while True:
            answers = self._answers[endpoint]
            await asyncio.sleep(PROBE_SECONDS)
            if not self._calls[endpoint]:
                failed = 0
                continue
            healthy = await self._is_healthy(endpoint.url, HEALTH_SECONDS)
            failed = 0 if healthy or self._answers[endpoint] > answers else failed + 1
            if failed == PROBES:
                failed = 0
                for call in self._calls[endpoint]:
                    call.reschedule(asyncio.get_running_loop().time())
