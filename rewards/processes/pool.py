"""Killable worker processes behind a blocking call that is safe from any thread.

A task has a limit of wall time, counted from when a thread of the pool takes it. At the limit the
worker is killed (SIGKILL) and replaced; a worker that dies is replaced and its task done again.
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

from rewards.processes.fork_server import shared_fork_server
from rewards.processes.worker import read_message, write_message

MAX_ATTEMPTS = 3
"""A task whose worker died is given to so many workers in all."""


class _Worker:
    """One forked process and its socket; owned by one thread."""

    def __init__(self, pid: int, connection: socket.socket) -> None:
        self.pid = pid
        self.connection = connection
        # A process id may be used again once its process is dead; a pidfd (Linux) may not.
        self._pidfd = os.pidfd_open(pid) if hasattr(os, "pidfd_open") else None
        self._is_killed = False

    def ask(self, request: dict[str, Any], seconds: float) -> dict[str, Any]:
        """The answer to one request.

        Raises:
            TimeoutError: It did not come in time.
            ConnectionError: The process died.
        """
        deadline = time.monotonic() + seconds
        self.connection.settimeout(max(seconds, 0.001))
        write_message(self.connection, request)
        while True:
            self.connection.settimeout(max(deadline - time.monotonic(), 0.001))
            result = read_message(self.connection)
            if result is None:
                raise ConnectionResetError
            if result["number"] == request["number"]:
                return result

    def kill(self) -> None:
        """Ends the process at once. It is not our child, so nothing is left to wait for."""
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
        self.connection.close()


class Pool:
    """``num_workers`` processes, each with a time limit per task and a memory limit.

    Each process belongs to one thread of the pool, and is forked when that thread first has work.
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
                f"`memory_limit_mb` must be at least 256 (SymPy alone takes 100), got {memory_limit_mb}."
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
        """Workers that were killed at a limit or found dead."""

    def run(self, request: dict[str, Any]) -> dict[str, Any]:
        """Does a task and waits for it; see ``submit``."""
        return self.submit(request).result()

    def submit(self, request: dict[str, Any]) -> "Future[dict[str, Any]]":
        """Starts a task: the future's result has ``status``, ``reason`` and ``seconds``.

        Raises:
            RuntimeError: The pool is closed.
        """
        if self._closed:
            raise RuntimeError("This verifier pool is closed.")
        if os.getpid() != self._owner:
            raise RuntimeError(
                "This verifier pool was made before a fork and its threads are in the other process; "
                "make one Scorer in each process."
            )
        return self._threads.submit(self._do, request)

    def worker_pids(self) -> list[int]:
        """Process ids of the workers that are alive now, without the fork server."""
        with self._lock:
            return [worker.pid for worker in self._workers.values()]

    def close(self) -> None:
        """Kills the workers; tasks that have not been started are cancelled."""
        self._closed = True
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._kill_all()
        self._threads.shutdown(wait=True)
        self._kill_all()  # a thread may have been about to fork one

    def _kill_all(self) -> None:
        with self._lock:
            for worker in self._workers.values():
                worker.kill()
            self._workers.clear()

    def _do(self, request: dict[str, Any]) -> dict[str, Any]:
        with self._lock:
            self._number += 1
            request = {**request, "number": self._number}
        start = time.monotonic()
        worker = self._worker()
        # A cold start counts too, so that callers can rely on the limit; but a third of it is left.
        deadline = max(start + self.limit_seconds, time.monotonic() + self.limit_seconds / 3)
        for _ in range(MAX_ATTEMPTS):
            try:
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
        """This thread's worker, forked if it has none."""
        worker = getattr(self._own, "worker", None)
        if worker is not None:
            return worker
        for _ in range(MAX_ATTEMPTS):
            try:
                worker = _Worker(*self._fork_server.fork_worker(self.memory_limit_mb))
                break
            except ProcessLookupError:
                continue  # killed before it was ours
        else:
            raise RuntimeError(f"{MAX_ATTEMPTS} new verifier processes in a row died at once.")
        self._own.worker = worker
        with self._lock:
            self._workers[worker.pid] = worker
        return worker

    def _discard(self, worker: _Worker) -> None:
        with self._lock:
            self._workers.pop(worker.pid, None)
            self.num_replaced += 1
            worker.kill()
        self._own.worker = None


class Gate:
    """Back-pressure: at most ``limit`` inside; who comes later gets a future that opens in order."""

    def __init__(self, limit: int) -> None:
        self._free = limit
        self._waiting: collections.deque[Future[None]] = collections.deque()
        self._lock = threading.Lock()

    def enter(self) -> Future[None]:
        """A future that is done once there is room."""
        ticket: Future[None] = Future()
        with self._lock:
            if self._free == 0:
                self._waiting.append(ticket)
                return ticket
            self._free -= 1
        ticket.set_result(None)
        return ticket

    def leave(self) -> None:
        """Makes room for the next in line."""
        with self._lock:
            if not self._waiting:
                self._free += 1
                return
            ticket = self._waiting.popleft()
        ticket.set_result(None)
