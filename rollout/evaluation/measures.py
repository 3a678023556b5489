"""What an evaluation is measured by: pure functions on what happened to one problem, or in one rollout.

``docs/metrics.md`` lists where each stands in the report. Where an event never happened there is no number:
the functions give None then, never 0.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import comb
from statistics import fmean


def powers_of_two(most: int) -> list[int]:
    """1, 2, 4, ... up to ``most``."""
    return [1 << i for i in range(most.bit_length())]


def pass_at_k(num: int, right: int, k: int) -> float:
    """Chance that at least one of ``k`` attempts is right, drawn without replacement from ``num``.

    pass@k = 1 - C(num - right, k) / C(num, k), the unbiased estimate of Chen et al. (arXiv 2107.03374).

    Raises:
        ValueError: If there are fewer than ``k`` attempts.
    """
    if not 1 <= k <= num:
        raise ValueError(f"pass@{k} needs at least {k} attempts and k of at least 1, got {num} attempts.")
    return 1.0 - comb(num - right, k) / comb(num, k)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ballot:
    """One voter. ``choice``: the class of equivalent answers it votes for; None abstains."""

    choice: int | None
    right: bool


def vote(ballots: Sequence[Ballot]) -> float:
    """Whether the most frequent answer is right: 1 or 0, and the expected value where several tie.

    Of t answers with equally many votes each is taken with probability 1 / t; so the result does not
    depend on the order of the voters, and equals the expectation of "the first to appear wins" over all
    orders. An answer is right if the first voter for it is. Voters without an answer abstain; where all
    do, the vote is wrong, as it answers nothing.
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
    """The ``num`` runs of ``size`` neighbours on a ring of ``num`` positions: each is in ``size`` of them."""
    return [[(start + offset) % num for offset in range(size)] for start in range(num)]


def maj_at_k(ballots: Sequence[Ballot], k: int) -> float:
    """maj@k: mean of ``vote`` over all windows of ``k`` of one problem's attempts.

    Every attempt has the same weight. maj@1 is the mean accuracy of attempts (one without an answer is
    wrong), and with all attempts in one vote the windows agree.

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
    """Shares of (attempt, next round's attempt) pairs of one rollout that changed their verdict.

    accuracy of the round = accuracy of the round before + wrong_to_right - right_to_wrong, exactly.
    """

    right_to_wrong: float
    wrong_to_right: float


def flips(before: Sequence[bool], after: Sequence[bool]) -> Flips:
    """Flips between the attempts of one round and those of the next; each sequence holds at least one."""
    was, is_now = fmean(before), fmean(after)
    return Flips(right_to_wrong=was * (1 - is_now), wrong_to_right=(1 - was) * is_now)


def follows_majority(drafts: Sequence[int | None], answer: int | None) -> bool | None:
    """Whether an answer is the most frequent one of the drafts.

    None if the drafts have no answer, or several are equally frequent: then there is nothing to follow.
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
        pairs: For each rollout the attempts of a round and those of the next.

    Returns:
        One entry for each number of right drafts that occurred, in order; numbers that never occurred are
        absent. ``attempts`` and ``right`` sum to those of the round.
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
    """Mean of what there is; None if there is nothing."""
    present = [value for value in values if value is not None]
    return fmean(present) if present else None


def shares(names: Iterable[str]) -> dict[str, float]:
    """Share of each name, by name; absent names are absent."""
    counted = Counter(names)
    return {name: count / counted.total() for name, count in sorted(counted.items())}
