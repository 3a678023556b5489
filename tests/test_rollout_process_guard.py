"""A guarded command never outlives its parent."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from conftest import REPO

from rollout.workers.process_guard import commands, end_guarded, end_tree

pytestmark = pytest.mark.component

LIMIT_SECONDS = 20
ENVIRONMENT = os.environ | {"PYTHONPATH": str(REPO)}
SHORT = (
    "import sys, rollout.workers.process_guard as guard; guard.GRACE_SECONDS = 0.5; sys.exit(guard.main())"
)
GUARD = [sys.executable, "-c", SHORT]
"""``python -m rollout.workers.process_guard``, with less patience for what ignores SIGTERM."""

STUBBORN = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
open(sys.argv[1] + "/stubborn", "w").write(str(os.getpid()))
time.sleep(600)
"""
COMMAND = f"""
import os, subprocess, sys, time
subprocess.Popen([sys.executable, "-c", {STUBBORN!r}, sys.argv[1]])
while not os.path.exists(sys.argv[1] + "/stubborn") or not open(sys.argv[1] + "/stubborn").read():
    time.sleep(0.02)
open(sys.argv[1] + "/command", "w").write(str(os.getpid()))
if sys.argv[2] == "stay":
    time.sleep(600)
"""
PARENT = f"""
import os, subprocess, sys, time
command = [str(os.getpid()), sys.executable, "-c", {COMMAND!r}, sys.argv[1], "stay"]
guard = subprocess.Popen({GUARD!r} + command, stdin=subprocess.PIPE)
open(sys.argv[1] + "/guard", "w").write(str(guard.pid))
if sys.argv[2] == "forks" and not os.fork():
    open(sys.argv[1] + "/holder", "w").write(str(os.getpid()))
time.sleep(600)
"""
SETSID = """
import os, signal, sys, time
def flee(*_):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            open(sys.argv[1] + "/fled", "w").write(str(os.getpid()))
            time.sleep(600)
    os._exit(0)
signal.signal(signal.SIGTERM, flee)
open(sys.argv[1] + "/command", "w").write(str(os.getpid()))
time.sleep(600)
"""


def _guard(code: str, *arguments: str, parent: int | None = None) -> subprocess.Popen[bytes]:
    """A guard over some lines of Python."""
    command = [*GUARD, str(parent or os.getpid()), sys.executable, "-c", code, *arguments]
    return subprocess.Popen(command, stdin=subprocess.PIPE, env=ENVIRONMENT)


def _inner(guard: int) -> int:
    (inner,) = psutil.Process(guard).children()
    return inner.pid


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Callable[[str], int]]:
    """``started(name)`` waits for a process to write its id; what is left at the end is killed."""

    def wait(name: str) -> int:
        deadline = time.monotonic() + LIMIT_SECONDS
        while time.monotonic() < deadline:
            with suppress(FileNotFoundError, ValueError):
                return int((tmp_path / name).read_text())
            time.sleep(0.02)
        raise AssertionError(f"{name} did not start")

    yield wait
    for path in tmp_path.iterdir():
        with suppress(ValueError, ProcessLookupError):
            os.kill(int(path.read_text()), signal.SIGKILL)


def _wait_until_gone(*pids: int) -> None:
    deadline = time.monotonic() + LIMIT_SECONDS
    while left := [pid for pid in pids if _runs(pid)]:
        assert time.monotonic() < deadline, f"still running: {left}"
        time.sleep(0.05)


def _runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize("does", ["nothing", "forks"])
def test_a_killed_parent_takes_the_whole_tree_with_it(
    tmp_path: Path, started: Callable[[str], int], does: str
):
    """Even if a forked child of it lives on, and with it the other end of the guard's input."""
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(tmp_path), does], env=ENVIRONMENT)
    tree = [started(name) for name in ("guard", "stubborn", "command")]
    if does == "forks":
        holder = started("holder")
    tree.append(_inner(tree[0]))
    assert all(_runs(pid) for pid in tree)
    parent.kill()
    parent.wait()
    _wait_until_gone(*tree)
    assert does == "nothing" or _runs(holder)


def test_a_guard_whose_parent_is_gone_already_ends_its_command(tmp_path: Path):
    guard = _guard(COMMAND, str(tmp_path), "stay", parent=2**22 + 1)
    guard.wait(timeout=LIMIT_SECONDS)
    assert not [path for path in tmp_path.iterdir() if _runs(int(path.read_text() or 2**22 + 1))]


@pytest.mark.parametrize("which", ["outer", "inner"])
def test_a_guard_that_is_killed_takes_the_whole_tree_with_it(
    tmp_path: Path, started: Callable[[str], int], which: str
):
    guard = _guard(COMMAND, str(tmp_path), "stay")
    tree = [guard.pid, *(started(name) for name in ("stubborn", "command"))]
    tree.append(_inner(guard.pid))
    os.kill(tree[0] if which == "outer" else tree[-1], signal.SIGKILL)
    end_guarded(guard)
    assert not [pid for pid in tree if _runs(pid)]


def test_the_kernel_ends_a_command_whose_guards_are_killed_together(
    tmp_path: Path, started: Callable[[str], int]
):
    guard = _guard(STUBBORN, str(tmp_path))
    command = started("stubborn")
    # Stopped first, so that the outer guard does not act between the two signals.
    pids = [guard.pid, _inner(guard.pid)]
    for number in (signal.SIGSTOP, signal.SIGKILL):
        for pid in pids:
            os.kill(pid, number)
    guard.wait(timeout=LIMIT_SECONDS)
    _wait_until_gone(command)


def test_a_process_that_begins_a_session_of_its_own_while_it_is_ended_is_ended_too(
    tmp_path: Path, started: Callable[[str], int]
):
    guard = _guard(SETSID, str(tmp_path))
    command = started("command")
    guard.terminate()
    fled = started("fled")
    guard.wait(timeout=LIMIT_SECONDS)
    assert not [pid for pid in (command, fled) if _runs(pid)]


def test_a_tree_whose_root_ends_first_is_ended_whole(tmp_path: Path, started: Callable[[str], int]):
    tree = subprocess.Popen([sys.executable, "-c", COMMAND, str(tmp_path), "stay"])
    members = [started(name) for name in ("stubborn", "command")]
    end_tree(tree.pid, grace_seconds=0.5)
    tree.wait(timeout=LIMIT_SECONDS)
    assert not [pid for pid in members if _runs(pid)]


def test_a_guard_knows_its_command(tmp_path: Path, started: Callable[[str], int]):
    guard = _guard(COMMAND, str(tmp_path), "stay")
    command = started("command")
    assert [process.pid for process in commands(guard.pid)] == [command]
    end_guarded(guard)
    assert commands(guard.pid) == []


@pytest.mark.parametrize("how", ["closed", "terminated"])
def test_a_guard_that_is_told_to_stop_ends_the_whole_tree(
    tmp_path: Path, started: Callable[[str], int], how: str
):
    guard = _guard(COMMAND, str(tmp_path), "stay")
    tree = [started(name) for name in ("stubborn", "command")]
    assert guard.stdin is not None
    if how == "closed":
        guard.stdin.close()
    else:
        guard.terminate()
    guard.wait(timeout=LIMIT_SECONDS)
    _wait_until_gone(*tree)


def test_a_command_that_ends_by_itself_leaves_no_child_behind(tmp_path: Path, started: Callable[[str], int]):
    guard = _guard(COMMAND, str(tmp_path), "end")
    stubborn = started("stubborn")
    assert guard.wait(timeout=LIMIT_SECONDS) == 0
    _wait_until_gone(stubborn)


@pytest.mark.parametrize("status", [0, 1, 42])
def test_the_exit_status_is_the_commands(status: int):
    guard = _guard(f"import sys; sys.exit({status})")
    assert guard.wait(timeout=LIMIT_SECONDS) == status
