"""The warm process that workers are forked from; one for all pools of a program.

It is started with the first pool, imports SymPy in the background, and lives until the program ends in any
way (see ``rewards.processes.worker``). If it dies, the next fork starts another.
"""

import atexit
import os
import select
import socket
import struct
import subprocess
import sys
import tempfile
import threading
from typing import IO

START_SECONDS = 60.0
"""Time limit for starting the process (imports) and for each fork."""
MAX_ATTEMPTS = 3
"""Number of attempts to fork a worker, each with a new process after a failure."""


class ForkServer:
    """Starts worker processes. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._stderr: IO[bytes] | None = None
        self._last_words = ""

    def begin(self) -> None:
        """Starts the process if it does not run yet, without waiting until it is warm."""
        with self._lock:
            if self._process is None:
                self._start()

    def fork_worker(self, memory_limit_mb: int) -> tuple[int, socket.socket]:
        """Forks a worker; returns its process id and socket.

        Args:
            memory_limit_mb: Address space of the worker, in MiB.

        Raises:
            RuntimeError: If no worker could be started in ``MAX_ATTEMPTS`` attempts.
        """
        with self._lock:
            for _ in range(MAX_ATTEMPTS):
                try:
                    return self._fork(memory_limit_mb * 1024 * 1024)
                except (OSError, EOFError):
                    self._stop()
        raise RuntimeError(
            f"No verifier process could be started in {MAX_ATTEMPTS} attempts of at most "
            f"{START_SECONDS:g} s; the last one wrote: {self._last_words or 'nothing'}"
        )

    def stop(self) -> None:
        """Kills the process; its workers die with it."""
        with self._lock:
            self._stop()

    def _fork(self, memory_bytes: int) -> tuple[int, socket.socket]:
        if self._process is None or self._process.poll() is not None:
            self._start()
        assert self._control is not None
        ours, theirs = socket.socketpair()
        with theirs:
            socket.send_fds(self._control, [struct.pack(">Q", memory_bytes)], [theirs.fileno()])
        # The reply is the worker's process id, 8 bytes; fewer mean that the process died.
        ready, _, _ = select.select([self._control], [], [], START_SECONDS)
        reply = self._control.recv(8) if ready else b""
        if len(reply) != 8:
            ours.close()
            raise EOFError
        return struct.unpack(">Q", reply)[0], ours

    def _start(self) -> None:
        self._stop()
        ours, theirs = socket.socketpair()
        # Not multiprocessing, which would run the caller's __main__ and its imports again.
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 (open while the process lives)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "rewards.processes.worker", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._stderr,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(import_path()), "OMP_NUM_THREADS": "1"},
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


def import_path() -> list[str]:
    """Returns the import path of this program, for other processes."""
    return [entry or os.getcwd() for entry in sys.path]


_lock = threading.Lock()
_fork_server: ForkServer | None = None
_owner = 0


def shared_fork_server() -> ForkServer:
    """Returns the fork server of this process; a forked child gets its own, as sockets cannot be shared."""
    global _fork_server, _owner
    with _lock:
        if _fork_server is None or _owner != os.getpid():
            _fork_server, _owner = ForkServer(), os.getpid()
            atexit.register(_fork_server.stop)
        return _fork_server
