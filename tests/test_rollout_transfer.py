"""Weights over a process group arrive as they were sent; who does not come is not waited for."""

import asyncio
import random
import socket
import threading
import time
from collections.abc import Coroutine, Mapping
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any

import pytest
import torch
from aiohttp import web
from stub_server import StubOptions, StubServer
from torch import Tensor

from configs.schema import RolloutConfig
from rollout.endpoints.pool import WorkerPool
from rollout.endpoints.routing import Endpoint
from rollout.weights.publish import TransferPublisher
from rollout.weights.transfer import (
    ALIGNMENT,
    GivenUp,
    Meeting,
    WeightEntry,
    buckets,
    entries_of,
    listen,
    own_address,
    receive,
    send,
)

CPU = torch.device("cpu")
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.bool)


def _weights(seed: int = 0) -> dict[str, Tensor]:
    """Of every dtype, of awkward sizes; a scalar and an empty one, too."""
    rng = random.Random(seed)
    shapes = [(rng.randint(1, 7), rng.randint(1, 7)) for _ in range(20)]
    torch.manual_seed(seed)
    weights = {
        f"w{i}": (torch.randn(shape) * 3).to(DTYPES[i % len(DTYPES)]) for i, shape in enumerate(shapes)
    }
    return weights | {"scalar": torch.tensor(3.5), "empty": torch.zeros(0, 4)}


def _meeting(port: int, *, seconds: float = 10.0, bucket_bytes: int = 256) -> Meeting:
    return Meeting(host="127.0.0.1", port=port, backend="gloo", seconds=seconds, bucket_bytes=bucket_bytes)


@pytest.mark.parametrize("limit", [1, 100, 256, 10**6])
def test_buckets_hold_every_weight_once_in_order_within_the_limit(limit: int):
    entries = entries_of(_weights())
    parts = list(buckets(entries, limit))
    assert [entry for part in parts for entry in part] == entries
    for part in parts:
        assert part
        assert len(part) == 1 or sum(entry.room for entry in part) <= limit


def test_every_weight_begins_where_its_dtype_can():
    assert all(entry.room % ALIGNMENT == 0 for entry in entries_of(_weights()))
    assert WeightEntry(name="x", dtype="bfloat16", shape=(3, 5)).num_bytes == 30


@pytest.mark.parametrize("bucket_bytes", [64, 2**20])
def test_what_arrives_is_what_was_sent(bucket_bytes: int):
    sent = _weights()
    server = listen("127.0.0.1")
    meeting = _meeting(server.getsockname()[1], bucket_bytes=bucket_bytes)
    sender = threading.Thread(target=send, args=(sent, server, meeting, threading.Event(), CPU))
    sender.start()
    got = dict(receive(entries_of(sent), meeting, CPU))
    sender.join(timeout=10)
    assert not sender.is_alive()
    assert list(got) == list(sent)
    for name, value in sent.items():
        assert got[name].dtype == value.dtype
        assert torch.equal(got[name], value)


def test_a_receiver_that_does_not_come_is_waited_for_no_longer_than_said():
    server = listen("127.0.0.1")
    meeting = _meeting(server.getsockname()[1], seconds=0.3)
    with pytest.raises(RuntimeError, match=r"did not connect with the token of its transfer within 0\.3 s"):
        send(_weights(), server, meeting, threading.Event(), CPU)


def test_a_receiver_that_is_known_to_have_failed_is_not_waited_for():
    server = listen("127.0.0.1")
    given_up = threading.Event()
    given_up.set()
    with pytest.raises(GivenUp):
        send(_weights(), server, _meeting(server.getsockname()[1], seconds=60), given_up, CPU)


def _turned_away(port: int, shown: bytes) -> bytes:
    """What a client gets that shows these bytes and waits for the end of the connection."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
        client.sendall(shown)
        client.shutdown(socket.SHUT_WR)
        try:
            return client.recv(1000)
        except ConnectionResetError:
            return b""


def test_a_client_without_the_token_gets_no_byte_and_the_worker_is_waited_for():
    sent, server = _weights(), listen("127.0.0.1")
    meeting = _meeting(server.getsockname()[1])
    sender = threading.Thread(target=send, args=(sent, server, meeting, threading.Event(), CPU))
    sender.start()
    for wrong in (b"", b"+", b"x" * 64, meeting.token.encode()[:-1], meeting.token.upper().encode()):
        assert _turned_away(meeting.port, wrong) == b""
    other = replace(meeting, token="0" * 64)
    with pytest.raises(RuntimeError, match="refused the token of this transfer"):
        next(receive(entries_of(sent), other, CPU))
    got = dict(receive(entries_of(sent), meeting, CPU))
    sender.join(timeout=10)
    assert not sender.is_alive() and got.keys() == sent.keys()


def test_a_silent_client_does_not_keep_the_worker_out():
    sent, server = _weights(), listen("127.0.0.1")
    meeting = _meeting(server.getsockname()[1])
    sender = threading.Thread(target=send, args=(sent, server, meeting, threading.Event(), CPU))
    with socket.create_connection(("127.0.0.1", meeting.port)):
        sender.start()
        assert dict(receive(entries_of(sent), meeting, CPU)).keys() == sent.keys()
    sender.join(timeout=10)
    assert not sender.is_alive()


def test_each_transfer_has_a_token_of_its_own_that_no_message_shows():
    first, second = _meeting(1), _meeting(1)
    assert first.token != second.token and len(first.token) == 64
    assert first.token not in repr(first)


def test_a_receiver_without_a_sender_ends_in_time():
    server = listen("127.0.0.1")
    port = server.getsockname()[1]
    server.close()
    with pytest.raises(RuntimeError):
        list(receive(entries_of(_weights()), _meeting(port, seconds=0.5), CPU))


def test_this_machine_is_seen_by_itself_on_loopback():
    assert own_address("127.0.0.1") == "127.0.0.1"
    assert own_address("localhost") == "127.0.0.1"


class Stub(StubServer):
    """A worker that receives as ``rollout.weights.vllm_extension`` does."""

    def __init__(self) -> None:
        super().__init__(StubOptions(median_tokens=5))
        self.loaded: dict[str, Tensor] = {}
        self.refuses = False
        self.hangs = False

    def add_routes(self, app: web.Application) -> None:
        super().add_routes(app)
        for path in ("/pause", "/resume"):
            app.router.add_post(path, self._health)
        app.router.add_post("/collective_rpc", self._receive)
        app.router.add_post("/update_weight_version", self._relabel)

    async def _receive(self, request: web.Request) -> web.Response:
        asked = await request.json()
        assert asked["method"] == "receive_published"
        if self.refuses:
            return web.Response(status=500, text="no room")
        if self.hangs:
            await asyncio.sleep(60)
        entries = [WeightEntry(**entry) for entry in asked["kwargs"]["entries"]]
        meeting = Meeting(**asked["kwargs"]["meeting"])
        self.loaded = await asyncio.to_thread(lambda: dict(receive(entries, meeting, CPU)))
        return web.Response()

    async def _relabel(self, request: web.Request) -> web.Response:
        self.version = (await request.json())["new_version"]
        return web.Response()


def _published(stubs: list[Stub], weights: Mapping[str, Tensor], seconds: float) -> float:
    """Publishes version 7 to workers; seconds that it took."""

    async def run() -> float:
        async with AsyncExitStack() as stack:
            for stub in stubs:
                await stack.enter_async_context(stub)
            endpoints = [Endpoint(url=stub.url) for stub in stubs]
            pool = await stack.enter_async_context(WorkerPool(endpoints, RolloutConfig()))
            began = time.monotonic()
            await TransferPublisher(pool, seconds, backend="gloo").publish(weights, 7)
            return time.monotonic() - began

    work: Coroutine[Any, Any, float] = run()
    return asyncio.run(work)


def test_every_worker_gets_the_weights_and_says_their_version():
    stubs, weights = [Stub(), Stub()], _weights()
    _published(stubs, weights, 10.0)
    for stub in stubs:
        assert stub.version == "7"
        assert all(torch.equal(stub.loaded[name], value) for name, value in weights.items())


def test_a_worker_that_refuses_is_named_at_once_and_the_other_one_has_the_weights():
    good, bad = Stub(), Stub()
    bad.refuses = True
    began = time.monotonic()
    with pytest.raises(RuntimeError, match=r"did not take its weights: .*500: no room"):
        _published([good, bad], _weights(), 30.0)
    assert time.monotonic() - began < 10
    assert bad.loaded == {}
    assert good.version == "7"


def test_a_worker_that_hangs_is_named_at_the_limit():
    bad = Stub()
    bad.hangs = True
    with pytest.raises(RuntimeError, match=r"127\.0\.0\.1:\d+ did not take its weights: .* 0\.5 s"):
        _published([bad], _weights(), 0.5)
