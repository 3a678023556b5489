"""What would fail only late is refused before anything is started, by name."""

import json
import shutil
import socket
import tempfile
from contextlib import ExitStack
from pathlib import Path

import pytest
from training_fakes import make_config

from rollout.evaluation.identity import Identity
from train.first_tries import try_drawing, try_first, try_saving, try_writing
from train.origin import Origin, RunData
from train.rank_zero import assemble
from train.trackers import try_login


def test_a_generation_config_that_cannot_be_saved_is_refused(tmp_path: Path, tiny_policy: Path):
    model = tmp_path / "model"
    shutil.copytree(tiny_policy, model)
    config = make_config(tmp_path / "out", model)
    try_saving(config.model)
    path = model / "generation_config.json"
    path.write_text(json.dumps({"do_sample": False, "temperature": 0.6}))
    with pytest.raises(
        ValueError, match=rf"model\.path is {model}, whose generation_config\.json .*temperature"
    ):
        try_saving(config.model)
    path.unlink()
    try_saving(config.model)


def test_a_run_tries_before_it_starts_workers(tmp_path: Path, tiny_policy: Path, monkeypatch):
    model = tmp_path / "model"
    shutil.copytree(tiny_policy, model)
    (model / "generation_config.json").write_text(json.dumps({"do_sample": False, "temperature": 0.6}))

    def started(*_: object) -> None:
        pytest.fail("workers were started")

    monkeypatch.setattr("train.rank_zero.RolloutEngine", started)
    data = RunData(
        problems=[],
        held_out=[],
        origin=Origin(model={}, problems=""),
        identity=Identity(shared={}, operators={}),
    )
    with ExitStack() as stack, pytest.raises(ValueError, match="generation_config"):
        assemble(make_config(tmp_path / "out", model), [], data, stack)


def test_an_output_folder_that_cannot_be_written_to_is_named(tmp_path: Path, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(
        RuntimeError, match=rf"output_dir is {tmp_path}/file/run, but .* cannot be written to"
    ):
        try_writing(tmp_path / "file" / "run")
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    try_writing(tmp_path / "run")
    assert [path.name for path in (tmp_path / "run").rglob("*")] == ["checkpoints"]
    real = tempfile.TemporaryFile

    def full(dir: Path):
        if dir.name == "checkpoints":
            raise OSError(28, "No space left on device")
        return real(dir=dir)

    monkeypatch.setattr("train.first_tries.tempfile.TemporaryFile", full)
    with pytest.raises(RuntimeError, match=r"run/checkpoints cannot be written to: .*No space left"):
        try_writing(tmp_path / "run")


def test_a_matplotlib_that_cannot_draw_is_noticed(monkeypatch):
    try_drawing()

    def broken(*_: object, **__: object) -> None:
        raise ModuleNotFoundError("No module named 'kiwisolver'")

    monkeypatch.setattr("matplotlib.pyplot.subplots", broken)
    with pytest.raises(RuntimeError, match=r"cannot be drawn: ModuleNotFoundError: .*kiwisolver"):
        try_drawing()


@pytest.mark.component
def test_a_tracker_that_refuses_the_login_is_noticed_and_one_without_a_key_is_offline(
    tmp_path: Path, tiny_policy: Path, monkeypatch
):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{nobody.getsockname()[1]}")
        try_login()
        monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
        config = make_config(tmp_path / "out", tiny_policy, train={"report_to": ["wandb"]})
        with pytest.raises(RuntimeError, match=r"train\.report_to holds wandb, but the login fails"):
            try_first(config)
        monkeypatch.setenv("WANDB_MODE", "offline")
        try_first(config)
