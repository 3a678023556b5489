"""Statistics of one problem or rollout, against enumeration and their laws."""

import random
from fractions import Fraction
from itertools import combinations, permutations
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollout.evaluation.measures import (
    Ballot,
    flips,
    follows_majority,
    given_right_drafts,
    maj_at_k,
    mean_or_none,
    pass_at_k,
    powers_of_two,
    shares,
    vote,
    windows,
)

BALLOTS = st.lists(
    st.tuples(st.one_of(st.none(), st.integers(0, 4)), st.booleans()), min_size=1, max_size=9
).map(lambda pairs: [Ballot(choice=c, right=c is not None and c % 2 == 0) for c, _ in pairs])
MARKS = st.lists(st.booleans(), min_size=1, max_size=6)


@pytest.mark.parametrize("num", range(1, 9))
def test_pass_at_k_is_the_share_of_all_subsets_with_a_right_attempt(num: int):
    for right in range(num + 1):
        marks = [i < right for i in range(num)]
        for k in range(1, num + 1):
            subsets = list(combinations(marks, k))
            expected = Fraction(sum(any(subset) for subset in subsets), len(subsets))
            assert pass_at_k(num, right, k) == pytest.approx(float(expected))


def test_pass_at_k_refuses_more_draws_than_attempts():
    with pytest.raises(ValueError, match="pass@5 needs at least 5 attempts"):
        pass_at_k(4, 1, 5)
    with pytest.raises(ValueError, match="k of at least 1"):
        pass_at_k(4, 1, 0)


def test_powers_of_two_end_at_the_largest_that_fits():
    assert [powers_of_two(n) for n in (1, 2, 3, 4, 16)] == [[1], [1, 2], [1, 2], [1, 2, 4], [1, 2, 4, 8, 16]]


@given(BALLOTS, st.randoms())
def test_a_vote_depends_neither_on_the_order_nor_on_the_names_of_the_answers(
    ballots: list[Ballot], rng: random.Random
):
    names = rng.sample(range(100), 5)
    renamed = [
        Ballot(choice=b.choice if b.choice is None else names[b.choice], right=b.right) for b in ballots
    ]
    rng.shuffle(renamed)
    assert vote(renamed) == pytest.approx(vote(ballots))


@given(BALLOTS.filter(lambda ballots: len(ballots) <= 6))
def test_a_tie_counts_as_first_appearance_does_on_average_over_all_orders(ballots: list[Ballot]):
    def first_wins(order: tuple[Ballot, ...]) -> bool:
        choices = [b.choice for b in order if b.choice is not None]
        winner = max(dict.fromkeys(choices), key=choices.count, default=None)
        return winner is not None and winner % 2 == 0

    assert vote(ballots) == pytest.approx(fmean(map(first_wins, permutations(ballots))))


def test_a_vote_takes_the_most_frequent_answer_and_abstentions_do_not_count():
    wrong, right, silent = (
        Ballot(choice=1, right=False),
        Ballot(choice=2, right=True),
        Ballot(choice=None, right=False),
    )
    assert vote([wrong, right, right]) == 1
    assert vote([right, wrong, wrong]) == 0
    assert vote([right, wrong]) == 0.5
    assert vote([silent, silent, silent, right]) == 1
    assert vote([silent, silent]) == 0


@given(BALLOTS)
def test_maj_at_1_is_the_mean_and_a_vote_of_all_is_one_vote(ballots: list[Ballot]):
    assert maj_at_k(ballots, 1) == pytest.approx(fmean(b.right for b in ballots))
    assert maj_at_k(ballots, len(ballots)) == vote(ballots)
    with pytest.raises(ValueError, match=r"needs at least \d+ attempts"):
        maj_at_k(ballots, len(ballots) + 1)


def test_windows_use_every_position_equally_often():
    assert windows(4, 3) == [[0, 1, 2], [1, 2, 3], [2, 3, 0], [3, 0, 1]]
    for num, size in ((5, 1), (7, 3), (4, 4)):
        used = [place for window in windows(num, size) for place in window]
        assert all(used.count(place) == size for place in range(num))
        assert all(len(set(window)) == size for window in windows(num, size))


@given(MARKS, MARKS)
def test_flips_add_up_to_the_change_of_accuracy_and_count_pairs(before: list[bool], after: list[bool]):
    changed = flips(before, after)
    gained = changed.wrong_to_right - changed.right_to_wrong
    assert fmean(after) == pytest.approx(fmean(before) + gained)
    pairs = [(b, a) for b in before for a in after]
    assert changed.right_to_wrong == pytest.approx(fmean(b and not a for b, a in pairs))
    assert changed.wrong_to_right == pytest.approx(fmean(a and not b for b, a in pairs))


@given(st.lists(st.tuples(MARKS, MARKS), max_size=20))
def test_right_given_drafts_sums_to_the_totals(pairs: list[tuple[list[bool], list[bool]]]):
    found = given_right_drafts(pairs)
    assert sum(item.attempts for item in found) == sum(len(after) for _, after in pairs)
    assert sum(item.right for item in found) == sum(sum(after) for _, after in pairs)
    assert [item.right_drafts for item in found] == sorted({sum(before) for before, _ in pairs})
    for item in found:
        after = [mark for before, marks in pairs if sum(before) == item.right_drafts for mark in marks]
        assert item.accuracy == pytest.approx(fmean(after))


def test_following_a_majority_needs_one():
    assert follows_majority([1, 1, 2], 1) is True
    assert follows_majority([1, 1, 2], 2) is False
    assert follows_majority([None, None, 2], 2) is True
    assert follows_majority([1, 1, 2], None) is False
    assert follows_majority([1, 2], 1) is None
    assert follows_majority([None], 1) is None


def test_what_never_happened_has_no_mean_and_no_share():
    assert mean_or_none([]) is None and mean_or_none([None]) is None
    assert mean_or_none([None, 1.0, 0.0]) == 0.5
    assert shares([]) == {}
    assert shares(["a", "b", "a", "a"]) == {"a": 0.75, "b": 0.25}
