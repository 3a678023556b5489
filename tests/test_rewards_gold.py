"""Gold answers: what is refused when data is loaded, and with which words."""

import pytest
from conftest import SHARED_DATA

from configs.json_lines import parse_row, read_lines
from rewards import gold
from rewards.gold import check_gold, choice_letter, gold_answer, parse_gold, prose
from rewards.processes.pool import Pool
from rewards.scorer import Scorer


@pytest.mark.parametrize(
    "answer",
    [
        "42",
        "-3",
        "1,234",
        r"\frac{1}{2}",
        r"2\sqrt{3}",
        "(1, 2)",
        r"[0, \infty)",
        r"1 \pm \sqrt{19}",
        "x = 5",
        "4210_7",
        r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}",
        r"\text{Tuesday}",
        "C",
        r"50\%",
        "336^\\circ",
        "8:34 p.m.",
        "3:1",
        r"(-\infty, 2) \cup (3, \infty)",
        "y = 2x + 3",
        "7" * 5000,
        r"0.56 = 56\%",
        r"so \boxed{x^2+1}.",
        "2^{1000000}",
    ],
)
def test_answers_of_every_kind_are_accepted(answer: str) -> None:
    check_gold(answer)


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "  ",
        r"\frac{3}",
        "3+",
        r"\sqrt{x",
        r"\frac{0}{0}",
        "1/0",
        r"\boxed{}",
        r"\boxed{4",
        "{}",
        r"\tan(\frac{\pi}{2})",
    ],
)
def test_what_is_no_value_is_refused_with_a_sentence(answer: str) -> None:
    with pytest.raises(ValueError, match=r"^The gold answer .*\.?"):
        check_gold(answer)


@pytest.mark.component
def test_a_gold_whose_check_takes_too_long_is_refused_at_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = Pool(num_workers=1, limit_seconds=1e-9)
    monkeypatch.setattr(gold, "_pool", pool)
    with pytest.raises(ValueError, match=r"longer than 1e-09 s"):
        check_gold(r"\sin(x)+\cos(x)+1")
    pool.close()


@pytest.mark.component
def test_a_gold_of_any_size_is_checked_at_once() -> None:
    check_gold(r"\sin(10^{10^{10}})")


def test_a_gold_that_is_a_whole_solution_gives_its_box() -> None:
    assert gold_answer(r"First 3, so \boxed{14{,}916} is it.") == "14{,}916"
    assert parse_gold(r"\boxed{1}\boxed{2}").answer == "1 , 2"


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("C", "C"),
        (r"\text{(C)}", "C"),
        ("C Cecile", "C"),
        ("Alina and\n(C) Cecile", "C"),
        ("x", None),
        ("D = (0, 1)", None),
    ],
)
def test_multiple_choice_golds_are_recognised(answer: str, letter: str | None) -> None:
    assert choice_letter(answer) == letter


GSM8K = "Natalia sold 48/2 = <<48/2=24>>24 clips in May.\nIn all she sold 48+24 = 72!\n#### 1,072"


@pytest.mark.parametrize(
    ("solution", "answer"),
    [("work\n#### 3", "3"), (GSM8K, "1,072"), ("####-7 \n", "-7"), ("First \\boxed{4}.\n#### 5", "4")],
)
def test_the_last_line_of_a_gsm8k_solution_is_its_answer(solution: str, answer: str) -> None:
    assert gold_answer(solution) == answer
    check_gold(solution)
    with Scorer() as scorer:
        assert scorer.score_sync(gold=solution, completion=rf"\boxed{{{answer}}}").is_correct
        assert scorer.score_sync(gold=solution, completion=r"\boxed{8}").status == "wrong"


def test_a_last_line_without_an_answer_is_refused() -> None:
    with pytest.raises(ValueError, match="ends in `####` without an answer"):
        check_gold("work\n#### ")


@pytest.mark.parametrize(
    "text",
    [
        "work\n3",
        "So she sold 72 clips.\nThat is all: 72!",
        "The answer is that there are 5 apples in the bag of Tom",
        "#### Step 1\nAdd 2 and 3.\n#### Step 2\nIt is 5",
        "A bag holds 5 apples and Tom takes two of them, so 3 are left.",
    ],
)
def test_a_gold_of_prose_is_refused_with_a_hint(text: str) -> None:
    with pytest.raises(ValueError, match=r"it is prose.*in a .boxed\{\} or in a last line `#### answer`"):
        check_gold(text)


@pytest.mark.parametrize(
    "text",
    [
        "90\\text{ square\nunits}",
        "A Peter\nCelina bum",
        "\\begin{cases} x & \\text{if } x > 0 \\\\\n0 & \\text{otherwise} \\end{cases}",
        "\\text{Softball, Kickball, Picnic}",
        "The long way leads over many hills and rivers, so \\boxed{3}.",
    ],
)
def test_words_inside_formulas_choices_and_boxed_solutions_are_no_prose(text: str) -> None:
    assert prose(text) == ""


def test_a_gold_of_several_words_is_doubtful_and_a_value_is_not() -> None:
    assert "is 4 words" in (check_gold("She has 3 apples left.") or "")
    values = ("42", r"\text{Tuesday}", "x + y", "C Cecile and her friends", r"90\text{ square units}", GSM8K)
    assert [check_gold(value) for value in values] == [None] * len(values)


@pytest.mark.parametrize(
    "name", ["math500", "math_train_12k", "gsm8k_train", "dapo17k_clean", "verifier_cases"]
)
def test_no_gold_of_a_public_set_is_prose(name: str) -> None:
    path = SHARED_DATA / f"{name}.jsonl"
    if not path.exists():
        pytest.skip(f"{path} is not here")
    rows = [parse_row(line) for _, line in read_lines(path)]
    golds = {row.get("gold", row.get("answer")) for row in rows} - {""}
    assert len(golds) > 100 and [each for each in golds if prose(each)] == []
