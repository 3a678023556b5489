"""A rank learns that another one is gone, and only then."""

import queue
import socket
import threading
import time

import pytest

from train import lifelines
from train.lifelines import Lifelines, accept_all, invite, join

LIMIT_SECONDS = 10


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch) -> "queue.Queue[str]":
    monkeypatch.setattr(lifelines, "GRACE_SECONDS", 0.1)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    return queue.Queue()


def _meet(ranks: int = 3) -> tuple[dict[socket.socket, str], list[dict[socket.socket, str]]]:
    """The connections of rank 0, and those of each other rank."""
    listener, place = invite()
    accepted: list[dict[socket.socket, str]] = []
    waiting = threading.Thread(target=lambda: accepted.append(accept_all(listener, place, ranks)))
    waiting.start()
    others = [join(place, rank) for rank in range(1, ranks)]
    waiting.join(LIMIT_SECONDS)
    return accepted[0], others


def test_the_loss_of_a_rank_names_it_and_its_machine(ends):
    peers, others = _meet()
    Lifelines(0, peers, end=ends.put)
    next(iter(others[1])).close()
    reason = ends.get(timeout=LIMIT_SECONDS)
    assert reason.startswith(f"Rank 0 ends, because rank 2 on {socket.gethostname()} ended early")


def test_the_loss_of_rank_zero_is_noticed_by_every_other_rank(ends):
    peers, others = _meet()
    for rank, connections in enumerate(others, start=1):
        Lifelines(rank, connections, end=ends.put)
    for connection in peers:
        connection.close()
    reasons = sorted(ends.get(timeout=LIMIT_SECONDS) for _ in others)
    assert [reason.partition(" on ")[0] for reason in reasons] == [
        "Rank 1 ends, because rank 0",
        "Rank 2 ends, because rank 0",
    ]


def test_a_rank_that_has_finished_is_not_missed(ends):
    peers, others = _meet()
    Lifelines(0, peers, end=ends.put)
    for rank, connections in enumerate(others, start=1):
        Lifelines(rank, connections, end=ends.put).close()
    time.sleep(0.5)
    assert ends.empty()


def test_whoever_does_not_know_the_token_is_no_rank(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(lifelines, "MEET_SECONDS", 1.0)
    listener, place = invite()
    with socket.create_connection(("127.0.0.1", place.port)) as stranger:
        stranger.sendall(b'{"token": "guessed", "rank": 1, "host": "x"}\n')
        with pytest.raises(RuntimeError, match="waited 1 s for connections from ranks 1 on port"):
            accept_all(listener, place, 2)


def test_a_machine_that_vanishes_is_noticed_within_half_a_minute(ends):
    peers, _ = _meet(2)
    (connection,) = peers
    read = [
        connection.getsockopt(socket.IPPROTO_TCP, option)
        for option in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
    ]
    assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
    assert read[0] + read[1] * read[2] <= 30
