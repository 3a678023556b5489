"""Health checks of the workers that have calls in flight, so that a silent worker does not hold its calls.

A worker counts as silent when it failed ``PROBES`` health checks in a row and answered no call meanwhile,
which takes 15 s if they fail at once and 45 s plus its ``patience`` if they run into their limit. A slow call
is not cut: vLLM answers ``/health`` from its HTTP server's process, also while the engine computes. That
process does not answer while it builds the answers of calls that have ended, and calls that reach their limit
in the same step are built one after the other. So the limits grow with the tokens in flight: ``patience`` is
the time to build the answers of all sequences that can end in one step. The limit of one check is generous
besides, because on a CPU that process shares its cores with the engine.
"""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from rollout.endpoints.client import Unavailable
from rollout.endpoints.routing import Endpoint

HEALTH_SECONDS = 10.0
"""Time limit of a worker's health check, without ``patience``."""
PROBE_SECONDS = 5.0
"""Pause before each health check of a worker that has calls in flight."""
PROBES = 3
"""Health checks that fail in a row before the calls in flight are failed over."""
ANSWER_SECONDS_PER_TOKEN = 5e-5
"""Time for which vLLM's server is busy with one token of an answer with log-probs: 32 microseconds were
measured, and slower cores exist."""


class Prober:
    """Fails the calls in flight at a worker that has fallen silent. Bound to one event loop."""

    def __init__(self, is_healthy: Callable[[str, float], Awaitable[bool]], max_num_seqs: int) -> None:
        """Args:
        is_healthy: ``is_healthy(url, timeout_seconds)`` returns False instead of raising.
        max_num_seqs: Sequences that a worker decodes at once, and that can therefore end in one step.
        """
        self._is_healthy = is_healthy
        self._max_num_seqs = max_num_seqs
        # The sequences of each call and the token limit of one.
        self._calls: defaultdict[Endpoint, dict[asyncio.Timeout, tuple[int, int]]] = defaultdict(dict)
        self._answers: defaultdict[Endpoint, int] = defaultdict(int)
        self._tasks: dict[Endpoint, asyncio.Task[None]] = {}

    @asynccontextmanager
    async def watching(self, endpoint: Endpoint, sequences: int, max_tokens: int) -> AsyncIterator[None]:
        """Async context manager around one call of ``sequences`` of ``max_tokens`` each at ``endpoint``.

        Raises:
            Unavailable: If the worker falls silent before the call returns.
        """
        calls = self._calls[endpoint]
        if endpoint not in self._tasks:
            self._tasks[endpoint] = asyncio.create_task(self._watch(endpoint))
        limit = asyncio.timeout(None)  # without an end, until ``_watch`` sets one
        calls[limit] = sequences, max_tokens
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
            del calls[limit]

    def patience(self, endpoint: Endpoint) -> float:
        """Returns the seconds for which building answers may keep a sound worker from answering."""
        calls = self._calls[endpoint].values()
        longest = max((tokens for _, tokens in calls), default=0)
        at_once = min(sum(n * tokens for n, tokens in calls), self._max_num_seqs * longest)
        return at_once * ANSWER_SECONDS_PER_TOKEN

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
            limit = HEALTH_SECONDS + self.patience(endpoint) / PROBES
            healthy = await self._is_healthy(endpoint.url, limit)
            failed = 0 if healthy or self._answers[endpoint] > answers else failed + 1
            if failed == PROBES:
                failed = 0
                for call in self._calls[endpoint]:
                    call.reschedule(asyncio.get_running_loop().time())
