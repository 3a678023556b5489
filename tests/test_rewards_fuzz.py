"""Random strings: no exception, no hang, no reward by chance.

The long form: python -m pytest tests/test_rewards_fuzz.py -m slow
"""

import random

import pytest

from rewards.answers.algebra import squash
from rewards.answers.latex import normalise
from rewards.scorer import Scorer

GOLDS = [
    "42",
    r"\frac{1}{2}",
    "x^2+1",
    "(1,2)",
    r"\{1,2\}",
    r"\text{Tuesday}",
    "[0,1)",
    r"3\sqrt{2}",
    r"50\%",
    r"12 \text{ cm}",
    "x=3",
    "7:32",
    r"\begin{pmatrix}1\\2\end{pmatrix}",
    r"\pi",
    "123456",
]
PIECES = [
    *"+-*/^_{}()[]\\,.;:=<>|$%&~ 0123456789abcxyzEeiAC\n\t\0\u00e9\u4e2d\u0662\u00b2",
    "\ud800",
    r"\frac",
    r"\boxed{",
    r"\sqrt",
    r"\left(",
    r"\right)",
    r"\text{",
    r"\begin{pmatrix}",
    r"\end{pmatrix}",
    r"\pm",
    r"\cup",
    r"\infty",
    "<think>",
    "</think>",
    "answer is ",
    r"\in",
    r"\le",
    r"\sum",
    r"\int",
    "^{",
    "_{",
    r"\pi",
    "10^",
    "!",
    r"\sin",
    " or ",
    " and ",
    r"\%",
]


def random_text(generator: random.Random) -> str:
    length = generator.randint(0, 40)
    if generator.random() < 0.3:
        text = bytes(generator.randrange(256) for _ in range(length)).decode("latin1")
    else:
        text = "".join(generator.choice(PIECES) for _ in range(length))
    return rf"\boxed{{{text}}}" if generator.random() < 0.6 else text


def check_random_strings(count: int, seed: int) -> None:
    generator = random.Random(seed)
    with Scorer(limit_seconds=2.0, max_failure_share=1.0) as scorer:
        for _ in range(count):
            gold, completion = generator.choice(GOLDS), random_text(generator)
            verdict = scorer.score_sync(gold=gold, completion=completion)
            is_equal = squash(normalise(verdict.answer or "")) == squash(normalise(gold))
            assert not verdict.is_correct or is_equal, (gold, completion, verdict)
            assert verdict.status != "error", (gold, completion, verdict)
        assert sum(scorer.counts.values()) == count


@pytest.mark.component
def test_random_strings_are_never_rewarded_and_never_fail() -> None:
    check_random_strings(600, seed=0)


@pytest.mark.slow
def test_twenty_thousand_random_strings_are_never_rewarded_and_never_fail() -> None:
    check_random_strings(20_000, seed=1)


def test_long_random_strings_are_decided() -> None:
    generator = random.Random(2)
    with Scorer(limit_seconds=2.0, max_failure_share=1.0) as scorer:
        for _ in range(4):
            text = "".join(generator.choice(PIECES) for _ in range(30_000))
            assert not scorer.score_sync(gold="123456", completion=rf"\boxed{{{text}}}").is_correct
            assert not scorer.score_sync(gold="123456", completion=text).is_correct
