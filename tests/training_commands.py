"""Runs a command of the project to its end, as a user would, with its output in a file."""

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
from conftest import REPO

from rollout.workers.process_guard import end_tree


def run_to_end(command: Sequence[str], log: Path, limit_seconds: float, **environment: str) -> None:
    """Runs ``command``; the test fails with the end of its output if it fails or takes too long."""
    own = {**os.environ, "PYTHONPATH": str(REPO), **environment}
    with log.open("w") as out:
        process = subprocess.Popen(command, cwd=REPO, env=own, stdout=out, stderr=subprocess.STDOUT)
        try:
            status = process.wait(timeout=limit_seconds)
        except subprocess.TimeoutExpired:
            end_tree(process.pid)  # ranks and workers are in sessions of their own
            pytest.fail(f"not done within {limit_seconds:g} s:\n{log.read_text()[-4000:]}")
    assert status == 0, log.read_text()[-4000:]
