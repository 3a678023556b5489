"""Figures of the benches are kept and compared by their ratios."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "bench"))

import results


def _line(bench: str, case: str, ratio: float) -> dict[str, object]:
    return {"bench": bench, "case": case, "ours": 1.0, "theirs": ratio, "ratio": ratio, "unit": "s"}


def test_what_is_recorded_is_what_a_later_run_is_compared_with(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setattr(results, "RESULTS", tmp_path / "results.json")
    results.record([_line("update", "mix", 10.0), _line("update", "trace", 3.0)])
    results.record([_line("client", "n=1", 2.0)])  # keeps what other benches gave
    known = json.loads((tmp_path / "results.json").read_text())
    assert [line["case"] for line in known["results"]] == ["n=1", "mix", "trace"]
    assert {"machine", "date", "versions"} <= known.keys()
    assert results.compare([_line("update", "mix", 9.1), _line("update", "new", 1.0)]) == []
    assert "update: new: 1.0 (new)" in capsys.readouterr().out
    alone = _line("evaluation", "peak", 1.0) | {"ratio": None}
    fell = results.compare([_line("update", "mix", 8.9), _line("client", "n=1", 5.0), alone])
    assert fell == ["update: mix fell from 10.0 to 8.9."]


def test_other_output_is_left_out_and_an_empty_run_is_refused(tmp_path: Path, monkeypatch):
    path = tmp_path / "run.jsonl"
    path.write_text("a warning\n" + json.dumps(_line("client", "n=1", 2.0)) + "\n{}\n")
    assert [line["bench"] for line in results.read(path)] == ["client"]
    path.write_text("nothing\n")
    monkeypatch.setattr(sys, "argv", ["results.py", "record", str(path)])
    with pytest.raises(SystemExit, match="holds no line of a bench"):
        results.main()


def test_a_run_before_any_was_recorded_is_told_so(tmp_path: Path, monkeypatch):
    path = tmp_path / "run.jsonl"
    path.write_text(json.dumps(_line("client", "n=1", 2.0)) + "\n")
    monkeypatch.setattr(results, "RESULTS", tmp_path / "results.json")
    monkeypatch.setattr(sys, "argv", ["results.py", "compare", str(path)])
    with pytest.raises(SystemExit, match="nothing to compare with: record a run first"):
        results.main()
