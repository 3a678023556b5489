"""A reverse proxy in front of a worker that answers a seeded share of the requests wrongly.

Each fault is one that a client can recognise: an error status, a broken connection, a body that is cut, no
JSON, or JSON with impossible values. A plausible answer with other tokens is beyond any client.
"""

import asyncio
import json
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import aiohttp
from aiohttp import web

SAMPLING = "/inference/v1/generate"
HTML = b"<html><body>502 Bad Gateway</body></html>"
SLOW_SECONDS = 3.0
LIMIT = aiohttp.ClientTimeout(total=600)

Corruption = Callable[[dict[str, Any]], None]


def _sure(answer: dict[str, Any]) -> None:
    answer["choices"][0]["logprobs"]["content"][0]["logprob"] = 5.0


def _no_number(answer: dict[str, Any]) -> None:
    answer["choices"][-1]["logprobs"]["content"][-1]["logprob"] = float("nan")


def _foreign(answer: dict[str, Any]) -> None:
    answer["choices"][0]["token_ids"][0] = -1


def _fewer(answer: dict[str, Any]) -> None:
    answer["choices"].pop()


def _twice(answer: dict[str, Any]) -> None:
    answer["choices"].append(answer["choices"][0])


def _newer(answer: dict[str, Any]) -> None:
    answer["choices"][0]["weight_versions"][0]["version"] = "999"


CORRUPTIONS: dict[str, Corruption] = {
    "log-prob above 0": _sure,
    "log-prob NaN": _no_number,
    "token id -1": _foreign,
    "sample missing": _fewer,
    "sample twice": _twice,
    "version from the future": _newer,
}
STATUSES = {
    "status 500": (500, {}),
    "status 503": (503, {}),
    "status 429": (429, {"Retry-After": "1"}),
    "status 404 with a page": (404, {"Content-Type": "text/html"}),
    "status 401": (401, {}),
}
BROKEN = ("connection reset", "answer cut", "half of the JSON", "page instead of JSON", "slow answer")
CONTROL_FAULTS = (*STATUSES, "connection reset", "page instead of JSON", "slow answer")
SAMPLING_FAULTS = (*STATUSES, *BROKEN, *CORRUPTIONS)


class FaultProxy:
    """Forwards to one worker; with ``share`` above 0 that share of the requests gets a fault."""

    def __init__(self, target: str, seed: int) -> None:
        self._target = target
        self._rng = random.Random(seed)
        self.sampling_share = 0.0
        self.control_share = 0.0
        self.requests = 0
        self.faults: Counter[str] = Counter()
        self.url = ""

    async def start(self) -> None:
        """Listens on a free port of loopback; ``url`` is then set."""
        self._session = aiohttp.ClientSession(timeout=LIMIT)
        app = web.Application(client_max_size=2**30)
        app.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    async def close(self) -> None:
        """Ends every connection."""
        await self._runner.cleanup()
        await self._session.close()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        self.requests += 1
        fault = self._draw(request)
        if fault is None:
            return await self._forward(request)
        self.faults[fault] += 1
        if fault in STATUSES:
            status, headers = STATUSES[fault]
            return web.Response(status=status, headers=headers, body=HTML)
        if fault == "connection reset":
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        if fault == "page instead of JSON":
            return web.Response(body=HTML)
        if fault == "slow answer":
            await asyncio.sleep(SLOW_SECONDS)
            return await self._forward(request)
        return await self._damaged(request, await self._forward(request), fault)

    def _draw(self, request: web.Request) -> str | None:
        is_sampling = request.path == SAMPLING
        share = self.sampling_share if is_sampling else self.control_share
        if self._rng.random() >= share:
            return None
        return self._rng.choice(SAMPLING_FAULTS if is_sampling else CONTROL_FAULTS)

    async def _forward(self, request: web.Request) -> web.Response:
        headers = {k: v for k, v in request.headers.items() if k in ("Authorization", "Content-Type")}
        try:
            async with self._session.request(
                request.method, self._target + request.path_qs, data=await request.read(), headers=headers
            ) as answer:
                body = await answer.read()
                kind = answer.headers.get("Content-Type", "application/json")
                return web.Response(status=answer.status, body=body, headers={"Content-Type": kind})
        except aiohttp.ClientError:  # the worker is down: so is this connection
            assert request.transport is not None
            request.transport.abort()
            return web.Response()

    async def _damaged(self, request: web.Request, answer: web.Response, fault: str) -> web.StreamResponse:
        body = answer.body
        if answer.status != 200 or not isinstance(body, bytes) or not body:
            return answer
        if fault == "half of the JSON":
            return web.json_response(body=body[: len(body) // 2])
        if fault == "answer cut":
            cut = web.StreamResponse(headers={"Content-Length": str(len(body))})
            await cut.prepare(request)
            await cut.write(body[: len(body) // 2])
            assert request.transport is not None
            request.transport.abort()
            return cut
        decoded = json.loads(body)
        CORRUPTIONS[fault](decoded)
        return web.json_response(body=json.dumps(decoded).encode())


@contextmanager
def proxies(targets: list[str], seed: int) -> Iterator[list[FaultProxy]]:
    """A proxy for each target, on an event loop in a thread."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    made = [FaultProxy(target, seed + i) for i, target in enumerate(targets)]
    try:
        for proxy in made:
            asyncio.run_coroutine_threadsafe(proxy.start(), loop).result(10)
        yield made
    finally:
        for proxy in made:
            asyncio.run_coroutine_threadsafe(proxy.close(), loop).result(70)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()
