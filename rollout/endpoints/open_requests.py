"""Registry of the requests in flight, by name, so that they can be aborted."""

import asyncio
import logging
from collections import defaultdict
from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from rollout.endpoints.routing import Endpoint
from rollout.records import Completion, Usage, VersionSpan

logger = logging.getLogger(__name__)

ABORT_SECONDS = 30.0
"""Time limit for a worker to return the tokens of an aborted request."""
ABORT_AGAIN_SECONDS = 0.1
"""Interval of repeated aborts: an abort can overtake its request, so it is sent until the request returns."""


@dataclass(slots=True, eq=False)
class OpenRequest:
    """One request. ``wire_id`` is its id at the worker; None if it cannot be aborted there."""

    wire_id: str | None
    work: asyncio.Task[list[Completion]] = field(init=False)
    endpoint: Endpoint | None = None
    """Worker that the request was sent to, while it is in flight there; otherwise None."""
    is_aborted: bool = False
    overdue: str = ""
    """Reason why the wait for the answer was given up; empty otherwise."""

    @contextmanager
    def at(self, endpoint: Endpoint, n: int) -> Iterator[None]:
        """Context manager: marks this request, for ``n`` samples, as in flight at ``endpoint``."""
        endpoint.in_flight += n
        self.endpoint = endpoint
        try:
            yield
        finally:
            self.endpoint = None
            endpoint.in_flight -= n


def never_sent(version: int) -> Completion:
    """Returns the sample of a request aborted before any worker had it: no tokens in, no tokens out."""
    return Completion(
        token_ids=(),
        logprobs=(),
        finish="abort",
        versions=(VersionSpan(version=version, start=0, end=0),),
        usage=Usage(prompt_tokens=0, completion_tokens=0),
    )


class OpenRequests:
    """Tracks the requests in flight and aborts them; ``send_abort(endpoint, wire_ids)`` notifies a worker."""

    def __init__(self, send_abort: Callable[[Endpoint, Sequence[str]], Awaitable[None]]) -> None:
        self._send_abort = send_abort
        self._by_name: defaultdict[str, list[OpenRequest]] = defaultdict(list)

    @contextmanager
    def under(self, name: str, request: OpenRequest) -> Iterator[None]:
        """Context manager: registers ``request`` under ``name``; requests may share a name."""
        self._by_name[name].append(request)
        try:
            yield
        finally:
            self._by_name[name].remove(request)
            if not self._by_name[name]:
                del self._by_name[name]

    async def abort(self, names: Collection[str]) -> None:
        """Aborts the requests registered under ``names`` and waits until they are done.

        A request that no worker has is cancelled. A request in flight is ended by its worker, which holds the
        tokens; if that takes longer than ``ABORT_SECONDS``, the request is cancelled as ``overdue``.
        """
        requests = [request for name in names for request in self._by_name.get(name, ())]
        for request in requests:
            request.is_aborted = True
            if request.endpoint is None:
                request.work.cancel()
        waiting = [request for request in requests if request.endpoint is not None]
        clock = asyncio.get_running_loop().time
        deadline = clock() + ABORT_SECONDS
        while waiting and clock() < deadline:
            await self._tell(waiting)
            await asyncio.wait([request.work for request in waiting], timeout=ABORT_AGAIN_SECONDS)
            waiting = [request for request in waiting if not request.work.done()]
        for request in waiting:
            where = request.endpoint.url if request.endpoint else "A worker"
            request.overdue = f"{where} did not return an aborted request within {ABORT_SECONDS:g} s."
            request.work.cancel()

    async def _tell(self, requests: Sequence[OpenRequest]) -> None:
        names: defaultdict[Endpoint, list[str]] = defaultdict(list)
        for request in requests:
            if request.endpoint is not None and request.wire_id is not None:
                names[request.endpoint].append(request.wire_id)
        orders = (self._send_abort(endpoint, wire_ids) for endpoint, wire_ids in names.items())
        for result in await asyncio.gather(*orders, return_exceptions=True):
            if isinstance(result, Exception):
                # Not an error here: a broken worker fails the request itself, a live one is notified again.
                logger.warning("An abort did not reach its worker: %s", result)
