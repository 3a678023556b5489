"""ASGI middleware that requires a worker's key on every path.

vLLM itself requires its key only on the paths of its public API. Its control paths, which pause the server
and replace its weights, are open to any client that can reach it. This middleware closes them.
"""

import hmac
import os
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from rollout.endpoints.keys import KEY_VARIABLE, read_key
from rollout.endpoints.vllm_api import HEALTH

OPEN_PATHS = (HEALTH,)  # a health probe needs no key

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class RequireKey:
    """ASGI middleware for ``--middleware``: 401 without the bearer key of ``VLLM_API_KEY``."""

    def __init__(self, app: App) -> None:
        """Reads the key from the environment.

        Raises:
            ValueError: If there is none: a server must not start open that was meant to be closed.
        """
        key = read_key(KEY_VARIABLE, os.environ)
        if not key:
            raise ValueError(f"{KEY_VARIABLE} is empty, so that any client could use this server. Set a key.")
        self._app = app
        self._expected = f"Bearer {key}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_request = scope["type"] in ("http", "websocket")
        if is_request and scope["path"] not in OPEN_PATHS and not self._has_key(scope):
            await send({"type": "http.response.start", "status": 401, "headers": []})
            await send({"type": "http.response.body", "body": b"Unauthorized"})
            return
        await self._app(scope, receive, send)

    def _has_key(self, scope: Scope) -> bool:
        given = [value for name, value in scope["headers"] if name == b"authorization"]
        # Constant-time comparison: the time of a refusal must not tell how much of a key is right.
        return len(given) == 1 and hmac.compare_digest(given[0], self._expected)
