"""Runs a command that must not outlive its parent: ``start_guarded`` and ``end_guarded``.

The guard, ``python -m rollout.workers.process_guard COMMAND ...``, runs between the parent and the command.
The parent holds the guard's standard input open and never writes to it. The guard ends the command's whole
process tree when its input closes, because the parent ended in any way (SIGKILL included), on SIGTERM, and
when the command itself ends. Its exit status is that of the command. ``end_of_log`` returns the last lines
of a failed command's log.
"""

import ctypes
import os
import select
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import IO

import psutil

PR_SET_CHILD_SUBREAPER = 36
GRACE_SECONDS = 5.0
POLL_SECONDS = 0.2
END_SECONDS = 30.0
"""Time limit for a guard to end its command's tree."""


def start_guarded(
    command: Sequence[str], output: IO[bytes], environment: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """Starts a command under a guard; standard output and errors go to ``output``.

    The command's environment is ``environment``, or that of this process if it is None.
    """
    return subprocess.Popen(
        [sys.executable, "-m", "rollout.workers.process_guard", *command],
        stdin=subprocess.PIPE,
        stdout=output,
        stderr=subprocess.STDOUT,
        env=environment,
    )


def end_guarded(process: subprocess.Popen[bytes]) -> None:
    """Ends a guard and its command's tree, if they are still running; returns when they have ended."""
    assert process.stdin is not None, "process must come from start_guarded"
    with suppress(OSError):
        process.stdin.close()
    try:
        process.wait(timeout=END_SECONDS)
    except subprocess.TimeoutExpired:
        end_tree(process.pid)
        process.wait(timeout=END_SECONDS)


def end_tree(pid: int, grace_seconds: float = GRACE_SECONDS) -> None:
    """Ends a process and all its descendants: SIGTERM, then SIGKILL for those still alive."""
    try:
        root = psutil.Process(pid)
        tree = [*root.children(recursive=True), root]
    except psutil.NoSuchProcess:
        return
    _end(tree, grace_seconds)


def _end(processes: list[psutil.Process], grace_seconds: float) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.terminate()
    _, alive = psutil.wait_procs(processes, timeout=grace_seconds)
    for process in alive:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, timeout=grace_seconds)


def main() -> int:
    """Runs the command of ``sys.argv`` as the module docstring describes; returns its exit status."""
    # A process group of its own, so that Ctrl-C reaches only the parent, which then ends the tree in order.
    os.setpgrp()
    # Orphans of the command become children of the guard, so that they are found and ended, too.
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    told_to_stop = False

    def stop(_signum: int, _frame: object) -> None:
        nonlocal told_to_stop
        told_to_stop = True

    signal.signal(signal.SIGTERM, stop)
    child = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)
    while child.poll() is None and not told_to_stop:
        readable, _, _ = select.select([sys.stdin], [], [], POLL_SECONDS)
        if readable:  # end of file, since the parent never writes
            break
    _end(psutil.Process().children(recursive=True), GRACE_SECONDS)
    return child.wait()


if __name__ == "__main__":
    sys.exit(main())
