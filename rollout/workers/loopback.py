"""Ports of this machine, and the check whether a server is up; loads no library of models or numbers."""

import http.client
import socket
import urllib.request
from contextlib import suppress

LOOPBACK = ("127.0.0.1", "localhost", "::1")
ANSWER_SECONDS = 2.0
"""Time limit of one check whether a server is up."""
PORT_ATTEMPTS = 100

# Without proxies: with ``http_proxy`` set, urllib would send even requests for loopback to the proxy.
_open = urllib.request.build_opener(urllib.request.ProxyHandler({})).open


def free_port() -> int:
    """Returns a port on loopback that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def free_ports(count: int) -> int:
    """Returns the first of ``count`` consecutive ports on loopback that are free now.

    Raises:
        RuntimeError: If none were found in ``PORT_ATTEMPTS`` attempts.
    """
    for _ in range(PORT_ATTEMPTS):
        first = free_port()
        if first + count <= 2**16 and all(map(_is_free, range(first + 1, first + count))):
            return first
    raise RuntimeError(f"No {count} free ports in a row were found. Set rollout.port.")


def is_up(url: str) -> bool:
    """Returns True if ``url`` answers with status 200 within ``ANSWER_SECONDS``; never asks a proxy."""
    with suppress(OSError, http.client.HTTPException), _open(url, timeout=ANSWER_SECONDS) as answer:
        return answer.status == 200
    return False


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
