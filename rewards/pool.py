"""Killable worker processes behind a blocking call that is safe from any thread.

A task has a limit of wall time, counted from when a worker takes it. At the limit the worker is
killed (SIGKILL) and replaced; a worker that dies is replaced and its task done again.
"""

import contextlib
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import IO, Any

from rewards.worker import read_message, write_message

MAX_ATTEMPTS = 3
"""A task whose worker died is given to so many workers in all."""
START_SECONDS = 60.0
"""Limit for starting the nursery (imports) and for each fork."""


class Nursery:
    """The warm process that workers are forked from; restarted if it dies."""

    def __init__(self, memory_limit_mb: int) -> None:
        self._memory_bytes = memory_limit_mb * 1024 * 1024
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._stderr: IO[bytes] | None = None
        self._last_words = ""

    def fork_worker(self) -> tuple[int, socket.socket]:
        """A new worker's process id and socket.

        Raises:
            RuntimeError: No worker could be started within `START_SECONDS`.
        """
        with self._lock:
            for _ in range(MAX_ATTEMPTS):
                try:
                    return self._fork()
                except (OSError, EOFError):
                    self._stop()
        raise RuntimeError(
            f"No verifier process could be started in {MAX_ATTEMPTS} attempts of at most "
            f"{START_SECONDS:g} s; the last one wrote: {self._last_words or 'nothing'}"
        )

    def _fork(self) -> tuple[int, socket.socket]:
        if self._process is None or self._process.poll() is not None:
            self._start()
        assert self._control is not None
        ours, theirs = socket.socketpair()
        with theirs:
            socket.send_fds(self._control, [struct.pack(">Q", self._memory_bytes)], [theirs.fileno()])
        ready, _, _ = select.select([self._control], [], [], START_SECONDS)
        reply = self._control.recv(8) if ready else b""
        if len(reply) != 8:
            ours.close()
            raise EOFError
        return struct.unpack(">Q", reply)[0], ours

    def _start(self) -> None:
        self._stop()
        ours, theirs = socket.socketpair()
        # The worker finds what the caller finds, wherever the caller was started.
        path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
        # Not multiprocessing: the caller's __main__ and its imports must not run again.
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 (open as long as the process lives)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "rewards.worker", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._stderr,
                env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
            )
        self._control = ours

    def _stop(self) -> None:
        if self._control is not None:
            self._control.close()
            self._control = None
        if self._process is not None:
            self._process.kill()
            self._process.wait(timeout=START_SECONDS)
            self._process = None
        if self._stderr is not None:
            self._stderr.seek(0)
            self._last_words = self._stderr.read()[-500:].decode(errors="replace")
            self._stderr.close()
            self._stderr = None

    def stop(self) -> None:
        """Kills the nursery; its workers die with it."""
        with self._lock:
            self._stop()


class _Worker:
    """One forked process and its socket; owned by one thread."""

    def __init__(self, pid: int, connection: socket.socket) -> None:
        self.pid = pid
        self.connection = connection
        # A process id may be used again once its process is dead; a pidfd (Linux) may not.
        self._pidfd = os.pidfd_open(pid) if hasattr(os, "pidfd_open") else None

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
        with contextlib.suppress(ProcessLookupError):
            if self._pidfd is None:
                os.kill(self.pid, signal.SIGKILL)
            else:
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        if self._pidfd is not None:
            os.close(self._pidfd)
            self._pidfd = None
        self.connection.close()


class Pool:
    """`num_workers` processes, each with a time limit per task and a memory limit.

    Starts nothing before the first task; each process belongs to one thread of the pool.
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
        self._nursery = Nursery(memory_limit_mb)
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
        """Does a task and waits for it; see `submit`."""
        return self.submit(request).result()

    def submit(self, request: dict[str, Any]) -> "Future[dict[str, Any]]":
        """Starts a task: the future's result has `status`, `reason` and `seconds`.

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
        """Process ids of the workers that are alive now, without the nursery."""
        with self._lock:
            return [worker.pid for worker in self._workers.values()]

    def close(self) -> None:
        """Kills all processes; tasks that have not been started are cancelled."""
        self._closed = True
        self._threads.shutdown(wait=False, cancel_futures=True)
        with self._lock:
            workers = list(self._workers.values())
        for worker in workers:
            worker.kill()
        self._threads.shutdown(wait=True)
        self._nursery.stop()

    def _do(self, request: dict[str, Any]) -> dict[str, Any]:
        with self._lock:
            self._number += 1
            request = {**request, "number": self._number}
        worker = self._worker()
        start = time.monotonic()
        for _ in range(MAX_ATTEMPTS):
            remaining = self.limit_seconds - (time.monotonic() - start)
            if remaining <= 0:
                break
            try:
                result = worker.ask(request, remaining)
                return {**result, "seconds": time.monotonic() - start}
            except TimeoutError:
                break
            except OSError:
                if self._closed:
                    break
                worker = self._replace(worker)
        else:
            reason = f"Its worker died {MAX_ATTEMPTS} times."
            return {"status": "error", "reason": reason, "seconds": time.monotonic() - start}
        if self._closed:
            return {"status": "error", "reason": "The verifier was closed.", "seconds": 0.0}
        seconds = time.monotonic() - start
        self._replace(worker)
        reason = f"It took longer than {self.limit_seconds:g} s."
        return {"status": "timeout", "reason": reason, "seconds": seconds}

    def _worker(self) -> _Worker:
        """This thread's worker, started on first use."""
        worker = getattr(self._own, "worker", None)
        return worker if worker is not None else self._start_worker()

    def _start_worker(self) -> _Worker:
        for _ in range(MAX_ATTEMPTS):
            try:
                worker = _Worker(*self._nursery.fork_worker())
                break
            except ProcessLookupError:
                continue  # killed before it was ours
        else:
            raise RuntimeError(f"{MAX_ATTEMPTS} new verifier processes in a row died at once.")
        self._own.worker = worker
        with self._lock:
            self._workers[worker.pid] = worker
        return worker

    def _replace(self, worker: _Worker) -> _Worker:
        with self._lock:
            self._workers.pop(worker.pid, None)
            self.num_replaced += 1
        worker.kill()
        self._own.worker = None
        return self._start_worker()
