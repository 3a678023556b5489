import itertools
import json
import logging
import os
import pickle
import shutil
import signal
from collections import namedtuple
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import NoReturn

import pytest
import torch
from accelerate import Accelerator
from torch import nn
from training_fakes import make_config, make_trainer

import train.rank
from configs.run_folder import MANIFEST
from configs.stopping import RESUME_VARIABLE, StopRequest
from train.checkpoint import checkpoint_bytes, config_fingerprint
from train.checkpoint_files import STATE_FILE, TrainerState, find_checkpoint, finished_checkpoints, read_state
from train.deepspeed_zero import DeepSpeedZero
from train.distributed import make_accelerator
from train.export import export
from train.health.response import UnhealthyRun
from train.loop import Trainer
from train.manifest import damage, is_sealed, remove, seal
from train.metrics_file import read_metrics, truncate_metrics
from train.preemption import status
from train.sharding import Unsharded

STATE = TrainerState(
    step=4, policy_version=5, world_size=1, zero_stage=0, config_fingerprint="x", collector={"position": 3}
)


def write(folder: Path, step: int) -> Path:
    path = folder / "checkpoints" / f"step_{step:06d}"
    path.mkdir(parents=True)
    (path / STATE_FILE).write_text(json.dumps(asdict(replace(STATE, step=step))))
    (path / "shard.bin").write_bytes(bytes(range(256)) * 40)
    seal(path)
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


def test_which_checkpoint_is_the_newest_does_not_depend_on_the_clock(tmp_path):
    config = make_config(tmp_path, Path("model"), resume="auto", train={"keep_last": 2})
    old, new = write(tmp_path, 9), write(tmp_path, 10)
    os.utime(old, (2**32, 2**32))
    os.utime(new, (0, 0))
    assert find_checkpoint(config) == new


def test_a_path_without_a_checkpoint_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="is not a whole checkpoint"):
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
def test_shards_are_refused_without_deepspeed_and_so_is_a_checkpoint_without_shards(tmp_path, tiny_policy):
    config = make_config(tmp_path, tiny_policy, train={"max_steps": 1})
    trainer = make_trainer(config, make_accelerator(config))
    trainer.run()
    path = tmp_path / "checkpoints" / "step_000001"
    state = replace(read_state(path), world_size=2, zero_stage=3)
    (path / STATE_FILE).write_text(json.dumps(asdict(state)))
    with pytest.raises(ValueError, match=r"by 2 ranks at ZeRO stage 3 .* has 1 ranks at ZeRO stage 0, and a"):
        trainer.checkpoints.load(path)
    (path / STATE_FILE).write_text(json.dumps(asdict(replace(state, zero_stage=0))))
    with pytest.raises(ValueError, match="and it was written without DeepSpeed"):
        trainer.checkpoints.load(path)


def test_offload_keeps_the_ranks_and_the_stage_of_its_checkpoints():
    options = {"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu"}}}
    with_offload = DeepSpeedZero(stage=3, config=options, num_processes=2)
    assert with_offload.why_not_resharded == "with offload_optimizer it was not tried"
    plain = {"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "none"}}}
    assert DeepSpeedZero(stage=3, config=plain, num_processes=2).why_not_resharded is None


def test_metrics_after_the_resumed_step_and_a_cut_off_line_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": step}) + "\n" for step in (1, 2, 3)) + '{"step": 4, "lo')
    truncate_metrics(path, 2)
    assert read_metrics(path) == [{"step": 1}, {"step": 2}]
    truncate_metrics(tmp_path / "absent.jsonl", 2)
    assert not (tmp_path / "absent.jsonl").exists()


def _cut(path: Path) -> None:
    with (path / "shard.bin").open("rb+") as file:
        file.truncate(100)


def _flip(path: Path) -> None:
    content = bytearray((path / "shard.bin").read_bytes())
    content[5000] ^= 1
    (path / "shard.bin").write_bytes(content)


def _remove(path: Path) -> None:
    (path / "shard.bin").unlink()


def _garble(path: Path) -> None:
    (path / MANIFEST).write_text("{")


DAMAGES = [
    (_cut, "shard.bin has 100 bytes instead of 10240"),
    (_flip, "shard.bin is not what was written"),
    (_remove, "shard.bin is missing"),
    (_garble, "manifest.json cannot be read"),
]


@pytest.mark.parametrize(("harm", "named"), DAMAGES)
def test_a_damaged_checkpoint_is_passed_over_with_a_warning(tmp_path, caplog, harm, named):
    config = make_config(tmp_path, Path("model"), resume="auto")
    before, newest = write(tmp_path, 2), write(tmp_path, 4)
    assert damage(newest) is None
    harm(newest)
    with caplog.at_level(logging.WARNING):
        assert find_checkpoint(config) == before
    assert "step_000004" in caplog.text and named in caplog.text
    with pytest.raises(ValueError, match=rf"damaged: .*{named}"):
        find_checkpoint(make_config(tmp_path, Path("model"), resume=str(newest)))


@pytest.mark.parametrize("added", ["extra.bin", "policy/model-00002-of-00002.safetensors"])
def test_files_that_were_added_to_a_checkpoint_stop_a_resume_and_an_export_by_name(tmp_path, added):
    path = write(tmp_path, 4)
    (path / ".DS_Store").touch()
    resume = make_config(tmp_path, Path("model"), resume="auto")
    assert find_checkpoint(resume) == path
    (path / added).parent.mkdir(exist_ok=True)
    (path / added).touch()
    named = rf"step_000004 holds files that were not written with it: {added}\. Move them"
    for config in (resume, make_config(tmp_path, Path("model"), resume=str(path))):
        with pytest.raises(ValueError, match=named):
            find_checkpoint(config)
    with pytest.raises(ValueError, match=named):
        export(path, tmp_path / "export")


def test_a_checkpoint_that_a_kill_left_half_removed_is_no_checkpoint(tmp_path, monkeypatch):
    before, newest = write(tmp_path, 2), write(tmp_path, 4)

    def killed(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("train.manifest.shutil.rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        remove(before)
    assert before.is_dir()
    assert finished_checkpoints(newest.parent) == [newest]


def test_a_run_whose_checkpoints_are_all_damaged_does_not_start_anew(tmp_path):
    for step in (2, 4):
        _flip(write(tmp_path, step))
    with pytest.raises(ValueError, match=r"Every checkpoint in .* is damaged"):
        find_checkpoint(make_config(tmp_path, Path("model"), resume="auto"))


def test_a_checkpoint_without_its_manifest_was_not_written_to_its_end(tmp_path):
    before, newest = write(tmp_path, 2), write(tmp_path, 4)
    (newest / MANIFEST).unlink()
    assert not is_sealed(newest)
    assert finished_checkpoints(newest.parent) == [before]


@pytest.mark.component
def test_the_best_checkpoint_is_kept_besides_the_last(tmp_path, tiny_policy):
    train = {"max_steps": 6, "save_steps": 1, "keep_last": 2, "eval_steps": 1, "keep_best": "eval/pdr"}
    config = make_config(tmp_path, tiny_policy, train=train)
    trainer = make_trainer(config, make_accelerator(config))
    scores = {1: 0.1, 2: 0.8, 3: 0.2, 4: 0.3, 5: 0.8, 6: 0.1}
    trainer.outside.evaluator.evaluate = lambda step: {"eval/pdr": scores.get(step, 0.0)}
    trainer.run()
    names = [path.name for path in finished_checkpoints(tmp_path / "checkpoints")]
    assert names == ["step_000005", "step_000006"]
    assert read_state(tmp_path / "checkpoints" / "step_000005").metric == 0.8


def test_what_a_checkpoint_takes_counts_moments_of_what_is_trained_and_the_critic():
    policy, critic = nn.Linear(10, 10, bias=False), nn.Linear(10, 1, bias=False)
    assert checkpoint_bytes(Unsharded(), policy) == 100 * (4 + 4 + 12)
    assert checkpoint_bytes(Unsharded(), policy, critic) == 100 * (4 + 4 + 12) + 10 * (4 + 12)
    policy.requires_grad_(False)
    assert checkpoint_bytes(Unsharded(), policy.bfloat16()) == 100 * (2 + 2)


@pytest.mark.component
def test_a_full_disk_ends_the_run_with_the_checkpoint_before_it_untouched(tmp_path, tiny_policy, monkeypatch):
    config = make_config(tmp_path, tiny_policy, train={"max_steps": 3, "save_steps": 1})
    trainer = make_trainer(config, make_accelerator(config))
    usage = namedtuple("usage", "total used free")
    real = shutil.disk_usage

    def full_after_the_first(path):
        return usage(10, 10, 0) if trainer.step > 1 else real(path)

    monkeypatch.setattr(shutil, "disk_usage", full_after_the_first)
    with pytest.raises(
        RuntimeError, match=r"A checkpoint takes about .* free disk space or lower train\.keep_last"
    ):
        trainer.run()
    (only,) = finished_checkpoints(tmp_path / "checkpoints")
    assert only.name == "step_000001" and damage(only) is None


@pytest.mark.component
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_run_that_is_told_to_stop_saves_after_its_step_and_goes_on_later(tmp_path, tiny_policy, number):
    config = make_config(tmp_path, tiny_policy, train={"max_steps": 4, "save_steps": 4})
    stop = StopRequest()
    trainer = make_trainer(config, make_accelerator(config), stop=stop)
    collect = trainer.outside.collector.next

    def told(step, version):
        if step == 2:
            stop.receive(number)
        return collect(step, version)

    trainer.outside.collector.next = told
    assert trainer.run() is False
    assert stop.name == number.name
    (saved,) = finished_checkpoints(tmp_path / "checkpoints")
    assert saved.name == "step_000002"
    line = (tmp_path / "stopped").read_text()
    assert f"stopped by {number.name} after step 2, which is saved; folder {tmp_path}; resume with: " in line
    assert line.endswith(" resume=auto\n")
    resumed = make_config(tmp_path, tiny_policy, train={"max_steps": 4, "save_steps": 4}, resume="auto")
    assert make_trainer(resumed, make_accelerator(resumed)).run() is True
    assert not (tmp_path / "stopped").exists()


def _trainer_of_accelerate() -> Accelerator:
    """An accelerator without DeepSpeed, with everything that a run stores."""
    accelerator = Accelerator(cpu=True)
    model = nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    accelerator.prepare(model, optimizer, torch.optim.lr_scheduler.ConstantLR(optimizer))
    return accelerator


class _Touches:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self._path),)


@pytest.mark.parametrize("name", ["optimizer.bin", "scheduler.bin", "random_states_0.pkl"])
def test_a_checkpoint_without_deepspeed_runs_no_code(tmp_path: Path, name: str):
    folder = tmp_path / "saved"
    _trainer_of_accelerate().save_state(str(folder))
    assert (folder / name).is_file()
    torch.save({"state": _Touches(tmp_path / "owned")}, folder / name)
    with suppress(pickle.UnpicklingError):  # a generator's state that cannot be read is only logged
        _trainer_of_accelerate().load_state(str(folder))
    assert not (tmp_path / "owned").exists()
    torch.load(folder / name, weights_only=False)  # it would have run
    assert (tmp_path / "owned").exists()


def _interrupted_in(evaluation: int, trainer: Trainer, stop: StopRequest) -> None:
    """Makes the trainer's evaluation of that number end by a request to stop."""
    evaluator = trainer.outside.evaluator
    real, calls = evaluator.evaluate, itertools.count(1)

    def evaluate(step: int):
        if next(calls) == evaluation:
            stop.receive(signal.SIGINT)
            raise AssertionError("the request did not interrupt the evaluation")
        return real(step)

    evaluator.evaluate = evaluate


@pytest.mark.component
@pytest.mark.parametrize(
    ("evaluation", "saved", "said"),
    [
        (1, [], "before step 1"),
        (2, ["step_000002"], "after step 2, which is saved"),
        (3, ["step_000004"], "after step 4, which is saved"),
    ],
)
def test_an_evaluation_ends_on_request_and_the_resumed_run_makes_it_again(
    tmp_path: Path, tiny_policy: Path, evaluation: int, saved: list[str], said: str
):
    """The evaluations before the first step, after the second of four, and after the last."""
    train = {"max_steps": 4, "save_steps": 4, "eval_steps": 2, "eval_at_start": True, "eval_at_end": True}
    config = make_config(tmp_path, tiny_policy, train=train, resume="auto")
    stop = StopRequest()
    trainer = make_trainer(config, make_accelerator(config), stop=stop)
    _interrupted_in(evaluation, trainer, stop)
    assert trainer.run() is False
    assert [path.name for path in finished_checkpoints(tmp_path / "checkpoints")] == saved
    assert f"stopped by SIGINT {said}; " in (tmp_path / "stopped").read_text()
    again = make_trainer(config, make_accelerator(config))
    steps: list[int] = []
    real = again.outside.evaluator.evaluate
    again.outside.evaluator.evaluate = lambda step: steps.append(step) or real(step)
    assert again.run() is True
    assert steps == [0, 2, 4][evaluation - 1 :]


@pytest.mark.component
def test_a_run_that_is_told_to_stop_before_its_first_step_makes_none(tmp_path: Path, tiny_policy: Path):
    config = make_config(tmp_path, tiny_policy, train={"max_steps": 2})
    stop = StopRequest()
    stop.receive(signal.SIGTERM)
    trainer = make_trainer(config, make_accelerator(config), stop=stop)
    assert trainer.run() is False
    assert trainer.step == 0 and not (tmp_path / "checkpoints").exists()
    assert "stopped by SIGTERM before step 1; " in (tmp_path / "stopped").read_text()


def test_a_stopped_rank_ends_well_for_a_starter_that_reads_the_marker(monkeypatch: pytest.MonkeyPatch):
    """``accelerate launch`` would report a failure, and srun would end the other ranks."""
    monkeypatch.delenv(RESUME_VARIABLE, raising=False)
    assert status() == 75
    monkeypatch.setenv(RESUME_VARIABLE, "sbatch job.sbatch")
    assert status() == 0


@pytest.mark.parametrize("has_starter", [True, False])
def test_ranks_that_an_alarm_ends_leave_the_status_to_a_starter_that_reads_the_marker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], has_starter: bool
):
    def unhealthy() -> NoReturn:
        raise UnhealthyRun("step 4: the accuracy fell")

    def leave(status: int) -> NoReturn:
        raise SystemExit(status)

    monkeypatch.delenv(RESUME_VARIABLE, raising=False)
    if has_starter:
        monkeypatch.setenv(RESUME_VARIABLE, "python -m launch")
    monkeypatch.setattr(train.rank, "_start", lambda *_, **__: SimpleNamespace(run=unhealthy))
    monkeypatch.setattr(train.rank, "last_words", lambda config: "the report")
    monkeypatch.setattr(train.rank, "leave", leave)
    with pytest.raises(SystemExit) as end:
        train.rank.main(make_config(tmp_path, Path("model")), [])
    assert end.value.code == (0 if has_starter else 1)
    line = "train: step 4: the accuracy fell\n"
    assert capsys.readouterr() == ("the report\n", line)
    assert (tmp_path / "alarmed").read_text() == line
