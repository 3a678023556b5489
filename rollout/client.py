"""HTTP to endpoints: one session, a limit on every request, a key that no message repeats."""

import json
import os
from typing import Any

import aiohttp

from rollout.retry import Unavailable, is_temporary, retry_after_seconds
from rollout.sampler import RequestRefused

KEEP_ALIVE_SECONDS = 3.0
"""Less than the 5 s after which a vLLM server closes an idle connection, so that we never write into one
that is being closed."""
SLOW_HINT = (
    "If it is only slow, lower rollout.max_concurrency, so that less waits in its queue, or raise "
    "rollout.request_timeout_seconds."
)
SHOWN_CHARACTERS = 500
"""Of an endpoint's answer, in an error."""


class Client:
    """JSON in and out. Use as an async context manager; bound to the event loop that entered it.

    The key is read from the environment variable ``key_variable`` and sent as a bearer token with every
    request. No message repeats it.
    """

    def __init__(self, key_variable: str, timeout_seconds: float) -> None:
        self._key_variable = key_variable
        self._key = os.environ.get(key_variable, "")
        self._timeout = timeout_seconds

    async def __aenter__(self) -> "Client":
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE_SECONDS),
            headers={"Authorization": f"Bearer {self._key}"} if self._key else None,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def sample(self, url: str, body: bytes) -> bytes:
        """The answer to a request for tokens.

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
        if is_temporary(status):
            message = f"{url} answered {status}: {self._shown(answer)}"
            raise Unavailable(message, retry_after=retry_after, is_busy=status == 429)
        hint = f" Set {self._key_variable}." if status in (401, 403) else ""
        raise RequestRefused(f"{url} refused a request with {status}: {self._shown(answer)}{hint}")

    async def control(self, method: str, url: str, body: Any, timeout_seconds: float) -> Any:
        """The answer to a request that is not for tokens; None if it is empty.

        Raises:
            RuntimeError: If it fails or takes longer than ``timeout_seconds``. The message names the URL.
        """
        sent = None if body is None else json.dumps(body).encode()
        try:
            status, answer, _ = await self._request(method, url, sent, timeout_seconds)
        except Unavailable as error:
            raise RuntimeError(str(error)) from None
        if status != 200:
            hint = f" Set {self._key_variable}." if status in (401, 403) else ""
            raise RuntimeError(f"{url} answered {status}: {self._shown(answer)}{hint}")
        return json.loads(answer) if answer else None

    async def status(self, url: str, timeout_seconds: float) -> int:
        """The HTTP status of a GET, whatever it is.

        Raises:
            RuntimeError: If there is none within ``timeout_seconds``.
        """
        try:
            return (await self._request("GET", url, None, timeout_seconds))[0]
        except Unavailable as error:
            raise RuntimeError(str(error)) from None

    async def _request(
        self, method: str, url: str, body: bytes | None, timeout_seconds: float
    ) -> tuple[int, bytes, float]:
        limit = aiohttp.ClientTimeout(total=timeout_seconds)
        headers = {"Content-Type": "application/json"} if body is not None else None
        try:
            async with self._session.request(
                method, url, data=body, headers=headers, timeout=limit
            ) as response:
                retry_after = retry_after_seconds(response.headers.get("Retry-After"))
                return response.status, await response.read(), retry_after
        except TimeoutError as error:
            raise Unavailable(f"{url} did not answer within {timeout_seconds:g} s.") from error
        except (aiohttp.ClientError, OSError) as error:
            # Not repr(error): aiohttp's can hold the request's headers, and so the key.
            raise Unavailable(f"{url} failed: {self._redacted(f'{type(error).__name__}: {error}')}") from None

    def _shown(self, answer: bytes) -> str:
        # Redacted before it is cut, which could leave part of a key; on one line.
        return " ".join(self._redacted(answer.decode(errors="replace")).split())[:SHOWN_CHARACTERS]

    def _redacted(self, text: str) -> str:
        return text.replace(self._key, f"[{self._key_variable}]") if self._key else text
