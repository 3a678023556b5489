"""Calculation: what a vote on each part can gain over a vote on whole answers, if parts fail independently.

    python tests/bench/composed.py [--draws 60000]

A draft is a list of k parts, each right with probability p; a wrong part is off by one of twelve slips. PDR
reads 4 (or 8) drafts and takes the most frequent value of each part; the majority gets as many whole drafts
as PDR costs if its refinement costs as much as one (or two) drafts. Ties count as their share. One JSON
object per line.
"""

import argparse
import json
import random
from collections import Counter
from collections.abc import Hashable, Sequence

SLIPS = (-10, -3, -2, -2, -1, -1, 1, 1, 2, 2, 3, 10)


def vote(ballots: Sequence[Hashable], right: Hashable) -> float:
    """Returns the probability that the most frequent ballot, drawn among ties, is ``right``."""
    counts = Counter(ballots)
    most = max(counts.values())
    leaders = [ballot for ballot, count in counts.items() if count == most]
    return (right in leaders) / len(leaders)


def measure(p: float, k: int, drafts: int, votes: int, draws: int) -> dict[str, float]:
    """Returns percentages of right answers: a draft, the majority, a vote on each part."""
    rng = random.Random(f"{p} {k}")
    gold = (0,) * k
    totals: Counter[str] = Counter()
    for _ in range(draws):
        lists = [
            tuple(0 if rng.random() < p else rng.choice(SLIPS) for _ in range(k))
            for _ in range(max(drafts, votes))
        ]
        by_part = 1.0
        for values in zip(*lists[:drafts], strict=True):
            by_part *= vote(values, 0)
        totals["draft"] += lists[0] == gold
        totals["majority"] += vote(lists[:votes], gold)
        totals["by_part"] += by_part
        totals["all_drafts_wrong_and_by_part_right"] += by_part * (gold not in lists[:drafts])
    return {name: round(100 * total / draws, 1) for name, total in totals.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--draws", type=int, default=60000)
    draws = parser.parse_args().draws
    for drafts, votes in ((4, 5), (8, 10)):
        for k in (4, 6, 8, 12):
            for p in (0.7, 0.8, 0.85, 0.9, 0.94):
                shares = measure(p, k, drafts, votes, draws)
                print(json.dumps({"drafts": drafts, "votes": votes, "k": k, "p": p, **shares}))


if __name__ == "__main__":
    main()
