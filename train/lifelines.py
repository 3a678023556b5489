"""Connections by which ranks notice that another rank, or its machine, is gone: one from each to rank 0.

A collective may not notice: NCCL waits for its time limit, and a machine without power or network closes no
connection. Ranks wait for hours while rank 0 collects, so a time limit cannot serve. The kernel of each
machine probes these connections, whatever the processes do: a rank that is slow or stopped is not taken for
dead.
"""

import json
import os
import selectors
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import cast

from configs.rank_errors import record_reason

BYE = b"."
"""Sent by a rank that ends as it should."""
GRACE_SECONDS = 8.0
"""Time in which a rank whose peer is gone may end by its own error, or by its launcher's."""
LOOK_SECONDS = 1.0
"""Interval at which the thread looks whether this rank has finished."""
IDLE_SECONDS, PROBE_SECONDS, PROBES = 10, 5, 3
"""A silent machine is probed after IDLE_SECONDS, every PROBE_SECONDS, and is gone after PROBES probes."""
MEET_SECONDS = 120.0
"""Time limit until every rank has connected to rank 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where rank 0 waits for the other ranks."""

    port: int
    host: str
    """Name of the machine, for messages."""
    token: str
    """Random; a connection that does not send it is closed."""


class Lifelines:
    """This rank's connections, watched by a thread."""

    def __init__(self, rank: int, peers: Mapping[socket.socket, str], *, end: Callable[[str], None]) -> None:
        """Args:
        rank: The rank of this process.
        peers: Connections, and the names of the ranks at their other ends.
        end: Called with the reason ``GRACE_SECONDS`` after a peer was lost.
        """
        self._rank = rank
        self._peers = dict(peers)
        self._end = end
        self._closed = threading.Event()
        threading.Thread(target=self._watch, daemon=True, name="lifelines").start()

    def close(self) -> None:
        """Tells the others that this rank ends as it should; from now on none is missed."""
        self._closed.set()
        for connection in self._peers:
            try:
                connection.sendall(BYE)
                connection.shutdown(socket.SHUT_WR)
            except OSError:
                continue  # it was lost in this moment; this rank has finished anyway

    def _watch(self) -> None:
        with selectors.DefaultSelector() as waiting:  # select() knows no descriptor above 1023
            for connection, name in self._peers.items():
                waiting.register(connection, selectors.EVENT_READ, name)
            while waiting.get_map() and not self._closed.is_set():
                for key, _ in waiting.select(LOOK_SECONDS):
                    connection = cast(socket.socket, key.fileobj)
                    waiting.unregister(connection)
                    if (lost := _lost(connection)) is not None and not self._closed.is_set():
                        self._miss(f"{key.data} {lost}")

    def _miss(self, what: str) -> None:
        reason = f"Rank {self._rank} ends, because {what}. See the output of that rank for the cause."
        print(reason, file=sys.stderr, flush=True)
        if not self._closed.wait(GRACE_SECONDS):
            self._end(reason)


def _lost(connection: socket.socket) -> str | None:
    """Returns how a readable connection ended, or None if its rank has finished."""
    try:
        return None if connection.recv(1) == BYE else "ended early"
    except OSError as error:
        return f"cannot be reached ({error.strerror or error})"


def end_rank(reason: str) -> None:
    """Ends this process, whatever its other threads wait for."""
    record_reason(reason)
    os._exit(1)


def invite() -> tuple[socket.socket, Place]:
    """Returns the socket on which rank 0 waits for the others, and what they need to find it."""
    everywhere = socket.has_dualstack_ipv6()
    listener = socket.create_server(
        ("", 0),
        family=socket.AF_INET6 if everywhere else socket.AF_INET,
        dualstack_ipv6=everywhere,
        backlog=1024,
    )
    place = Place(port=listener.getsockname()[1], host=socket.gethostname(), token=os.urandom(16).hex())
    return listener, place


def accept_all(listener: socket.socket, place: Place, ranks: int) -> dict[socket.socket, str]:
    """Returns the connections of ranks 1 to ``ranks`` - 1.

    Raises:
        RuntimeError: If one has not connected within ``MEET_SECONDS``.
    """
    deadline = time.monotonic() + MEET_SECONDS
    found: dict[int, tuple[socket.socket, str]] = {}
    with listener:
        while len(found) < ranks - 1:
            listener.settimeout(max(0.01, deadline - time.monotonic()))
            try:
                connection, _ = listener.accept()
            except TimeoutError:
                missing = [str(rank) for rank in range(1, ranks) if rank not in found]
                raise RuntimeError(
                    f"Rank 0 on {place.host} waited {MEET_SECONDS:g} s for connections from ranks "
                    f"{', '.join(missing)} on port {place.port}. The machines of a run must reach each "
                    "other on every port."
                ) from None
            if (guest := _guest(connection, place.token)) is None:
                connection.close()
            else:
                found[guest[0]] = (_probed(connection), f"rank {guest[0]} on {guest[1]}")
    return dict(found.values())


def join(place: Place, rank: int) -> dict[socket.socket, str]:
    """Returns this rank's connection to rank 0.

    Raises:
        RuntimeError: If rank 0 cannot be reached.
    """
    host = os.environ["MASTER_ADDR"]
    try:
        connection = socket.create_connection((host, place.port), timeout=MEET_SECONDS)
        hello = {"token": place.token, "rank": rank, "host": socket.gethostname()}
        connection.sendall(json.dumps(hello).encode() + b"\n")
    except OSError as error:
        raise RuntimeError(
            f"Rank {rank} cannot reach rank 0 at {host}:{place.port} ({error}). The machines of a run must "
            "reach each other on every port."
        ) from error
    return {_probed(connection): f"rank 0 on {place.host}"}


def _guest(connection: socket.socket, token: str) -> tuple[int, str] | None:
    """Returns rank and machine of a rank that shows the token; None for anyone else."""
    connection.settimeout(10)
    try:
        with connection.makefile("rb") as lines:
            hello = json.loads(lines.readline(1000))
        return (int(hello["rank"]), str(hello["host"])) if hello["token"] == token else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _probed(connection: socket.socket) -> socket.socket:
    connection.settimeout(None)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (
        (socket.TCP_KEEPIDLE, IDLE_SECONDS),
        (socket.TCP_KEEPINTVL, PROBE_SECONDS),
        (socket.TCP_KEEPCNT, PROBES),
    ):
        connection.setsockopt(socket.IPPROTO_TCP, option, value)
    return connection
