"""Whole reasoning-gym families: right answers are accepted in any writing, permutations and near misses not.

The long form: python -m pytest tests/test_rewards_tasks.py -m slow
"""

import sys
from pathlib import Path

import pytest

from rewards.answers.equivalence import equivalent
from rewards.answers.symbolic import SymPyAlgebra
from rewards.gold import read_gold

sys.path.insert(0, str(Path(__file__).parent / "bench"))
from tasks import FAMILIES, PROBLEMS, cases_of, near_misses

ALGEBRA = SymPyAlgebra()


def check_family(family: str, problems: int) -> None:
    num_right, missed, rewarded = 0, [], []
    for case in cases_of(family, problems=problems):
        try:
            got = equivalent(gold=read_gold(case.gold).answer, answer=case.answer, algebra=ALGEBRA)
        except ValueError:  # unreadable
            got = False
        num_right += case.is_right
        if got != case.is_right:
            (missed if case.is_right else rewarded).append((case.gold, case.answer))
    assert num_right and not rewarded, rewarded[:5]
    assert len(missed) <= 0.005 * num_right, missed[:5]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_few_problems_of_a_family_are_judged_right(family: str) -> None:
    check_family(family, problems=2)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_all_problems_of_a_family_are_judged_right(family: str) -> None:
    check_family(family, problems=PROBLEMS)


def test_near_misses_contain_every_order_of_a_short_answer() -> None:
    import random

    found = set(near_misses("a, b, c", random.Random(0)))
    assert {"a, c, b", "b, a, c", "b, c, a", "c, a, b", "c, b, a"} <= found
    assert len(FAMILIES) >= 30
