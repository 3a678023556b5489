"""Killable worker processes behind a thread-safe interface.

A task has a wall-time limit, counted from when a thread of the pool takes it. At the limit the worker is
killed (SIGKILL) and replaced; if a worker dies, it is replaced and its task is repeated.
"""

import collections
import contextlib
import os
import signal
import socket
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from rewards.processes.fork_server import START_SECONDS, shared_fork_server
from rewards.processes.worker import read_message, write_message

MAX_ATTEMPTS = 3
"""Number of workers that are tried for one task if each of them dies."""


class _Worker:
    """A forked process and its socket, owned by one thread."""

    def __init__(self, pid: int, connection: socket.socket) -> None:
        self.pid = pid
        self.connection = connection
        # The kernel may reuse the id of a dead process; a pidfd (Linux) keeps naming the same process.
        self._pidfd = os.pidfd_open(pid) if hasattr(os, "pidfd_open") else None
        self._is_killed = False
        self._imported: set[tuple[str, str]] = set()

    def prepare(self, request: dict[str, Any]) -> None:
        """Imports the module that a request ``imports``, if it does, and loads what the task of that ``name``
        needs, before its time counts.

        Raises:
            TimeoutError: If that took longer than ``START_SECONDS``.
            ConnectionError: If the process died.
        """
        needed = (request.get("imports", ""), request.get("name", ""))
        if needed[0] and needed not in self._imported:
            self.ask({**request, "task": "import"}, START_SECONDS)
            self._imported.add(needed)

    def ask(self, request: dict[str, Any], seconds: float) -> dict[str, Any]:
        """Sends a request and returns the answer.

        Raises:
            TimeoutError: If the answer did not arrive in time.
            ConnectionError: If the process died.
        """
        deadline = time.monotonic() + seconds
        self.connection.settimeout(max(seconds, 0.001))
        write_message(self.connection, request)
        while True:
            self.connection.settimeout(max(deadline - time.monotonic(), 0.001))
            result = read_message(self.connection)
            if result is None:
                raise ConnectionResetError
            # An answer with another number belongs to an earlier request.
            if result["number"] == request["number"]:
                return result

    def kill(self) -> None:
        """Kills the process at once and ends a wait for its answer, from any thread; no-op if killed.

        The process is a child of the fork server, so there is nothing to wait for.
        """
        if self._is_killed:
            return
        self._is_killed = True
        with contextlib.suppress(ProcessLookupError):
            if self._pidfd is None:
                os.kill(self.pid, signal.SIGKILL)
            else:
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        if self._pidfd is not None:
            os.close(self._pidfd)
        # Not closed: the kernel could hand out its number again while the owner is about to wait for it.
        with contextlib.suppress(OSError):  # the process closed its end before
            self.connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Kills the process and closes its socket; only for the thread that owns it, or once that ended."""
        self.kill()
        self.connection.close()


class Pool:
    """``num_workers`` processes with a time limit per task and a memory limit per process.

    Each process belongs to one thread of the pool and is forked when this thread gets its first task.
    """

    def __init__(
        self, *, num_workers: int = 2, limit_seconds: float = 3.0, memory_limit_mb: int = 1024
    ) -> None:
        if num_workers < 1:
            raise ValueError(f"`num_workers` must be at least 1, got {num_workers}.")
        if limit_seconds <= 0:
            raise ValueError(f"`limit_seconds` must be positive, got {limit_seconds}.")
        if memory_limit_mb < 256:
            raise ValueError(
                f"`memory_limit_mb` must be at least 256 (SymPy alone needs 100), got {memory_limit_mb}."
            )
        self.num_workers = num_workers
        self.limit_seconds = limit_seconds
        self.memory_limit_mb = memory_limit_mb
        self._fork_server = shared_fork_server()
        self._fork_server.begin()
        self._threads = ThreadPoolExecutor(num_workers, thread_name_prefix="verifier")
        self._own = threading.local()
        self._lock = threading.Lock()
        self._workers: dict[int, _Worker] = {}
        self._number = 0
        self._closed = False
        self._owner = os.getpid()
        self.num_replaced = 0
        """Number of workers that were killed at a limit or found dead."""

    def run(self, request: dict[str, Any]) -> dict[str, Any]:
        """Submits a task and waits for its result; see ``submit``."""
        return self.submit(request).result()

    def submit(self, request: dict[str, Any]) -> "Future[dict[str, Any]]":
        """Submits a task. The future's result has ``status``, ``reason`` and ``seconds``.

        Raises:
            RuntimeError: If the pool is closed, or was made before a fork of this process.
        """
        if self._closed:
            raise RuntimeError("This verifier pool is closed.")
        if os.getpid() != self._owner:
            raise RuntimeError(
                "This verifier pool was created before a fork, and its threads run in the other process; "
                "create one Scorer in each process."
            )
        return self._threads.submit(self._do, request)

    def worker_pids(self) -> list[int]:
        """Returns the process ids of the workers that are alive, without the fork server."""
        with self._lock:
            return [worker.pid for worker in self._workers.values()]

    def close(self) -> None:
        """Kills the workers; tasks that have not started are cancelled."""
        self._closed = True
        self._threads.shutdown(wait=False, cancel_futures=True)
        with self._lock:
            for worker in self._workers.values():
                worker.kill()
        self._threads.shutdown(wait=True)
        for worker in self._workers.values():
            worker.close()
        self._workers.clear()

    def _do(self, request: dict[str, Any]) -> dict[str, Any]:
        with self._lock:
            self._number += 1
            request = {**request, "number": self._number}
        start = time.monotonic()
        worker = self._worker()
        # Forking counts towards the limit, so that callers can rely on it, but leaves at least a third of it.
        deadline = max(start + self.limit_seconds, time.monotonic() + self.limit_seconds / 3)
        for _ in range(MAX_ATTEMPTS):
            try:
                imports = time.monotonic()
                worker.prepare(request)
                deadline += time.monotonic() - imports
                result = worker.ask(request, deadline - time.monotonic())
                return {**result, "seconds": time.monotonic() - start}
            except TimeoutError:
                self._discard(worker)
                status, reason = "timeout", f"It took longer than {self.limit_seconds:g} s."
                break
            except OSError:
                self._discard(worker)
                if self._closed:
                    status, reason = "error", "The verifier was closed."
                    break
                worker = self._worker()
        else:
            status, reason = "error", f"Its worker died {MAX_ATTEMPTS} times."
        return {"status": status, "reason": reason, "seconds": time.monotonic() - start}

    def _worker(self) -> _Worker:
        """Returns this thread's worker; forks one if it has none."""
        worker = getattr(self._own, "worker", None)
        if worker is not None:
            return worker
        for _ in range(MAX_ATTEMPTS):
            try:
                worker = _Worker(*self._fork_server.fork_worker(self.memory_limit_mb))
                break
            except ProcessLookupError:
                continue  # it died before its pidfd was opened
        else:
            raise RuntimeError(f"{MAX_ATTEMPTS} new verifier processes in a row died at once.")
        self._own.worker = worker
        with self._lock:
            self._workers[worker.pid] = worker
            if self._closed:  # after `close` killed the others
                worker.kill()
        return worker

    def _discard(self, worker: _Worker) -> None:
        """Kills this thread's worker, so that the next task forks another."""
        with self._lock:
            self._workers.pop(worker.pid, None)
            self.num_replaced += 1
            worker.close()
        self._own.worker = None


class Gate:
    """Back-pressure: at most ``limit`` callers inside; later ones get futures that complete in order."""

    def __init__(self, limit: int) -> None:
        self._free = limit
        self._waiting: collections.deque[Future[None]] = collections.deque()
        self._lock = threading.Lock()

    def enter(self) -> Future[None]:
        """Returns a future that is done once there is room."""
        ticket: Future[None] = Future()
        with self._lock:
            if self._free == 0:
                self._waiting.append(ticket)
                return ticket
            self._free -= 1
        ticket.set_result(None)
        return ticket

    def leave(self) -> None:
        """Makes room for the next waiting caller."""
        with self._lock:
            if not self._waiting:
                self._free += 1
                return
            ticket = self._waiting.popleft()
        # Outside the lock: callbacks of the future may call ``enter`` or ``leave``.
        ticket.set_result(None)
