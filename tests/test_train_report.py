import json
import os
import random
from pathlib import Path

import pytest
from training_fakes import make_config, make_group

from rollout.records import TRACE, Problem, Rollout
from train.curves import draw_curves
from train.metrics_file import METRICS_FILE, read_metrics
from train.report import Reporter


def test_metrics_are_on_disk_when_log_returns_and_a_restart_forgets_later_steps(tmp_path):
    config = make_config(tmp_path, Path("model"))
    first = Reporter(config)
    first.start(0)
    for step in (1, 2, 3):
        first.log(step, {"loss": step / 2})
        assert read_metrics(tmp_path / METRICS_FILE)[-1] == {"step": step, "loss": step / 2}
    first.close()
    second = Reporter(config)
    second.start(1)
    second.log(2, {"loss": 7.0})
    second.close()
    assert read_metrics(tmp_path / METRICS_FILE) == [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 7.0}]


def test_a_line_of_metrics_survives_a_power_failure_once_it_was_logged(tmp_path, monkeypatch):
    """What was synchronised, and not only written, when ``log`` and ``start`` return."""
    synced: dict[str, str] = {}

    def fsync(descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        synced[path.name] = path.read_text()

    monkeypatch.setattr(os, "fsync", fsync)
    reporter = Reporter(make_config(tmp_path, Path("model")))
    reporter.start(0)
    reporter.log(1, {"loss": 0.5})
    assert json.loads(synced[METRICS_FILE]) == {"step": 1, "loss": 0.5}
    reporter.log(2, {"loss": 0.25})
    reporter.start(1)
    reporter.close()
    assert json.loads(synced["metrics.tmp"]) == {"step": 1, "loss": 0.5}


@pytest.mark.component
def test_curves_are_drawn_from_lines_with_different_metrics(tmp_path):
    lines = [{"step": 1, "reward/trace": 0.5}, {"step": 2, "reward/trace": 0.7, "eval/trace": 0.1}]
    (tmp_path / METRICS_FILE).write_text("".join(json.dumps(line) + "\n" for line in lines))
    draw_curves(tmp_path / METRICS_FILE, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_rollouts_are_written_as_text_with_the_role_and_the_gold_answer(tmp_path):
    call = make_group(random.Random(0), role=TRACE, prompt=4, lengths=[3]).samples[0].call
    problem = Problem(id="p7", question="1 + 1 =", answer="2")
    rollout = Rollout(problem=problem, operator="trace", calls=(call,), answers=(0,))
    Reporter(make_config(tmp_path, Path("model"))).write_rollouts(3, (rollout,), {})
    text = (tmp_path / "rollouts" / "step_000003.txt").read_text()
    assert "p7 (trace), gold answer: 2" in text and "1 + 1 =" in text
    assert "call 0: trace, round 0, from [], 4+3 tokens, stop" in text
