"""How a rank ends, and which GPUs it may share."""

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPO
from training_fakes import make_config

from train.distributed import refuse_shared_gpus

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


@pytest.mark.parametrize(
    ("rollout", "refused"),
    [({}, True), ({"enable_sleep_mode": True}, False), ({"urls": ["http://localhost:8000"]}, False)],
)
def test_ranks_and_local_workers_share_gpus_only_in_turns(
    rollout, refused: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    config = make_config(tmp_path, Path("model"), rollout=rollout)
    refuse_shared_gpus(config)  # without a GPU nothing is refused
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    if refused:
        with pytest.raises(ValueError, match="would both use the first GPU"):
            refuse_shared_gpus(config)
    else:
        refuse_shared_gpus(config)
