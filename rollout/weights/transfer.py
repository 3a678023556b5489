"""Weight transfer through a process group: NCCL between GPUs; gloo, by the same code, on CPUs.

The sender holds the weights in host memory and forms a group of two with one worker for a single transfer, so
a restarted worker needs no state of earlier transfers. Weights are sent in buckets. While one bucket is in
transit, the sender fills the next and the receiver loads the previous one, so neither side's device needs
memory for more than two buckets in addition to its model.
"""

import hmac
import math
import secrets
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist
from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

SENDER, RECEIVER, SIZE = 0, 1, 2  # ranks, and the size of the group
BUCKET_BYTES = 2**26
ALIGNMENT = 16
"""Bytes. No dtype has larger elements, so every weight in a bucket can be viewed in its own dtype."""
LOOK_SECONDS = 0.02
"""Interval at which a sender that waits for its receiver looks for it."""
TOKEN_SECONDS = 1.0
"""Time limit for a connection to show its token."""
ADMITTED = b"+"
"""Answer to a right token; a wrong one is answered by closing the connection."""
DONE = "done"
"""Key that a receiver sets in the store when it has all weights."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightEntry:
    """Description of one weight, which the receiver needs before the transfer."""

    name: str
    dtype: str
    """Name in torch, such as ``bfloat16``."""
    shape: Sequence[int]

    @property
    def num_bytes(self) -> int:
        """Bytes of the elements, without padding."""
        return math.prod(self.shape) * getattr(torch, self.dtype).itemsize

    @property
    def room(self) -> int:
        """Bytes in a bucket: ``num_bytes`` rounded up to ``ALIGNMENT``."""
        return math.ceil(self.num_bytes / ALIGNMENT) * ALIGNMENT


@dataclass(frozen=True, slots=True, kw_only=True)
class Meeting:
    """Address and settings of one transfer; the receiver gets a copy over HTTP."""

    host: str
    port: int
    backend: str
    """``nccl`` or ``gloo``."""
    seconds: float
    """Limit of each wait of sender and receiver."""
    bucket_bytes: int = BUCKET_BYTES
    token: str = field(default_factory=lambda: secrets.token_hex(32), repr=False)
    """Shown by the receiver before the sender sends anything; random, for this transfer alone."""


class GivenUp(RuntimeError):
    """Raised in a sender that was told of its receiver's failure; the receiver's own error says why."""


def entries_of(weights: Mapping[str, Tensor]) -> list[WeightEntry]:
    """Returns a description of each weight, in the order of sending."""
    return [
        WeightEntry(name=name, dtype=str(value.dtype).removeprefix("torch."), shape=tuple(value.shape))
        for name, value in weights.items()
    ]


def buckets(entries: Sequence[WeightEntry], bucket_bytes: int) -> Iterator[list[WeightEntry]]:
    """Yields consecutive entries sent together; only a single larger entry exceeds ``bucket_bytes``."""
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
    """Returns a listening socket on a free port of ``host``, to which a receiver will connect."""
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
    """Sends all weights to the receiver that connects to ``meeting``; blocks until it has them.

    Args:
        weights: Tensors by name, in host memory.
        server: Socket made by ``listen``; it is consumed.
        meeting: The same as the receiver's.
        given_up: Set by the caller when the receiver is known to have failed.
        device: Device that ``meeting.backend`` sends from.

    Raises:
        GivenUp: If ``given_up`` is set before the receiver has connected, or before it has all weights.
        RuntimeError: If no receiver shows the token, or it does not accept a bucket, in time.
    """
    with server:
        _admit(server, meeting, given_up)
        store = _store(meeting, server)
    group = _join(store, meeting, SENDER)
    sent: _Broadcast | None = None
    for bucket in buckets(entries_of(weights), meeting.bucket_bytes):
        packed = _room_for(bucket, torch.device("cpu"))
        for entry, part in zip(bucket, _parts(packed, bucket), strict=True):
            part.copy_(weights[entry.name])
        # Packed while the previous bucket is in transit; at most two buckets are on the device.
        if sent is not None:
            sent.wait()
        sent = _Broadcast(group, packed.to(device), meeting)
    if sent is not None:
        sent.wait()
    _wait_for(DONE, store, meeting, given_up)  # the group must outlive the last bucket's transit


def receive(
    entries: Sequence[WeightEntry], meeting: Meeting, device: torch.device
) -> Iterator[tuple[str, Tensor]]:
    """Yields names and weights as they arrive; each bucket has its own memory.

    Raises:
        RuntimeError: If the sender cannot be reached, refuses the token, or does not send a bucket, in time.
    """
    _show_token(meeting)
    store = _store(meeting)
    group = _join(store, meeting, RECEIVER)
    parcels = list(buckets(entries, meeting.bucket_bytes))
    coming: _Broadcast | None = None
    for bucket, after in zip(parcels, [*parcels[1:], None], strict=True):
        here = coming or _Broadcast(group, _room_for(bucket, device), meeting)
        here.wait()
        # Posted before the caller loads this bucket, so that transit and loading overlap.
        coming = _Broadcast(group, _room_for(after, device), meeting) if after is not None else None
        for entry, part in zip(bucket, _parts(here.packed, bucket), strict=True):
            yield entry.name, part
    store.set(DONE, "1")


def _admit(server: socket.socket, meeting: Meeting, given_up: threading.Event) -> None:
    """Waits until a connection shows the meeting's token; others are closed without an answer."""
    deadline = time.monotonic() + meeting.seconds
    server.settimeout(LOOK_SECONDS)
    while not _has_token(server, meeting.token.encode()):
        if given_up.is_set():
            raise GivenUp("the worker failed before the transfer of weights")
        if time.monotonic() > deadline:
            raise RuntimeError(
                f"the worker did not connect with the token of its transfer within {meeting.seconds:g} s"
            )
    server.setblocking(True)  # as the store expects it


def _has_token(server: socket.socket, token: bytes) -> bool:
    """Returns True if a connection that waits at ``server`` shows the token; it is told so."""
    with suppress(OSError):  # none waits, or it is broken or too slow
        connection, _ = server.accept()
        with connection:
            connection.settimeout(TOKEN_SECONDS)
            deadline, shown, part = time.monotonic() + TOKEN_SECONDS, b"", b"+"
            while part and len(shown) < len(token) and time.monotonic() < deadline:
                part = connection.recv(len(token) - len(shown))
                shown += part
            # Constant-time comparison: the time of a refusal must not tell how much of a token is right.
            if hmac.compare_digest(shown, token):
                connection.sendall(ADMITTED)
                return True
    return False


def _show_token(meeting: Meeting) -> None:
    where = f"the sender of weights at {meeting.host}:{meeting.port}"
    try:
        with socket.create_connection((meeting.host, meeting.port), timeout=meeting.seconds) as connection:
            connection.sendall(meeting.token.encode())
            answer = connection.recv(len(ADMITTED))
    except OSError as error:
        raise RuntimeError(f"{where} cannot be reached: {error}") from error
    if answer != ADMITTED:
        raise RuntimeError(f"{where} refused the token of this transfer")


def _room_for(bucket: Sequence[WeightEntry], device: torch.device) -> Tensor:
    return torch.empty(sum(entry.room for entry in bucket), dtype=torch.uint8, device=device)


def _parts(packed: Tensor, bucket: Sequence[WeightEntry]) -> Iterator[Tensor]:
    """Yields the weights of a bucket as views of ``packed``, a uint8 tensor of the entries' ``room``s."""
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
            raise GivenUp("the worker failed during the transfer of weights")
        if time.monotonic() > deadline:
            raise RuntimeError(f"the worker did not report '{key}' within {meeting.seconds:g} s")


def _join(store: TCPStore, meeting: Meeting, rank: int) -> Any:
    limit = timedelta(seconds=meeting.seconds)
    if meeting.backend == "nccl":
        options: Any = dist.ProcessGroupNCCL.Options()
        options._timeout = limit
        return dist.ProcessGroupNCCL(store, rank, SIZE, options)
    options = dist.ProcessGroupGloo._Options()  # type: ignore[attr-defined]
    options._timeout = limit
    # The address that reaches the other side: a host's own name may resolve to another interface.
    address = own_address(meeting.host)
    options._devices = [dist.ProcessGroupGloo.create_device(hostname=address)]
    return dist.ProcessGroupGloo(store, rank, SIZE, options)


class _Broadcast:
    """A bucket in transit from the sender; ``packed`` is the source at the sender, else the target."""

    def __init__(self, group: Any, packed: Tensor, meeting: Meeting) -> None:
        self.packed = packed
        self._seconds = meeting.seconds
        options = dist.BroadcastOptions()
        options.rootRank = SENDER
        self._work = group.broadcast([packed], options)

    def wait(self) -> None:
        """Returns when the bucket has arrived.

        Raises:
            RuntimeError: If it takes longer than the meeting's limit.
        """
        self._work.wait(timedelta(seconds=self._seconds))
        if self.packed.is_cuda:  # NCCL's wait only orders streams and does not block the host
            torch.cuda.synchronize(self.packed.device)


def own_address(host: str) -> str:
    """Returns the address of this machine on the route to ``host``."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((host, 9))  # UDP: selects a route and sends nothing
        return probe.getsockname()[0]
