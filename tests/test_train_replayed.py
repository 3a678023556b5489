"""A real run, killed between checkpoints: the steps it had made are made again from the same rollouts."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from conftest import REPO

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

LIMIT_SECONDS = 240
OPTIONS = (
    "experiment=demo",
    "data.num_eval=8",
    "algo.problems_per_step=6",
    "algo.num_generations=4",
    "algo.scale_rewards=none",
    "rollout.max_completion_length=24",
    "train.max_steps=5",
    "train.save_steps=2",
    "train.eval_at_start=false",
    "train.eval_at_end=false",
    "resume=auto",
    "rewards=custom",
    "rewards.path=parity:is_even",
)
PARITY = """
def is_even(*, gold: str, completion: str) -> float:
    return float(len(completion) % 2 == 0)
"""
"""An arbitrary reward, so that there is something to learn."""


def _start(policy: Path, folder: Path) -> subprocess.Popen[bytes]:
    (folder / "parity.py").write_text(PARITY)
    with (folder / "said.txt").open("ab") as said:
        return subprocess.Popen(
            [sys.executable, "-m", "train", *OPTIONS, f"model.path={policy}", f"output_dir={folder}"],
            stdout=said,
            stderr=subprocess.STDOUT,
            cwd=REPO,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{REPO}{os.pathsep}{folder}"},
        )


def _metrics(folder: Path) -> dict[int, dict[str, float]]:
    """By step, without what tells time or of the workers."""
    path = folder / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    others = ("time", "tokens_per", "workers", "memory")
    return {line["step"]: {k: v for k, v in line.items() if not k.startswith(others)} for line in lines}


def test_a_step_that_was_made_before_a_kill_is_made_again_bit_for_bit(tiny_policy: Path, tmp_path: Path):
    run = _start(tiny_policy, tmp_path)
    tree: list[psutil.Process] = []
    try:
        deadline = time.monotonic() + LIMIT_SECONDS
        while 3 not in _metrics(tmp_path):
            assert run.poll() is None, (tmp_path / "said.txt").read_text()
            assert time.monotonic() < deadline, (tmp_path / "said.txt").read_text()
            time.sleep(0.05)
        tree = psutil.Process(run.pid).children(recursive=True)
    finally:
        run.kill()
    run.wait(10)
    psutil.wait_procs(tree, timeout=20)
    before = _metrics(tmp_path)
    again = _start(tiny_policy, tmp_path)
    try:
        assert again.wait(LIMIT_SECONDS) == 0, (tmp_path / "said.txt").read_text()
    finally:
        again.kill()
    said = (tmp_path / "said.txt").read_text()
    assert "Finished rollouts of step 3" in said
    after = _metrics(tmp_path)
    assert sorted(after) == [1, 2, 3, 4, 5]
    assert {step: after[step] for step in before if step <= 3} == {s: before[s] for s in before if s <= 3}
    assert after[3]["grad_norm"] > 0
