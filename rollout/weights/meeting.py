"""Forms the process group of transfers of weights: one sender, and every process of every worker.

Receivers connect to the sender and show the group's token. Only when all have done so are they admitted,
and the group is formed; the sender's error names those that did not come. A group serves later transfers,
too, as long as all members still have it. One in which a transfer failed is left by all and not used again.
"""

import hmac
import secrets
import socket
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from torch import distributed as dist
from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

SENDER = 0
"""Rank of the sender; receivers have the ranks from 1."""
LOOK_SECONDS = 0.02
"""Interval at which a sender that waits for its receivers looks for them."""
TOKEN_SECONDS = 1.0
"""Time limit for a connection to show its token."""
RANK_DIGITS = 6
"""Length of a receiver's rank, which it shows after the token."""
ADMITTED = b"+"
"""Answer to a right token; a wrong one is answered by closing the connection."""
SLACK = 4.0
"""NCCL's own limit, in ``Meeting.seconds``: its watchdog, which ends the process, must not be first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Meeting:
    """Address and settings of one transfer and its group; every receiver gets a copy over HTTP."""

    host: str
    port: int
    backend: str
    """``nccl`` or ``gloo``."""
    seconds: float
    """Limit of each wait of sender and receivers."""
    size: int
    """Processes in the group: the sender and all receivers."""
    first_rank: int = 1
    """Rank of the first process of the worker that gets this copy; its others have the next ranks."""
    bucket_bytes: int
    token: str = field(default_factory=lambda: secrets.token_hex(32), repr=False)
    """Shown by receivers before the sender sends anything; random, for this group alone."""
    group: str = field(default_factory=lambda: secrets.token_hex(8))
    """Name of the group, by which both sides recognise one that they have kept; no secret."""
    transfer: int = 0
    """Number of the transfer in its group; above 0 receivers must have kept the group."""
    is_kept: bool = False
    """True if both sides keep the group after this transfer."""


class GivenUp(RuntimeError):
    """Raised in a sender that was told of a receiver's failure; the receiver's own error says why."""


@dataclass(frozen=True, slots=True)
class Member:
    """One side's end of a formed group."""

    group: Any
    store: TCPStore

    def leave(self) -> None:
        """Ends the connections; the other sides' transfers in progress fail."""
        self.group.abort()


def listen(host: str) -> socket.socket:
    """Returns a listening socket on a free port of ``host``, to which receivers will connect."""
    server = socket.socket()
    server.bind((host, 0))
    server.listen(512)
    return server


def form(
    server: socket.socket, meeting: Meeting, names: Mapping[int, str], given_up: threading.Event
) -> Member:
    """Waits for all receivers and returns the sender's end of the group; consumes ``server``.

    Args:
        server: Socket made by ``listen``.
        meeting: The same as the receivers'.
        names: Worker of each receiver's rank, for the error.
        given_up: Set by the caller when a receiver is known to have failed.

    Raises:
        GivenUp: If ``given_up`` is set first.
        RuntimeError: If a receiver does not show the token in time; the message names its worker.
    """
    with server, ExitStack() as connections:
        present: dict[int, socket.socket] = {}
        deadline = time.monotonic() + meeting.seconds
        server.settimeout(LOOK_SECONDS)
        while missing := names.keys() - present.keys():
            if given_up.is_set():
                raise GivenUp("a worker failed before the transfer of weights")
            if time.monotonic() > deadline:
                raise RuntimeError(
                    f"{named(missing, names)} did not connect with the token of the transfer within "
                    f"{meeting.seconds:g} s"
                )
            if (came := _shown(server, meeting.token)) and came[0] in missing:
                present[came[0]] = connections.enter_context(came[1])
        server.setblocking(True)  # as the store expects it
        # Not before all are here: an admitted receiver connects at once, to the store made below.
        for connection in present.values():
            connection.sendall(ADMITTED)
        store = _store(meeting, server)
    return Member(_group(store, meeting, SENDER), store)


def join(meeting: Meeting, place: int) -> Member:
    """Returns a receiver's end of the group; ``place`` numbers the processes of its worker from 0.

    Raises:
        RuntimeError: If the sender cannot be reached, refuses the token, or ends before the group is formed.
    """
    rank = meeting.first_rank + place
    where = f"the sender of weights at {meeting.host}:{meeting.port}"
    try:
        with socket.create_connection((meeting.host, meeting.port), timeout=meeting.seconds) as connection:
            connection.sendall(f"{meeting.token}{rank:0{RANK_DIGITS}d}".encode())
            answer = connection.recv(len(ADMITTED))
    except OSError as error:
        raise RuntimeError(f"{where} cannot be reached: {error}") from error
    if answer != ADMITTED:
        raise RuntimeError(f"{where} refused the token of this transfer, or another worker failed")
    store = _store(meeting)
    return Member(_group(store, meeting, rank), store)


def wait_until(is_done: Callable[[], bool], seconds: float, check: Callable[[], None]) -> bool:
    """Waits for ``is_done``, calling ``check``, which may raise, now and then; False after ``seconds``."""
    deadline, pause = time.monotonic() + seconds, 0.0002
    while not is_done():
        if time.monotonic() > deadline:
            return False
        check()
        time.sleep(pause)
        pause = min(2 * pause, LOOK_SECONDS)
    return True


def named(ranks: set[int], names: Mapping[int, str]) -> str:
    """Returns the workers of ``ranks``, for an error."""
    workers = sorted({names[rank] for rank in ranks})
    return f"the worker{'s' * (len(workers) > 1)} {', '.join(workers)}"


def own_address(host: str) -> str:
    """Returns the address of this machine on the route to ``host``."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((host, 9))  # UDP: selects a route and sends nothing
        return probe.getsockname()[0]


def _shown(server: socket.socket, token: str) -> tuple[int, socket.socket] | None:
    """Returns rank and connection of a receiver that waits at ``server`` and shows the token, if one does."""
    expected = token.encode()
    try:
        connection, _ = server.accept()
    except OSError:  # none waits
        return None
    try:
        connection.settimeout(TOKEN_SECONDS)
        length = len(expected) + RANK_DIGITS
        deadline, shown, part = time.monotonic() + TOKEN_SECONDS, b"", b"+"
        while part and len(shown) < length and time.monotonic() < deadline:
            part = connection.recv(length - len(shown))
            shown += part
        # Constant-time comparison: the time of a refusal must not tell how much of a token is right.
        if hmac.compare_digest(shown[: len(expected)], expected) and shown[len(expected) :].isdigit():
            return int(shown[len(expected) :]), connection
    except OSError:  # broken, or too slow
        pass
    connection.close()
    return None


def _store(meeting: Meeting, server: socket.socket | None = None) -> TCPStore:
    return TCPStore(
        meeting.host,
        meeting.port,
        is_master=server is not None,
        timeout=timedelta(seconds=meeting.seconds),
        wait_for_workers=False,
        master_listen_fd=server.detach() if server is not None else None,
    )


def _group(store: TCPStore, meeting: Meeting, rank: int) -> Any:
    if meeting.backend == "nccl":
        options: Any = dist.ProcessGroupNCCL.Options()
        options._timeout = timedelta(seconds=SLACK * meeting.seconds)
        return dist.ProcessGroupNCCL(store, rank, meeting.size, options)
    options = dist.ProcessGroupGloo._Options()  # type: ignore[attr-defined]
    options._timeout = timedelta(seconds=meeting.seconds)
    # The address that reaches the other side: a host's own name may resolve to another interface.
    address = own_address(meeting.host)
    options._devices = [dist.ProcessGroupGloo.create_device(hostname=address)]
    return dist.ProcessGroupGloo(store, rank, meeting.size, options)
