"""Gold answers: what is refused when data is loaded, and with which words."""

import pytest

from rewards import gold
from rewards.gold import check_gold, choice_letter, gold_answer, parse_gold
from rewards.processes.pool import Pool


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
def test_a_gold_that_would_hang_the_algebra_is_refused_at_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = Pool(num_workers=1, limit_seconds=1.0)
    monkeypatch.setattr(gold, "_pool", pool)
    with pytest.raises(ValueError, match="longer than 1 s"):
        check_gold(r"\sin(10^{10^{10}})")
    pool.close()


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
