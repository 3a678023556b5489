"""Servers of this machine are asked directly, and a port that is called free is free."""

import asyncio
import http.server
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from conftest import REPO
from stub_server import StubOptions, stub_process

from rollout.endpoints.client import Client
from rollout.workers.loopback import free_port, free_ports, is_up

PROXIES = ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY")


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bytes]]:
    """A proxy of the environment that answers 502 to everything; what it was asked."""
    asked: list[bytes] = []

    class Proxy(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.raw_requestline)
            self.send_error(502)

        def log_message(self, *_: object) -> None: ...

    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with http.server.HTTPServer(("127.0.0.1", 0), Proxy) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        for name in PROXIES:
            monkeypatch.setenv(name, f"http://127.0.0.1:{server.server_port}")
        yield asked
        server.shutdown()
        thread.join()


@contextmanager
def _says(answer: bytes) -> Iterator[str]:
    """A server that answers one connection with these bytes; its URL."""

    def serve() -> None:
        connection, _ = server.accept()
        with connection:
            connection.recv(1000)
            connection.sendall(answer)

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=serve)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        thread.join()


def test_a_server_of_this_machine_is_up_whatever_proxy_the_environment_names(proxy: list[bytes]):
    # In a process of its own: urllib reads these variables once.
    code = "import sys; from rollout.workers.loopback import is_up; print(is_up(sys.argv[1]))"
    with stub_process(StubOptions()) as url:
        done = subprocess.run(
            [sys.executable, "-c", code, f"{url}/health"],
            cwd=REPO,
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
    assert done.stdout == "True\n"
    assert proxy == []


def test_a_client_of_workers_asks_no_proxy(proxy: list[bytes]):
    async def ask(url: str) -> int:
        async with Client("VLLM_API_KEY", 5.0) as client:
            return await client.status(f"{url}/health", 5.0)

    with stub_process(StubOptions()) as url:
        assert asyncio.run(ask(url)) == 200
    assert proxy == []


@pytest.mark.parametrize(
    "answer",
    [b"", b"no HTTP at all\r\n\r\n", b"HTTP/1.1 503 Not Yet\r\n\r\n", b"HTTP/1.1 204 Nothing\r\n\r\n"],
)
def test_a_server_that_does_not_answer_200_is_not_up_and_never_an_error(answer: bytes):
    with _says(answer) as url:
        assert not is_up(url)


def test_no_server_is_not_up_and_a_silent_one_neither(monkeypatch: pytest.MonkeyPatch):
    assert not is_up(f"http://127.0.0.1:{free_port()}")
    monkeypatch.setattr("rollout.workers.loopback.ANSWER_SECONDS", 0.1)
    began = time.monotonic()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        assert not is_up(f"http://127.0.0.1:{silent.getsockname()[1]}")
    assert time.monotonic() - began < 5


def test_free_ports_are_free():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", free_port()))
    first = free_ports(3)
    for port in range(first, first + 3):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
