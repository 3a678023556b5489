"""`python -m rewards`: what it writes, what it reports, how it exits."""

import json
import subprocess
import sys
from pathlib import Path

from rewards.__main__ import main


def write(path: Path, *lines: object) -> Path:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_score_keeps_order_and_extra_fields(tmp_path: Path) -> None:
    rows = [{"gold": str(n), "pred": rf"\boxed{{{n - n % 2}}}", "id": n, "more": [n]} for n in range(600)]
    source, target = write(tmp_path / "in.jsonl", *rows), tmp_path / "out.jsonl"
    assert main(["score", str(source), str(target)]) == 0
    scored = read(target)
    assert [{key: row[key] for key in rows[0]} for row in scored] == rows
    assert [row["verdict"]["status"] for row in scored] == ["correct", "wrong"] * 300
    assert not target.with_name("out.jsonl.partial").exists()


def test_broken_lines_are_reported_by_number_and_the_rest_is_scored(tmp_path: Path, capsys) -> None:
    good = {"gold": "1", "pred": r"\boxed{1}"}
    source = write(
        tmp_path / "in.jsonl", good, "{", "", [1], {"gold": 1, "pred": "1"}, {"gold": "1"}, "[" * 9999, good
    )
    target = tmp_path / "out.jsonl"
    assert main(["score", str(source), str(target)]) == 1
    assert [row["gold"] for row in read(target)] == ["1", 1, "1"]
    output = capsys.readouterr()
    assert "3 scored, 4 broken lines" in output.out
    for number in (2, 4, 6, 7):
        assert f"line {number}:" in output.err


def test_surrogates_and_nul_survive(tmp_path: Path) -> None:
    row = {"gold": "42", "pred": "\ud800\x00 \\boxed{42}"}
    source, target = write(tmp_path / "in.jsonl", row), tmp_path / "out.jsonl"
    assert main(["score", str(source), str(target)]) == 0
    assert read(target)[0]["pred"] == row["pred"]


def test_forms_can_be_switched_off(tmp_path: Path) -> None:
    source, target = (
        write(tmp_path / "in.jsonl", {"gold": "42", "pred": "The answer is 42"}),
        tmp_path / "out.jsonl",
    )
    for forms, status in (("all", "correct"), ("marker,number", "correct"), ("none", "unparsable")):
        assert main(["score", str(source), str(target), "--forms", forms]) == 0
        assert read(target)[0]["verdict"]["status"] == status
    assert main(["score", str(source), str(target), "--forms", "boxes"]) == 2


def test_too_many_failures_show_in_the_exit_status(tmp_path: Path, caplog) -> None:
    source = write(tmp_path / "in.jsonl", {"gold": "", "pred": r"\boxed{1}"})
    assert main(["score", str(source), str(tmp_path / "out.jsonl")]) == 1
    assert "failed on 1 of 1 answers" in caplog.text


def test_a_file_of_another_format_exits_with_2(tmp_path: Path, capsys) -> None:
    source = write(tmp_path / "data.jsonl", [{"question": "1?", "answer": "1"}])
    assert main(["score", str(source), str(tmp_path / "out.jsonl")]) == 2
    assert "data.jsonl must hold JSON lines" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["data.jsonl"]


def test_a_missing_file_exits_with_2(tmp_path: Path, capsys) -> None:
    assert main(["score", str(tmp_path / "none.jsonl"), str(tmp_path / "out.jsonl")]) == 2
    assert "none.jsonl" in capsys.readouterr().err


def test_the_caller_imports_no_heavy_module() -> None:
    code = (
        "import sys, rewards.__main__, rewards.shaping\n"
        "sys.exit(str({'torch', 'sympy', 'numpy', 'transformers'} & set(sys.modules) or ''))"
    )
    ended = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert ended.stderr == "" or ended.stderr == "\n"


def test_a_target_that_must_not_be_replaced_is_refused_before_anything_is_scored(
    tmp_path: Path, capsys
) -> None:
    source = write(tmp_path / "in.jsonl", {"gold": "1", "pred": r"\boxed{1}"})
    before = source.read_text()
    folder, link = tmp_path / "folder", tmp_path / "link.jsonl"
    folder.mkdir()
    link.symlink_to(source)
    for target, message in (
        (source, "is the file to score"),
        (folder, "is not a regular file"),
        (link, "is not a regular file"),
        (Path("/dev/null"), "is not a regular file"),
        (tmp_path / "nowhere" / "out.jsonl", "does not exist; create it first"),
    ):
        assert main(["score", str(source), str(target)]) == 2
        assert message in capsys.readouterr().err
    assert source.read_text() == before
    assert {path.name for path in tmp_path.iterdir()} == {"in.jsonl", "folder", "link.jsonl"}


def test_a_missing_field_is_named_with_those_that_are_there(tmp_path: Path, capsys) -> None:
    source = write(tmp_path / "in.jsonl", {"answer": "1", "pred": r"\boxed{1}"})
    assert main(["score", str(source), str(tmp_path / "out.jsonl")]) == 1
    assert "It has no field 'gold'; it has ['answer', 'pred']." in capsys.readouterr().err


def test_a_file_without_lines_is_not_all_well(tmp_path: Path) -> None:
    assert main(["score", str(write(tmp_path / "in.jsonl")), str(tmp_path / "out.jsonl")]) == 1
