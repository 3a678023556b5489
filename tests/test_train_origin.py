"""A run's folder is not resumed with another model or other problems."""

import json
import re
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
import yaml
from evaluation_fakes import outcome
from fakes import ScriptedPolicy, operator, roll
from safetensors.torch import save_file
from tiny import byte_tokenizer

from configs.compose import load
from configs.exit_status import REFUSED
from configs.schema import TrainingConfig
from launch.__main__ import _run
from rollout.evaluation.journal import Journal
from rollout.records import Problem
from train import manifest
from train.checkpoint_files import STATE_FILE, TrainerState, find_checkpoint
from train.manifest import seal
from train.origin import LARGEST_READ, RunData, check_resumed, load_run_data
from train.phases import AFTER, BEFORE, phase_path
from train.rank import main
from train.rank_zero import _replay
from train.resumed import CONFIG_FILE
from train.start import Start

Edit = Callable[[Path], object]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four problems to train on, two held out, and a model."""
    for file, names in (("train", "abcd"), ("held_out", "xy")):
        lines = [{"id": name, "question": f"{name} + 1 =", "answer": "7"} for name in names]
        (tmp_path / f"{file}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    byte_tokenizer().save_pretrained(tmp_path / "model")
    save_file({"a": torch.zeros(8)}, tmp_path / "model" / "model.safetensors")
    return tmp_path


def _overrides(folder: Path, *overrides: str) -> list[str]:
    return [
        f"model.path={folder / 'model'}",
        f"data.path={folder / 'train.jsonl'}",
        f"data.eval_path={folder / 'held_out.jsonl'}",
        f"output_dir={folder / 'run'}",
        "train.max_steps=8",
        *overrides,
    ]


def _config(folder: Path, *overrides: str) -> TrainingConfig:
    return load("training", _overrides(folder, *overrides))


def _load(config: TrainingConfig) -> RunData:
    """As the command loads them, from the checkpoint that ``resume`` names."""
    found = find_checkpoint(config)
    return load_run_data(config, None if found is None else str(found))


def _save(folder: Path, data: RunData, step: int = 4, run: str = "run") -> Path:
    """A sealed checkpoint, as far as its origin needs it."""
    path = folder / run / "checkpoints" / f"step_{step:06d}"
    path.mkdir(parents=True)
    state = TrainerState(
        step=step,
        policy_version=step,
        world_size=1,
        zero_stage=0,
        config_fingerprint="x",
        origin=asdict(data.origin),
    )
    (path / STATE_FILE).write_text(json.dumps(asdict(state)))
    (path / CONFIG_FILE).write_text(yaml.safe_dump(asdict(_config(folder))))
    seal(path)
    return path


def _evaluate(config: TrainingConfig, data: RunData, phase: str, names: str = "xy") -> None:
    rollout = roll(ScriptedPolicy(), operator((1,), name="trace"))
    problems = {problem.id: problem for problem in data.held_out}
    with Journal(phase_path(config, phase), data.of_phase(phase), data.held_out) as journal:
        for name in names:
            journal.add(outcome(name, ["2"]), replace(rollout, problem=problems[name]))


def _replace(file: str, old: str, new: str) -> Edit:
    def edit(folder: Path) -> None:
        text = (folder / file).read_text()
        assert old in text
        (folder / file).write_text(text.replace(old, new))

    return edit


def _other_weights(folder: Path) -> None:
    save_file({"a": torch.ones(8)}, folder / "model" / "model.safetensors")


def _another_line(folder: Path) -> None:
    with (folder / "train.jsonl").open("a") as file:
        file.write(json.dumps({"id": "e", "question": "e + 1 =", "answer": "7"}) + "\n")


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            _replace("train.jsonl", "c + 1", "c + 2"),
            "1 of 4 training problems changed or moved, the first where 'c' is",
        ),
        (
            _replace("train.jsonl", '"7"', '"8"'),
            "4 of 4 training problems changed or moved, the first where 'a'",
        ),
        (_another_line, "the number of training problems was 4 and is 5"),
        (_other_weights, r"weights of model\.path was '\w+' and is '\w+'"),
    ],
)
@pytest.mark.parametrize("resume", ["auto", "path"])
def test_a_checkpoint_is_not_resumed_with_other_problems_or_from_another_model(
    folder: Path, edit: Edit, message: str, resume: str
):
    path = _save(folder, _load(_config(folder)))
    config = _config(folder, f"resume={path if resume == 'path' else 'auto'}")
    _load(config)
    edit(folder)
    with pytest.raises(ValueError, match=rf"step_000004 belongs to .*{message}.* model\.path=.*policy"):
        _load(config)


def test_a_data_file_in_another_order_is_refused_since_a_position_would_name_other_problems(folder: Path):
    _save(folder, _load(_config(folder)))
    lines = (folder / "train.jsonl").read_text().splitlines(keepends=True)
    (folder / "train.jsonl").write_text("".join(reversed(lines)))
    with pytest.raises(
        ValueError, match="4 of 4 training problems changed or moved, the first where 'd' is now"
    ):
        _load(_config(folder, "resume=auto"))


def test_other_options_other_held_out_problems_and_a_copy_of_the_model_resume(folder: Path):
    _save(folder, _load(_config(folder)))
    _replace("held_out.jsonl", "x + 1", "x + 2")(folder)
    (folder / "model").rename(folder / "copy")
    changes = (f"model.path={folder / 'copy'}", "algo.learning_rate=1e-5", "rollout.temperature=0.9")
    _load(_config(folder, "resume=auto", *changes))


def test_a_checkpoint_that_does_not_tell_its_origin_is_refused(folder: Path):
    data = _load(_config(folder))
    path = _save(folder, data)
    state = json.loads((path / STATE_FILE).read_text())
    del state["origin"]
    (path / STATE_FILE).write_text(json.dumps(state))
    seal(path)
    with pytest.raises(ValueError, match=r"does not tell which model and problems .* an earlier version"):
        _load(_config(folder, "resume=auto"))


@pytest.mark.parametrize(
    ("edit", "override", "message"),
    [
        (_other_weights, "", r"weights of model\.path was '\w+' and is '\w+'"),
        (_replace("held_out.jsonl", "y + 1", "y + 2"), "", r"question of problem 'y' was 'y \+ 1 =' and is"),
        (None, "operator.prompts.solve='{question} Think.'", r"operator\.prompts\.solve was '.*Think\.'"),
        (None, "rollout.temperature=0.5", r"rollout\.temperature was 1\.0 and is 0\.5"),
        (None, "data.num_eval=1", "problem 'y' is not in the data any more"),
    ],
)
def test_an_evaluation_before_of_another_model_data_set_or_operator_is_refused(
    folder: Path, edit: Edit | None, override: str, message: str
):
    """Without a checkpoint, too: the run was stopped before its first."""
    config = _config(folder)
    _evaluate(config, _load(config), BEFORE)
    _load(config)
    if edit is not None:
        edit(folder)
    with pytest.raises(ValueError, match=rf"before.rollouts\.jsonl holds .*{message}.*, or delete .*before"):
        _load(_config(folder, *filter(None, [override])))


@pytest.mark.parametrize("is_done", [True, False])
def test_the_command_refuses_before_it_reports_or_starts_a_worker(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], is_done: bool
):
    def started(*_: object) -> None:
        raise AssertionError("workers were started")

    monkeypatch.setattr("train.rank.assemble", started)
    monkeypatch.setattr("train.rank.decide_start", lambda *_, **__: Start(is_done=is_done))
    config = _config(folder)
    _evaluate(config, _load(config), BEFORE)
    _other_weights(folder)
    with pytest.raises(SystemExit, match=r"^train: .*before.rollouts\.jsonl holds .*weights of model\.path"):
        main(config, [])
    assert capsys.readouterr().out == ""


def test_a_checkpoint_of_other_parameters_is_refused_with_the_data(folder: Path):
    path = _save(folder, _load(_config(folder)))
    config = _config(folder, f"resume={path}", "model.lora_r=4")
    with pytest.raises(ValueError, match=r"step_000004 was written with model\.lora_r 0 \(now 4\)"):
        _load(config)


@pytest.mark.parametrize(
    ("edit", "override", "message"),
    [
        (_replace("train.jsonl", "c + 1", "c + 2"), "", "1 of 4 training problems changed or moved"),
        (_replace("held_out.jsonl", "y + 1", "y + 2"), "", "question of problem 'y' was"),
        (_other_weights, "", r"weights of model\.path was"),
        (None, "seed=7", "seed was 0 and is 7"),
        (None, "model.lora_r=4", r"model\.lora_r 0 \(now 4\)"),
    ],
)
def test_a_job_is_refused_before_its_workers_start_if_it_resumes_something_else(
    folder: Path, capsys: pytest.CaptureFixture[str], edit: Edit | None, override: str, message: str
):
    config = _config(folder)
    data = _load(config)
    _save(folder, data)
    _evaluate(config, data, BEFORE)
    if edit is not None:
        edit(folder)
    overrides = _overrides(folder, "resume=auto", *filter(None, [override]))
    assert _run(load("job", overrides), overrides) == REFUSED
    assert re.match(f"launch: .*{message}", capsys.readouterr().err)
    assert not (folder / "run" / "logs").exists()


def test_a_job_with_nothing_to_resume_does_not_look_at_its_data(folder: Path):
    (folder / "train.jsonl").unlink()
    check_resumed(_config(folder, "resume=auto"))


def test_a_job_that_resumes_reads_no_large_file_of_the_checkpoint(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    path = _save(folder, _load(_config(folder)))
    (path / "shard.bin").write_bytes(bytes(LARGEST_READ + 1))
    seal(path)
    read: list[str] = []
    real = manifest._hash
    monkeypatch.setattr(manifest, "_hash", lambda file: read.append(file.name) or real(file))
    check_resumed(_config(folder, "resume=auto"))
    assert sorted(read) == [CONFIG_FILE, STATE_FILE]
    # Its size is compared, still.
    (path / "shard.bin").write_bytes(b"cut")
    with pytest.raises(ValueError, match=r"shard\.bin has 3 bytes"):
        check_resumed(_config(folder, "resume=auto"))


def test_a_model_of_another_path_is_refused_where_before_was_measured(folder: Path):
    config = _config(folder)
    _evaluate(config, _load(config), BEFORE)
    byte_tokenizer().save_pretrained(folder / "other")
    save_file({"a": torch.ones(8)}, folder / "other" / "model.safetensors")
    with pytest.raises(ValueError, match=r"weights of model\.path"):
        _load(_config(folder, f"model.path={folder / 'other'}"))


def test_more_held_out_problems_operators_and_samples_may_be_evaluated(folder: Path):
    config = _config(folder, "data.num_eval=1", "train.eval_operators=[trace]")
    _evaluate(config, _load(config), BEFORE, "x")
    _load(_config(folder, "train.eval_operators=[trace,pdr,sr]", "train.eval_samples=3"))


def test_evaluations_of_policies_that_are_made_again_are_not_checked(folder: Path):
    """They are removed when the run starts (``HeldOutEvaluator.start``)."""
    config = _config(folder)
    data = _load(config)
    for phase in (BEFORE, "step_000002", "step_000006", AFTER):
        _evaluate(config, data, phase)
    other = Problem(id="x", question="another", answer="7")
    for phase in ("step_000006", AFTER):
        phase_path(config, phase).unlink()
        _evaluate(config, replace(data, held_out=[other]), phase, "x")
    _save(folder, data, step=4)
    _load(_config(folder, "resume=auto"))
    _save(folder, data, step=8)
    with pytest.raises(ValueError, match=r"after.rollouts\.jsonl holds .* question of problem 'x'"):
        _load(_config(folder, "resume=auto"))


def test_evaluations_after_a_resume_from_another_run_are_not_those_of_the_run_before(folder: Path):
    first = _load(_config(folder))
    _save(folder, first, step=2)
    _evaluate(_config(folder), first, "step_000002")
    _load(_config(folder, "resume=auto"))
    other = _save(folder, _load(_config(folder, f"output_dir={folder / 'other'}")), run="other")
    resumed = _config(folder, f"resume={other}")
    with pytest.raises(ValueError, match=r"step_000002.* checkpoints resumed from was \[\] and is \["):
        _load(resumed)
    phase_path(resumed, "step_000002").unlink()
    data = _load(resumed)
    assert len(data.origin.checkpoints) == 1
    # Its own checkpoints carry that on.
    _save(folder, data, step=6)
    assert _load(_config(folder, "resume=auto")).origin == data.origin


@pytest.mark.parametrize("edit", [_replace("train.jsonl", "c + 1", "c + 2"), _other_weights])
def test_stored_rollouts_of_other_problems_or_another_model_are_not_replayed(folder: Path, edit: Edit):
    """The run was stopped before its first checkpoint, so that there is nothing to refuse."""
    config = _config(folder, "resume=auto")
    replay = _replay(config, _load(config).origin)
    replay.add(1, "0/0/c", [])
    replay.close()
    assert _replay(config, _load(config).origin).find(1, "0/0/c") == []
    edit(folder)
    assert _replay(config, _load(config).origin).find(1, "0/0/c") is None
