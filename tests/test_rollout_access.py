"""The key guards every path of a worker."""

import asyncio
from typing import Any

import pytest

from rollout.endpoints.access import RequireKey


def _asked(path: str, *headers: tuple[bytes, bytes], kind: str = "http") -> list[Any]:
    """What comes back: the status, or what the worker's own application said."""
    said: list[Any] = []

    async def worker(scope: Any, receive: Any, send: Any) -> None:
        said.append("worker")

    async def send(message: Any) -> None:
        said.append(message.get("status", message.get("body")))

    async def receive() -> Any:
        return {}

    asyncio.run(RequireKey(worker)({"type": kind, "path": path, "headers": list(headers)}, receive, send))
    return said


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "open-sesame")


@pytest.mark.parametrize(
    "path", ["/v1/models", "/collective_rpc", "/pause", "/update_weight_version", "/docs"]
)
@pytest.mark.parametrize(
    "headers",
    [
        [],
        [(b"authorization", b"Bearer open")],
        [(b"authorization", b"open-sesame")],
        [(b"authorization", b"Bearer open-sesame"), (b"authorization", b"Bearer no")],
        [(b"x-authorization", b"Bearer open-sesame")],
    ],
)
def test_no_path_opens_without_the_key(path: str, headers: list[tuple[bytes, bytes]]):
    assert _asked(path, *headers) == [401, b"Unauthorized"]


@pytest.mark.parametrize("key", ["", "a key", "key\n", "schl\u00fcssel"])
def test_a_server_does_not_start_with_a_key_that_is_none(monkeypatch: pytest.MonkeyPatch, key: str):
    monkeypatch.setenv("VLLM_API_KEY", key)
    with pytest.raises(ValueError, match=r"VLLM_API_KEY (is empty|holds white space)") as error:
        _asked("/v1/models")
    assert not key or key not in str(error.value)


def test_the_key_opens_every_path_and_health_needs_none():
    assert _asked("/collective_rpc", (b"authorization", b"Bearer open-sesame")) == ["worker"]
    assert _asked("/health") == ["worker"]
    assert _asked("", kind="lifespan") == ["worker"]
