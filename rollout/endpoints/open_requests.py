"""Requests under way, by name, so that they can be aborted."""

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
"""The longest that a worker may take to hand over what it has of an aborted request."""
ABORT_AGAIN_SECONDS = 0.1
"""An abort can overtake its request on the way to the worker, so it is repeated until that returns."""


@dataclass(slots=True, eq=False)
class OpenRequest:
    """One request. ``wire_id`` is the name that its worker knows it by."""

    wire_id: str | None
    work: asyncio.Task[list[Completion]] = field(init=False)
    endpoint: Endpoint | None = None
    """The worker that has it, while one has it."""
    is_aborted: bool = False
    overdue: str = ""
    """Why its answer was no longer waited for; empty if it was."""

    @contextmanager
    def at(self, endpoint: Endpoint, n: int) -> Iterator[None]:
        """Marks ``endpoint`` as having this request, for ``n`` samples, inside the block."""
        endpoint.in_flight += n
        self.endpoint = endpoint
        try:
            yield
        finally:
            self.endpoint = None
            endpoint.in_flight -= n


def never_sent(version: int) -> Completion:
    """The sample of an aborted request that no worker had: no tokens in, no tokens out."""
    return Completion(
        token_ids=(),
        logprobs=(),
        finish="abort",
        versions=(VersionSpan(version=version, start=0, end=0),),
        usage=Usage(prompt_tokens=0, completion_tokens=0),
    )


class OpenRequests:
    """Keeps the requests under way and aborts them: ``send_abort(endpoint, wire_ids)`` tells a worker."""

    def __init__(self, send_abort: Callable[[Endpoint, Sequence[str]], Awaitable[None]]) -> None:
        self._send_abort = send_abort
        self._by_name: defaultdict[str, list[OpenRequest]] = defaultdict(list)

    @contextmanager
    def under(self, name: str, request: OpenRequest) -> Iterator[None]:
        """Makes ``request`` known as ``name`` inside the block; requests may share a name."""
        self._by_name[name].append(request)
        try:
            yield
        finally:
            self._by_name[name].remove(request)
            if not self._by_name[name]:
                del self._by_name[name]

    async def abort(self, names: Collection[str]) -> None:
        """Aborts what is under way under ``names`` and waits until its work is done.

        What no worker has is cancelled. What a worker has is its to end, as it holds the tokens; if it
        does not within ``ABORT_SECONDS``, the work is cancelled as ``overdue``.
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
            request.overdue = f"{where} did not hand over an aborted request within {ABORT_SECONDS:g} s."
            request.work.cancel()

    async def _tell(self, requests: Sequence[OpenRequest]) -> None:
        names: defaultdict[Endpoint, list[str]] = defaultdict(list)
        for request in requests:
            if request.endpoint is not None and request.wire_id is not None:
                names[request.endpoint].append(request.wire_id)
        orders = (self._send_abort(endpoint, wire_ids) for endpoint, wire_ids in names.items())
        for result in await asyncio.gather(*orders, return_exceptions=True):
            if isinstance(result, Exception):
                # A worker that broke fails the request itself; one that goes on is told again.
                logger.warning("An abort did not arrive: %s", result)
