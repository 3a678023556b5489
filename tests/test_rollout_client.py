"""HTTP to endpoints: no message repeats a key."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from rollout.endpoints.client import Client, Unavailable
from rollout.sampler import RequestRefused
from rollout.workers.loopback import free_port

KEY = "a-secret-nobody-may-see"
Answer = Callable[[bytes], bytes]
"""From the raw request to the raw response."""


def _response(status: str, body: bytes) -> bytes:
    head = f"HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def _with_client(answer: Answer, test: Callable[[Client, str], Coroutine[Any, Any, Any]]) -> Any:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(answer(await reader.readuntil(b"\r\n\r\n")))
        await writer.drain()
        writer.close()

    async def run() -> Any:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        async with server, Client("VLLM_API_KEY", 5.0) as client:
            url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            return await asyncio.wait_for(test(client, url), timeout=20)

    return asyncio.run(run())


def _everything(error: BaseException) -> str:
    """All that a log or a traceback could show of an error."""
    parts = []
    current: BaseException | None = error
    while current is not None:
        parts += [str(current), repr(current)]
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)
    return "\n".join(parts)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (lambda request: _response("400 Bad", b"you sent " + request), RequestRefused),
        (lambda request: _response("401 No", b"x" * 490 + request), Unavailable),
        (lambda request: _response("500 Oh", b"you sent " + request), Unavailable),
        (lambda request: b"this is no HTTP", Unavailable),
        (lambda request: b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\ncut", Unavailable),
        (lambda request: b"", Unavailable),
    ],
)
def test_no_failure_shows_the_key(monkeypatch: pytest.MonkeyPatch, answer: Answer, expected: type[Exception]):
    monkeypatch.setenv("VLLM_API_KEY", KEY)
    seen: list[bytes] = []

    def keep(request: bytes) -> bytes:
        seen.append(request)
        return answer(request)

    async def test(client: Client, url: str) -> None:
        with pytest.raises(expected, match=url) as sampled:
            await client.sample(url, b"{}")
        with pytest.raises(RuntimeError, match=url) as controlled:
            await client.control("POST", url, {}, 5.0)
        for error in (sampled.value, controlled.value):
            assert KEY[:10] not in _everything(error)

    _with_client(keep, test)
    assert all(b"Authorization: Bearer " + KEY.encode() in request for request in seen)
    assert len(seen) == 2


STRANGE = {
    "html": _response("200 OK", b"<html>maintenance</html>"),
    "half a character": _response("200 OK", b'"\xc3'),
    "nested without end": _response("200 OK", b"[" * 100_000),
    "no status": b"HTTP/1.1 \r\n\r\n",
    "a status of its own": b"HTTP/1.1 999 Tired\r\nContent-Length: 0\r\n\r\n",
    "a length that is none": b"HTTP/1.1 200 OK\r\nContent-Length: -7\r\n\r\n",
    "no such encoding": b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 3\r\n\r\nabc",
    "a redirect to nowhere": b"HTTP/1.1 302 Found\r\nLocation: nowhere://x\r\nContent-Length: 0\r\n\r\n",
    "a redirect without a host": b"HTTP/1.1 302 Found\r\nLocation: http://\r\nContent-Length: 0\r\n\r\n",
    "a header without end": b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000,
    "a date that is none": b"HTTP/1.1 503 No\r\nRetry-After: Mon, 99 Foo 99999999999 9\r\n\r\n",
}


@pytest.mark.parametrize("kind", STRANGE)
def test_a_control_call_fails_in_one_way_whatever_comes_back(kind: str):
    async def test(client: Client, url: str) -> None:
        with pytest.raises(RuntimeError, match=url) as error:
            await client.control("GET", url, None, 5.0)
        assert type(error.value) is RuntimeError

    _with_client(lambda request: STRANGE[kind], test)


@pytest.mark.parametrize("kind", sorted(STRANGE.keys() - {"html", "half a character", "nested without end"}))
def test_a_sampling_call_that_is_answered_strangely_may_be_tried_elsewhere(kind: str):
    async def test(client: Client, url: str) -> None:
        with pytest.raises(Unavailable, match=url):
            await client.sample(url, b"{}")

    _with_client(lambda request: STRANGE[kind], test)


def test_without_a_key_none_is_sent(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    seen: list[bytes] = []

    def keep(request: bytes) -> bytes:
        seen.append(request)
        return _response("200 OK", b"{}")

    async def test(client: Client, url: str) -> None:
        assert await client.sample(url, b"{}") == b"{}"

    _with_client(keep, test)
    assert b"authorization" not in seen[0].lower()


def test_a_refused_key_names_its_variable():
    async def test(client: Client, url: str) -> None:
        with pytest.raises(Unavailable, match=r"401.*Set VLLM_API_KEY\.$"):
            await client.sample(url, b"{}")

    _with_client(lambda request: _response("401 No", b"Unauthorized"), test)


def test_a_connection_that_is_refused_may_come_back():
    async def test(client: Client, url: str) -> None:
        gone = f"http://127.0.0.1:{free_port()}"
        with pytest.raises(Unavailable, match=rf"{gone}.* failed: ClientConnectorError"):
            await client.sample(gone, b"{}")

    _with_client(lambda request: b"", test)


def test_a_control_answer_that_is_no_json_is_one_kind_of_error():
    async def test(client: Client, url: str) -> None:
        with pytest.raises(RuntimeError, match=rf"{url} answered no JSON: .*<html>"):
            await client.control("GET", url, None, 5.0)

    _with_client(lambda request: _response("200 OK", b"<html>maintenance</html>"), test)
