"""Ctrl-C in the terminal of ``accelerate launch ... -m train``: real ranks, worker and terminal."""

import json
import os
import pty
import re
import select
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import REPO

from train.checkpoint_files import finished_checkpoints

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

LIMIT_SECONDS = 300
OPTIONS = (
    "experiment=demo",
    "data.num_eval=8",
    "algo.problems_per_step=4",
    "algo.num_generations=2",
    "rollout.max_completion_length=24",
    "train.max_steps=100000",
    "train.save_steps=100000",
    "train.eval_at_start=false",
)


def _in_terminal(module: list[str], presses: Callable[[str], int]) -> tuple[int, str]:
    """Runs a command in a terminal of its own; returns its status and what it showed.

    ``presses`` tells from what was shown how often Ctrl-C should have been pressed by now.
    """
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ |= {"PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"}
        os.execv(sys.executable, [sys.executable, "-m", *module])
    shown, pressed, deadline = "", 0, time.monotonic() + LIMIT_SECONDS
    try:
        while True:
            assert time.monotonic() < deadline, shown
            if select.select([terminal], [], [], 0.2)[0]:
                try:
                    shown += os.read(terminal, 1 << 16).decode(errors="replace")
                except OSError:  # the last process has closed the terminal
                    break
            while pressed < presses(shown):
                os.write(terminal, b"\x03")
                pressed += 1
                time.sleep(0.05)  # two signals that arrive together are one
    except BaseException:
        os.kill(pid, signal.SIGTERM)
        raise
    finally:
        os.close(terminal)
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status), shown.replace("\r\n", "\n")


def _launcher() -> list[str]:
    file = REPO / "launch" / "accelerate" / "cpu_zero2.yaml"
    return ["accelerate.commands.launch", "--config_file", str(file), "-m", "train"]


def test_the_first_ctrl_c_saves_the_step_and_the_next_run_resumes_after_it(tiny_policy: Path, tmp_path: Path):
    metrics = tmp_path / "metrics.jsonl"
    given = [*_launcher(), *OPTIONS, f"model.path={tiny_policy}", f"output_dir={tmp_path}"]
    _, shown = _in_terminal(given, lambda _: int(metrics.exists()))
    (saved,) = finished_checkpoints(tmp_path / "checkpoints")
    step = int(saved.name.removeprefix("step_"))
    (line,) = re.findall(r"^train: stopped by SIGINT .*", shown, re.MULTILINE)
    assert f"after step {step}, which is saved; folder {tmp_path}; resume with: python -m accelerate" in line
    assert line.endswith(" resume=auto")
    assert "KeyboardInterrupt" not in shown
    # One report is left, that of accelerate's own process about the signal.
    assert shown.count("Traceback") == 1 and shown.count("SignalException: ") == 1

    resumed = [*given, "resume=auto", f"train.max_steps={step + 1}", "train.eval_at_end=false"]
    status, shown = _in_terminal(resumed, lambda _: 0)
    assert status == 0, shown
    assert f"Resumed from {saved}, step {step}." in shown


def test_the_second_ctrl_c_ends_everything_at_once(tiny_policy: Path, tmp_path: Path):
    metrics = tmp_path / "metrics.jsonl"
    # Steps of seconds: Ctrl-C is pressed twice within one.
    long = ["algo.problems_per_step=32", "algo.num_generations=8", "rollout.max_completion_length=96"]
    given = [*_launcher(), *OPTIONS, *long, f"model.path={tiny_policy}", f"output_dir={tmp_path}"]
    status, shown = _in_terminal(given, lambda _: 2 * int(metrics.exists()))
    assert status not in (0, 75)
    assert "train: stopped by SIGINT" not in shown
    # No later step is made. The one that the first Ctrl-C met in its last moments may have been saved.
    steps = [json.loads(line)["step"] for line in metrics.read_text().splitlines()]
    names = [path.name for path in finished_checkpoints(tmp_path / "checkpoints")]
    assert names in ([], [f"step_{max(steps):06d}"])


def test_ctrl_c_of_a_job_reaches_its_ranks_and_its_workers_last_until_the_step_is_saved(
    tiny_policy: Path, tmp_path: Path
):
    metrics = tmp_path / "metrics.jsonl"
    own = [f"model.path={tiny_policy}", f"output_dir={tmp_path}", "launch.accelerate=cpu_zero2"]
    status, shown = _in_terminal(["launch", *OPTIONS, *own], lambda _: int(metrics.exists()))
    assert status == 75
    (saved,) = finished_checkpoints(tmp_path / "checkpoints")
    (line,) = re.findall(r"^train: stopped by SIGINT .*", shown, re.MULTILINE)
    assert f"resume with: python -m launch {OPTIONS[0]}" in line and line.endswith(" resume=auto")
    assert f"after step {int(saved.name.removeprefix('step_'))}, which is saved" in line
    assert "Traceback" not in shown
