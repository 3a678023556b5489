"""Bench of the verifier against plain math-verify in the same run: agreement, abuse, speed.

    python tests/bench/verifier.py [--json] [--data DIR] [--only labelled natural hostile mix tasks speed]

`--json` prints one object per line: {"bench", "case", "ours", "theirs", "ratio", "unit"}; a ratio above 1
means that ours is better. Plain math-verify runs with its defaults, in the main thread of this process.
"""

import argparse
import asyncio
import json
import random
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from scorer_costs import PeakWatch, cpu_seconds
from tasks import FAMILIES, cases_of

from rewards.scorer import Scorer

COSTLY = ("giant", "long", "nesting", "simplify")
"""Categories of hostile cases that are built to cost time."""
DATA = Path(__file__).parents[3] / "shared" / "data"
Row = dict[str, Any]


def rows_of(path: Path) -> list[Row]:
    """The objects of a file of JSON lines."""
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def plain_math_verify(gold: str, completion: str) -> bool:
    """math-verify with its defaults; whatever it raises is False.

    Of several ways to hand over the golds, this one serves it best on the labelled cases: between
    dollars, unless they are marked as maths already.
    """
    from math_verify import parse, verify  # the peer; not needed to import this file

    marked = gold if "\\boxed" in gold or "$" in gold else f"${gold}$"
    try:
        return bool(verify(parse(marked), parse(completion)))
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return False


def served_well(row: Row) -> Row:
    """A bare answer in a box: math-verify finds nothing in `\\frac12` alone."""
    return row if row.get("kind") != "equiv" else {**row, "pred": f"\\boxed{{{row['pred'].strip(' $')}}}"}


def result(
    bench: str, case: str, ours: float, theirs: float | None, unit: str, *, more_is_better: bool
) -> Row:
    """One line of output; without a peer's figure there is no ratio."""
    if theirs is None:
        return {
            "bench": bench,
            "case": case,
            "ours": round(ours, 4),
            "theirs": None,
            "ratio": None,
            "unit": unit,
        }
    better, worse = (ours, theirs) if more_is_better else (theirs, ours)
    ratio = better / worse if worse else (1.0 if better == worse else float("inf"))
    finite = None if ratio == float("inf") else round(ratio, 3)
    return {
        "bench": bench,
        "case": case,
        "ours": round(ours, 4),
        "theirs": round(theirs, 4),
        "ratio": finite,
        "unit": unit,
    }


def _wanted(row: Row) -> bool | None:
    if "expected" in row:
        return bool(row["expected"])
    return row.get("truth", row["label"])


def agreement(name: str, rows: list[Row], judge: Callable[[str, str], bool]) -> Row:
    """Agreement, false positives and negatives of one judge; rows without a truth are left out."""
    counts = {"rows": 0, "agree": 0, "false_positive": 0, "false_negative": 0}
    for row in rows:
        wanted = _wanted(row)
        if wanted is None:
            continue
        got = judge(row["gold"], row["pred"])
        counts["rows"] += 1
        counts["agree"] += got == wanted
        counts["false_positive"] += got and not wanted
        counts["false_negative"] += wanted and not got
        if got != wanted and name:
            print(f"  {name} {row.get('id', '')} {_short(row['gold'])} | {_short(row['pred'])}"
                  f" wanted {wanted}", file=sys.stderr)  # fmt: skip
    return counts


def _short(text: str) -> str:
    text = ascii(text)
    return text if len(text) < 90 else f"{text[:40]}...{text[-45:]}"


def labelled(data: Path, scorer: Scorer, bench: str) -> Iterator[Row]:
    """Labelled cases, disputed labels replaced by their truth."""
    file = {"labelled": "verifier_cases.jsonl", "natural": "verifier_natural.jsonl"}[bench]
    rows = rows_of(data / file)
    ours = agreement(
        "ours", rows, lambda gold, pred: scorer.score_sync(gold=gold, completion=pred).is_correct
    )
    theirs = agreement("", [served_well(row) for row in rows], plain_math_verify)
    total = ours["rows"]
    yield result(bench, "agreement", 100 * ours["agree"] / total, 100 * theirs["agree"] / total, "%",
                 more_is_better=True)  # fmt: skip
    for case in ("false_positive", "false_negative"):
        yield result(bench, case, ours[case], theirs[case], "answers", more_is_better=False)


def hostile(data: Path, scorer: Scorer) -> Iterator[Row]:
    """Hostile cases: expected rewards met, the longest call and the largest worker."""
    rows = rows_of(data / "adversarial.jsonl")
    scorer.score_sync(gold="x+1", completion="\\boxed{1+x}")  # the first call waits until SymPy is imported
    for severity in ("hard", "policy"):
        chosen = [row for row in rows if row["severity"] == severity]
        slowest = costliest = 0.0

        def ours(gold: str, pred: str) -> bool:
            nonlocal slowest, costliest
            start, spent = time.perf_counter(), cpu_seconds(scorer)
            verdict = scorer.score_sync(gold=gold, completion=pred)
            slowest = max(slowest, time.perf_counter() - start)
            costliest = max(costliest, cpu_seconds(scorer) - spent)
            return verdict.is_correct

        with PeakWatch(scorer) as watch:
            mine = agreement(f"ours {severity}", chosen, ours)
        # Without a hard limit some cases never end: only the tame kinds are put to the peer.
        tame = [row for row in chosen if row["category"] not in COSTLY]
        other = agreement("", tame, plain_math_verify)
        yield result("hostile", f"{severity} met (theirs: tame kinds)", 100 * mine["agree"] / mine["rows"],
                     100 * other["agree"] / other["rows"], "%", more_is_better=True)  # fmt: skip
        yield result("hostile", f"{severity} slowest call", slowest, None, "s", more_is_better=False)
        yield result("hostile", f"{severity} costliest call, CPU", costliest, None, "s", more_is_better=False)
        yield result("hostile", f"{severity} largest worker", watch.peak, None, "MiB", more_is_better=False)


def mix(data: Path, scorer: Scorer, count: int = 2000) -> Iterator[Row]:
    """Latency of single calls where 5% of the answers are hostile, with an empty cache."""
    generator = random.Random(3)
    pairs = plausible_answers(data, count)
    worst = [row for row in rows_of(data / "adversarial.jsonl") if row["category"] in COSTLY]
    for place in generator.sample(range(count), count // 20):
        row = generator.choice(worst)
        pairs[place] = (row["gold"], row["pred"])
    scorer.score_sync(gold=r"\sqrt{2}", completion=r"\boxed{\sqrt{2}+1}")
    times: list[float] = []
    for gold, text in pairs:
        start = time.perf_counter()
        scorer.score_sync(gold=gold, completion=text)
        times.append(1000 * (time.perf_counter() - start))
    for case, share in (("p50", 0.5), ("p99", 0.99), ("slowest", 1.0)):
        value = sorted(times)[min(int(share * count), count - 1)]
        yield result("mix", f"{case} with 5% hostile", value, None, "ms", more_is_better=False)


def tasks(scorer: Scorer) -> Iterator[Row]:
    """Whole reasoning-gym families: wrong permutations and near misses rewarded, right answers accepted."""
    for family in FAMILIES:
        counts = {"right": 0, "accepted": 0, "wrong": 0, "rewarded": 0}
        for case in cases_of(family):
            got = scorer.equivalent_sync(gold=case.gold, answer=case.answer).is_correct
            counts["right" if case.is_right else "wrong"] += 1
            counts["accepted" if case.is_right else "rewarded"] += got
            if got != case.is_right:
                print(f"  {family} {_short(case.gold)} | {_short(case.answer)}", file=sys.stderr)
        accepted = 100 * counts["accepted"] / counts["right"]
        label = f"{family} ({counts['right']}, {counts['wrong']})"
        yield result("accepted", label, accepted, None, "%", more_is_better=True)
        yield result("rewarded", label, counts["rewarded"], None, "answers", more_is_better=False)


def plausible_answers(data: Path, count: int) -> list[tuple[str, str]]:
    """MATH-500 golds against what a model would write: right in several spellings, or another's gold."""
    generator = random.Random(0)
    golds = [row["answer"] for row in rows_of(data / "math500.jsonl")]
    pairs = []
    for index in range(count):
        gold = golds[index % len(golds)]
        answer = gold
        kind = generator.random()
        if kind < 0.35:
            answer = generator.choice(golds)
        elif kind < 0.7:
            answer = answer.replace(r"\frac", r"\dfrac").replace(r"\left(", "(").replace(r"\right)", ")")
            answer = re.sub(r"\s*([+\-,])\s*", r" \1 ", answer)
        prose = "Let us see. " * generator.randint(20, 200)
        pairs.append((gold, f"<think>{prose}\\boxed{{1}}</think>{prose}So it is $\\boxed{{{answer}}}$."))
    return pairs


def speed(data: Path, scorer: Scorer, count: int = 2000) -> Iterator[Row]:
    """Throughput with 2 workers, warm but with an empty cache, and the latency of single calls."""
    pairs = plausible_answers(data, count)

    async def run() -> tuple[float, float]:
        async with Scorer(num_workers=2) as fresh:
            await fresh.score(gold=r"\sqrt{2}", completion=r"\boxed{\sqrt{2}+1}")
            start, spent = time.perf_counter(), cpu_seconds(fresh)
            await asyncio.gather(*(fresh.score(gold=gold, completion=text) for gold, text in pairs))
            return time.perf_counter() - start, cpu_seconds(fresh) - spent

    seconds, our_cpu = asyncio.run(run())
    ours, theirs = [], []
    for gold, text in pairs:
        start = time.perf_counter()
        scorer.score_sync(gold=gold, completion=text)
        ours.append(time.perf_counter() - start)
    plain_math_verify("1", "\\boxed{1}")
    their_start = time.process_time()
    for gold, text in pairs:
        start = time.perf_counter()
        plain_math_verify(gold, text)
        theirs.append(time.perf_counter() - start)
    their_cpu = time.process_time() - their_start
    # Of the three, this one does not depend on other jobs.
    yield result("speed", "CPU time for one answer", 1000 * our_cpu / count, 1000 * their_cpu / count, "ms",
                 more_is_better=False)  # fmt: skip
    yield result(
        "speed", "throughput", count / seconds, count / sum(theirs), "answers/s", more_is_better=True
    )
    for case, share in (("p50", 0.5), ("p99", 0.99)):
        place = int(share * count)
        yield result("speed", case, 1000 * sorted(ours)[place], 1000 * sorted(theirs)[place], "ms",
                     more_is_better=False)  # fmt: skip


def main() -> int:
    """Runs the chosen benches and prints their results."""
    benches = ("labelled", "natural", "hostile", "mix", "tasks", "speed")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--only", nargs="*", choices=benches, default=benches)
    options = parser.parse_args()
    if not options.data.is_dir():
        print(f"No data at {options.data}; give --data DIR.", file=sys.stderr)
        return 2
    runs = {
        "labelled": lambda scorer: labelled(options.data, scorer, "labelled"),
        "natural": lambda scorer: labelled(options.data, scorer, "natural"),
        "hostile": lambda scorer: hostile(options.data, scorer),
        "mix": lambda scorer: mix(options.data, scorer),
        "tasks": tasks,
        "speed": lambda scorer: speed(options.data, scorer),
    }
    for bench in options.only:
        with Scorer(max_failure_share=1.0) as scorer:
            for row in runs[bench](scorer):
                if options.json:
                    print(json.dumps(row), flush=True)
                    continue
                columns = (f"{row[name]!s:>10}" for name in ("ours", "theirs", "ratio"))
                print(f"{row['bench']:9} {row['case']:32}", *columns, row["unit"], flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
