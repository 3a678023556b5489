"""The table of docs/rewards.md, row by row: what counts as the same answer and what does not."""

import contextlib

import pytest

from rewards.answers.algebra import NeedsAlgebraError, NoAlgebra
from rewards.answers.equivalence import equivalent
from rewards.answers.shapes import UnreadableError
from rewards.answers.symbolic import SymPyAlgebra

SAME = [
    # numbers
    ("42", "042"),
    ("42", "+42"),
    ("42", "42."),
    ("42", "42.0"),
    ("1,234", "1234"),
    ("1000", "1 000"),
    ("11111", r"11,\! 111"),
    ("14916", "14{,}916"),
    ("1000.99", "1000,99"),
    ("0.185", ".185"),
    ("1000", r"1 \times 10^3"),
    ("1000", "10^3"),
    ("2^{64}", "18446744073709551616"),
    ("42", r"6 \cdot 7"),
    ("7" * 5000, "7" * 5000),
    ("-42", "\u221242"),
    ("42", "\u0664\u0662"),
    (r"\frac{1}{2}", "\u00bd"),
    # fractions, mixed numbers, repeating decimals
    (r"\frac{1}{2}", "0.5"),
    (r"\frac{1}{2}", r"\frac12"),
    (r"\frac{1}{2}", r"\dfrac{1}2"),
    ("-10/9", r"-\frac{10}{9}"),
    (r"2\frac{1}{2}", "5/2"),
    ("1.5", "1 1/2"),
    ("918.5", r"918\frac{1}{2}"),
    ("1/3", r"0.\overline{3}"),
    # percent, units, degrees, money, bases, times, ratios
    (r"50\%", "50%"),
    (r"50\%", "50"),
    ("50", r"50\%"),
    (r"50\%", "0.5"),
    ("0.5", r"50\%"),
    (r"28\%", "28 percent"),
    ("12", r"12 \text{ cm}"),
    (r"12 \text{ cm}", "12"),
    ("12", "12 apples"),
    ("10", "10m"),
    ("25 ft", "25 feet"),
    (r"864 \mbox{ inches}^2", r"864 \text{ square inches}"),
    (r"336^\circ", "336"),
    (r"30^\circ", r"\frac{\pi}{6}"),
    ("18", r"\$18"),
    (r"\$32,\!348", "32348"),
    ("4210_{7}", "4210_7"),
    ("0.0011_{2}", "0.00110_2"),
    ("24_{10}", "24"),
    (r"\sqrt{51}", r"\sqrt51"),
    ("2:30", r"2:30 \text{ p.m.}"),
    ("7:32", "14:64"),
    ("7:32", r"\frac{7}{32}"),
    ("3 hours", r"3\text{ hrs}"),
    (r"20\pi\text{ cm}^2", r"20\pi"),
    (r"2\sqrt{3}", r"2\sqrt{3}\text{ cm}"),
    (r"164 \pi \mbox{ square feet}", r"164\pi \text{ ft}^2"),
    (r"60\text{ mph}", r"60\text{ miles per hour}"),
    (r"\$12", r"12\text{ dollars}"),
    (r"-\$0.50", "-0.5"),
    (r"\$\dfrac23", r"\frac{2}{3}"),
    (r"\$20", r"\$20 \text{ per hour}"),
    ("5000000", r"5\text{ million}"),
    (r"\$1.5\text{ million}", r"\$1{,}500{,}000"),
    # long gold decimals may be rounded; exact answers may then be given
    ("0.8660254037844386", r"\frac{\sqrt{3}}{2}"),
    ("0.6666667", "2/3"),
    # expressions
    ("x^2+2x+1", "(x+1)^2"),
    (r"\frac{1}{\cos x}", r"\sec x"),
    (r"\sqrt{8}", r"2\sqrt2"),
    ("6-5i", "-5i+6"),
    (r"\sqrt{5+2\sqrt{6}}", r"\sqrt{2}+\sqrt{3}"),
    (r"\sin^2 x", r"1-\cos^2 x"),
    ("-1", r"e^{i\pi}"),
    (r"\cos(x)", r"\sin(90^{\circ}-x)"),
    ("2^{1000000}", "4^{500000}"),
    ("2", r"2^{100} \bmod 7"),
    (r"(x+1)^{30}", r"\sum_{k=0}^{30}\binom{30}{k}x^k"),
    # names, equations, chains
    ("5", "x=5"),
    ("5", "5=x"),
    (r"\infty", r"+\infty"),
    ("x=5", "5"),
    ("y=2x+3", "f(x) = 2x+3"),
    ("y=2x+3", "2x-y+3=0"),
    ("2/3", r"\frac{4}{6} = \frac{2}{3}"),
    ("34x+45y-20z+100=0", "-34x-45y+20z-100=0"),
    (r"\sqrt{2}", r"\sqrt{2} \approx 1.414"),
    ("1", "|AB|=1"),
    # lists, sets, tuples, plus-minus
    ("1,2", "2,1"),
    ("1,2,3", r"\{3,2,1\}"),
    (r"\{1,2\}", r"\{2,1\}"),
    ("1, 2", r"1 \text{ and } 2"),
    ("{x-1,x}", "{x,x-1}"),
    (r"1 \pm \sqrt{19}", r"1+\sqrt{19}, 1-\sqrt{19}"),
    (r"\pm 2021", r"\{-2021, 2021\}"),
    ("(p,q)=(3,2)", "(3,2)"),
    ("p=5,q=2;p=7,q=2", "(5,2),(7,2)"),
    ("1, 2", "x=1, y=2"),
    ("100,200", "200, 100"),
    ("(1,2)", "1,2"),
    # intervals and inequalities
    ("[1/2, \\infty)", r"x \in [0.5, \infty)"),
    ("x < 1", "-x > -1"),
    (r"x \le 5", r"5 \ge x"),
    ("(1,2)", "1<x<2"),
    (r"-2 \le x \le 7", "[-2,7]"),
    (r"(-\infty,2)\cup(3,\infty)", r"x<2 \text{ or } x>3"),
    ("2\u2264x", r"[2,\infty)"),
    # matrices and vectors
    (r"\begin{pmatrix}1&0.5\\3&4\end{pmatrix}", r"\begin{bmatrix}1&\frac12\\3&4\end{bmatrix}"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", "(1,2)"),
    # words and choices
    (r"\text{Tuesday}", "tuesday"),
    (r"\text{Yes}", "yes"),
    (r"\angle ABC", r"\angle CBA"),
    (r"\{6, 8, 10\}", r"{6, 8\text{, and }10}"),
    ("C", r"\text{(C)}"),
    ("C Cecile", "C"),
    ("C", "(C) 42"),
    ("E", r"\mathrm{E}"),
]

DIFFERENT = [
    ("42", "43"),
    ("42", "41.99999999"),
    ("1234", "1.234"),
    ("42", "4 2"),
    ("42", "%42"),
    ("42", "\u2074\u00b2"),
    ("12345678901234567890", "12345678901234567891"),
    ("2^{64}", "18446744073709551615"),
    ("2^{-99}", "2^{-98}"),
    ("2^{1000}", "2^{1000}+1"),
    ("0", "10^{-400}"),
    (r"[2^{\frac{1}{2^{1000}}},\infty)", r"[1,\infty)"),
    ("1/3", "0.33"),
    ("1/7", "0.142857"),
    (r"\pi", "3.14159265"),
    ("0.066793", "0.067"),
    (r"\frac{355}{113}", r"\pi"),
    (r"2\frac{1}{2}", "1"),
    ("0.5", "50"),
    ("50", "0.5"),
    (r"50\%", r"0.5\%"),
    ("12 cm", "12 m"),
    ("10", "10x"),
    ("42", "42a"),
    ("42", "42n"),
    ("5", "5k"),
    (r"\$12", r"12\text{ cents}"),
    (r"20\text{ cents}", r"\$20"),
    ("5", r"5\text{ million}"),
    ("1", "1 -- comment"),
    ("1", "1 // comment"),
    ("5", "5 - apples"),
    (r"2\sqrt{3}\text{ cm}", r"2\sqrt{3}\text{ mm}"),
    (r"12\text{ cm}^2", r"12\text{ cm}^3"),
    (r"\angle ABC", r"\angle ACB"),
    (r"\overrightarrow{AB}", r"\overrightarrow{BA}"),
    ("(1,2,3)", "[1,2,3)"),
    ("x^2", "x^2+10^{-90}"),
    ("2x", "2"),
    ("4210_7", "4210_8"),
    (r"2\sqrt5", r"2\sqrt51"),
    ("4210", "4210_7"),
    ("4210_7", "4210"),
    ("1477", "4210_7"),
    ("4210_7", "1477"),
    ("3/16", "0.0011_2"),
    ("5", "5_6"),
    ("3:1", "1:3"),
    ("9 a.m.", "9 p.m."),
    (r"1-\frac{1}{\mathrm{e}}", r"1+\frac{1}{\mathrm{e}}"),
    ("f(x)", "f(y)"),
    (r"\sqrt{x^2}", "x"),
    ("x", "X"),
    ("42", "42 = 43"),
    ("41", "41 = 42"),
    ("42", r"42 \approx 43"),
    ("1", "2x + z = 1"),
    ("2x + z = 1", "1"),
    (r"\cos(x)=\frac{42}{59}", r"\sin(x)=\frac{42}{59}"),
    ("x=3", "y=3"),
    ("5050", r"\sum_{k=1}^{100} k"),
    ("42", "41, 42"),
    ("42", r"41 \text{ or } 42"),
    ("42", r"\{42, 43\}"),
    ("42", r"\pm 42"),
    ("42", "42/43"),
    ("42", r"0 \le n \le 999"),
    ("42", r"x \in \mathbb{Z}"),
    ("42", "n"),
    ("1,2,3", "1,2,3,4"),
    ("1,2,3", "1,2"),
    ("(1,2)", r"\{1,2\}"),
    ("(1,2)", "(2,1)"),
    ("(1,2)", "2,1"),
    (r"\{1,2\}", "(1,2)"),
    ("(0,9)", "[0,9)"),
    ("x > 5", "x < 5"),
    (r"x \le 5", "x < 5"),
    (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\begin{pmatrix}1&3\\2&4\end{pmatrix}"),
    ("C", "D"),
    ("2", "2_{1160}"),
    ("42", "42_{x}"),
    ("16", r"7 \ldots 9"),
    ("115,000", "115,0b"),
    ("1", r"\frac{x^2}{16,} = 1"),
    (r"\text{oddd}", "odd"),
    ("0", r"\text{False}"),
    ("17", r"\text{not } 17"),
    ("17", r"17 \text{ is wrong}"),
    (r"\infty", "10^{400}"),
    ("42", r"-\infty"),
]

ALGEBRA = SymPyAlgebra()


@pytest.mark.parametrize(("gold", "answer"), SAME)
def test_answers_that_mean_the_same_are_equivalent(gold: str, answer: str) -> None:
    assert equivalent(gold=gold, answer=answer, algebra=ALGEBRA)


@pytest.mark.parametrize(("gold", "answer"), DIFFERENT)
def test_answers_that_differ_are_not_equivalent(gold: str, answer: str) -> None:
    # Refused as unreadable is not rewarded either.
    with contextlib.suppress(UnreadableError):
        assert not equivalent(gold=gold, answer=answer, algebra=ALGEBRA)


@pytest.mark.parametrize("gold", sorted({gold for gold, _ in SAME}))
def test_every_gold_is_equivalent_to_itself(gold: str) -> None:
    assert equivalent(gold=gold, answer=gold, algebra=NoAlgebra())


def test_gold_and_answer_cannot_be_swapped_by_position() -> None:
    with pytest.raises(TypeError):
        equivalent("1", "2", ALGEBRA)  # type: ignore[misc]


def test_algebra_is_asked_only_where_text_and_fractions_do_not_decide() -> None:
    assert not equivalent(gold="(1, 2)", answer="(1, 5/2)", algebra=NoAlgebra())
    with pytest.raises(NeedsAlgebraError):
        equivalent(gold=r"\sqrt{8}", answer=r"2\sqrt{2}", algebra=NoAlgebra())


@pytest.mark.parametrize("answer", ["", "{}", r"\,", r"\text{}", r"\frac{0}{0}", "1/0", "$$", "("])
def test_an_answer_without_content_is_unreadable(answer: str) -> None:
    with pytest.raises(UnreadableError):
        equivalent(gold="42", answer=answer, algebra=ALGEBRA)


@pytest.mark.parametrize(
    "answer",
    [
        "(" * 20_000 + "7" + ")" * 20_000,
        ",".join("7" * 50_000),
        "-" * 1000 + "7",
        "{" * 20_000,
        "(7.)," * 9000,
        "7" * 50_000 + "x",
        "\u00bd" * 50_000,
        "7 " * 25_000,
    ],
)
def test_long_and_deep_answers_are_decided_without_algebra(answer: str) -> None:
    with contextlib.suppress(UnreadableError):
        equivalent(gold="7", answer=answer, algebra=NoAlgebra())
