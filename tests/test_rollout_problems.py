"""Loading problems, and refusing what cannot be used."""

import bz2
import hashlib
import json
import logging
import lzma
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import SHARED_DATA
from datasets import Dataset, DatasetDict

from configs.compose import load
from configs.schema import DataConfig
from rollout.problems.loading import load_eval, load_evaluated, load_rows, load_train
from rollout.records import Problem

DEMO = {"min_terms": 4, "max_terms": 4, "min_digits": 2, "max_digits": 2}
SMALL = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}


def _numbers_only(gold: str, columns: object) -> None:
    if not gold.lstrip("-").isdigit():
        raise ValueError("not a number")


def _write(path: Path, *rows: dict[str, Any] | str) -> DataConfig:
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows))
    return DataConfig(source="file", path=str(path))


def _row(number: int, **changes: Any) -> dict[str, Any]:
    return {"id": f"r{number}", "question": f"{number} + 0 =", "answer": str(number)} | changes


def _task(options: dict[str, int], **changes: Any) -> DataConfig:
    return DataConfig(source="reasoning_gym", task="chain_sum", task_options=options, **changes)


def _digest(problems: list[Problem]) -> tuple[int, str]:
    """How many there are, and a hash of everything about them, in order."""
    lines = "\n".join(f"{p.id}\t{p.question}\t{p.answer}\t{p.source}" for p in problems)
    return len(problems), hashlib.sha256(lines.encode()).hexdigest()[:16]


@pytest.mark.component
def test_the_demo_and_the_evaluations_of_the_readme_always_have_the_same_problems():
    demo = load("training", ["experiment=demo"]).data
    assert _digest(load_train(demo, _numbers_only)) == (20_000, "2401d7c85a526dfa")
    assert _digest(load_eval(demo, _numbers_only)) == (400, "30e04e4ddf33a48e")
    alone = ["model.path=x", "data=reasoning_gym", "data.task_seed=1", "data.limit=300"]
    evaluated = load_evaluated(load("evaluation", alone).data, _numbers_only)
    assert _digest(evaluated) == (300, "d0b55f7a92286229")
    assert evaluated == load_eval(demo, _numbers_only)[:300]


@pytest.mark.component
def test_the_study_trains_and_evaluates_on_the_problems_it_always_had():
    study = load("study", ["experiment=paper_small"])
    training = load("training", ["model.path=x", *study.training]).data
    assert _digest(load_train(training, _numbers_only)) == (20_000, "da3efdfe6c1a8ba4")
    assert _digest(load_eval(training, _numbers_only)) == (500, "a70cfb1aeeb96648")
    evaluation = load("evaluation", ["model.path=x", *study.evaluation]).data
    assert load_evaluated(evaluation, _numbers_only) == load_eval(training, _numbers_only)


@pytest.mark.parametrize("task_seed", [0, 1, 2])
@pytest.mark.parametrize(
    ("options", "num_train", "num_held_out"), [(DEMO, 1000, 400), (DEMO, 50, 300), (SMALL, 1000, 60)]
)
def test_train_and_held_out_problems_are_disjoint(
    options: dict[str, int], num_train: int, num_held_out: int, task_seed: int
):
    config = _task(options, num_train=num_train, num_held_out=num_held_out, task_seed=task_seed)
    train, held_out = load_train(config, _numbers_only), load_evaluated(config, _numbers_only)
    assert load_eval(config, _numbers_only) == held_out
    assert not {p.question for p in train} & {p.question for p in held_out}
    assert not {p.id for p in train} & {p.id for p in held_out}
    for problems in (train, held_out):
        assert len({p.question for p in problems}) == len({p.id for p in problems}) == len(problems)


def test_a_large_task_gives_as_many_problems_as_asked_for_and_a_small_one_fewer():
    large = _task(DEMO, num_train=300, num_held_out=200)
    assert (len(load_train(large, _numbers_only)), len(load_eval(large, _numbers_only))) == (300, 200)
    small = _task(SMALL, num_train=1000, num_held_out=60)
    assert len(load_eval(small, _numbers_only)) == 60
    assert 60 < len(load_train(small, _numbers_only)) < 1000


def test_how_many_problems_are_evaluated_changes_none_of_them():
    config = _task(SMALL, num_train=1000, num_held_out=60)
    fewer = _task(SMALL, num_train=1000, num_held_out=60, num_eval=7, limit=9)
    assert load_train(fewer, _numbers_only) == load_train(config, _numbers_only)
    held_out = load_evaluated(config, _numbers_only)
    assert load_eval(fewer, _numbers_only) == held_out[:7]
    assert load_evaluated(fewer, _numbers_only) == held_out[:9]


def test_more_generated_problems_than_are_held_out_are_refused():
    with pytest.raises(ValueError, match=r"data\.limit is 9, but only data\.num_held_out = 8 problems"):
        _task(DEMO, num_held_out=8, limit=9).check_evaluation()
    with pytest.raises(ValueError, match=r"data\.num_eval is 9, but only data\.num_held_out = 8 problems"):
        _task(DEMO, num_held_out=8, num_eval=9).check_training()


def test_generated_problems_depend_on_the_task_seed_alone():
    config = _task(DEMO, num_train=100, num_held_out=100)
    other = _task(DEMO, num_train=100, num_held_out=100, task_seed=1)
    assert load_train(config, _numbers_only) == load_train(config, _numbers_only)
    shared = {p.question for p in load_train(config, _numbers_only)} & {
        p.question for p in load_train(other, _numbers_only)
    }
    assert len(shared) < 5


def test_generated_answers_are_right_and_name_their_source():
    problem = load_train(_task(DEMO, num_train=20, num_held_out=20), _numbers_only)[0]
    terms = problem.question.removeprefix("State the final answer to the following arithmetic problem:")
    assert eval(terms.strip().removesuffix("=")) == int(problem.answer)
    assert problem.source == "chain_sum"


def test_the_names_of_fields_do_not_matter_to_generated_problems():
    usual = _task(DEMO, num_train=20, num_held_out=20)
    renamed = _task(DEMO, num_train=20, num_held_out=20, question_field="problem", answer_field="gold")
    assert load_train(usual, _numbers_only) == load_train(renamed, _numbers_only)


def test_a_task_that_is_all_held_out_says_what_to_lower():
    with pytest.raises(ValueError, match=r"data\.num_held_out = 500 holds out every problem.*Lower"):
        load_train(_task(SMALL, num_train=10, num_held_out=500), _numbers_only)


def test_an_unknown_task_or_option_is_refused_by_name():
    for config in (
        DataConfig(source="reasoning_gym", task="no_such_task"),
        _task({"no_such_option": 1}),
        _task({"min_terms": 5, "max_terms": 4}),
    ):
        with pytest.raises(ValueError, match=r"data\.task"):
            load_train(config, _numbers_only)


def test_jsonl_rows_become_problems_in_their_order(tmp_path: Path):
    config = _write(
        tmp_path / "a.jsonl",
        _row(1, source="s"),
        "",
        {"question": " 2 + 0 = ", "answer": 2},
        _row(3, id=None, source=None),
    )
    first, second, third = load_train(config, _numbers_only)
    assert (first.id, first.question, first.answer, first.source) == ("r1", "1 + 0 =", "1", "s")
    assert (second.id, second.question, second.answer, second.source) == ("a-1", "2 + 0 =", "2", "")
    assert (third.id, third.source) == ("a-2", "")


def test_renamed_fields_are_read(tmp_path: Path):
    config = _write(tmp_path / "a.jsonl", {"problem": "q", "gold": 1})
    config.question_field, config.answer_field = "problem", "gold"
    assert load_train(config, _numbers_only)[0].question == "q"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('{"question": ', r"a\.jsonl line 2: It is not JSON"),
        ("[1, 2]", r"a\.jsonl line 2: It must be a JSON object, got list"),
        ("[" * 100_000, r"a\.jsonl line 2: It is not usable JSON: it is nested too deeply"),
        ({"question": "q"}, r"a\.jsonl line 2: It has no field 'answer', as the first row has"),
        ({"answer": "1"}, r"a\.jsonl line 2: It has no field 'question', as the first row has"),
        (_row(2, question="\ud83d"), r"line 2: Its field 'question' holds half a surrogate pair \(.ud83d at"),
        (_row(2, answer="1\udc00"), r"line 2: Its field 'answer' holds half .* \(.udc00 at character 2\)"),
        (_row(2, id="\ud83d"), r"line 2: Its field 'id' holds half a surrogate pair"),
        (_row(2, question=5), r"line 2: Its field 'question' must be text, got int: 5\."),
        (_row(2, question=["q"]), r"line 2: Its field 'question' is a list, but not a chat"),
        (
            _row(2, answer={"ground_truth": "2"}),
            r"'answer' must be text or a number, got dict: \{'ground_truth'",
        ),
        (_row(2, answer=True), r"line 2: Its field 'answer' must be text or a number, got bool: True"),
        (_row(2, answer=float("inf")), r"line 2: Its field 'answer' is the number inf; it must be finite"),
        (_row(2, id=["r2"]), r"line 2: Its field 'id' must be text or a number, got list"),
        (_row(2, source={"name": "s"}), r"line 2: Its field 'source' must be text or a number, got dict"),
        (_row(2, id="r1"), r"a\.jsonl line 2: the id 'r1' occurs twice"),
        (_row(2, answer="x"), r"line 2: the gold answer 'x' \(field 'answer'\).*not a number.*on_bad_gold"),
    ],
)
def test_a_row_that_cannot_be_used_is_refused_with_file_line_and_field(
    tmp_path: Path, row: dict[str, Any] | str, message: str
):
    config = _write(tmp_path / "a.jsonl", _row(1), row)
    with pytest.raises(ValueError, match=message):
        load_train(config, _numbers_only)


@pytest.mark.parametrize("value", [None, float("nan"), "", "  ", "nan", "NaN", "None", "NaT", "<NA>"])
def test_a_missing_value_of_any_kind_is_no_question_and_no_gold(tmp_path: Path, value: Any):
    def anything(gold: str, columns: object) -> None:
        return None

    config = _write(tmp_path / "q.jsonl", _row(1), _row(2, question=value))
    with pytest.raises(ValueError, match=r"line 2: Its field 'question' is a missing value"):
        load_train(config, anything)
    config = _write(tmp_path / "a.jsonl", _row(1), _row(2, answer=value))
    with pytest.raises(ValueError, match=r"line 2: the gold answer .*\(it is a missing value"):
        load_train(config, anything)
    config.on_bad_gold = "drop"
    assert [problem.id for problem in load_train(config, anything)] == ["r1"]
    config = _write(tmp_path / "i.jsonl", _row(1, id=value, source=value))
    assert load_train(config, anything) == [Problem(id="i-0", question="1 + 0 =", answer="1", source="")]


def test_missing_values_of_pandas_and_numpy_are_missing_and_their_numbers_are_numbers(tmp_path: Path):
    pandas = pytest.importorskip("pandas")
    config = _write(tmp_path / "a.jsonl")
    for value in (pandas.NA, pandas.NaT, np.float64("nan"), np.float32("nan")):
        with pytest.raises(ValueError, match=r"problem 0: the gold answer .* is a missing value"):
            load_rows([_row(1, answer=value)], config, _numbers_only)
    (problem,) = load_rows([_row(1, answer=np.int64(7), id=np.int64(3))], config, _numbers_only)
    assert (problem.answer, problem.id) == ("7", "3")


def test_missing_values_and_structures_of_parquet_are_refused_by_row_and_field(tmp_path: Path):
    chat = [{"role": "user", "content": "1 + 0 ="}] * 2
    for name, row, message in (
        ("nan", _row(1, answer=float("nan")), r"row 0: the gold answer nan .*missing value"),
        ("none", _row(1, answer=None), r"row 0: the gold answer None .*missing value"),
        (
            "chat",
            _row(1, question=chat),
            r"row 0: Its field 'question' must be a chat of one turn of the user",
        ),
        (
            "dict",
            _row(1, answer={"ground_truth": "1"}),
            r"row 0: Its field 'answer' must be text or a number",
        ),
    ):
        Dataset.from_list([row]).save_to_disk(tmp_path / name)
        with pytest.raises(ValueError, match=message):
            load_train(DataConfig(source="hf", name=str(tmp_path / name)), _numbers_only)


def test_a_gold_spelled_like_a_missing_value_can_be_kept(tmp_path: Path):
    config = _write(tmp_path / "a.jsonl", _row(1, answer="None"))
    with pytest.raises(ValueError, match=r"if it is the answer, write .text\{None\}"):
        load_train(config, lambda gold, columns: None)
    config = _write(tmp_path / "a.jsonl", _row(1, answer=r"\text{None}"))
    assert load_train(config, lambda gold, columns: None)[0].answer == r"\text{None}"


def test_a_number_is_read_as_its_decimal_digits(tmp_path: Path):
    written = ["7", "-0.5", "1e-7", "12345678901234567890", "3.0"]
    rows = [f'{{"question": "q", "answer": {number}}}' for number in written]
    problems = load_train(_write(tmp_path / "a.jsonl", *rows), lambda gold, columns: None)
    assert [p.answer for p in problems] == ["7", "-0.5", "0.0000001", "12345678901234567890", "3.0"]


def test_a_byte_order_mark_and_windows_line_ends_are_no_part_of_the_data(tmp_path: Path):
    rows = [json.dumps(_row(i)) for i in range(3)]
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join([*rows, "", ""]).encode())
    config = DataConfig(path=str(path))
    assert load_train(config, _numbers_only) == load_rows([_row(i) for i in range(3)], config, _numbers_only)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lzma.compress(b"{}"), r"is xz; decompress"),
        (bz2.compress(b"{}"), r"is bzip2; decompress"),
        (json.dumps(_row(1)).encode("utf-16"), r"is UTF-16; convert it to UTF-8"),
        (json.dumps(_row(1)).encode("utf-16-le"), r"is UTF-16 or binary, since it holds zero bytes"),
    ],
    ids=["xz", "bzip2", "utf-16", "utf-16-le"],
)
def test_a_file_of_another_format_is_refused_in_one_sentence(tmp_path: Path, content: bytes, message: str):
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"a\.jsonl must hold JSON lines .*but {message}") as caught:
        load_train(DataConfig(path=str(path)), _numbers_only)
    assert "\n" not in str(caught.value)


def test_many_doubtful_golds_are_warned_of_by_number(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    def check(gold: str, columns: object) -> str | None:
        return f"{gold} is odd" if int(gold) % 2 else None

    half = _write(tmp_path / "a.jsonl", *(_row(i) for i in range(10)))
    few = _write(tmp_path / "b.jsonl", *(_row(2 * i) for i in range(9)), _row(99))
    with caplog.at_level(logging.WARNING):
        load_train(few, check)
        assert not caplog.records
        load_train(half, check)
    assert "5 of 10 gold answers (50.0%, limit 10%) are doubtful" in caplog.text
    assert "a.jsonl line 2: 1 is odd" in caplog.text


def test_a_line_that_is_not_utf8_is_refused_with_its_number(tmp_path: Path):
    config = _write(tmp_path / "a.jsonl", _row(1))
    with Path(str(config.path)).open("ab") as data:
        data.write(b'{"question": "\xff", "answer": "1"}\n')
    with pytest.raises(ValueError, match=r"a\.jsonl line 2: It is not UTF-8: .* byte 0xff"):
        load_train(config, _numbers_only)


def test_a_file_that_does_not_exist_is_named(tmp_path: Path):
    config = DataConfig(source="file", path=str(tmp_path / "none.jsonl"))
    with pytest.raises(FileNotFoundError, match=r"none\.jsonl does not exist; set data\.path"):
        load_train(config, _numbers_only)


@pytest.mark.parametrize("rows", [[], ["", "  "]])
def test_an_empty_file_is_refused(tmp_path: Path, rows: list[str]):
    with pytest.raises(ValueError, match=r"a\.jsonl contains no problem"):
        load_train(_write(tmp_path / "a.jsonl", *rows), _numbers_only)


def test_bad_gold_is_dropped_with_a_count_when_asked(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    config = _write(tmp_path / "a.jsonl", _row(1), _row(2, answer="x"), _row(3, answer=" "), _row(4))
    config.on_bad_gold = "drop"
    with caplog.at_level(logging.WARNING):
        problems = load_train(config, _numbers_only)
    assert [p.id for p in problems] == ["r1", "r4"]
    assert "dropped 2 problems of 4 (50.0%)" in caplog.text
    assert "the first: " in caplog.text and "line 2: the gold answer 'x'" in caplog.text
    assert "so many bad golds are seldom single mistakes" in caplog.text


def test_a_set_of_bad_gold_only_is_refused_even_when_dropping(tmp_path: Path):
    config = _write(tmp_path / "a.jsonl", _row(1, answer="x"))
    config.on_bad_gold = "drop"
    with pytest.raises(ValueError, match="contains no problem"):
        load_train(config, _numbers_only)


def test_rows_in_memory_are_read_as_those_of_a_file(tmp_path: Path):
    rows = [_row(1, source="s"), {"question": " 2 + 0 = ", "answer": 2}]
    config = _write(tmp_path / "problems.jsonl", *rows)
    assert load_rows(rows, config, _numbers_only) == load_train(config, _numbers_only)
    with pytest.raises(ValueError, match="problem 1: It has no field 'question'"):
        load_rows([rows[0], {"answer": "7"}], config, _numbers_only)


def test_held_out_jsonl_is_cut_to_num_eval_and_none_without_a_path(tmp_path: Path):
    config = _write(tmp_path / "a.jsonl", *(_row(i) for i in range(9)))
    assert load_eval(config, _numbers_only) == []
    config.eval_path, config.num_eval = config.path, 4
    assert [p.id for p in load_eval(config, _numbers_only)] == ["r0", "r1", "r2", "r3"]


def test_an_evaluation_takes_a_whole_file_or_its_first_problems(tmp_path: Path):
    config = _write(tmp_path / "a.jsonl", *(_row(i) for i in range(600)))
    assert len(load_evaluated(config, _numbers_only)) == 600
    config.limit = 2
    assert [p.id for p in load_evaluated(config, _numbers_only)] == ["r0", "r1"]


def test_a_local_data_set_folder_is_read_by_split(tmp_path: Path):
    train, held_out = [_row(i) for i in range(3)], [_row(i) for i in range(10, 12)]
    folder = tmp_path / "set"
    DatasetDict({"train": Dataset.from_list(train), "test": Dataset.from_list(held_out)}).save_to_disk(folder)
    config = DataConfig(source="hf", name=str(folder), eval_split="test")
    assert [p.id for p in load_train(config, _numbers_only)] == ["r0", "r1", "r2"]
    assert [p.id for p in load_eval(config, _numbers_only)] == ["r10", "r11"]
    config.split = "dev"
    with pytest.raises(ValueError, match=r"no split 'dev'; it has \['test', 'train'\]"):
        load_train(config, _numbers_only)


def test_a_folder_without_splits_is_never_its_own_held_out_set(tmp_path: Path):
    folder = tmp_path / "set"
    Dataset.from_list([_row(1), _row(2)]).save_to_disk(folder)
    config = DataConfig(source="hf", name=str(folder), eval_split="test")
    assert len(load_train(config, _numbers_only)) == 2
    with pytest.raises(ValueError, match=r"no split 'test'; it has \['train'\]"):
        load_eval(config, _numbers_only)


def test_a_bad_row_of_a_data_set_is_named(tmp_path: Path):
    Dataset.from_list([_row(1), _row(2, answer="x")]).save_to_disk(tmp_path / "set")
    config = DataConfig(source="hf", name=str(tmp_path / "set"))
    with pytest.raises(ValueError, match=r"set\[train\] row 1: the gold answer 'x'"):
        load_train(config, _numbers_only)


def test_empty_answers_in_a_public_set_are_noticed(caplog: pytest.LogCaptureFixture):
    path = SHARED_DATA / "math_train_12k.jsonl"
    if not path.exists():
        pytest.skip(f"{path} is not here")
    config = DataConfig(source="file", path=str(path))

    def anything(gold: str, columns: object) -> None:
        return None

    with pytest.raises(ValueError, match=r"math_train_12k\.jsonl line \d+: the gold answer ''"):
        load_train(config, anything)
    config.on_bad_gold = "drop"
    with caplog.at_level(logging.WARNING):
        assert len(load_train(config, anything)) == 12_000 - 2
    assert "dropped 2 problems" in caplog.text
