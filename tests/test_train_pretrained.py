"""Steps of experiment=pretrained_small with a pretrained model, where one is at hand."""

import json
import math
import os
import sys
from pathlib import Path

import pytest
from training_commands import run_to_end

MODEL = os.environ.get("PDR_PRETRAINED_MODEL", "")
LIMIT_SECONDS = 600

pytestmark = [
    pytest.mark.integration,
    pytest.mark.timeout(2 * LIMIT_SECONDS + 60),
    pytest.mark.skipif(
        not MODEL,
        reason="PDR_PRETRAINED_MODEL names no folder of a small instruct model (SmolLM2-135M-Instruct)",
    ),
]


def test_a_pretrained_model_takes_two_steps_and_two_more_after_a_stop(tmp_path: Path):
    assert [row["step"] for row in _train(tmp_path, max_steps=2)] == [1, 2]
    rows = _train(tmp_path, max_steps=4)
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    for row in rows:
        assert math.isfinite(row["loss"]) and row["completion_tokens/trace"] > 1
    assert max(row["accuracy/trace"] for row in rows) > 0


def _train(folder: Path, *, max_steps: int) -> list[dict[str, float]]:
    """Runs the experiment's own command with fewer problems; returns the metrics of all steps so far."""
    command = [sys.executable, "-m", "train", "experiment=pretrained_small", f"model.path={MODEL}"]
    command += [f"output_dir={folder}", f"train.max_steps={max_steps}", "train.save_steps=2"]
    command += ["algo.problems_per_step=6"]
    command += ["train.eval_at_start=false", "train.eval_at_end=false", "rollout.enforce_eager='true'"]
    run_to_end(command, folder / "train.log", LIMIT_SECONDS, HF_HUB_OFFLINE="1")
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
