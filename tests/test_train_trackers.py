"""Every tracker with its real package, without a network: what it was told is read back from its files."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from training_fakes import make_config

from train import trackers
from train.trackers import Trackers, try_trackers

RUN = """
import sys
from pathlib import Path
from accelerate import PartialState
from training_fakes import make_config
from train.curves import draw_curves
from train.trackers import Trackers

name, folder = sys.argv[1], Path(sys.argv[2])
config = make_config(folder, Path("model"), train={"report_to": [name]})
folder.mkdir(exist_ok=True)
(folder / "metrics.jsonl").write_text('{"step": 1, "reward/trace": 0.5}\\n')
draw_curves(folder / "metrics.jsonl", folder / "curves.png")
PartialState()
notes = []
tracker = Trackers(config, 0, notes.append)
tracker.log({"loss": 1.5, "eval/majority@3": 0.25}, 1)
tracker.log({"loss": 0.5}, 2)
tracker.picture(folder / "curves.png", 2)
tracker.table("rollouts", ["role", "text"], [["draft", "a | b\\nc"]], 2)
tracker.finish()
assert not notes, notes
"""


def _tracked(name: str, folder: Path) -> Path:
    """Runs a tracker in a process of its own, which has no key and no other environment of trackers."""
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed; pip install 'pdr-rl[trackers]'")
    ours = ("WANDB", "MLFLOW", "TRACKIO")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(ours)}
    tests = Path(__file__).parent
    environment |= {"HOME": str(folder), "PYTHONPATH": f"{tests}{os.pathsep}{tests.parent}"}
    run = folder / "run"
    done = subprocess.run(
        [sys.executable, "-c", RUN, name, str(run)],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=600,
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr
    return run


@pytest.mark.component
def test_wandb_without_a_key_runs_offline_and_asks_nothing(tmp_path: Path):
    run = _tracked("wandb", tmp_path)
    assert list((run / "wandb").glob("offline-run-*/*.wandb"))
    assert list((run / "wandb").glob("offline-run-*/files/media/images/curves*.png"))
    (table,) = (run / "wandb").glob("offline-run-*/files/media/table/rollouts*.json")
    assert json.loads(table.read_text())["data"] == [["draft", "a | b\nc"]]


@pytest.mark.component
def test_tensorboard_holds_scalars_the_picture_and_the_table(tmp_path: Path):
    run = _tracked("tensorboard", tmp_path)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    assert [(each.step, each.value) for each in events.Scalars("loss")] == [(1, 1.5), (2, 0.5)]
    assert events.Scalars("eval/majority@3")[0].value == 0.25
    assert events.Images("curves")[0].width > 100
    texts = {
        tag: events.Tensors(tag)[0].tensor_proto.string_val[0].decode() for tag in events.Tags()["tensors"]
    }
    assert "| draft | a \\| b<br>c |" in texts["rollouts/text_summary"]
    assert "max_steps" in texts["config/text_summary"]


@pytest.mark.component
def test_trackio_holds_scalars_the_picture_and_the_table(tmp_path: Path):
    run = _tracked("trackio", tmp_path)
    import sqlite3

    (file,) = (run / "trackio").glob("pdr-rl*.db")
    lines = [json.loads(text) for (text,) in sqlite3.connect(file).execute("select metrics from metrics")]
    logged: dict[str, Any] = {name: value for line in lines for name, value in line.items()}
    assert logged["loss"] == 0.5 and logged["eval/majority@3"] == 0.25
    assert logged["rollouts"]["_type"] == "trackio.table"
    assert list((run / "trackio" / "media").rglob("*.png"))


@pytest.mark.component
def test_mlflow_holds_scalars_the_picture_and_the_table(tmp_path: Path):
    run = _tracked("mlflow", tmp_path)
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{run / 'mlflow.db'}")
    (logged,) = client.search_runs([client.get_experiment_by_name("pdr-rl").experiment_id])
    losses = client.get_metric_history(logged.info.run_id, "loss")
    assert [(each.step, each.value) for each in losses] == [(1, 1.5), (2, 0.5)]
    assert logged.data.metrics["eval/majority_3"] == 0.25
    artifacts = {path.name: path for path in (run / "mlartifacts").rglob("artifacts/*")}
    assert set(artifacts) == {"config.yaml", "curves.png", "rollouts.json"}
    table = json.loads(artifacts["rollouts.json"].read_text())
    assert table == {"columns": ["step", "role", "text"], "data": [[2, "draft", "a | b\nc"]]}


class _Broken:
    def __init__(self, config: Any, step: int) -> None:
        self.calls = 0

    def log(self, metrics: Any, step: int) -> None:
        self.calls += 1
        raise ConnectionError("no route to host")


def test_a_tracker_that_fails_is_given_up_with_a_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(trackers, "_TRACKERS", {"wandb": _Broken})
    notes: list[str] = []
    started = Trackers(make_config(tmp_path, Path("m"), train={"report_to": ["wandb"]}), 0, notes.append)
    started.log({"loss": 1.0}, 1)
    started.log({"loss": 1.0}, 2)
    started.finish()
    (note,) = notes
    assert "wandb failed" in note and "ConnectionError: no route to host" in note


def test_a_tracker_that_is_not_installed_is_refused_with_the_command(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match=r"holds mlflow, which is not installed: pip install 'pdr-rl\[tr"):
        try_trackers(["mlflow"])
