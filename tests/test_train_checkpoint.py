import json
import logging
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from training_fakes import make_config, make_trainer

from train.checkpoint import (
    STATE_FILE,
    TrainerState,
    config_fingerprint,
    find_checkpoint,
    finished_checkpoints,
    read_state,
)
from train.distributed import make_accelerator
from train.report import read_metrics, truncate_metrics

STATE = TrainerState(
    step=4, policy_version=5, world_size=1, config_fingerprint="x", collector={"position": 3}
)


def write(folder: Path, step: int) -> Path:
    path = folder / "checkpoints" / f"step_{step:06d}"
    path.mkdir(parents=True)
    (path / STATE_FILE).write_text(json.dumps(asdict(replace(STATE, step=step))))
    return path


def test_the_state_reads_back_as_written(tmp_path):
    assert read_state(write(tmp_path, 4)) == STATE


def test_auto_takes_the_newest_whole_checkpoint_and_warns_of_half_written_ones(tmp_path, caplog):
    config = make_config(tmp_path, Path("model"), resume="auto")
    assert find_checkpoint(config) is None
    newest = [write(tmp_path, step) for step in (2, 10, 4)][1]
    (tmp_path / "checkpoints" / "step_000012.unfinished").mkdir()
    (tmp_path / "checkpoints" / "step_000014").mkdir()
    with caplog.at_level(logging.WARNING):
        assert find_checkpoint(config) == newest
    assert "step_000012.unfinished" in caplog.text and "step_000014" in caplog.text
    assert [path.name for path in finished_checkpoints(newest.parent)] == [
        "step_000002",
        "step_000004",
        "step_000010",
    ]


def test_a_path_without_a_checkpoint_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no trainer_state\.json"):
        find_checkpoint(make_config(tmp_path, Path("model"), resume=str(tmp_path)))
    path = write(tmp_path, 2)
    assert find_checkpoint(make_config(tmp_path, Path("model"), resume=str(path))) == path


def test_a_new_run_does_not_mix_with_an_earlier_one(tmp_path):
    config = make_config(tmp_path, Path("model"))
    assert find_checkpoint(config) is None
    write(tmp_path, 2)
    with pytest.raises(ValueError, match="resume is none, but"):
        find_checkpoint(config)


def test_the_fingerprint_changes_with_the_method_and_not_with_the_length_of_the_run(tmp_path):
    plain = config_fingerprint(make_config(tmp_path, Path("m")))
    assert config_fingerprint(make_config(tmp_path / "b", Path("m"), train={"max_steps": 9})) == plain
    assert config_fingerprint(make_config(tmp_path, Path("m"), algo={"sft_coef": 0.7})) != plain


@pytest.mark.component
def test_only_the_last_checkpoints_are_kept(tmp_path, tiny_policy):
    config = make_config(tmp_path, tiny_policy, train={"max_steps": 4, "keep_last": 2})
    make_trainer(config, make_accelerator(config)).run()
    names = [path.name for path in finished_checkpoints(tmp_path / "checkpoints")]
    assert names == ["step_000003", "step_000004"]


@pytest.mark.component
def test_another_number_of_ranks_is_refused(tmp_path, tiny_policy):
    config = make_config(tmp_path, tiny_policy, train={"max_steps": 1})
    trainer = make_trainer(config, make_accelerator(config))
    trainer.run()
    path = tmp_path / "checkpoints" / "step_000001"
    state = replace(read_state(path), world_size=2)
    (path / STATE_FILE).write_text(json.dumps(asdict(state)))
    with pytest.raises(ValueError, match=r"written by 2 ranks and this run has 1"):
        trainer.checkpoints.load(path)


def test_metrics_after_the_resumed_step_and_a_cut_off_line_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": step}) + "\n" for step in (1, 2, 3)) + '{"step": 4, "lo')
    truncate_metrics(path, 2)
    assert read_metrics(path) == [{"step": 1}, {"step": 2}]
    truncate_metrics(tmp_path / "absent.jsonl", 2)
    assert not (tmp_path / "absent.jsonl").exists()
