"""Restarts broken workers in the background, while the other workers continue.

Local workers are started again. Remote workers are restarted by their owner; the restarter waits.
Both receive the current weights before they receive requests.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence

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
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _check(self, endpoint: Endpoint, restart: Callable[[], Awaitable[str]]) -> None:
        """Ends with a worker that is sound, restarted or lost, whatever goes wrong meanwhile."""
        # Stays if the check is cut off: a worker of unknown state must not count as up.
        lost = f"{endpoint.url} broke, and its check was cancelled"
        try:
            lost = "" if await self._seems_sound(endpoint) else await self._restart(endpoint, restart)
        finally:
            endpoint.lost, endpoint.is_down = lost, False
            del self._tasks[endpoint]

    async def _seems_sound(self, endpoint: Endpoint) -> bool:
        try:
            return await self._is_sound(endpoint)
        except Exception:  # any failure of the check is a reason to restart the worker
            logger.warning("The check of the rollout worker %s failed.", endpoint.url, exc_info=True)
            return False

    async def _restart(self, endpoint: Endpoint, restart: Callable[[], Awaitable[str]]) -> str:
        """Returns an empty string once the worker is restarted, else the reason why it is given up."""
        cause = ""
        for attempt in range(RESTART_ATTEMPTS):
            logger.warning("Restarting the rollout worker %s (attempt %d).", endpoint.url, attempt + 1)
            try:
                endpoint.url = await restart()
                if self.after_restart is not None:
                    await self.after_restart(endpoint)
            except Exception as error:  # a fault of any kind is a failed attempt, not the end of the restarts
                cause = _described(error)
                logger.warning("The restart of the rollout worker %s failed: %s", endpoint.url, cause)
                continue
            self.restarts += 1
            endpoint.avoid_until = 0.0
            return ""
        # The first line only: the rest is the end of the worker's log, which was just logged.
        last = cause.partition("\n")[0]
        return f"{endpoint.url} failed to restart {RESTART_ATTEMPTS} times; last error: {last}"


def _described(error: Exception) -> str:
    """Returns the message of an error that a worker's start is known to raise, else its type as well."""
    known = isinstance(error, RuntimeError | ValueError | OSError)
    return str(error) if known else f"{type(error).__name__}: {error}"
