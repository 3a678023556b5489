"""A folder belongs to one process; what a killed one leaves behind stops nobody."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from rollout.output_lock import LOCK, locked

HOLD = """
import multiprocessing, sys, time
from pathlib import Path
from rollout.output_lock import locked

with locked(Path(sys.argv[1])):
    multiprocessing.get_context("fork").Process(target=time.sleep, args=(20,), daemon=True).start()
    print("held", flush=True)
    time.sleep(60)
"""


@contextmanager
def _held_elsewhere(folder: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", HOLD, str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.wait()


def test_a_folder_in_use_is_refused_by_the_name_of_who_uses_it(tmp_path: Path):
    with _held_elsewhere(tmp_path) as other:
        named = rf"{tmp_path} is in use by process {other.pid} on \S+\. "
        with pytest.raises(RuntimeError, match=named), locked(tmp_path):
            pass


def test_a_second_lock_in_the_same_process_is_refused_and_leaves_the_first(tmp_path: Path):
    with locked(tmp_path):
        for _ in range(2):
            with pytest.raises(RuntimeError, match=f"in use by process {os.getpid()} on"), locked(tmp_path):
                pass
        (tmp_path / LOCK).read_text()  # closing any other handle must not end the lock either
        other = subprocess.run(
            [sys.executable, "-c", HOLD, str(tmp_path)], capture_output=True, text=True, timeout=60
        )
        assert f"in use by process {os.getpid()} on" in other.stderr


def test_a_killed_holder_leaves_a_file_and_no_lock(tmp_path: Path):
    """Although a child of it that was forked lives on."""
    with _held_elsewhere(tmp_path) as other:
        other.kill()
        other.wait()
        assert str(other.pid) in (tmp_path / LOCK).read_text()
        deadline = time.monotonic() + 15  # the child closes its copy as soon as it first runs
        while True:
            try:
                with locked(tmp_path):
                    break
            except RuntimeError:
                assert time.monotonic() < deadline, "a child of the killed holder keeps the lock"
                time.sleep(0.05)


def test_a_stale_file_of_another_machine_is_no_lock(tmp_path: Path):
    (tmp_path / LOCK).write_text("process 1 on elsewhere\n")
    with locked(tmp_path):
        assert "elsewhere" not in (tmp_path / LOCK).read_text()


def test_a_folder_is_free_again_afterwards(tmp_path: Path):
    for _ in range(2):
        with locked(tmp_path / "new"):
            pass
