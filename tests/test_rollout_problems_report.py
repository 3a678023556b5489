"""``python -m rollout.problems``: what it prints, and repeated questions."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPO

from rollout.problems.__main__ import main
from rollout.problems.duplicates import held_out_in_training, repeated
from rollout.records import Problem


def _problem(name: str, question: str, answer: str = "1") -> Problem:
    return Problem(id=name, question=question, answer=answer)


def _write(path: Path, *rows: dict[str, str]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def _printed(capsys: pytest.CaptureFixture[str], *overrides: str) -> tuple[int, str]:
    from configs.compose import load

    with pytest.raises(SystemExit) as ended:
        main(load("problems", list(overrides)), [])
    return int(ended.value.code or 0), capsys.readouterr().out


def test_questions_are_equal_whatever_their_capitals_and_spaces():
    problems = [_problem("a", "What is 1?"), _problem("b", "what  is 1? "), _problem("c", "What is 2?")]
    assert repeated(problems) == [problems[:2]]
    assert held_out_in_training(problems[:1], problems[1:]) == [problems[1]]


def test_a_clean_set_is_described_and_ends_well(
    tmp_path: Path, tiny_policy: Path, capsys: pytest.CaptureFixture[str]
):
    path = _write(
        tmp_path / "a.jsonl",
        {"problem": "1 + 1?", "solution": r"\boxed{2}", "level": "1"},
        {"problem": "The root of 2?", "solution": r"It is \boxed{\sqrt{2}}.", "level": "2"},
    )
    status, printed = _printed(capsys, f"data.path={path}", f"model.path={tiny_policy}")
    assert status == 0
    assert "question: column problem; gold answer: column solution" in printed
    assert "columns not read: level" in printed
    assert "gold answers: 1 number, 1 expression" in printed
    assert "<|im_start|>user\n1 + 1?" in printed and "as the model reads it" in printed


def test_every_finding_is_told_and_ends_with_status_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    train = _write(
        tmp_path / "train.jsonl",
        {"question": "1?", "answer": "1"},
        {"question": "1? ", "answer": "2"},
        {"question": "3?", "answer": r"\boxed{3"},
    )
    held_out = _write(tmp_path / "eval.jsonl", {"question": "1?", "answer": "1"})
    status, printed = _printed(capsys, f"data.path={train}", f"data.eval_path={held_out}")
    assert status == 1
    assert "refused: 1; the first:" in printed and "train.jsonl line 3: the gold answer" in printed
    assert "occur more than once: 1; train-0" in printed
    assert "with different gold answers: 1; the first train-0: '1', train-1: '2'" in printed
    assert "1 held-out problems are training problems, too: eval-0" in printed


def test_the_command_names_a_file_that_does_not_exist():
    command = [sys.executable, "-m", "rollout.problems", "data.path=none.jsonl"]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert (
        done.stderr
        == "rollout.problems: data file none.jsonl does not exist; set data.path or data.eval_path.\n"
    )
