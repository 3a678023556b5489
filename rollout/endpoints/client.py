"""HTTP client for endpoints: one session, time limits on every request, a key that no message repeats."""

import json
import os
import random
import socket
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import aiohttp
from aiohttp import AddrInfoType

from rollout.endpoints.keys import read_key
from rollout.sampler import RequestRefused

KEEP_ALIVE_SECONDS = 3.0
"""Shorter than the 5 s after which a vLLM server closes an idle connection, so that no request is written to
a connection that is being closed."""
CONNECT_SECONDS = 10.0
"""Time limit for a connection to be accepted. The kernel of a live machine accepts for a busy server, too."""
TCP_OPTIONS = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 15),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
    # Keepalive does not run while sent data waits to be acknowledged; this limit, in ms, does.
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 30_000),
)
"""A connection to a machine that vanished breaks after 30 s, not after 15 minutes."""
SLOW_HINT = (
    "If it is only slow, lower rollout.max_concurrency, so that fewer sequences wait in its queue, or raise "
    "rollout.request_timeout_seconds."
)
SHOWN_CHARACTERS = 500
"""Longest excerpt of an endpoint's answer in an error message."""

FIRST_BACKOFF_SECONDS = 0.5
LONGEST_BACKOFF_SECONDS = 30.0


class Unavailable(Exception):
    """A temporary failure: 408, 429, a 5xx, a broken connection, or a request that took too long.

    ``retry_after`` is the wait in seconds that the endpoint asked for, 0 if it asked for none. ``is_busy`` is
    True if the status was 429: the endpoint is healthy.
    """

    def __init__(self, message: str, *, retry_after: float = 0.0, is_busy: bool = False) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        self.is_busy = is_busy


@dataclass(slots=True)
class RequestCounts:
    """Requests since the start of the run, and their tokens as counted in the endpoint's ``usage``."""

    requests: int = 0
    retries: int = 0
    prompt_tokens: int = 0
    """Tokens in; a prompt counts once for each request that carries it, not for each sample."""
    completion_tokens: int = 0
    cached_tokens: int = 0
    """Prompt tokens found in the workers' prefix caches; 0 on a chat endpoint."""


class Client:
    """JSON over HTTP. Use as an async context manager; bound to the event loop that entered it.

    The key is sent as a bearer token with every request. No message repeats it.
    """

    def __init__(self, key_variable: str, timeout_seconds: float, key: str | None = None) -> None:
        """``key`` None is that of the environment variable ``key_variable``, which messages name."""
        self._key_variable = key_variable
        self._key = read_key(key_variable, os.environ) if key is None else key
        self._timeout = timeout_seconds

    async def __aenter__(self) -> "Client":
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=0, keepalive_timeout=KEEP_ALIVE_SECONDS, socket_factory=_socket
            ),
            headers={"Authorization": f"Bearer {self._key}"} if self._key else None,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def sample(self, url: str, body: bytes) -> bytes:
        """Posts a sampling request and returns the body of the answer.

        Raises:
            Unavailable: If another attempt may help.
            RequestRefused: If the endpoint refuses the request.
        """
        try:
            status, answer, retry_after = await self._request("POST", url, body, self._timeout)
        except Unavailable as error:
            if isinstance(error.__cause__, TimeoutError):
                raise Unavailable(f"{error} {SLOW_HINT}") from error
            raise
        if status == 200:
            return answer
        if is_fault_of_request(status):
            raise RequestRefused(f"{url} refused a request with {status}: {self._shown(answer)}")
        message = f"{url} answered {status}: {self._shown(answer)}{self._hint(status)}"
        raise Unavailable(message, retry_after=retry_after, is_busy=status == 429)

    async def control(
        self, method: str, url: str, body: Any, timeout_seconds: float, *, is_json: bool = True
    ) -> Any:
        """Sends a control request and returns the decoded answer; None if it is empty or not ``is_json``.

        Raises:
            RuntimeError: If it fails or takes longer than ``timeout_seconds``. The message names the URL.
        """
        sent = None if body is None else json.dumps(body).encode()
        try:
            status, answer, _ = await self._request(method, url, sent, timeout_seconds)
        except Unavailable as error:
            raise RuntimeError(str(error)) from None
        if status != 200:
            raise RuntimeError(f"{url} answered {status}: {self._shown(answer)}{self._hint(status)}")
        try:
            return json.loads(answer) if answer and is_json else None
        except (ValueError, RecursionError) as error:
            raise RuntimeError(f"{url} answered no JSON: {self._shown(answer)}") from error

    def _hint(self, status: int) -> str:
        return f" Set {self._key_variable}." if status in (401, 403) else ""

    async def status(self, url: str, timeout_seconds: float) -> int:
        """Returns the HTTP status of a GET, including error statuses.

        Raises:
            RuntimeError: If the endpoint does not answer within ``timeout_seconds``.
        """
        try:
            return (await self._request("GET", url, None, timeout_seconds))[0]
        except Unavailable as error:
            raise RuntimeError(str(error)) from None

    async def _request(
        self, method: str, url: str, body: bytes | None, timeout_seconds: float
    ) -> tuple[int, bytes, float]:
        connect = min(CONNECT_SECONDS, timeout_seconds)
        limit = aiohttp.ClientTimeout(total=timeout_seconds, sock_connect=connect)
        headers = {"Content-Type": "application/json"} if body is not None else None
        try:
            async with self._session.request(
                method, url, data=body, headers=headers, timeout=limit
            ) as response:
                retry_after = retry_after_seconds(response.headers.get("Retry-After"))
                return response.status, await response.read(), retry_after
        except aiohttp.ConnectionTimeoutError:
            raise Unavailable(f"{url} accepted no connection within {connect:g} s.") from None
        except TimeoutError as error:
            raise Unavailable(f"{url} did not answer within {timeout_seconds:g} s.") from error
        except Exception as error:  # of any kind: aiohttp raises ValueError, EOFError and others, too
            # Not ``repr(error)``: aiohttp's can contain the request's headers, and with them the key.
            raise Unavailable(f"{url} failed: {self._redacted(f'{type(error).__name__}: {error}')}") from None

    def _shown(self, answer: bytes) -> str:
        # Redacted before it is cut, since a cut could leave part of a key.
        return " ".join(self._redacted(answer.decode(errors="replace")).split())[:SHOWN_CHARACTERS]

    def _redacted(self, text: str) -> str:
        return text.replace(self._key, f"[{self._key_variable}]") if self._key else text


def _socket(address: AddrInfoType) -> socket.socket:
    """Returns a socket for an address that notices when the other machine vanishes."""
    family, kind, protocol, _, _ = address
    made = socket.socket(family, kind, protocol)
    for level, option, value in TCP_OPTIONS:
        made.setsockopt(level, option, value)
    return made


def is_fault_of_request(status: int) -> bool:
    """Returns True if an HTTP status blames the request, so that no other endpoint would accept it either.

    Other errors are attributed to the endpoint: a wrong key (401), a missing path (404), an error page of a
    proxy.
    """
    return status in (400, 413, 422)


def backoff_seconds(attempt: int, rng: random.Random) -> float:
    """Returns the wait after attempt ``attempt`` (from 0): doubles each time, less up to half at random.

    The random part keeps requests that failed together from being sent again together.
    """
    longest = min(FIRST_BACKOFF_SECONDS * 2**attempt, LONGEST_BACKOFF_SECONDS)
    return longest * rng.uniform(0.5, 1.0)


def retry_after_seconds(header: str | None, now: datetime | None = None) -> float:
    """Returns the wait in seconds of a ``Retry-After`` header: seconds or an HTTP date (RFC 9110, 10.2.3).

    Returns 0 for a missing or malformed header and for a date that has passed.
    """
    if not header:
        return 0.0
    if header.strip().isdecimal():
        return float(header)
    try:
        date = parsedate_to_datetime(header)
    except ValueError:
        return 0.0
    if date.tzinfo is None:
        date = date.replace(tzinfo=UTC)
    return max((date - (now or datetime.now(UTC))).total_seconds(), 0.0)
