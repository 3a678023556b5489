"""The runner of tests/gpu: what it does with parts that print, hang, fail or cannot run."""

import json
import sys
import time
from pathlib import Path

import pytest
from conftest import REPO

GPU = REPO / "tests" / "gpu"
sys.path.append(str(GPU))

import gpu_figures  # noqa: E402
import gpu_parts  # noqa: E402
from gpu_figures import Line, NotAFigure, read_line  # noqa: E402
from gpu_parts import PARTS, Part, run_part  # noqa: E402

SHARED = {"__main__", "gpu_parts", "gpu_figures", "gpu_head", "gpu_requests", "gpu_script"}


def _run(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: float = 30.0
) -> tuple[Line, list[Line]]:
    (tmp_path / "part.py").write_text(text)
    monkeypatch.setattr(gpu_parts, "HERE", tmp_path)
    told: list[Line] = []
    return run_part(Part("part", limit), [], 60.0, told.append), told


FIGURE = """print('{"part": "part", "name": "speed", "value": 2.5, "unit": "s"}', flush=True)\n"""


def test_the_parts_are_the_scripts_of_the_folder():
    assert {part.name for part in PARTS} == {path.stem for path in GPU.glob("*.py")} - SHARED


def test_a_part_that_hangs_is_ended_at_its_limit_and_its_figures_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    began = time.monotonic()
    status, told = _run(FIGURE + "import time; time.sleep(600)", tmp_path, monkeypatch, limit=4.0)
    assert told == [Line("part", "speed", 2.5, "s")]
    assert status.failed and "its limit of 4 s, with 1 figures" in str(status.value)
    assert time.monotonic() - began < 30


def test_a_part_that_fails_repeats_the_end_of_what_it_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    status, told = _run(FIGURE + "raise SystemExit('the kernel differs')", tmp_path, monkeypatch)
    assert len(told) == 1 and status.failed
    assert str(status.value).startswith("failed with status 1") and "the kernel differs" in str(status.value)


def test_a_part_that_cannot_run_says_why_and_is_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    status, _ = _run("print('two GPUs are needed'); raise SystemExit(77)", tmp_path, monkeypatch)
    assert status.value == "skipped: two GPUs are needed" and not status.failed


@pytest.mark.parametrize("text", ["pass", """print('{"part": "part", "name": "speed", "value": NaN}')"""])
def test_a_part_without_figures_or_with_one_that_is_not_finite_has_failed(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    status, told = _run(text, tmp_path, monkeypatch)
    assert status.failed and not told


def test_a_part_is_not_begun_when_the_time_is_up(tmp_path: Path):
    assert "not begun" in str(run_part(Part("part", 9.0), [], 0.0, lambda _: None).value)


@pytest.mark.parametrize(
    "text", ["{", '{"part": "other", "name": "a", "value": 1}', '{"part": "part", "speed": 1}', "[1]"]
)
def test_only_figures_of_the_part_are_read(text: str):
    with pytest.raises(NotAFigure):
        read_line("part", text)


def test_a_target_is_the_most_for_a_time_and_the_least_for_all_else():
    assert Line("p", "n", 1.1, "s", target=1.0).missed and not Line("p", "n", 0.9, "s", target=1.0).missed
    assert Line("p", "n", 0.5, "share", target=0.55).missed and not Line("p", "n", 0.6, target=0.55).missed


def test_a_part_that_saw_nothing_keeps_its_last_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("torch.cuda.get_device_name", lambda _: "a card")
    path = tmp_path / "results_gpu.json"
    speed, ok = Line("update", "speed", 0.5), Line("update", "status", "ok")
    gpu_figures.keep_last([speed, ok], path)
    gpu_figures.keep_last([Line("update", "status", "failed"), Line("sleep", "status", "ok")], path)
    kept = json.loads(path.read_text())
    assert kept["update"]["figures"][0] == {"part": "update", "name": "speed", "value": 0.5}
    assert kept["update"]["card"] == "a card" and set(kept) == {"update", "sleep"}
