"""Rank 0 chooses the checkpoint and tells the other ranks, before they form a process group."""

import json
import os
import socket
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
from conftest import REPO
from test_train_checkpoint import STATE, write
from training_fakes import make_config

from train.checkpoint_files import STATE_FILE
from train.phases import AFTER, mark_complete, phase_path
from train.start import Start, decide_start

RANK = """
import json, os, sys
from pathlib import Path
from datetime import timedelta
import torch.distributed as dist
import train.checkpoint_files
from training_fakes import make_config
from train.start import decide_start

hashed = []
real = train.checkpoint_files.damage
train.checkpoint_files.damage = lambda folder, **_: hashed.append(folder.name) or real(folder)
train_options = {"collective_timeout_seconds": float(sys.argv[2])}
config = make_config(Path(sys.argv[1]), Path("model"), resume="auto", train=train_options)
try:
    start = decide_start(config, is_main=os.environ["RANK"] == "0")
except (ValueError, RuntimeError) as error:
    sys.exit(f"{type(error).__name__}: {error}")
dist.init_process_group("gloo", timeout=timedelta(seconds=60))
dist.barrier()
print(json.dumps([start.checkpoint, hashed]), flush=True)
os._exit(0)
"""


def start_rank(rank: int, folder: Path, port: int, *, timeout: float) -> subprocess.Popen[str]:
    environment = {
        **os.environ,
        "PYTHONPATH": f"{REPO}{os.pathsep}{REPO / 'tests'}",
        "RANK": str(rank),
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    command = [sys.executable, "-c", RANK, str(folder), str(timeout)]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.mark.component
def test_only_rank_zero_reads_the_checkpoint_and_every_rank_resumes_from_it(tmp_path):
    newest = [write(tmp_path, step) for step in (2, 4)][-1]
    port = free_port()
    ranks = [start_rank(rank, tmp_path, port, timeout=100) for rank in (0, 1)]
    said = [json.loads(rank.communicate(timeout=120)[0]) for rank in ranks]
    assert said == [[str(newest), ["step_000004"]], [str(newest), []]]


@pytest.mark.component
def test_a_checkpoint_that_rank_zero_refuses_ends_the_other_ranks_with_its_reason(tmp_path):
    (write(tmp_path, 2) / "shard.bin").unlink()
    port = free_port()
    ranks = [start_rank(rank, tmp_path, port, timeout=100) for rank in (0, 1)]
    errors = [rank.communicate(timeout=120)[1] for rank in ranks]
    assert "ValueError: Every checkpoint" in errors[0] and "shard.bin is missing" in errors[0]
    assert "RuntimeError: Rank 0 could not choose the checkpoint" in errors[1]
    assert "shard.bin is missing" in errors[1]


@pytest.mark.component
@pytest.mark.parametrize(
    ("rank", "waited"), [(0, "Rank 0 waited 3 s for the other ranks"), (1, "Rank 1 waited 3 s for rank 0")]
)
def test_a_rank_does_not_wait_for_ever_for_one_that_is_not_there(rank, waited, tmp_path):
    alone = start_rank(rank, tmp_path, free_port(), timeout=3)
    _, error = alone.communicate(timeout=120)
    assert alone.returncode == 1
    assert waited in error and "the checkpoint to resume from" in error


def test_a_run_is_done_when_its_last_step_and_the_evaluation_after_it_are_complete(tmp_path):
    def decided(steps: int) -> Start:
        config = make_config(tmp_path, Path("model"), resume="auto", train={"max_steps": steps})
        return decide_start(config, is_main=True)

    assert decided(4) == Start(checkpoint=None, is_done=False)
    path = write(tmp_path, 4)
    assert json.loads((path / STATE_FILE).read_text())["step"] == asdict(STATE)["step"] == 4
    # The journal alone, which exists from the first rollout on, does not make it done.
    config = make_config(tmp_path, Path("model"), resume="auto", train={"max_steps": 4})
    phase_path(config, AFTER).parent.mkdir(parents=True)
    phase_path(config, AFTER).touch()
    assert decided(4) == Start(checkpoint=str(path), is_done=False)
    mark_complete(config, AFTER)
    assert decided(4).is_done
    assert not decided(5).is_done
