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

pytestmark = pytest.mark.component

LIMIT_SECONDS = 20
ENVIRONMENT = os.environ | {"PYTHONPATH": str(REPO)}
SHORT = (
    "import sys, rollout.workers.process_guard as guard; guard.GRACE_SECONDS = 0.5; sys.exit(guard.main())"
)
GUARD = [sys.executable, "-c", SHORT, sys.executable, "-c"]
"""``python -m rollout.workers.process_guard python -c``, with less patience for what ignores SIGTERM."""

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
import subprocess, sys, time
guard = subprocess.Popen({GUARD!r} + [{COMMAND!r}, sys.argv[1], "stay"], stdin=subprocess.PIPE)
open(sys.argv[1] + "/guard", "w").write(str(guard.pid))
time.sleep(600)
"""


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


def test_a_killed_parent_takes_the_whole_tree_with_it(tmp_path: Path, started: Callable[[str], int]):
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(tmp_path)], env=ENVIRONMENT)
    tree = [started(name) for name in ("guard", "stubborn", "command")]
    assert all(_runs(pid) for pid in tree)
    parent.kill()
    parent.wait()
    _wait_until_gone(*tree)


@pytest.mark.parametrize("how", ["closed", "terminated"])
def test_a_guard_that_is_told_to_stop_ends_the_whole_tree(
    tmp_path: Path, started: Callable[[str], int], how: str
):
    guard = subprocess.Popen([*GUARD, COMMAND, str(tmp_path), "stay"], stdin=subprocess.PIPE, env=ENVIRONMENT)
    tree = [started(name) for name in ("stubborn", "command")]
    assert guard.stdin is not None
    if how == "closed":
        guard.stdin.close()
    else:
        guard.terminate()
    guard.wait(timeout=LIMIT_SECONDS)
    _wait_until_gone(*tree)


def test_a_command_that_ends_by_itself_leaves_no_child_behind(tmp_path: Path, started: Callable[[str], int]):
    guard = subprocess.Popen([*GUARD, COMMAND, str(tmp_path), "end"], stdin=subprocess.PIPE, env=ENVIRONMENT)
    stubborn = started("stubborn")
    assert guard.wait(timeout=LIMIT_SECONDS) == 0
    _wait_until_gone(stubborn)


@pytest.mark.parametrize("status", [0, 1, 42])
def test_the_exit_status_is_the_commands(status: int):
    guard = subprocess.Popen(
        [*GUARD, f"import sys; sys.exit({status})"], stdin=subprocess.PIPE, env=ENVIRONMENT
    )
    assert guard.wait(timeout=LIMIT_SECONDS) == status
