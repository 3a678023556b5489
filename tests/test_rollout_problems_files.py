"""Data files as people have them: formats, and columns by their common names."""

import gzip
import json
import logging
from pathlib import Path
from typing import Any

import pytest

from configs.schema import DataConfig
from rollout.problems.columns import QUESTIONS
from rollout.problems.files import file_rows
from rollout.problems.loading import load_rows, load_train
from rollout.records import Problem

ROWS = [
    {"question": 'What is 1 + 1, in "words"?\nThink.', "answer": "2"},
    {"question": "2 + 2?", "answer": "4"},
]


def _any_gold(gold: str, columns: object) -> None:
    return None


def _loaded(*rows: dict[str, Any], **options: Any) -> list[tuple[str, str]]:
    config = DataConfig(path="unused", **options)
    return [(problem.question, problem.answer) for problem in load_rows(rows, config, _any_gold)]


def _as_lines() -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in ROWS)


def _as_csv() -> bytes:
    return b'question,answer\r\n"What is 1 + 1, in ""words""?\nThink.",2\r\n2 + 2?,4\r\n'


def _as_parquet(path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)


@pytest.mark.parametrize("gzipped", [False, True])
@pytest.mark.parametrize("form", ["jsonl", "json", "csv"])
def test_a_file_holds_the_same_problems_in_every_format(form: str, gzipped: bool, tmp_path: Path):
    array = json.dumps(ROWS, indent=1).encode("utf-8-sig")
    content = {"jsonl": _as_lines(), "json": array, "csv": _as_csv()}[form]
    path = tmp_path / (f"p.{form}.gz" if gzipped else f"p.{form}")
    path.write_bytes(gzip.compress(content) if gzipped else content)
    assert [row for _, row in file_rows(path)] == ROWS


def test_a_parquet_file_holds_the_same_problems_whatever_its_name(tmp_path: Path):
    _as_parquet(tmp_path / "train-00000-of-00001.data")
    assert [row for _, row in file_rows(tmp_path / "train-00000-of-00001.data")] == ROWS


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.parquet", b"PAR1....", r"a\.parquet is a broken Parquet file after row 0"),
        ("a.json", b'[{"question": 1}', r"a\.json starts like a JSON array, but is no JSON"),
        ("a.json", b"[1]", r"a\.json item 1 must be a JSON object, got int"),
        ("a.csv", b"question,answer\n1,2\n1,2,3\n", r"a\.csv line 3 has 3 values, not 2"),
        ("a.csv", b"question,answer\n\n1\n", r"a\.csv line 3 has 1 values, not 2"),
        ("a.csv", b'question,answer\n"a\nb",2\n1\n', r"a\.csv line 4 has 1 values, not 2"),
        ("a.csv", b"question,question\n1,2\n", r"a\.csv line 1 has two columns 'question'; rename"),
        ("a.csv", b"question,answer,,\n1,2,3,4\n", r"a\.csv line 1: column 3 of 4 has no name"),
        ("a.csv", b"\nquestion,answer\n", r"a\.csv line 1 is blank; the first line must name the columns"),
        ("a.csv", b" ,\nquestion,answer\n", r"a\.csv line 1 is blank"),
        ("a.csv", b'"question,answer\n1,2\n', r"a\.csv line 1 is no CSV: .*\(read up to line 2\)\. A value"),
        ("a.csv", b'question,answer\n1,2\n"3,4\n5,6\n', r"a\.csv line 3 is no CSV: .*up to line 4\)"),
        ("a.csv", b'question,answer\n"a"b,2\n', r"a\.csv line 2 is no CSV: .* must be doubled|end with one"),
        ("a.csv", b"question,answer\n\xff,2\n", r"a\.csv line \d or a later one is not in UTF-8"),
    ],
)
def test_a_broken_file_is_refused_by_file_and_row(name: str, content: bytes, message: str, tmp_path: Path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        list(file_rows(tmp_path / name))


def test_the_index_that_pandas_writes_is_a_column_without_a_name(tmp_path: Path):
    (tmp_path / "a.csv").write_bytes(b",question,answer\n0,6 * 7?,42\n")
    assert [row for _, row in file_rows(tmp_path / "a.csv")] == [
        {"": "0", "question": "6 * 7?", "answer": "42"}
    ]


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
def test_a_file_without_question_and_answer_is_refused_in_one_message(name: str, tmp_path: Path):
    row = {"Quesiton": "6 * 7?", "value": "42", "level": "1"}
    text = ",".join(row) + "\n" + ",".join(row.values()) if name == "a.csv" else json.dumps(row)
    (tmp_path / name).write_text(text + "\n")
    config = DataConfig(path=str(tmp_path / name), answer_field="vale")
    with pytest.raises(ValueError) as refused:
        load_train(config, _any_gold)
    assert str(refused.value) == (
        f"{tmp_path / name} line {2 if name == 'a.csv' else 1}: It has no field of a known name "
        f"({', '.join(QUESTIONS)}) and no field 'vale'; it has ['Quesiton', 'level', 'value']. "
        "Set data.question_field=Quesiton (the nearest name), data.answer_field=value (the nearest name)."
    )


def test_no_name_is_guessed_where_none_is_near():
    with pytest.raises(
        ValueError, match=r"it has \['id', 'x'\]\. Set data\.question_field=NAME, data\.answer_field=NAME\.$"
    ):
        _loaded({"x": "6 * 7?", "id": "problem"})


USER = {"role": "user", "content": "6 * 7?"}
SYSTEM = {"role": "system", "content": "You are terse."}
SAID = {"role": "assistant", "content": r"It is \boxed{42}."}


@pytest.mark.parametrize(
    ("row", "found"),
    [
        ({"problem": "6 * 7?", "solution": "long", "answer": "42"}, "42"),
        ({"Problem": "6 * 7?", "Answer": 42}, "42"),
        ({"question": "6 * 7?", "answer": "6 * 7 = 42\n#### 42"}, "6 * 7 = 42\n#### 42"),
        ({"prompt": [USER], "reward_model": {"style": "rule", "ground_truth": "42"}}, "42"),
        ({"prompt": [SYSTEM, USER], "reward_model": {"ground_truth": "42"}, "ability": "math"}, "42"),
        ({"messages": [USER, SAID]}, SAID["content"]),
        ({"messages": [USER, SAID], "answer": "42"}, "42"),
        ({"conversations": [{"from": "human", "value": "6 * 7?"}, {"from": "gpt", "value": "42"}]}, "42"),
        ({"problem": "6 * 7?", "expected_answer": "42", "generated_solution": "no"}, "42"),
        ({"instruction": "6 * 7?", "input": "", "output": "42"}, "42"),
    ],
)
def test_question_and_answer_are_found_under_the_names_that_data_sets_use(row: dict[str, Any], found: str):
    assert _loaded(row) == [("6 * 7?", found)]


def test_named_columns_win_and_a_dot_leads_into_a_table():
    row = {"question": "no", "answer": "no", "task": {"text": "6 * 7?", "gold": 42}, "a.b": "dotted"}
    assert _loaded(row, question_field="task.text", answer_field="task.gold") == [("6 * 7?", "42")]
    assert _loaded(row, question_field="a.b", answer_field="task.gold") == [("dotted", "42")]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"text": "6 * 7?", "answer": "42"},
            r"no field of a known name \(question, .*'text'.*question_field",
        ),
        (
            {"question": "6 * 7?", "reward": {"x": 1}},
            r"no field of a known name \(answer.*'reward\.x'.*answer_field",
        ),
        ({"prompt": [USER]}, r"no field of a known name \(answer"),
        ({"messages": [USER, SAID, USER, SAID]}, "turns of user, assistant, user, assistant"),
        ({"messages": [USER]}, "chat that ends in a turn of user, without an answer"),
        ({"prompt": [], "answer": "1"}, "chat without turns"),
        (
            {"prompt": [{"role": "user", "content": [{"type": "image"}]}], "answer": "1"},
            "content that is text",
        ),
        ({"prompt": ["6 * 7?"], "answer": "1"}, "is a list, but not a chat"),
    ],
)
def test_a_row_without_question_or_answer_is_refused_with_what_it_has(row: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        _loaded(row)


def test_the_columns_of_the_first_row_are_those_of_all():
    with pytest.raises(ValueError, match="problem 1: It has no field 'problem', as the first row has"):
        _loaded({"problem": "1?", "answer": "1"}, {"question": "2?", "answer": "2"})


def test_a_system_prompt_in_the_data_is_left_out_with_a_warning(caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING):
        assert _loaded({"prompt": [SYSTEM, USER], "answer": "42"}) == [("6 * 7?", "42")]
    assert "system prompt, which is left out" in caplog.text and "You are terse." in caplog.text


def test_a_file_is_read_with_ids_by_its_name_and_order(tmp_path: Path):
    _as_parquet(tmp_path / "sums.parquet")
    problems = load_train(DataConfig(path=str(tmp_path / "sums.parquet")), _any_gold)
    assert problems == [
        Problem(id=f"sums-{i}", question=row["question"], answer=row["answer"]) for i, row in enumerate(ROWS)
    ]
