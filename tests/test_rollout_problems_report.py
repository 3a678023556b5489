"""``python -m rollout.problems``: what it prints, and repeated questions."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPO
from transformers import AutoTokenizer

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


def test_the_first_prompt_is_shown_with_system_prompt_and_examples_and_counted_with_them(
    tmp_path: Path, tiny_policy: Path, capsys: pytest.CaptureFixture[str]
):
    path = _write(tmp_path / "a.jsonl", {"question": "1 + 1?", "answer": "2"})
    shown = _write(tmp_path / "shown.jsonl", {"question": "5 + 5?", "answer": "It is 10."})
    texts = ["operator.prompts.system=Careful.", f"operator.prompts.examples={shown}"]
    model = f"model.path={tiny_policy}"
    status, printed = _printed(capsys, f"data.path={path}", model, *texts)
    assert status == 0
    prompt = printed.partition("as the model reads it:\n\n")[2].partition("\n\nIts gold answer")[0]
    assert prompt.startswith("<|im_start|>system\nCareful.<|im_end|>\n<|im_start|>user\n5 + 5?")
    assert "<|im_start|>assistant\nIt is 10.<|im_end|>\n<|im_start|>user\n1 + 1?" in prompt
    tokens = len(AutoTokenizer.from_pretrained(tiny_policy)(prompt, add_special_tokens=False).input_ids)
    assert f"prompt tokens: mean {tokens}, most {tokens}" in printed
    as_text = _printed(capsys, f"data.path={path}", *texts)[1]
    assert "Careful.\n\n5 + 5?" in as_text and "It is 10.\n\n1 + 1?" in as_text


def test_the_prompt_of_a_refinement_is_shown_where_it_has_worked_examples(
    tmp_path: Path, tiny_policy: Path, capsys: pytest.CaptureFixture[str]
):
    path = _write(tmp_path / "a.jsonl", {"question": "1 + 1?", "answer": "2"})
    shown = _write(tmp_path / "shown.jsonl", {"question": "5 + 5?", "answer": "10.", "drafts": ["9", "10"]})
    options = [f"data.path={path}", f"operator.prompts.examples={shown}"]
    printed = _printed(capsys, *options, f"model.path={tiny_policy}")[1]
    first, _, refinement = printed.partition("Its refinement, with 1 worked ones before it, ")
    assert "5 + 5?" not in first
    tokens, _, prompt = refinement.partition(" tokens without its workspace:\n\n")
    assert prompt.index("5 + 5?") < prompt.index("Draft 2:\n10") < prompt.index("assistant\n10.")
    assert prompt.index("assistant\n10.") < prompt.index("1 + 1?") < prompt.index("(workspace)")
    ids = AutoTokenizer.from_pretrained(tiny_policy)(prompt.rstrip("\n"), add_special_tokens=False).input_ids
    assert abs(len(ids) - int(tokens)) <= 1  # the prompt ends in a line break, which printing hides
    as_text = _printed(capsys, *options)[1]
    assert "Its refinement, with 1 worked ones before it without its workspace:" in as_text


def test_a_problem_that_is_also_an_example_is_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = _write(tmp_path / "a.jsonl", {"id": "x", "question": "1 + 1?", "answer": "2"})
    shown = _write(tmp_path / "shown.jsonl", {"question": "1 +  1?", "answer": "2"})
    status, printed = _printed(capsys, f"data.path={path}", f"operator.prompts.examples={shown}")
    assert status == 1
    assert "1 problems are examples (operator.prompts.examples), too: x" in printed


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
    assert "with different gold answers: 1; the first:\n      train-0: '1', train-1: '2'" in printed
    assert "1 held-out problems are training problems, too: eval-0" in printed


def test_golds_that_differ_in_spelling_alone_are_no_conflict(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path = _write(
        tmp_path / "a.jsonl",
        {"question": "third?", "answer": r"\frac13"},
        {"question": "third ?", "answer": r"\dfrac{1}{3}"},
        {"question": "three?", "answer": "So 2 + 1.\n#### 3"},
        {"question": "three?", "answer": "3"},
    )
    status, printed = _printed(capsys, f"data.path={path}")
    assert status == 1
    assert "occur more than once: 2; a-0, a-2" in printed
    assert "different gold answers" not in printed


def test_as_many_examples_of_a_finding_are_printed_as_wanted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    rows = [{"question": f"{i}?", "answer": r"\frac{1}"} for i in range(5)]
    path = _write(tmp_path / "a.jsonl", {"question": "1 + 1", "answer": "2"}, *rows)
    for shown in (1, 3, 9):
        printed = _printed(capsys, f"data.path={path}", f"shown={shown}")[1]
        assert printed.count("the gold answer") == min(shown, 5)
        assert "refused: 5; the first:" in printed


def test_the_command_names_a_file_that_does_not_exist():
    command = [sys.executable, "-m", "rollout.problems", "data.path=none.jsonl"]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert (
        done.stderr
        == "rollout.problems: data file none.jsonl does not exist; set data.path or data.eval_path.\n"
    )
