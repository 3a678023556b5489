"""A run that is killed at any instant and resumed is the run that was not, bit for bit."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPO
from training_fakes import make_config, make_trainer

from train.checkpoint_files import finished_checkpoints, read_state
from train.distributed import make_accelerator
from train.manifest import damage

pytestmark = pytest.mark.component

STEPS = 8
LIMIT_SECONDS = 120
KILLED = """
import os, signal, sys, threading, time
from pathlib import Path
from training_fakes import make_config, make_trainer
from transformers import set_seed
from train.distributed import make_accelerator

folder, model, steps, seconds = sys.argv[1:]
train = {"max_steps": int(steps), "keep_last": 2}
config = make_config(Path(folder), Path(model), resume="auto", train=train)
set_seed(config.seed)
trainer = make_trainer(config, make_accelerator(config))
began = time.monotonic()
if seconds != "never":
    threading.Timer(float(seconds), lambda: os.kill(os.getpid(), signal.SIGKILL)).start()
trainer.run()
print(time.monotonic() - began)
os._exit(0)
"""


def _run(folder: Path, model: Path, seconds: str) -> subprocess.CompletedProcess[str]:
    """A run in a process of its own, killed after ``seconds`` of training if it is not done by then."""
    path = f"{REPO}{os.pathsep}{REPO / 'tests'}"
    return subprocess.run(
        [sys.executable, "-c", KILLED, str(folder), str(model), str(STEPS), seconds],
        capture_output=True,
        text=True,
        timeout=LIMIT_SECONDS,
        check=False,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
    )


def _metrics(folder: Path) -> list[dict[str, float]]:
    """Every metric of every step but those that tell time."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [
        {k: v for k, v in line.items() if not k.startswith(("time", "tokens_per", "memory"))}
        for line in lines
    ]


def _weights(folder: Path) -> bytes:
    return (folder / "checkpoints" / f"step_{STEPS:06d}" / "policy" / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def whole(tiny_policy: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """The run that is never killed, and how long it trained, seconds."""
    folder = tmp_path_factory.mktemp("whole")
    done = _run(folder, tiny_policy, "never")
    assert done.returncode == 0, done.stderr[-2000:]
    return folder, float(done.stdout.split()[-1])


def _check(points: list[float], whole: tuple[Path, float], model: Path, folder: Path) -> None:
    """``points``: the shares of the whole run's time after which it is killed, each time it was resumed."""
    expected, seconds = whole
    for point in points:
        killed = _run(folder, model, f"{point * seconds:.3f}")
        assert killed.returncode in (0, -9), killed.stderr[-2000:]
        if killed.returncode == -9:
            for path in finished_checkpoints(folder / "checkpoints"):
                assert damage(path) is None
    resumed = _run(folder, model, "never")
    assert resumed.returncode == 0, resumed.stderr[-2000:]
    assert _metrics(folder) == _metrics(expected)
    assert _weights(folder) == _weights(expected)


def test_a_run_that_is_killed_twice_is_the_run_that_was_not(whole, tiny_policy: Path, tmp_path: Path):
    _check([0.35, 0.5], whole, tiny_policy, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(10))
def test_at_random_instants_too(number: int, whole, tiny_policy: Path, tmp_path: Path):
    _check([random.Random(number).random()], whole, tiny_policy, tmp_path)


def test_a_run_that_is_killed_between_the_last_byte_and_the_name_uses_the_checkpoint_before(
    tmp_path: Path, tiny_policy: Path, monkeypatch: pytest.MonkeyPatch
):
    """The one moment at which a whole checkpoint has no name yet."""
    config = make_config(tmp_path, tiny_policy, train={"max_steps": 2})
    trainer = make_trainer(config, make_accelerator(config))
    real = os.replace

    def dying(source: str | Path, target: str | Path) -> None:
        if Path(target).name == "step_000002":
            raise KeyboardInterrupt
        real(source, target)

    monkeypatch.setattr("train.checkpoint.os.replace", dying)
    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    monkeypatch.undo()
    (only,) = finished_checkpoints(tmp_path / "checkpoints")
    assert read_state(only).step == 1
    resumed = make_config(tmp_path, tiny_policy, resume="auto", train={"max_steps": 2})
    make_trainer(resumed, make_accelerator(resumed)).run()
    assert [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [
        1,
        2,
    ]
