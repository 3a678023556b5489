"""Weights over a process group arrive as they were sent; who does not come is named and not waited for."""

import asyncio
import gc
import random
import socket
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
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
from rollout.weights import broadcast, transfer
from rollout.weights import feed as feed_module
from rollout.weights.broadcast import TransferPublisher
from rollout.weights.buckets import WeightEntry, buckets, by_dtype, entry_of, pack, views
from rollout.weights.feed import AHEAD, Feed
from rollout.weights.meeting import GivenUp, Meeting, form, listen, own_address
from rollout.weights.transfer import Receiver, send

CPU = torch.device("cpu")
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.bool)
SMALL = 64


def _weights(seed: int = 0) -> dict[str, Tensor]:
    """Of every dtype, of awkward sizes; a scalar and an empty one, too; equal dtypes beside one another."""
    rng = random.Random(seed)
    shapes = [(rng.randint(1, 7), rng.randint(1, 7)) for _ in range(20)]
    torch.manual_seed(seed)
    weights = {
        f"w{i}": (torch.randn(shape) * 3).to(DTYPES[i % len(DTYPES)]) for i, shape in enumerate(shapes)
    }
    weights |= {"scalar": torch.tensor(3.5), "empty": torch.zeros(0, 4)}
    return {entry.name: weights[entry.name] for entry in by_dtype(_entries(weights))}


def _entries(weights: Mapping[str, Tensor]) -> list[WeightEntry]:
    return [entry_of(name, value.dtype, value.shape) for name, value in weights.items()]


def _feed(weights: Mapping[str, Tensor], bucket_bytes: int = SMALL) -> Feed:
    """A feed that is whole: as that of a worker which is sent to later."""
    source = Source(weights, bucket_bytes)
    feed = Feed(source.entries, bucket_bytes, CPU, source.again)
    feed.stop_reading()
    for index in range(len(feed.buckets)):
        feed.put(source.again(index))
    return feed


def receive(
    entries: Sequence[WeightEntry], meeting: Meeting, device: torch.device, place: int = 0
) -> Iterator[tuple[str, Tensor]]:
    """As a process of a worker that was just started."""
    return Receiver().receive(entries, meeting, device, place)


def _meeting(port: int, *, size: int = 2, seconds: float = 10.0, bucket_bytes: int = SMALL) -> Meeting:
    return Meeting(
        host="127.0.0.1", port=port, backend="gloo", seconds=seconds, size=size, bucket_bytes=bucket_bytes
    )


def _send(
    feed: Feed, server: socket.socket, meeting: Meeting, given_up: threading.Event | None = None
) -> None:
    given_up = given_up or threading.Event()
    names = {rank: f"http://worker{rank}" for rank in range(1, meeting.size)}
    send(feed, form(server, meeting, names, given_up), meeting, names, given_up)


@pytest.mark.parametrize("limit", [1, 100, 256, 10**6])
def test_buckets_hold_every_weight_once_in_order_within_the_limit_and_are_of_one_dtype(limit: int):
    entries = _entries(_weights())
    parts = list(buckets(entries, limit))
    assert [entry for part in parts for entry in part] == entries
    for part in parts:
        assert len({entry.dtype for entry in part}) == 1
        assert len(part) == 1 or sum(entry.num_bytes for entry in part) <= limit


def test_small_weights_cost_no_bucket_of_their_own():
    norms = [entry_of(f"norm{i}", torch.bfloat16, (512,)) for i in range(1000)]
    others = [entry_of(f"scale{i}", torch.float32, (1,)) for i in range(1000)]
    mixed = [entry for pair in zip(norms, others, strict=True) for entry in pair]
    assert len(list(buckets(by_dtype(mixed), 2**29))) == 2


@pytest.mark.parametrize("bucket_bytes", [1, 100, 10**6])
def test_what_is_packed_is_seen_unchanged(bucket_bytes: int):
    weights = _weights()
    for bucket in buckets(_entries(weights), bucket_bytes):
        packed = pack([weights[entry.name] for entry in bucket], bucket, CPU)
        for entry, view in zip(bucket, views(packed, bucket), strict=True):
            assert view.dtype == weights[entry.name].dtype
            assert torch.equal(view, weights[entry.name])


@pytest.mark.parametrize("bucket_bytes", [SMALL, 2**20])
@pytest.mark.parametrize("receivers", [1, 3])
def test_what_arrives_at_every_receiver_is_what_was_sent(bucket_bytes: int, receivers: int):
    sent, server = _weights(), listen("127.0.0.1")
    meeting = _meeting(server.getsockname()[1], size=1 + receivers, bucket_bytes=bucket_bytes)
    with ThreadPoolExecutor(receivers + 1) as threads:
        sending = threads.submit(_send, _feed(sent, bucket_bytes), server, meeting)

        def take(place: int) -> dict[str, Tensor]:
            return dict(receive(_entries(sent), meeting, CPU, place))

        for got in threads.map(take, range(receivers)):
            assert list(got) == list(sent)
            for name, value in sent.items():
                assert got[name].dtype == value.dtype and torch.equal(got[name], value)
        sending.result(timeout=10)


@pytest.mark.parametrize("receivers", [1, 4])
def test_a_bucket_is_broadcast_once_whatever_the_number_of_receivers_and_weights(
    receivers: int, monkeypatch: pytest.MonkeyPatch
):
    counted: list[int] = []
    original = transfer._Broadcast.__init__

    def count(self: Any, group: Any, packed: Tensor, seconds: float) -> None:
        counted.append(group.rank())
        original(self, group, packed, seconds)

    monkeypatch.setattr(transfer._Broadcast, "__init__", count)
    sent, server = {f"norm{i}": torch.ones(8) for i in range(500)}, listen("127.0.0.1")
    meeting = _meeting(server.getsockname()[1], size=1 + receivers, bucket_bytes=2**20)
    with ThreadPoolExecutor(receivers + 1) as threads:
        sending = threads.submit(_send, _feed(sent, 2**20), server, meeting)
        list(threads.map(lambda i: list(receive(_entries(sent), meeting, CPU, i)), range(receivers)))
        sending.result(timeout=10)
    assert counted.count(0) == 1


def test_the_receivers_that_do_not_come_are_named_at_the_limit_and_the_others_end():
    server = listen("127.0.0.1")
    meeting = _meeting(server.getsockname()[1], size=4, seconds=0.5)
    with ThreadPoolExecutor(2) as threads:
        one = threads.submit(lambda: list(receive(_entries(_weights()), meeting, CPU, 1)))
        with pytest.raises(
            RuntimeError, match=r"workers http://worker1, http://worker3 did not connect .* 0\.5 s"
        ):
            _send(_feed(_weights()), server, meeting)
        with pytest.raises(RuntimeError, match="the sender of weights at"):
            one.result(timeout=5)


def test_a_receiver_that_dies_in_the_middle_ends_sender_and_other_receivers_in_time():
    sent = {f"w{i}": torch.ones(2**16) for i in range(40)}
    server = listen("127.0.0.1")
    meeting = _meeting(server.getsockname()[1], size=4, seconds=3.0, bucket_bytes=2**18)
    began = time.monotonic()
    with ThreadPoolExecutor(4) as threads:
        sending = threads.submit(_send, _feed(sent, 2**18), server, meeting)
        whole = [threads.submit(lambda i=i: list(receive(_entries(sent), meeting, CPU, i))) for i in (0, 1)]
        coming = receive(_entries(sent), meeting, CPU, 2)
        next(coming)
        coming.close()
        for future in (sending, *whole):
            with pytest.raises(RuntimeError):
                future.result(timeout=10)
    assert time.monotonic() - began < 8


def test_a_receiver_that_is_known_to_have_failed_is_not_waited_for():
    server, given_up = listen("127.0.0.1"), threading.Event()
    given_up.set()
    with pytest.raises(GivenUp):
        _send(_feed(_weights()), server, _meeting(server.getsockname()[1], seconds=60), given_up)


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
    sender = threading.Thread(target=_send, args=(_feed(sent), server, meeting))
    sender.start()
    token = meeting.token.encode()
    for wrong in (b"", b"+", b"x" * 70, token, token[:-1], token.upper() + b"000001", token + b"     1"):
        assert _turned_away(meeting.port, wrong) == b""
    with pytest.raises(RuntimeError, match="refused the token of this transfer"):
        next(receive(_entries(sent), replace(meeting, token="0" * 64), CPU))
    got = dict(receive(_entries(sent), meeting, CPU))
    sender.join(timeout=10)
    assert not sender.is_alive() and got.keys() == sent.keys()


def test_a_silent_client_does_not_keep_the_worker_out():
    sent, server = _weights(), listen("127.0.0.1")
    meeting = _meeting(server.getsockname()[1])
    sender = threading.Thread(target=_send, args=(_feed(sent), server, meeting))
    with socket.create_connection(("127.0.0.1", meeting.port)):
        sender.start()
        assert dict(receive(_entries(sent), meeting, CPU)).keys() == sent.keys()
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
    with pytest.raises(RuntimeError, match="cannot be reached"):
        list(receive(_entries(_weights()), _meeting(port, seconds=0.5), CPU))


def test_this_machine_is_seen_by_itself_on_loopback():
    assert own_address("127.0.0.1") == "127.0.0.1"
    assert own_address("localhost") == "127.0.0.1"


def test_the_trainer_is_never_more_buckets_ahead_of_the_sender_than_the_device_may_hold():
    source = Source({f"w{i}": torch.ones(4) for i in range(10)}, 16)
    feed = Feed(source.entries, 16, CPU, source.again)
    put: list[int] = []

    def fill() -> None:
        for index in range(10):
            feed.put([torch.ones(4)])
            put.append(index)

    filling = threading.Thread(target=fill, daemon=True)
    filling.start()
    for index in range(10):
        feed.bucket(index, 5, threading.Event())
        time.sleep(0.02)
        assert len(put) < index + AHEAD
        feed.sent(index)
    filling.join(timeout=5)
    assert put == list(range(10)) and feed.is_whole


def test_a_trainer_that_fails_ends_a_sender_that_waits_for_its_next_bucket():
    source = Source({"a": torch.ones(4), "b": torch.ones(4)}, 16)
    feed = Feed(source.entries, 16, CPU, source.again)
    feed.put([torch.ones(4)])
    threading.Timer(0.1, feed.fail, args=("a rank is gone",)).start()
    assert torch.equal(feed.bucket(0, 5, threading.Event()).view(torch.float32), torch.ones(4))
    with pytest.raises(RuntimeError, match="could not gather its weights: a rank is gone"):
        feed.bucket(1, 5, threading.Event())


class Stub(StubServer):
    """A worker that receives as ``rollout.weights.vllm_extension`` does, in ``processes`` processes."""

    def __init__(self, processes: int = 1) -> None:
        super().__init__(StubOptions(median_tokens=5))
        self.processes = processes
        self.start_anew()
        self.loaded: list[dict[str, Tensor]] = []
        self.paused = False
        self.refuses = self.hangs = self.breaks = False
        """How it fails: at once, for ever, or in the middle of the transfer."""
        self.failures = 10**6
        """How often it fails before it does no more."""

    def start_anew(self) -> None:
        """As after a restart: the processes have forgotten their group."""
        self.receivers = [Receiver() for _ in range(self.processes)]

    def add_routes(self, app: web.Application) -> None:
        super().add_routes(app)
        app.router.add_post("/pause", self._pause)
        app.router.add_post("/resume", self._pause)
        app.router.add_post("/collective_rpc", self._call)
        app.router.add_post("/update_weight_version", self._relabel)

    async def _pause(self, request: web.Request) -> web.Response:
        self.paused = request.path == "/pause"
        return web.Response()

    async def _call(self, request: web.Request) -> web.Response:
        asked = await request.json()
        if asked["method"] == "publishing_place":
            places = [{"place": i, "group": held.group} for i, held in enumerate(self.receivers)]
            return web.json_response({"results": places})
        assert asked["method"] == "receive_published"
        fails, self.failures = self.failures > 0, self.failures - 1
        if fails and self.refuses:
            return web.Response(status=500, text="no room")
        if fails and self.hangs:
            await asyncio.sleep(60)
        entries = [WeightEntry(**entry) for entry in asked["kwargs"]["entries"]]
        meeting = Meeting(**asked["kwargs"]["meeting"])

        def take(place: int) -> dict[str, Tensor]:
            coming = self.receivers[place].receive(entries, meeting, CPU, place)
            if fails and self.breaks:
                next(coming)
                coming.close()
                raise RuntimeError("out of memory")
            return dict(coming)

        try:
            self.loaded = await asyncio.gather(
                *(asyncio.to_thread(take, place) for place in range(self.processes))
            )
        except RuntimeError as error:
            return web.Response(status=500, text=str(error))
        return web.Response()

    async def _relabel(self, request: web.Request) -> web.Response:
        self.version = (await request.json())["new_version"]
        return web.Response()


@asynccontextmanager
async def _publisher(stubs: Sequence[Stub], seconds: float) -> AsyncIterator[TransferPublisher]:
    """Starts the workers, and yields a publisher to a pool of them."""
    async with AsyncExitStack() as stack:
        for stub in stubs:
            await stack.enter_async_context(stub)
        endpoints = [Endpoint(url=stub.url) for stub in stubs]
        pool = await stack.enter_async_context(WorkerPool(endpoints, RolloutConfig()))
        yield TransferPublisher(pool, seconds, backend="gloo")


def _published(stubs: Sequence[Stub], weights: Mapping[str, Tensor], seconds: float) -> None:
    """Publishes version 7 to workers as the trainer does: one thread gathers, another sends."""

    async def run() -> None:
        async with _publisher(stubs, seconds) as publisher:
            await _publish(publisher, weights, 7)

    asyncio.run(run())


class Source:
    """A ``WeightSource`` of tensors at hand."""

    def __init__(self, weights: Mapping[str, Tensor], bucket_bytes: int = SMALL) -> None:
        self.entries = _entries(weights)
        self.bucket_bytes = bucket_bytes
        self._weights = weights

    def again(self, index: int) -> list[Tensor]:
        bucket = list(buckets(self.entries, self.bucket_bytes))[index]
        return [self._weights[entry.name] for entry in bucket]


async def _publish(publisher: TransferPublisher, weights: Mapping[str, Tensor], version: int) -> None:
    feed = await publisher.open(Source(weights), version)  # type: ignore[arg-type]

    def gather() -> None:
        for bucket in feed.buckets:
            feed.put([weights[entry.name] for entry in bucket])

    await asyncio.gather(asyncio.to_thread(gather), publisher.publish(feed, version))


def _has(stub: Stub, weights: Mapping[str, Tensor]) -> bool:
    return len(stub.loaded) == stub.processes and all(
        torch.equal(loaded[name], value) for loaded in stub.loaded for name, value in weights.items()
    )


def test_every_process_of_every_worker_gets_the_weights_and_the_worker_says_their_version():
    stubs, weights = [Stub(), Stub(processes=2), Stub()], _weights()
    _published(stubs, weights, 10.0)
    for stub in stubs:
        assert stub.version == "7" and not stub.paused
        assert _has(stub, weights)


@pytest.mark.parametrize("way", ["refuses", "breaks"])
def test_a_worker_that_fails_is_named_soon_stays_paused_and_the_others_have_the_weights(way: str):
    good, bad, weights = [Stub(), Stub()], Stub(), _weights()
    setattr(bad, way, True)
    began = time.monotonic()
    with pytest.raises(
        RuntimeError, match=r"did not take its weights: .*500: (no room|out of memory)"
    ) as raised:
        _published([good[0], bad, good[1]], weights, 5.0)
    assert time.monotonic() - began < 10
    assert bad.url in str(raised.value)
    assert bad.loaded == [] and bad.version != "7" and bad.paused
    for stub in good:
        assert stub.version == "7" and not stub.paused and _has(stub, weights)


@pytest.mark.parametrize("way", ["refuses", "breaks"])
def test_a_failure_that_does_not_last_is_made_good_in_the_same_publish(way: str):
    stubs, weights = [Stub(), Stub()], _weights()
    setattr(stubs[1], way, True)
    stubs[1].failures = 1
    _published(stubs, weights, 5.0)
    assert all(stub.version == "7" and not stub.paused and _has(stub, weights) for stub in stubs)


def test_a_worker_that_never_joins_is_named_at_the_limit_and_the_other_one_has_the_weights():
    good, bad = Stub(), Stub()
    bad.hangs = True
    began = time.monotonic()
    with pytest.raises(RuntimeError, match=r"127\.0\.0\.1:\d+ did not take its weights: .* 0\.5 s") as raised:
        _published([good, bad], _weights(), 0.5)
    assert time.monotonic() - began < 5
    assert bad.url in str(raised.value)
    assert good.version == "7" and _has(good, _weights())


def test_a_worker_restarted_between_two_publishes_gets_the_current_weights_and_joins_the_next_group():
    stubs, first, second = [Stub(), Stub()], _weights(1), _weights(2)

    async def run() -> None:
        async with AsyncExitStack() as stack:
            for stub in stubs:
                await stack.enter_async_context(stub)

            async def restart() -> str:
                stubs[1].version, stubs[1].loaded = "default", []
                stubs[1].start_anew()
                return stubs[1].url

            endpoints = [Endpoint(url=stubs[0].url), Endpoint(url=stubs[1].url, restart=restart)]
            pool = await stack.enter_async_context(WorkerPool(endpoints, RolloutConfig()))
            publisher = TransferPublisher(pool, 5.0, backend="gloo")
            await _publish(publisher, first, 1)
            stubs[1].version = "0"  # a process that was started anew, as the check sees
            pool.restarter.begin(endpoints[1])
            await pool.restarter.settled(endpoints[1])
            assert pool.restarter.restarts == 1
            assert stubs[1].version == "1" and _has(stubs[1], first)
            await _publish(publisher, second, 2)
            assert all(stub.version == "2" and _has(stub, second) for stub in stubs)

    asyncio.run(run())


def test_a_worker_that_answers_but_cannot_load_is_restarted_in_the_same_publish():
    stub, weights = Stub(), _weights()
    stub.refuses = True

    async def run() -> int:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(stub)

            async def restart() -> str:
                stub.version, stub.refuses = "default", False
                return stub.url

            endpoint = Endpoint(url=stub.url, restart=restart)
            pool = await stack.enter_async_context(WorkerPool([endpoint], RolloutConfig()))
            await _publish(TransferPublisher(pool, 5.0, backend="gloo"), weights, 1)
            return pool.restarter.restarts

    assert asyncio.run(run()) == 1
    assert stub.version == "1" and not stub.paused and _has(stub, weights)


def test_a_worker_restarted_while_the_weights_change_waits_paused_for_the_next_publish():
    stubs, first, second = [Stub(), Stub()], _weights(1), _weights(2)

    async def run() -> None:
        async with AsyncExitStack() as stack:
            for stub in stubs:
                await stack.enter_async_context(stub)

            async def restart() -> str:
                stubs[1].version, stubs[1].loaded, stubs[1].paused = "default", [], False
                return stubs[1].url

            endpoints = [Endpoint(url=stubs[0].url), Endpoint(url=stubs[1].url, restart=restart)]
            pool = await stack.enter_async_context(WorkerPool(endpoints, RolloutConfig()))
            publisher = TransferPublisher(pool, 5.0, backend="gloo")
            await _publish(publisher, first, 1)
            publisher.weights_will_change()
            for value in first.values():  # as an optimizer does: these are no longer version 1
                value.zero_()
            stubs[1].version = "0"
            pool.restarter.begin(endpoints[1])
            await pool.restarter.settled(endpoints[1])
            assert pool.restarter.restarts == 1 and not endpoints[1].lost
            assert stubs[1].paused and stubs[1].loaded == [] and stubs[1].version == "default"
            await _publish(publisher, second, 2)
            assert all(s.version == "2" and not s.paused and _has(s, second) for s in stubs)

    asyncio.run(run())


def test_an_update_waits_for_a_worker_that_is_loading_the_weights_and_no_longer_than_the_limit():
    feed = _feed(_weights())
    assert feed.hold()
    threading.Timer(0.2, feed.release).start()
    began = time.monotonic()
    feed.weights_will_change(10.0)
    assert 0.15 < time.monotonic() - began < 5
    assert not feed.hold()
    stuck = _feed(_weights())
    assert stuck.hold()
    stuck.weights_will_change(0.1)
    with pytest.raises(RuntimeError, match="has begun to change the weights of this version"):
        stuck.bucket(0, 5, threading.Event())


def test_a_publish_holds_a_few_buckets_at_once_and_no_copy(monkeypatch: pytest.MonkeyPatch):
    weights = {f"w{i}": torch.full((16,), float(i)) for i in range(60)}  # a bucket each
    living: weakref.WeakSet[Tensor] = weakref.WeakSet()
    seen = [0]
    original = feed_module.pack

    def pack_and_count(*given: Any) -> Tensor:
        packed = original(*given)
        living.add(packed)
        seen[0] = max(seen[0], len(living))
        return packed

    monkeypatch.setattr(feed_module, "pack", pack_and_count)

    async def run() -> int:
        stubs = [Stub(), Stub()]
        async with _publisher(stubs, 10.0) as publisher:
            await _publish(publisher, weights, 1)
            assert all(_has(stub, weights) for stub in stubs)
            gc.collect()
            return len(living)

    left = asyncio.run(run())
    # Those that wait, one in transit, and one that is being put.
    assert left == 0 and 1 <= seen[0] <= AHEAD + 2


def _groups_formed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the groups that the sender forms from now on."""
    sizes: list[int] = []

    def count(server: socket.socket, meeting: Meeting, *rest: Any) -> Any:
        sizes.append(meeting.size)
        return form(server, meeting, *rest)

    monkeypatch.setattr(broadcast, "form", count)
    return sizes


def _publish_in_turn(stubs: Sequence[Stub], before: Sequence[Callable[[], None]], seconds: float) -> None:
    """Publishes versions 1, 2, ... with weights of that seed, each after a call of ``before``."""

    async def run() -> None:
        async with _publisher(stubs, seconds) as publisher:
            for version, change in enumerate(before, 1):
                change()
                await _publish(publisher, _weights(version), version)
                for stub in stubs:
                    assert stub.version == str(version) and not stub.paused and _has(stub, _weights(version))
            await publisher.close()
            await _publish(publisher, _weights(0), 99)  # opens it again
            assert all(_has(stub, _weights(0)) for stub in stubs)

    asyncio.run(run())


def _nothing() -> None:
    pass


def test_publishes_share_one_group_until_a_worker_is_replaced(monkeypatch: pytest.MonkeyPatch):
    stubs, formed = [Stub(), Stub(processes=2)], _groups_formed(monkeypatch)
    _publish_in_turn(stubs, [_nothing, _nothing, _nothing, stubs[1].start_anew, _nothing], 10.0)
    assert formed == [4, 4, 4]
    assert len({held.group for stub in stubs for held in stub.receivers}) == 1


def test_a_publish_that_failed_in_the_middle_leaves_the_group_and_the_next_one_forms_another(
    monkeypatch: pytest.MonkeyPatch,
):
    stubs, formed = [Stub(), Stub()], _groups_formed(monkeypatch)

    def break_once() -> None:
        stubs[1].breaks, stubs[1].failures = True, 1

    _publish_in_turn(stubs, [_nothing, break_once, _nothing, _nothing], 10.0)
    # The second publish goes wrong in the kept group, then goes to each worker alone.
    assert formed == [3, 2, 2, 3, 3]


def test_a_worker_that_does_not_come_to_its_kept_group_is_named_at_the_limit(
    monkeypatch: pytest.MonkeyPatch,
):
    stubs, formed = [Stub(), Stub()], _groups_formed(monkeypatch)

    def hang() -> None:
        stubs[1].hangs = True

    began = time.monotonic()
    with pytest.raises(RuntimeError, match=r"127\.0\.0\.1:\d+ did not take its weights: .* 1 s") as raised:
        _publish_in_turn(stubs, [_nothing, hang], 1.0)
    assert time.monotonic() - began < 20
    assert stubs[1].url in str(raised.value)
    assert stubs[0].version == "2" and _has(stubs[0], _weights(2))
    assert formed[0] == 3 and set(formed[1:]) == {2}


def test_a_process_that_lacks_the_group_of_a_later_transfer_refuses_and_does_not_connect():
    meeting = replace(_meeting(1), transfer=1)
    with pytest.raises(RuntimeError, match="has not kept the group of earlier transfers"):
        next(receive(_entries(_weights()), meeting, CPU))
