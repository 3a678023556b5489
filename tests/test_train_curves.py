"""The curves of a run: what is drawn, what is left out, and where the marks stand."""

import json
import math
from pathlib import Path

import matplotlib
import pytest

from train.curves import PANELS, Panel, draw_curves, held_out_rows, panel_curves, smooth

matplotlib.use("Agg")


def test_smoothing_is_an_average_without_a_bias_at_its_start():
    assert smooth([3.0] * 5, 4) == pytest.approx([3.0] * 5)
    assert smooth([1.0, 5.0, 2.0], 1) == [1.0, 5.0, 2.0]
    noisy = [(-1) ** i for i in range(100)]
    assert max(abs(value) for value in smooth(noisy, 20)[50:]) < 0.1


def test_a_panel_holds_its_metrics_without_values_that_tell_nothing():
    lines = [
        {"step": 1, "kl/trace": 1e-9, "kl/refine": 0.1, "klx": 1.0},
        {"step": 2, "kl/trace": math.nan, "kl/refine": 0.2},
    ]
    (curve,) = panel_curves(Panel(title="KL", metrics=("kl/",), log=True, least=1e-6), lines)
    assert (curve.name, curve.steps, curve.values) == ("refine", (1, 2), (0.1, 0.2))


def test_every_logarithmic_panel_shows_positive_values_only():
    assert all(panel.least > 0 for panel in PANELS if panel.log)


def _run(folder: Path) -> tuple[Path, Path]:
    lines = [{"step": step, "reward/trace": step / 40, "grad_norm": 0.5} for step in range(1, 31)]
    lines[11] |= {"alarm/no_signal": 0.9, "alarms": 1}
    metrics = folder / "metrics.jsonl"
    metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    spread = {"ci_low": 0.1, "ci_high": 0.6}
    rows = [{"operator": "pdr", "phase": phase, "accuracy": 0.4, **spread} for phase in PHASES]
    (folder / "report.json").write_text(json.dumps({"rows": rows}))
    return metrics, folder / "curves.png"


PHASES = ("before", "after", "step_000010")


def test_evaluations_stand_at_the_step_after_which_they_were_made(tmp_path: Path):
    _run(tmp_path)
    rows = held_out_rows(tmp_path / "report.json", 30)
    assert [(step, row["phase"]) for step, row in rows] == [
        (0, "before"),
        (10, "step_000010"),
        (30, "after"),
    ]


def test_panels_without_data_are_left_out_and_checkpoints_and_alarms_are_marked(tmp_path: Path, monkeypatch):
    figures = []
    monkeypatch.setattr("matplotlib.pyplot.close", figures.append)
    assert draw_curves(*_run(tmp_path), save_steps=20)
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    (figure,) = figures
    assert [axis.get_title().partition(",")[0] for axis in figure.axes] == [
        "accuracy on held-out problems",
        "reward",
        "gradient norm",
    ]
    for axis in figure.axes:
        marks = {(line.get_xdata()[0], line.get_color()) for line in axis.lines if len(line.get_xdata()) == 2}
        assert {(20, "0.4"), (30, "0.4"), (12, "tab:red")} <= marks
        assert [text.get_text() for text in axis.texts] == ["no_signal"]


def test_a_run_without_metrics_draws_nothing(tmp_path: Path):
    assert not draw_curves(tmp_path / "metrics.jsonl", tmp_path / "curves.png")
    assert not (tmp_path / "curves.png").exists()
