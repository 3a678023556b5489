"""Bench: what it buys that no stage of no problem waits for another problem.

    python tests/bench/barrier.py [--json] [--problems 64] [--slots 32] [--schedule 8 4 1]

PDR with the global-summary distiller against a worker with ``--slots`` decoding slots (tests/stub_server.py:
log-normal lengths of sigma 1.0, a child process on loopback, simulated decode time). The rollout code and
its HTTP client are the real ones. Compared are, in one run and with the same lengths:

* the lower bound max(total work / slots, longest chain), which no schedule can beat (at least 1/1.15 = 0.87);
* a run by stages: all drafts of all problems, then all distils, then all refinements (expected 1.5).

`--json` prints one object per line: {"bench", "case", "ours", "theirs", "ratio", "unit"}; a ratio above 1
means that ours is better.
"""

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from evaluation_fakes import Kept
from fakes import CODEC, END, EvenIsCorrect, operator, problem, settings
from stub_server import StubOptions, stub_process

from configs.schema import RolloutConfig
from rollout.endpoints.pool import WorkerPool
from rollout.endpoints.routing import Endpoint
from rollout.evaluation.evaluate import PlannedRollout, evaluate
from rollout.operators import Operator
from rollout.records import Completion, Prompt, Rollout, Sampling
from rollout.sampler import Sampler

SECONDS_PER_TOKEN = 0.004
LIMIT_SECONDS = 600.0
SAMPLING = Sampling(temperature=1.0, top_p=1.0, max_tokens=100_000, seed=0)


def stub_options(slots: int) -> StubOptions:
    """Completions that a distiller can use: filler, then one of ten boxed answers."""
    answers = [CODEC.tokenizer(f" \\boxed{{{number}}}").input_ids for number in range(10)]
    return StubOptions(
        slots=slots,
        median_tokens=100.0,
        sigma=1.0,
        seconds_per_token=SECONDS_PER_TOKEN,
        filler=CODEC.tokenizer("a").input_ids[0],
        tails=[[*answer, END] for answer in answers],
    )


@dataclass(frozen=True, slots=True)
class ByStages:
    """Lets a stage start when all problems have ended the one before; each makes one request a stage."""

    sampler: Sampler
    barrier: asyncio.Barrier
    continues: bool = False

    async def generate(
        self, prompt: Prompt, sampling: Sampling, n: int = 1, request_id: str | None = None
    ) -> Sequence[Completion]:
        await self.barrier.wait()
        return await self.sampler.generate(prompt, sampling, n, request_id)

    async def abort(self, request_ids: Collection[str]) -> None:
        raise NotImplementedError


async def run(url: str, num_problems: int, pdr: Operator, *, by_stages: bool) -> tuple[float, list[Rollout]]:
    """Seconds that the evaluation takes, and its rollouts."""
    sink = Kept()
    config = RolloutConfig(max_concurrency=4 * num_problems, request_timeout_seconds=LIMIT_SECONDS)
    async with WorkerPool([Endpoint(url=url)], config) as pool:
        sampler = ByStages(pool, asyncio.Barrier(num_problems)) if by_stages else pool
        started = time.monotonic()
        jobs = [PlannedRollout(problem=problem(f"p{i}"), operator=pdr, sample=0) for i in range(num_problems)]
        ours = replace(settings(sampler), sampling=SAMPLING)
        work = evaluate(jobs, ours, EvenIsCorrect(), sink, seed=0)
        await asyncio.wait_for(work, LIMIT_SECONDS)
        return time.monotonic() - started, sink.rollouts


def lower_bound(rollouts: Sequence[Rollout], slots: int) -> float:
    """Seconds that no schedule can beat: all work on all slots, or the longest chain of calls."""
    total, longest = 0, 0
    for rollout in rollouts:
        chains: list[int] = []
        for call in rollout.calls:
            before = max((chains[parent] for parent in call.parents), default=0)
            chains.append(before + call.usage.completion_tokens)
        total += sum(call.usage.completion_tokens for call in rollout.calls)
        longest = max(longest, *chains)
    return max(total / slots, longest) * SECONDS_PER_TOKEN


def main() -> int:
    """Runs both ways and prints the comparisons."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--problems", type=int, default=64)
    parser.add_argument("--slots", type=int, default=32)
    parser.add_argument("--schedule", type=int, nargs="+", default=[8, 4, 1])
    options = parser.parse_args()
    pdr = operator(options.schedule, "global_summary")
    with stub_process(stub_options(options.slots)) as url:
        ours, rollouts = asyncio.run(run(url, options.problems, pdr, by_stages=False))
        stages, staged = asyncio.run(run(url, options.problems, pdr, by_stages=True))
    bound = lower_bound(rollouts, options.slots)
    assert lower_bound(staged, options.slots) == bound, "both ways sample the same"
    for case, theirs in (("lower bound", bound), ("stage by stage", stages)):
        row = {"bench": "barrier", "case": case, "ours": round(ours, 2), "theirs": round(theirs, 2)}
        row |= {"ratio": round(theirs / ours, 3), "unit": "s"}
        print(json.dumps(row) if options.json else "  ".join(map(str, row.values())), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
