"""Weights through a process group: NCCL between GPUs; gloo, by the same code, where there are none.

The sender holds the weights in host memory and makes a group of two with one worker, for one transfer: a
worker that was started anew needs to know nothing of earlier ones. Weights go bucket by bucket; while one is
on its way the sender fills the next and the receiver loads the last, so that neither side's device needs
room for more than two beside its model.
"""

import math
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist
from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

SENDER, RECEIVER, SIZE = 0, 1, 2
BUCKET_BYTES = 2**26
ALIGNMENT = 16
"""Bytes; no dtype's element is larger, so every weight in a bucket can be viewed in its own dtype."""
LOOK_SECONDS = 0.02
"""A sender that waits for its receiver looks that often."""
HERE, DONE = "here", "done"
"""What a receiver writes into the store when it has come, and when it has everything."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightEntry:
    """One weight, as its receiver must know of it in advance."""

    name: str
    dtype: str
    """Of torch, such as ``bfloat16``."""
    shape: Sequence[int]

    @property
    def num_bytes(self) -> int:
        """Of its elements."""
        return math.prod(self.shape) * getattr(torch, self.dtype).itemsize

    @property
    def room(self) -> int:
        """Bytes that it takes in a bucket."""
        return math.ceil(self.num_bytes / ALIGNMENT) * ALIGNMENT


@dataclass(frozen=True, slots=True, kw_only=True)
class Meeting:
    """Where sender and receiver meet, and how. All of it goes to the receiver."""

    host: str
    port: int
    backend: str
    """``nccl`` or ``gloo``."""
    seconds: float
    """The longest that the receiver waits for anything."""
    bucket_bytes: int = BUCKET_BYTES


class GivenUp(RuntimeError):
    """The receiver failed in another way."""


def entries_of(weights: Mapping[str, Tensor]) -> list[WeightEntry]:
    """What is to be sent, in its order."""
    return [
        WeightEntry(name=name, dtype=str(value.dtype).removeprefix("torch."), shape=tuple(value.shape))
        for name, value in weights.items()
    ]


def buckets(entries: Sequence[WeightEntry], bucket_bytes: int) -> Iterator[list[WeightEntry]]:
    """Neighbours that go together; only an entry that is larger by itself exceeds ``bucket_bytes``."""
    held: list[WeightEntry] = []
    size = 0
    for entry in entries:
        if held and size + entry.room > bucket_bytes:
            yield held
            held, size = [], 0
        held.append(entry)
        size += entry.room
    if held:
        yield held


def listen(host: str) -> socket.socket:
    """A socket on a free port of one address, where a receiver will come."""
    server = socket.socket()
    server.bind((host, 0))
    server.listen()
    return server


def send(
    weights: Mapping[str, Tensor],
    server: socket.socket,
    meeting: Meeting,
    given_up: threading.Event,
    device: torch.device,
) -> None:
    """Sends all weights to the receiver that comes to ``meeting``; blocks until it has them.

    Args:
        weights: By name, in host memory.
        server: Of ``listen``; is used up.
        meeting: As the receiver was told.
        given_up: Set when the receiver is known to have failed.
        device: Where ``meeting.backend`` sends from.

    Raises:
        GivenUp: If ``given_up`` was set before it had come, or before it had everything.
        RuntimeError: If it does not come, or does not take a bucket, in time.
    """
    store = _store(meeting, server)
    _wait_for(HERE, store, meeting, given_up)
    group = _join(store, meeting, SENDER)
    sent: _Broadcast | None = None
    for bucket in buckets(entries_of(weights), meeting.bucket_bytes):
        packed = _room_for(bucket, torch.device("cpu"))
        for entry, part in zip(bucket, _parts(packed, bucket), strict=True):
            part.copy_(weights[entry.name])
        if sent is not None:
            sent.wait()
        sent = _Broadcast(group, packed.to(device), meeting)
    if sent is not None:
        sent.wait()
    _wait_for(DONE, store, meeting, given_up)  # the group must outlive what is on its way


def receive(
    entries: Sequence[WeightEntry], meeting: Meeting, device: torch.device
) -> Iterator[tuple[str, Tensor]]:
    """Weights as they come, by name; each bucket is memory of its own.

    Raises:
        RuntimeError: If the sender is not there, or does not send a bucket, in time.
    """
    store = _store(meeting)
    store.set(HERE, "1")
    group = _join(store, meeting, RECEIVER)
    parcels = list(buckets(entries, meeting.bucket_bytes))
    coming: _Broadcast | None = None
    for bucket, after in zip(parcels, [*parcels[1:], None], strict=True):
        here = coming or _Broadcast(group, _room_for(bucket, device), meeting)
        here.wait()
        coming = _Broadcast(group, _room_for(after, device), meeting) if after is not None else None
        for entry, part in zip(bucket, _parts(here.packed, bucket), strict=True):
            yield entry.name, part
    store.set(DONE, "1")


def _room_for(bucket: Sequence[WeightEntry], device: torch.device) -> Tensor:
    return torch.empty(sum(entry.room for entry in bucket), dtype=torch.uint8, device=device)


def _parts(packed: Tensor, bucket: Sequence[WeightEntry]) -> Iterator[Tensor]:
    """The weights of a bucket, as views of it."""
    start = 0
    for entry in bucket:
        part = packed[start : start + entry.num_bytes].view(getattr(torch, entry.dtype))
        yield part.view(tuple(entry.shape))
        start += entry.room


def _store(meeting: Meeting, server: socket.socket | None = None) -> TCPStore:
    return TCPStore(
        meeting.host,
        meeting.port,
        is_master=server is not None,
        timeout=timedelta(seconds=meeting.seconds),
        wait_for_workers=False,
        master_listen_fd=server.detach() if server is not None else None,
    )


def _wait_for(key: str, store: TCPStore, meeting: Meeting, given_up: threading.Event) -> None:
    deadline = time.monotonic() + meeting.seconds
    while not store.check([key]):
        if given_up.wait(LOOK_SECONDS):
            raise GivenUp("the worker failed while it was sent weights")
        if time.monotonic() > deadline:
            raise RuntimeError(f"the worker was not '{key}' within {meeting.seconds:g} s")


def _join(store: TCPStore, meeting: Meeting, rank: int) -> Any:
    limit = timedelta(seconds=meeting.seconds)
    if meeting.backend == "nccl":
        options: Any = dist.ProcessGroupNCCL.Options()
        options._timeout = limit
        return dist.ProcessGroupNCCL(store, rank, SIZE, options)
    options = dist.ProcessGroupGloo._Options()  # type: ignore[attr-defined]
    options._timeout = limit
    # By the address that the other side is reached from: a host's own name may lead elsewhere.
    address = own_address(meeting.host)
    options._devices = [dist.ProcessGroupGloo.create_device(hostname=address)]
    return dist.ProcessGroupGloo(store, rank, SIZE, options)


class _Broadcast:
    """A bucket on its way from the sender."""

    def __init__(self, group: Any, packed: Tensor, meeting: Meeting) -> None:
        self.packed = packed
        self._seconds = meeting.seconds
        options = dist.BroadcastOptions()
        options.rootRank = SENDER
        self._work = group.broadcast([packed], options)

    def wait(self) -> None:
        """Returns when it is there; raises after the meeting's limit."""
        self._work.wait(timedelta(seconds=self._seconds))
        if self.packed.is_cuda:  # NCCL's wait only orders streams
            torch.cuda.synchronize(self.packed.device)


def own_address(host: str) -> str:
    """This machine's address as ``host`` sees it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((host, 9))  # sends nothing
        return probe.getsockname()[0]
