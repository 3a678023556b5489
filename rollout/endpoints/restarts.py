"""Restarts broken workers in the background, while the other workers continue.

Local workers are started again. Remote workers are restarted by their owner; the restarter waits.
Both receive the current weights before they receive requests.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress

from rollout.endpoints.routing import Endpoint
from rollout.sampler import CallFailed

logger = logging.getLogger(__name__)

RESTART_ATTEMPTS = 3
"""Restarts of a worker that are attempted before it is given up."""


class Restarter:
    """Runs at most one restart per worker at a time, however many of its requests failed."""

    def __init__(self, is_sound: Callable[[Endpoint], Awaitable[bool]]) -> None:
        """``is_sound`` returns True if a worker is up and serves the version that it reported last."""
        self.restarts = 0
        self.after_restart: Callable[[Endpoint], Awaitable[None]] | None = None
        """Called before a restarted worker receives requests; loads the current weights into it."""
        self._is_sound = is_sound
        self._tasks: dict[Endpoint, asyncio.Task[None]] = {}

    def begin(self, endpoint: Endpoint) -> None:
        """Starts a check of a worker, which restarts it if it is broken; it receives no requests meanwhile.

        No-op for a worker without ``restart``, one that is being checked already, or one that was given up.
        """
        if endpoint.restart is None or endpoint.is_down or endpoint.lost:
            return
        endpoint.is_down = True
        self._tasks[endpoint] = asyncio.create_task(self._check(endpoint, endpoint.restart))

    async def back(self, endpoints: Sequence[Endpoint]) -> None:
        """Waits until one of ``endpoints``, none of which is up, is back or given up.

        The wait is bounded, since each restart is limited by ``rollout.start_timeout_seconds``.

        Raises:
            CallFailed: If all were given up.
        """
        under_way = [self._tasks[endpoint] for endpoint in endpoints if endpoint in self._tasks]
        if not under_way:
            reasons = "; ".join(endpoint.lost for endpoint in endpoints)
            raise CallFailed(f"No rollout worker is left: {reasons}")
        await asyncio.wait(under_way, return_when=asyncio.FIRST_COMPLETED)

    async def settled(self, endpoint: Endpoint) -> None:
        """Waits until no check or restart of a worker is running."""
        if endpoint in self._tasks:
            await asyncio.wait([self._tasks[endpoint]])

    async def close(self) -> None:
        """Cancels the running checks and restarts."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        for task in tasks:
            with suppress(asyncio.CancelledError):
                await task

    async def _check(self, endpoint: Endpoint, restart: Callable[[], Awaitable[str]]) -> None:
        try:
            if not await self._is_sound(endpoint):
                await self._restart(endpoint, restart)
        finally:
            endpoint.is_down = False
            del self._tasks[endpoint]

    async def _restart(self, endpoint: Endpoint, restart: Callable[[], Awaitable[str]]) -> None:
        for attempt in range(RESTART_ATTEMPTS):
            logger.warning("Restarting the rollout worker %s (attempt %d).", endpoint.url, attempt + 1)
            try:
                endpoint.url = await restart()
                if self.after_restart is not None:
                    await self.after_restart(endpoint)
            except (RuntimeError, ValueError, OSError) as error:
                logger.warning("The restart of the rollout worker %s failed: %s", endpoint.url, error)
                # The first line only: the rest is the end of the worker's log, which was just logged.
                cause = str(error).partition("\n")[0]
                continue
            self.restarts += 1
            endpoint.avoid_until = 0.0
            return
        endpoint.lost = f"{endpoint.url} failed to restart {RESTART_ATTEMPTS} times; last error: {cause}"
