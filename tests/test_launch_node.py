"""The process of a trainer node: it asks this node's ranks to stop when the job's file appears."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from conftest import REPO

pytestmark = pytest.mark.component

LIMIT_SECONDS = 60
LAUNCHER = """
import os, subprocess, sys
rank = subprocess.Popen([sys.executable, "-c", sys.argv[1], sys.argv[2]], env={**os.environ, "RANK": "0"})
sys.exit(rank.wait())
"""
RANK = """
import os, signal, subprocess, sys, time
# A child that would end by the signal, such as a process of a verifier.
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
open(sys.argv[1] + "/started", "w").close()
time.sleep(2)  # as while it imports: the signal would end it here
def stop(*_):
    open(sys.argv[1] + ("/child_lives" if child.poll() is None else "/child_ended"), "w").close()
    child.kill()
    os._exit(7)
signal.signal(signal.SIGUSR1, stop)
time.sleep(60)
"""


def _node(folder: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "launch.slurm.node", str(folder / "stop_requested")]
    return subprocess.Popen(
        [*command, sys.executable, "-c", LAUNCHER, RANK, str(folder)],
        env={**os.environ, "PYTHONPATH": str(REPO)},
    )


def _until_started(folder: Path) -> None:
    deadline = time.monotonic() + LIMIT_SECONDS
    while not (folder / "started").exists():
        assert time.monotonic() < deadline, "the rank did not start"
        time.sleep(0.1)


def test_a_rank_is_asked_once_it_listens_and_its_children_are_not(tmp_path: Path):
    node = _node(tmp_path)
    _until_started(tmp_path)
    (tmp_path / "stop_requested").touch()
    assert node.wait(LIMIT_SECONDS) == 7  # the launcher's status
    assert (tmp_path / "child_lives").exists()


def test_nothing_outlives_the_process_of_a_node(tmp_path: Path):
    node = _node(tmp_path)
    _until_started(tmp_path)
    tree = psutil.Process(node.pid).children(recursive=True)
    assert len(tree) >= 4  # both guards, the launcher, the rank
    node.send_signal(signal.SIGTERM)
    assert node.wait(LIMIT_SECONDS) == 143
    _, alive = psutil.wait_procs(tree, timeout=10)
    assert not alive
