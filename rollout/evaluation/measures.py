"""Measures of an evaluation: pure functions of the results on one problem, or of one rollout.

``docs/metrics.md`` lists where the report shows each. A measure of an event that never happened is None,
never 0.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import comb
from statistics import fmean


def powers_of_two(most: int) -> list[int]:
    """Returns 1, 2, 4, ... up to ``most``."""
    return [1 << i for i in range(most.bit_length())]


def pass_at_k(num: int, right: int, k: int) -> float:
    """Probability that at least one of ``k`` attempts, drawn without replacement from ``num``, is right.

    pass@k = 1 - C(num - right, k) / C(num, k), the unbiased estimate of Chen et al. (arXiv 2107.03374).

    Raises:
        ValueError: If there are fewer than ``k`` attempts.
    """
    if not 1 <= k <= num:
        raise ValueError(f"pass@{k} needs at least {k} attempts and k of at least 1, got {num} attempts.")
    return 1.0 - comb(num - right, k) / comb(num, k)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ballot:
    """One vote. ``choice``: the class of equivalent answers that it is for; None abstains."""

    choice: int | None
    right: bool


def vote(ballots: Sequence[Ballot]) -> float:
    """Returns 1.0 if the most frequent answer is right, else 0.0; the expected value if several tie.

    Each of t answers with equally many votes wins with probability 1 / t. So the result does not depend on
    the order of the voters, and equals the expectation of "the first to appear wins" over all orders. An
    answer is right if its first voter is. Voters without an answer abstain; if all abstain, the vote has no
    answer and is wrong.
    """
    votes: Counter[int] = Counter()
    right: dict[int, bool] = {}
    for ballot in ballots:
        if ballot.choice is not None:
            votes[ballot.choice] += 1
            right.setdefault(ballot.choice, ballot.right)
    if not votes:
        return 0.0
    most = max(votes.values())
    return fmean(right[choice] for choice, count in votes.items() if count == most)


def windows(num: int, size: int) -> list[list[int]]:
    """Returns the ``num`` runs of ``size`` neighbours on a ring: each position is in ``size`` of them."""
    return [[(start + offset) % num for offset in range(size)] for start in range(num)]


def maj_at_k(ballots: Sequence[Ballot], k: int) -> float:
    """maj@k: mean of ``vote`` over all windows of ``k`` of one problem's attempts.

    Every attempt has the same weight. maj@1 is the mean accuracy of the attempts (one without an answer is
    wrong). With all attempts in one vote, all windows have the same result.

    Raises:
        ValueError: If there are fewer than ``k`` attempts.
    """
    if not 1 <= k <= len(ballots):
        raise ValueError(f"maj@{k} needs at least {k} attempts and k of at least 1, got {len(ballots)}.")
    if k == len(ballots):
        return vote(ballots)
    return fmean(vote([ballots[i] for i in places]) for places in windows(len(ballots), k))


@dataclass(frozen=True, slots=True, kw_only=True)
class Flips:
    """Shares of (attempt, next round's attempt) pairs of one rollout whose verdict changed.

    accuracy of the round = accuracy of the round before + wrong_to_right - right_to_wrong, exactly.
    """

    right_to_wrong: float
    wrong_to_right: float


def flips(before: Sequence[bool], after: Sequence[bool]) -> Flips:
    """Returns the flips between the attempts of one round and of the next; neither may be empty."""
    # Over all pairs shares are products: with accuracies p before and q after, p (1 - q) and (1 - p) q.
    was, is_now = fmean(before), fmean(after)
    return Flips(right_to_wrong=was * (1 - is_now), wrong_to_right=(1 - was) * is_now)


def follows_majority(drafts: Sequence[int | None], answer: int | None) -> bool | None:
    """Returns True if an answer is the most frequent one of the drafts, else False.

    None if no draft has an answer, or the most frequent ones tie: then there is no majority to follow.
    """
    most = Counter(choice for choice in drafts if choice is not None).most_common(2)
    if not most or (len(most) == 2 and most[0][1] == most[1][1]):
        return None
    return answer == most[0][0]


@dataclass(frozen=True, slots=True, kw_only=True)
class GivenDrafts:
    """Attempts that followed rounds with ``right_drafts`` right attempts, and how many were right."""

    right_drafts: int
    attempts: int
    right: int
    accuracy: float


def given_right_drafts(pairs: Iterable[tuple[Sequence[bool], Sequence[bool]]]) -> list[GivenDrafts]:
    """P(right | number of right drafts) = right / attempts, over all problems and rollouts.

    Args:
        pairs: Verdicts of the attempts of a round and of the next, for each rollout.

    Returns:
        One entry per number of right drafts that occurred, in order. ``attempts`` and ``right`` sum to
        those of the round.
    """
    attempts: Counter[int] = Counter()
    right: Counter[int] = Counter()
    for before, after in pairs:
        attempts[sum(before)] += len(after)
        right[sum(before)] += sum(after)
    return [
        GivenDrafts(right_drafts=c, attempts=attempts[c], right=right[c], accuracy=right[c] / attempts[c])
        for c in sorted(attempts)
    ]


def mean_or_none(values: Iterable[float | None]) -> float | None:
    """Returns the mean of the values that are not None; None if there are none."""
    present = [value for value in values if value is not None]
    return fmean(present) if present else None


def shares(names: Iterable[str]) -> dict[str, float]:
    """Returns the share of each name that occurs, in order of the names."""
    counted = Counter(names)
    return {name: count / counted.total() for name, count in sorted(counted.items())}
