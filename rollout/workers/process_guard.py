"""Runs a command that must not outlive its parent: ``start_guarded`` and ``end_guarded``.

The guard, ``python -m rollout.workers.process_guard PARENT COMMAND ...``, runs between the parent, whose
process id is PARENT, and the command. The parent holds the guard's standard input open and never writes to
it. The guard ends the command and all its descendants when its input closes or its parent is another process,
because the parent ended in any way (SIGKILL included), on SIGTERM, and when the command itself ends. Its exit
status is that of the command.

The guard is two processes, each with the same task: an outer one and, as its child, an inner one, whose child
is the command. If one is killed, the other ends the tree. If both are, the kernel kills the command.
"""

import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import IO

import psutil

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
GRACE_SECONDS = 5.0
"""Time between SIGTERM and SIGKILL."""
KILL_SECONDS = 5.0
"""Time limit for killed processes to disappear."""
POLL_SECONDS = 0.2
"""Interval at which a guard looks at its command and its parent."""
END_POLL_SECONDS = 0.05
"""Interval at which a tree is looked at while it is ended."""
END_SECONDS = 30.0
"""Time limit for a guard to end its command's tree."""

LIBC = ctypes.CDLL(None)


def start_guarded(
    command: Sequence[str], output: IO[bytes], environment: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """Starts a command under a guard; standard output and errors go to ``output``.

    The command's environment is ``environment``, or that of this process if it is None.
    """
    return subprocess.Popen(
        [sys.executable, "-m", "rollout.workers.process_guard", str(os.getpid()), *command],
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
    if process.returncode < 0:  # the outer guard was killed, and the inner one ends the tree
        _wait_for_group(process.pid)


def commands(guard: int) -> list[psutil.Process]:
    """Returns the running command of a guard with this process id, and orphans of the command."""
    with suppress(psutil.NoSuchProcess):
        return [command for inner in psutil.Process(guard).children() for command in inner.children()]
    return []


def end_tree(pid: int, grace_seconds: float = GRACE_SECONDS) -> None:
    """Ends a process and all its descendants: SIGTERM, then SIGKILL for those still alive."""
    with suppress(psutil.NoSuchProcess):
        root = psutil.Process(pid)
        _end(lambda: [*_descendants(root), root], grace_seconds)


def _wait_for_group(number: int) -> None:
    """Waits until no process is left in a process group; kills those left after ``END_SECONDS``."""
    deadline = time.monotonic() + END_SECONDS
    with suppress(ProcessLookupError):
        while time.monotonic() < deadline:
            os.killpg(number, 0)  # sends nothing; raises if the group is empty
            time.sleep(END_POLL_SECONDS)
        os.killpg(number, signal.SIGKILL)


def _descendants(root: psutil.Process) -> list[psutil.Process]:
    with suppress(psutil.NoSuchProcess):
        return root.children(recursive=True)
    return []


def _end(find: Callable[[], list[psutil.Process]], grace_seconds: float) -> None:
    """Ends what ``find`` returns, which is asked again until no such process runs.

    A process may start others while its tree is ended.
    """
    known: set[psutil.Process] = set()  # those that lost their parent may not be found again
    told: set[psutil.Process] = set()
    started = time.monotonic()
    while left := [process for process in known.union(find()) if _runs(process)]:
        known.update(left)
        seconds = time.monotonic() - started
        if seconds > grace_seconds + KILL_SECONDS:
            return  # waits for a device: no signal reaches it
        for process in left:
            with suppress(psutil.NoSuchProcess):
                if seconds > grace_seconds:
                    process.kill()
                elif process not in told:
                    told.add(process)
                    process.terminate()
        time.sleep(END_POLL_SECONDS)


def _runs(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


class _Watch:
    """Watches one child process and the parent of this process."""

    def __init__(self, parent: int, pipe: int) -> None:
        """``pipe`` closes when the parent, process ``parent``, ends or wants this process to end."""
        self._parent = parent
        self._pipe = pipe
        self._is_told = False
        signal.signal(signal.SIGTERM, self._stop)
        # Orphans among the descendants become children of this process, so that they are found, too.
        LIBC.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)

    def _stop(self, _signum: int, _frame: object) -> None:
        self._is_told = True

    def wait(self, status: Callable[[], int | None]) -> None:
        """Returns when the child has a ``status``, this process is told to end, or the parent has ended."""
        # A forked child of the parent can hold the pipe open: the parent's id is checked as well.
        while status() is None and not self._is_told and os.getppid() == self._parent:
            readable, _, _ = select.select([self._pipe], [], [], POLL_SECONDS)
            if readable:  # end of file, since nothing is ever written
                return


def main() -> int:
    """Runs the command of ``sys.argv`` as the module docstring describes; returns its exit status."""
    # A process group of its own, so that Ctrl-C reaches only the parent, which then ends the tree in order.
    os.setpgrp()
    watch = _Watch(int(sys.argv[1]), sys.stdin.fileno())
    outer = os.getpid()
    pipe, end = os.pipe()
    inner = os.fork()
    if not inner:
        os.close(end)
        return _inner(_Watch(outer, pipe), sys.argv[2:])
    os.close(pipe)
    ended: list[int] = []

    def status() -> int | None:
        if not ended:
            pid, code = os.waitpid(inner, os.WNOHANG)
            ended.extend([os.waitstatus_to_exitcode(code)] if pid else [])
        return ended[0] if ended else None

    watch.wait(status)
    os.close(end)  # asks the inner guard to end the tree, so that no process is told twice
    deadline = time.monotonic() + GRACE_SECONDS + KILL_SECONDS
    while status() is None and time.monotonic() < deadline:
        time.sleep(END_POLL_SECONDS)
    _end(lambda: _descendants(psutil.Process()), GRACE_SECONDS)
    return 1 if (code := status()) is None else code


def _inner(watch: _Watch, command: Sequence[str]) -> int:
    inner = os.getpid()

    def die_with_guard() -> None:
        LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != inner:  # it died before the line above
            os._exit(1)

    # This process has one thread, so ``preexec_fn`` is safe, and its end is that of the command's parent.
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, preexec_fn=die_with_guard)
    watch.wait(child.poll)
    _end(lambda: _descendants(psutil.Process()), GRACE_SECONDS)
    return 1 if (code := child.poll()) is None else code


if __name__ == "__main__":
    sys.exit(main())
