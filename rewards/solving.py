"""Solves requests in the background: cached, bounded in number, from any thread and any event loop."""

import asyncio
import collections
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol

from rewards.processes.pool import Gate

Result = dict[str, Any]
"""``status``, ``reason`` and ``seconds``; for some tasks ``value`` and ``measures``, too."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """One check that the calling thread does not do itself."""

    body: dict[str, Any]
    """What a worker process reads (plain JSON data)."""
    key: tuple[str, ...]
    """Requests with equal keys have equal results, and only the first of them is computed."""
    is_judged: bool = False
    """True if the language model decides, and not a worker process."""


class Backend(Protocol):
    """What computes results: a pool of processes, or a language model."""

    def submit(self, request: dict[str, Any]) -> "Future[Result]":
        """Starts a request. Raises RuntimeError if it is closed."""
        ...


class Solver:
    """Requests -> results of one backend."""

    def __init__(self, backend: Backend, *, max_pending: int, max_cached: int) -> None:
        """Args:

        backend: Computes the results that are not cached.
        max_pending: Limit of the requests that wait for the backend; further callers wait before submitting.
        max_cached: Number of results kept.
        """
        if max_pending < 1:
            raise ValueError(f"`max_pending` must be at least 1, got {max_pending}.")
        self._backend = backend
        self._gate = Gate(max_pending)
        self._max_cached = max_cached
        self._lock = threading.Lock()
        self._cache: collections.OrderedDict[tuple[str, ...], Future[Result]] = collections.OrderedDict()

    async def solve(self, request: Request) -> tuple[Result, bool]:
        """Returns the result, and True if it was computed for this caller."""
        future, is_new = self._cached(request)
        if is_new:
            # A callback, not an await: if this caller is cancelled, others may still wait for the future.
            self._gate.enter().add_done_callback(lambda _: self._start(request, future))
        # Shielded: one caller's cancellation must not cancel the result that others share.
        return await asyncio.shield(asyncio.wrap_future(future)), is_new

    def solve_sync(self, request: Request) -> tuple[Result, bool]:
        """Same as ``solve``, for callers without an event loop."""
        future, is_new = self._cached(request)
        if is_new:
            self._gate.enter().result()
            self._start(request, future)
        return future.result(), is_new

    def _cached(self, request: Request) -> tuple[Future[Result], bool]:
        """Returns the future of this request's result, and True if the caller must compute it."""
        with self._lock:
            if request.key in self._cache:
                self._cache.move_to_end(request.key)
                return self._cache[request.key], False
            future = self._cache[request.key] = Future()
            if len(self._cache) > self._max_cached:
                self._cache.popitem(last=False)
            return future, True

    def _start(self, request: Request, future: Future[Result]) -> None:
        """Submits the request to the backend; always resolves the future and leaves the gate."""

        def resolve(result: Result) -> None:
            self._gate.leave()
            if result["status"] == "error":  # not cached: the next try may succeed
                with self._lock:
                    self._cache.pop(request.key, None)
            future.set_result(result)

        try:
            self._backend.submit(request.body).add_done_callback(_finisher(resolve))
        except RuntimeError as error:  # closed
            resolve(_error(str(error)))


def _finisher(resolve: Callable[[Result], None]) -> Callable[[Future[Result]], None]:
    def finish(done: Future[Result]) -> None:
        failure = None if done.cancelled() else done.exception()
        if done.cancelled() or failure is not None:
            resolve(_error(str(failure) if failure else "The scorer was closed."))
        else:
            resolve(done.result())

    return finish


def _error(reason: str) -> Result:
    return {"status": "error", "reason": reason, "seconds": 0.0}
