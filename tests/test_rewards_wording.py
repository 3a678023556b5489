"""Words, letters, sequences, times and names: what is text is compared in order, and not multiplied."""

import itertools

import pytest

from rewards.answers.equivalence import equivalent
from rewards.answers.shapes import UnreadableError
from rewards.answers.symbolic import SymPyAlgebra

LETTERS = [
    ("XI", "IX"),
    ("HTH", "THH"),
    ("RRU", "URR"),
    ("cat", "act"),
    (r"\text{saw}", r"\text{was}"),
    ("SW", "WS"),
    ("NNE", "ENN"),
    ("Bob", "obB"),
    ("A B C D", "D C B A"),
    ("MM", "M^2"),
    ("12AB", "AB12"),
    ("3a", "a3"),
    ("a1b2", "b2a1"),
    ("H_2O", "OH_2"),
    ("abc", "cab"),
    ("xy", "yx"),
    ("-1", "ii"),
    ("cat dog", "dog cat"),
    ("Nf3", "f3N"),
    ("e4 e5", "e5 e4"),
    ("U R U'", "R U U'"),
    ("NaCl", "nacl"),
    ("r R", "R r"),
]
ORDER = [
    ("A-B-C", "A-C-B"),
    ("1-2-3", "1-3-2"),
    ("10-5", "5"),
    ("3/4/2020", "6/8/2020"),
    ("3/4/2020", "3/4/2021"),
    ("2024-01-02", "2024-02-01"),
    ("1.2.3", "1.3.2"),
    ("1 0 1 2", "1 1 0 2"),
    ("red, green, blue", "red, blue, green"),
    ("may, or, free", "may, free"),
    ("a=1,b=2", "2,1"),
    ("a=1,b=2", "a=2,b=1"),
    (r"B \to A \to C", r"A \to B \to C"),
    ("[52.2, 30.0, 14.0]", "[30.0, 52.2, 14.0]"),
    ("['14', '-48.986', '30.3']", "['-48.986', '14', '30.3']"),
]
NOTATION = [
    ("12:30", "6:15"),
    ("10:30", "20:60"),
    ("00:34:28", "00:28:34"),
    ("06:09", "2:3"),
    ("3:1", "1:3"),
    ("(1 2 3)", "(1 3 2)"),
    ("(1 2)(3 4)", "(1 3)(2 4)"),
    ("(12)(34)", "408"),
    (r"\{\}", r"\{\emptyset\}"),
    (r"x \ne 0", r"(0,\infty)"),
    ("x+C", "x+y"),
    ("f(x)=x^2", "f(t)=x^2"),
    (r"10\sqrt{3}", r"10\sqrt{3} x"),
    (r"10\sqrt{3}\text{ cm}", r"10\sqrt{3}\text{ m}"),
    ("160", "160 xy"),
    ("160 GB", "160 MB"),
    (r"5 \euro", r"5 \pounds"),
    ("1/3", "0.33333333333333"),
    ("1/3", "0.333333333333335"),
    ("42", "41.99999999999999"),
    ("1/2", "0.500000000000001"),
    ("5", "fifty"),
    ("21", "twenty twenty"),
]
SAME = [
    ("HTH", r"\text{HTH}"),
    ("A B C D", "ABCD"),
    (r"\text{abc}", r"\text{ABC}"),
    ("SW", "sw"),
    ("H_2O", r"\mathrm{H}_{2}\mathrm{O}"),
    ("H_2O", "H2O"),
    ("1a3f", "1A3F"),
    ("2xy", r"2 \cdot x \cdot y"),
    ("3x", r"\frac{6x}{2}"),
    (r"x^2 + xy", "yx + x^2"),
    ("z = xy", "z = yx"),
    ("A-B-C", "A-B-C"),
    ("a-b-c", "-c+a-b"),
    ("3/4/2020", "03/04/2020"),
    ("00:34:28", "0:34:28"),
    ("12:30", "12{:}30"),
    ("12:30", r"12\!:\!30"),
    ("3:2", r"3 \mathbin{:} 2"),
    ("3:2", "{6}:{4}"),
    ("(1 2 3)", "(2 3 1)"),
    ("(1 2)(3 4)", "(4 3)(1 2)"),
    ("red, green, blue", "Red, green and blue"),
    ("red and blue", "blue and red"),
    ("may, or, free", "may, or, free"),
    ("A, C, D", "D, A, C"),
    ("a=1,b=2", "b=2, a=1"),
    ("a=1,b=2", "1, 2"),
    ("x_1=1, x_2=2", "2, 1"),
    (r"B \to A \to C", "B -> A -> C"),
    ("['14', '-48.986', '30.3']", "[14, -48.986, 30.30]"),
    (r"\emptyset", r"\{\}"),
    (r"\varnothing", r"\left\{ \right\}"),
    ("10", r"{5 \choose 2}"),
    ("f(x)=x^2", "f(t)=t^2"),
    ("x^2+C", "x^2+c"),
    (r"\mathbb R", r"(-\infty,\infty)"),
    (r"(-\infty,\infty)", r"\text{all real numbers}"),
    (r"(-\infty,0)\cup(0,\infty)", r"x\ne0"),
    (r"(-\infty,1)\cup(1,2)\cup(2,\infty)", r"\mathbb{R} \setminus \{2, 1\}"),
    (r"10\sqrt3", r"10\sqrt3\text{ m}"),
    ("1000", r"10^3\text{ m}"),
    ("160", "160 GB"),
    ("160 GB", "160 gigabytes"),
    ("20", r"20\text{ cups of feed}"),
    ("5", r"5 \euro"),
    ("5", "5\u20a9"),
    ("5", "\u20bf 5"),
    (r"5\text{ euros}", "\u20ac5"),
    ("1/12", "0.0833333333333333"),
    ("1/3", "0.333333333333333"),
    ("1/7", "0.14285714285714285"),
    ("5", "five"),
    ("321", "three hundred and twenty-one"),
]
ALGEBRA = SymPyAlgebra()


def accepted(gold: str, answer: str, ordered_lists: str = "auto") -> bool:
    try:
        return equivalent(gold=gold, answer=answer, algebra=ALGEBRA, ordered_lists=ordered_lists)
    except UnreadableError:
        return False


@pytest.mark.parametrize(("gold", "answer"), LETTERS)
def test_letters_are_not_multiplied_unless_the_gold_is_algebra(gold: str, answer: str) -> None:
    assert not accepted(gold, answer)
    assert accepted(gold, gold)


@pytest.mark.parametrize(("gold", "answer"), ORDER)
def test_what_has_an_order_is_compared_in_order(gold: str, answer: str) -> None:
    assert not accepted(gold, answer)
    assert accepted(gold, gold)


@pytest.mark.parametrize(("gold", "answer"), NOTATION)
def test_times_sets_units_and_decimals_that_differ_are_not_equivalent(gold: str, answer: str) -> None:
    assert not accepted(gold, answer)
    assert accepted(gold, gold)


@pytest.mark.parametrize(("gold", "answer"), SAME)
def test_other_spellings_are_equivalent(gold: str, answer: str) -> None:
    assert accepted(gold, answer)


@pytest.mark.parametrize("gold", ["HTTH", "1a2b", "A B C D", "tap, pat, apt, ate", "3-1-2-4", "9 1 2 5"])
def test_every_permutation_of_a_text_is_another_answer(gold: str) -> None:
    separator = ", " if "," in gold else " " if " " in gold else "-" if "-" in gold else ""
    parts = gold.split(separator) if separator else list(gold)
    for permuted in {separator.join(parts) for parts in itertools.permutations(parts)} - {gold}:
        assert not accepted(gold, permuted), permuted


def test_the_order_of_a_list_counts_as_the_option_says() -> None:
    assert accepted("1, 2", "2, 1")
    assert not accepted("1, 2", "2, 1", "true")
    assert accepted("red, blue", "blue, red", "false")
    assert not accepted("(1, 2)", "(2, 1)", "false")
