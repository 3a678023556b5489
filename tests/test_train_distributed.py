"""How a rank ends."""

import subprocess
import sys

import pytest
from conftest import REPO

pytestmark = pytest.mark.component

FINISHED_RANK = """
import atexit, os
from train.distributed import leave
atexit.register(os.abort)
print("all done", end="")
leave()
"""


def test_a_finished_rank_ends_well_though_the_interpreter_would_abort_at_its_shutdown():
    done = subprocess.run(
        [sys.executable, "-c", FINISHED_RANK], cwd=REPO, capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stdout) == (0, "all done"), done.stderr
