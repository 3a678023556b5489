"""Bench of an evaluation's client: CPU time per call, and memory over ten thousand problems.

    python tests/bench/evaluation.py [--json] [--problems 10000]

`--json` prints one object per line: {"bench", "case", "ours", "theirs", "ratio", "unit"}; a ratio above 1
means that ours is better. Operators, journal and report are the real ones; a scripted policy answers at
once, so all time is the client's, the script's own (tokenising its answers) included. `theirs` is the goal:
2 ms per call, and the memory of the first tenth of the problems, for memory that stays flat.
"""

import argparse
import asyncio
import json
import resource
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).parents[1]))

from evaluation_fakes import TRACE
from fakes import EvenIsCorrect, ScriptedPolicy, operator, problem, settings

from rollout.evaluate import Comparison, Job, evaluate
from rollout.journal import Journal
from rollout.records import Completion, Prompt, Sampling
from rollout.report import compare, write_report

SCHEDULE = (8, 1)
GOAL_MS = 2.0


class Forgetful(ScriptedPolicy):
    """A scripted policy that counts its completions and remembers none."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    async def generate(
        self, prompt: Prompt, sampling: Sampling, n: int = 1, request_id: str | None = None
    ) -> Sequence[Completion]:
        completions = await super().generate(prompt, sampling, n, request_id)
        self.requests.clear()
        self.ended.clear()
        self.calls += n
        return completions


def memory_mib() -> float:
    """Resident memory of this process now."""
    return psutil.Process().memory_info().rss / 2**20


def measure(num_problems: int, folder: Path) -> Iterator[dict]:
    """Runs the evaluation, and reports on it, in `folder`."""
    problems = [problem(f"p{i}") for i in range(num_problems)]
    made = Comparison(problems=problems, operators=[operator(SCHEDULE)], trace=TRACE, samples=1)
    policy = Forgetful()
    at_start, at_tenth = memory_mib(), 0.0

    def watched(jobs: Iterator[Job]) -> Iterator[Job]:
        nonlocal at_tenth
        for number, job in enumerate(jobs):
            if number == num_problems // 10:
                at_tenth = memory_mib()
            yield job

    cpu = time.process_time()
    with Journal(folder / "rollouts.jsonl") as journal:
        jobs = watched(job for job in made.jobs() if job.operator is not TRACE)
        asyncio.run(evaluate(jobs, settings(policy), EvenIsCorrect(), journal, seed=0))
        ran = (time.process_time() - cpu) * 1000
        at_end = memory_mib()
        ids = [each.id for each in problems]
        work = compare(["pdr"], ids, journal.outcomes, [], EvenIsCorrect().same, num_traces=1)
        write_report(folder, asyncio.run(work))
    reported = (time.process_time() - cpu) * 1000 - ran
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    name = f"{num_problems} x {list(SCHEDULE)}"
    yield line(f"cpu of sampling, {name}", ran / policy.calls, GOAL_MS, "ms per call")
    yield line(f"cpu of the report, {name}", reported / policy.calls, GOAL_MS, "ms per call")
    yield line(f"memory after all problems, against after a tenth, {name}", at_end, at_tenth, "MiB")
    yield line(f"growth after the first tenth, {name}", at_end - at_tenth, None, "MiB")
    yield line(f"peak, report included, {name}", peak, None, "MiB")
    yield line("before the first problem", at_start, None, "MiB")


def line(case: str, ours: float, theirs: float | None, unit: str) -> dict:
    """One line of output; less is better."""
    ratio = None if theirs is None or ours <= 0 else round(theirs / ours, 3)
    theirs = None if theirs is None else round(theirs, 3)
    return {
        "bench": "evaluation",
        "case": case,
        "ours": round(ours, 3),
        "theirs": theirs,
        "ratio": ratio,
        "unit": unit,
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object per line")
    parser.add_argument("--problems", type=int, default=10_000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for row in measure(arguments.problems, Path(folder)):
            if arguments.json:
                print(json.dumps(row), flush=True)
            else:
                print(f"{row['case']}: {row['ours']} {row['unit']} (goal {row['theirs']})", flush=True)


if __name__ == "__main__":
    main()
