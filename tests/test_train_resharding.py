"""A checkpoint of two ranks, resumed by another number of ranks or at another ZeRO stage."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import REPO
from safetensors.torch import load_file
from training_fakes import make_config, make_trainer, read_metric

from rollout.workers.process_guard import end_tree
from train.checkpoint_files import finished_checkpoints
from train.distributed import make_accelerator
from train.resharding import resharded_folder

pytestmark = pytest.mark.integration

LAUNCH_SECONDS = 240
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "lora": {"model": {"lora_r": 4}},
    "critic": {"algo": {"loss_type": "ppo", "critic_learning_rate": 1e-3}},
    "bf16": {"model": {"dtype": "bfloat16"}},
}


def _launch(stage: int, ranks: int, folder: Path, model: Path, /, **changes: Any) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    run = {"output_dir": str(folder), "model": str(model), "changes": changes, "ranks": ranks}
    (folder / "run.json").write_text(json.dumps(run))
    command = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", str(ranks)]
    command += ["--config_file", str(REPO / "launch" / "accelerate" / f"cpu_zero{stage}.yaml")]
    process = subprocess.Popen(
        [*command, str(REPO / "tests" / "resharding_rank.py"), str(folder / "run.json")],
        cwd=REPO,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{REPO}{os.pathsep}{REPO / 'tests'}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        text, _ = process.communicate(timeout=LAUNCH_SECONDS)
    except subprocess.TimeoutExpired:
        end_tree(process.pid)
        text, _ = process.communicate(timeout=30)
        pytest.fail(f"the ranks did not end within {LAUNCH_SECONDS} s:\n{text[-4000:]}")
    assert process.returncode == 0, text[-6000:]
    return text


@pytest.fixture(scope="module")
def written(tiny_policy: Path, tmp_path_factory: pytest.TempPathFactory):
    """Runs of two steps by two ranks, by ZeRO stage and kind; each is made once."""
    made: dict[tuple[int, str], Path] = {}

    def run(stage: int, kind: str) -> Path:
        if (stage, kind) not in made:
            folder = tmp_path_factory.mktemp(f"{kind}{stage}")
            _launch(stage, 2, folder, tiny_policy, **_steps(kind, 2))
            made[stage, kind] = folder
        return made[stage, kind]

    return run


def _steps(kind: str, steps: int, **more: Any) -> dict[str, Any]:
    return KINDS[kind] | {"train": {"max_steps": steps}} | more


@pytest.mark.parametrize(
    ("before", "after", "ranks", "kind"),
    [
        (2, 2, 1, "plain"),
        (2, 3, 2, "plain"),
        (3, 2, 2, "plain"),
        (3, 3, 1, "plain"),
        (2, 3, 1, "lora"),
        (3, 2, 1, "lora"),
        (2, 3, 1, "critic"),
        (2, 3, 1, "bf16"),
        (3, 2, 1, "bf16"),
    ],
)
def test_weights_and_moments_are_bit_for_bit_those_that_were_saved(
    before: int, after: int, ranks: int, kind: str, written, tiny_policy: Path, tmp_path: Path
):
    saved = written(before, kind)
    run = tmp_path / "run"
    shutil.copytree(saved, run)
    text = _launch(after, ranks, run, tiny_policy, **_steps(kind, 2, resume="auto"))
    assert f"it is converted for {ranks} ranks at ZeRO stage {after}" in text
    expected, found = (torch.load(folder / "states.pt") for folder in (saved, run))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert value.any(), name
        assert torch.equal(found[name], value), name
    # Nothing of the conversion is left, and the checkpoint is the one that was there.
    last = finished_checkpoints(run / "checkpoints")[-1]
    assert not resharded_folder(last).exists()
    assert [path.name for path in last.parent.iterdir() if "resharded" in path.name] == []


def test_the_run_goes_on_as_it_would_have_with_the_ranks_and_the_stage_of_before(
    written, tiny_policy: Path, tmp_path: Path
):
    saved = written(2, "plain")
    for name, stage, ranks in (("same", 2, 2), ("other", 3, 1)):
        shutil.copytree(saved, tmp_path / name)
        _launch(stage, ranks, tmp_path / name, tiny_policy, **_steps("plain", 3, resume="auto"))
    same, other = (read_metric(tmp_path / name) for name in ("same", "other"))
    assert list(other) == [1, 2, 3] and other[3] == pytest.approx(same[3], rel=1e-4)
    weights = [
        load_file(tmp_path / name / "checkpoints" / "step_000003" / "policy" / "model.safetensors")
        for name in ("same", "other")
    ]
    for name, value in weights[0].items():
        assert torch.allclose(weights[1][name], value, rtol=1e-3, atol=1e-5), name


def test_a_run_without_deepspeed_refuses_shards(written, tiny_policy: Path, tmp_path: Path):
    last = finished_checkpoints(written(2, "plain") / "checkpoints")[-1]
    config = make_config(tmp_path, tiny_policy, resume=str(last), train={"max_steps": 4})
    trainer = make_trainer(config, make_accelerator(config))
    with pytest.raises(ValueError, match=r"by 2 ranks at ZeRO stage 2 .* has 1 ranks at ZeRO stage 0, and"):
        trainer.run()
