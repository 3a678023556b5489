"""Limit of the sequences in flight, over all workers."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, eq=False)
class _Waiting:
    """One request that waits for its turn."""

    number: int
    turn: asyncio.Future[None]


class SequenceSlots:
    """A semaphore whose holders take several slots each, in the order in which they asked.

    A large request is never overtaken by small ones, so that it is not starved. Bound to one event loop.
    """

    def __init__(self, total: int) -> None:
        self._total = self._free = total
        self._waiting: deque[_Waiting] = deque()

    @asynccontextmanager
    async def of(self, number: int) -> AsyncIterator[None]:
        """Async context manager: waits for ``number`` slots and holds them; at most ``total``."""
        assert 1 <= number <= self._total, "more slots than there are would never be free"
        await self._take(number)
        try:
            yield
        finally:
            self._give_back(number)

    async def _take(self, number: int) -> None:
        if not self._waiting and number <= self._free:
            self._free -= number
            return
        waiting = _Waiting(number, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        try:
            await waiting.turn
        except asyncio.CancelledError:
            if waiting.turn.cancelled():
                self._waiting.remove(waiting)
                self._admit()  # those behind a large request that gave up may fit
            else:  # its turn came in the same moment
                self._give_back(number)
            raise

    def _give_back(self, number: int) -> None:
        self._free += number
        self._admit()

    def _admit(self) -> None:
        while self._waiting and self._waiting[0].number <= self._free:
            waiting = self._waiting.popleft()
            if waiting.turn.cancelled():
                # It has yet to remove itself: put back, the next call of ``_admit`` is its own.
                self._waiting.appendleft(waiting)
                return
            self._free -= waiting.number
            waiting.turn.set_result(None)
