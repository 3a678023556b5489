"""Back-pressure that works between threads and event loops."""

import collections
import threading
from concurrent.futures import Future


class Gate:
    """Back-pressure: at most `limit` inside; who comes later gets a future that opens in order."""

    def __init__(self, limit: int) -> None:
        self._free = limit
        self._waiting: collections.deque[Future[None]] = collections.deque()
        self._lock = threading.Lock()

    def enter(self) -> Future[None]:
        """A future that is done once there is room."""
        ticket: Future[None] = Future()
        with self._lock:
            if self._free == 0:
                self._waiting.append(ticket)
                return ticket
            self._free -= 1
        ticket.set_result(None)
        return ticket

    def leave(self) -> None:
        """Makes room for the next in line."""
        with self._lock:
            if not self._waiting:
                self._free += 1
                return
            ticket = self._waiting.popleft()
        ticket.set_result(None)
