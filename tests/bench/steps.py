"""Bench: what PDR [8, 4, 1] can gain over stage by stage if nothing but decode steps costs time.

    python tests/bench/steps.py [--json] [--problems 48] [--slots 64]

A step decodes one token of every sequence that has a slot, and takes `fixed + each * sequences` ms. Lengths
are log-normal, 5 to 400 tokens. Ours begins a problem's next round when its last one is there, theirs when
those of all problems are. Case by case: steps as a CPU worker's were measured (7 ms for one sequence, 29 for
64), and steps that take the same for one sequence as for many. The first is about what `sampling.py` can be
expected to measure.

`--json` prints one object per line: {"bench", "case", "ours", "theirs", "ratio", "unit"}; a ratio above 1
means that ours is better.
"""

import argparse
import json
import math
import random
import sys
from collections import deque
from dataclasses import dataclass

SCHEDULE = (8, 4, 1)
SHORTEST, MEDIAN, LONGEST, SIGMA = 5, 75, 400, 0.8
"""Tokens; of the logarithm."""
SEEDS = range(5)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepCost:
    """Milliseconds of a step."""

    fixed: float
    each: float


CASES = {
    "steps as on a CPU": StepCost(fixed=7.0, each=0.34),
    "steps of constant length": StepCost(fixed=28.0, each=0.0),
}


def draw_lengths(rng: random.Random, problems: int) -> list[list[list[int]]]:
    """Tokens of every call: ``[problem][round][call]``."""
    return [[[_length(rng) for _ in range(width)] for width in SCHEDULE] for _ in range(problems)]


def _length(rng: random.Random) -> int:
    while not SHORTEST <= (tokens := round(rng.lognormvariate(math.log(MEDIAN), SIGMA))) <= LONGEST:
        pass
    return tokens


def seconds(lengths: list[list[list[int]]], slots: int, cost: StepCost, *, by_stage: bool) -> float:
    """Until the last call of all problems has ended; calls get slots in the order in which they were made."""
    waiting: deque[tuple[int, int, int]] = deque()
    running: list[list[int]] = []  # tokens left, problem, round
    open_calls = [[len(calls) for calls in rounds] for rounds in lengths]
    to_end = [len(lengths)] * len(SCHEDULE)
    spent = 0.0

    def begin(problem: int, round_: int) -> None:
        waiting.extend((tokens, problem, round_) for tokens in lengths[problem][round_])

    for problem in range(len(lengths)):
        begin(problem, 0)
    while waiting or running:
        while waiting and len(running) < slots:
            running.append(list(waiting.popleft()))
        spent += cost.fixed + cost.each * len(running)
        for call in running:
            call[0] -= 1
        ended = [call for call in running if not call[0]]
        running = [call for call in running if call[0]]
        for _, problem, round_ in ended:
            open_calls[problem][round_] -= 1
            if open_calls[problem][round_]:
                continue
            to_end[round_] -= 1
            if round_ + 1 == len(SCHEDULE):
                continue
            if not by_stage:
                begin(problem, round_ + 1)
            elif not to_end[round_]:
                for each in range(len(lengths)):
                    begin(each, round_ + 1)
    return spent / 1000


def main() -> int:
    """Prints a row for each case: means over the seeds."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--problems", type=int, default=48)
    parser.add_argument("--slots", type=int, default=64)
    options = parser.parse_args()
    drawn = [draw_lengths(random.Random(seed), options.problems) for seed in SEEDS]
    for case, cost in CASES.items():
        ours, theirs = (
            sum(seconds(lengths, options.slots, cost, by_stage=by_stage) for lengths in drawn) / len(drawn)
            for by_stage in (False, True)
        )
        row = {"bench": "steps", "case": case, "ours": round(ours, 2), "theirs": round(theirs, 2)}
        row |= {"ratio": round(theirs / ours, 2), "unit": "s"}
        print(json.dumps(row) if options.json else "  ".join(map(str, row.values())), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
