"""Brings back workers that broke, in the background, while the others go on.

Local ones are started anew. Those of somebody else are waited for: whoever runs them restarts them. Both get
the current weights before they get requests again.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress

from rollout.endpoints.routing import Endpoint
from rollout.sampler import CallFailed

logger = logging.getLogger(__name__)

RESTART_ATTEMPTS = 3
"""Times that a worker is started anew before it is given up."""


class Restarter:
    """One restart at a time for each worker, however many requests it failed."""

    def __init__(self, is_sound: Callable[[Endpoint], Awaitable[bool]]) -> None:
        """``is_sound``: a worker is up and serves the version that it said last."""
        self.restarts = 0
        self.after_restart: Callable[[Endpoint], Awaitable[None]] | None = None
        """Called before a restarted worker gets requests: brings it to the current weights."""
        self._is_sound = is_sound
        self._tasks: dict[Endpoint, asyncio.Task[None]] = {}

    def begin(self, endpoint: Endpoint) -> None:
        """Checks a worker and restarts it if it is broken; no request goes there meanwhile.

        Does nothing for workers of which nobody knows how they come back.
        """
        if endpoint.restart is None or endpoint.is_down or endpoint.lost:
            return
        endpoint.is_down = True
        self._tasks[endpoint] = asyncio.create_task(self._check(endpoint, endpoint.restart))

    async def back(self, endpoints: Sequence[Endpoint]) -> None:
        """Waits until one of ``endpoints``, none of which is up, is back or given up.

        A restart is limited by ``rollout.start_timeout_seconds``, and so is this.

        Raises:
            CallFailed: If all were given up.
        """
        under_way = [self._tasks[endpoint] for endpoint in endpoints if endpoint in self._tasks]
        if not under_way:
            reasons = "; ".join(endpoint.lost for endpoint in endpoints)
            raise CallFailed(f"No rollout worker is left: {reasons}")
        await asyncio.wait(under_way, return_when=asyncio.FIRST_COMPLETED)

    async def settled(self, endpoint: Endpoint) -> None:
        """Waits until a worker is not being checked or restarted."""
        if endpoint in self._tasks:
            await asyncio.wait([self._tasks[endpoint]])

    async def close(self) -> None:
        """Gives up what is under way."""
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
            logger.warning("Bringing back the rollout worker %s (attempt %d).", endpoint.url, attempt + 1)
            try:
                endpoint.url = await restart()
                if self.after_restart is not None:
                    await self.after_restart(endpoint)
            except (RuntimeError, ValueError, OSError) as error:
                logger.warning("The rollout worker %s did not come back: %s", endpoint.url, error)
                cause = str(error).partition("\n")[0]
                continue
            self.restarts += 1
            endpoint.avoid_until = 0.0
            return
        endpoint.lost = f"{endpoint.url} did not come back in {RESTART_ATTEMPTS} attempts, at last: {cause}"
