"""Bench of an evaluation's client: CPU time per call, and memory over ten thousand problems.

    python tests/bench/evaluation.py [--json] [--problems 10000] [--http]

`--json` prints one object per line: {"bench", "case", "ours", "theirs", "ratio", "unit"}; a ratio above 1
means that ours is better. Operators, journal and report are the real ones; a scripted policy answers at
once, so all time is the client's, the script's own (tokenising its answers) included. With `--http` the stub
server answers, in a process of its own, through the real pool. `theirs` is the goal: 2 ms per call, and the
memory of the first tenth of the problems, for memory that stays flat.
"""

import argparse
import asyncio
import json
import resource
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).parents[1]))

from evaluation_fakes import IDENTITY, TRACE
from fakes import CODEC, END, EvenIsCorrect, ScriptedPolicy, operator, problem, settings
from stub_server import StubOptions, stub_process

from configs.schema import RolloutConfig
from rollout.endpoints.pool import WorkerPool
from rollout.endpoints.routing import Endpoint
from rollout.engine import spare_collector
from rollout.evaluation.evaluate import Comparison, PlannedRollout, evaluate
from rollout.evaluation.journal import Journal
from rollout.evaluation.report import compare, write_report
from rollout.records import Completion, Prompt, Sampling
from rollout.sampler import Sampler

SCHEDULE = (8, 1)
GOAL_MS = 2.0


class Forgetful(ScriptedPolicy):
    """A scripted policy that remembers no request."""

    async def generate(
        self, prompt: Prompt, sampling: Sampling, n: int = 1, request_id: str | None = None
    ) -> Sequence[Completion]:
        completions = await super().generate(prompt, sampling, n, request_id)
        self.requests.clear()
        self.ended.clear()
        return completions


@contextmanager
def stub_url() -> Iterator[str]:
    """Of a stub server that answers at once, with a boxed number after about 100 tokens."""
    answers = [CODEC.tokenizer(f" \\boxed{{{number}}}").input_ids for number in range(10)]
    tails = [[*answer, END] for answer in answers]
    with stub_process(StubOptions(filler=CODEC.tokenizer("a").input_ids[0], tails=tails)) as url:
        yield url


async def sample(jobs: Iterator[PlannedRollout], journal: Journal, url: str | None) -> None:
    """Runs an evaluation on the scripted policy, or on the worker at ``url``."""
    async with AsyncExitStack() as stack:
        sampler: Sampler = Forgetful()
        own = settings(sampler)
        if url is not None:
            pool = await stack.enter_async_context(WorkerPool([Endpoint(url=url)], RolloutConfig()))
            own = replace(settings(pool), sampling=replace(own.sampling, max_tokens=4096))
        await evaluate(jobs, own, EvenIsCorrect(), journal, seed=0)


def memory_mib() -> float:
    """Resident memory of this process now."""
    return psutil.Process().memory_info().rss / 2**20


def measure(num_problems: int, folder: Path, url: str | None) -> Iterator[dict]:
    """Runs the evaluation, and reports on it, in `folder`."""
    problems = [problem(f"p{i}") for i in range(num_problems)]
    made = Comparison(problems=problems, operators=[operator(SCHEDULE)], trace=TRACE, samples=1)
    calls = num_problems * sum(SCHEDULE)
    spare_collector()  # as the engine does
    at_start, at_tenth = memory_mib(), 0.0

    def watched(jobs: Iterator[PlannedRollout]) -> Iterator[PlannedRollout]:
        nonlocal at_tenth
        for number, job in enumerate(jobs):
            if number == num_problems // 10:
                at_tenth = memory_mib()
            yield job

    cpu = time.process_time()
    with Journal(folder / "rollouts.jsonl", IDENTITY, problems) as journal:
        jobs = watched(job for job in made.planned() if job.operator is not TRACE)
        asyncio.run(sample(jobs, journal, url))
        ran = (time.process_time() - cpu) * 1000
        at_end = memory_mib()
        ids = [each.id for each in problems]
        work = compare(["pdr"], ids, journal.outcomes, [], EvenIsCorrect().same, num_traces=1)
        write_report(folder, asyncio.run(work))
    reported = (time.process_time() - cpu) * 1000 - ran
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    name = f"{num_problems} x {list(SCHEDULE)}" + (", over HTTP" if url else "")
    yield line(f"cpu of sampling, {name}", ran / calls, GOAL_MS, "ms per call")
    yield line(f"cpu of the report, {name}", reported / calls, GOAL_MS, "ms per call")
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
    parser.add_argument("--http", action="store_true", help="against the stub server")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        url = stack.enter_context(stub_url()) if arguments.http else None
        for row in measure(arguments.problems, Path(folder), url):
            if arguments.json:
                print(json.dumps(row), flush=True)
            else:
                print(f"{row['case']}: {row['ours']} {row['unit']} (goal {row['theirs']})", flush=True)


if __name__ == "__main__":
    main()
