"""Bench: what collecting ahead of the trainer buys at 8B scale; a simulation of the real scheduler.

    python tests/bench/overlap.py [--json] [--steps 24] [--validate]

Collector, operators, pool, router and producer are the real ones. Simulated are the clock, the workers and
the trainer: seconds for a token as sequences share a worker, for an update and for a publish are those of
``python -m launch.plan experiment=qwen3_8b_pdr nodes=4 gpus=8``: a data sheet and stated shares of it, not
measured. Lengths are log-normal, sigma 0.8, mean half of 18,432 tokens, cut there; one simulated token
stands for 64.

Cases: seconds of a step for every split of the GPUs, synchronous against ``collect.max_staleness`` 1 and 4;
then each of them at its best split. With ``--validate`` the same code also runs in real time against a stub
server of constant pace, and its seconds are compared with the simulation's (within 10%).

`--json` prints one object per line: {"bench", "case", "ours", "theirs", "ratio", "unit"}; a ratio above 1
means that ours is better.
"""

import argparse
import asyncio
import heapq
import itertools
import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from fakes import CODEC, END, EvenIsCorrect, operator, problem, settings
from stub_server import StubOptions, answer_text, planned, stub_process
from virtual_time import run_virtually

from configs.compose import load
from configs.schema import JobConfig, RolloutConfig
from launch.plan.planning import make_plan
from launch.plan.splits import GpuSplit
from launch.plan.timing import token_seconds
from rollout.build import training_calls
from rollout.collection.collector import BatchCollector, CollectOptions
from rollout.collection.problem_stream import ProblemStream
from rollout.collection.producer import Producer
from rollout.endpoints.pool import WorkerPool
from rollout.endpoints.routing import Endpoint
from rollout.endpoints.vllm_api import VllmApi
from rollout.records import Call, Sampling
from rollout.verdicts import Verdict

SCALE = 64
"""Tokens for which one simulated token stands."""
SIGMA = 0.8
STALENESS = (0, 1, 4)
WARM_STEPS = 2
"""At the start, which a steady run has once."""
VALIDATED_STEPS = 10
LIMIT_SECONDS = 1e9


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """What is simulated; all times in seconds."""

    workers: int
    slots: int
    """Sequences that one worker decodes at once."""
    pace: Callable[[int], float]
    """Time in which each of so many sequences on one worker gets a token."""
    update: float
    publish: float
    problems_per_step: int
    num_generations: int
    schedule: tuple[int, ...]
    limit: int
    """The most tokens of a call."""


class Decoder:
    """One worker: sequences share it, and all get their next token at the same time."""

    def __init__(self, costs: Costs) -> None:
        self._pace = costs.pace
        self._slots = asyncio.Semaphore(costs.slots)
        self._active: list[tuple[float, int, asyncio.Future[None]]] = []
        """When each ends, in tokens since the start."""
        self._number = itertools.count()
        self._tokens = 0.0
        self._since = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self.busy = 0.0
        """Seconds in which there was something to decode."""

    async def decode(self, tokens: int) -> None:
        """Returns when a sequence of so many tokens is done."""
        async with self._slots:
            self._advance()
            done = asyncio.get_running_loop().create_future()
            heapq.heappush(self._active, (self._tokens + tokens, next(self._number), done))
            self._set_timer()
            await done

    def _advance(self) -> None:
        now = asyncio.get_running_loop().time()
        if self._active:
            self._tokens += (now - self._since) / self._pace(len(self._active))
            self.busy += now - self._since
        self._since = now

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._active:
            left = max(self._active[0][0] - self._tokens, 0.0) * self._pace(len(self._active))
            self._timer = asyncio.get_running_loop().call_later(left, self._end_first)

    def _end_first(self) -> None:
        self._advance()
        self._tokens = max(self._tokens, self._active[0][0])
        while self._active and self._active[0][0] <= self._tokens:
            heapq.heappop(self._active)[2].set_result(None)
        self._set_timer()


class SimulatedWorkers:
    """In place of the pool's HTTP client: simulated workers, with the answers of the stub server."""

    def __init__(self, costs: Costs, lengths: StubOptions) -> None:
        self.version = 0
        self.decoders = {f"http://worker-{i}": Decoder(costs) for i in range(costs.workers)}
        self._lengths = lengths

    async def __aenter__(self) -> "SimulatedWorkers":
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    def publish(self, version: int) -> int:
        """At once: its seconds are the trainer's."""
        self.version = version
        return version

    async def sample(self, url: str, body: bytes) -> bytes:
        request = json.loads(body)
        params = request["sampling_params"]
        decoder = self.decoders[url.partition("/inference")[0]]
        version = str(self.version)
        sequences = [planned(self._lengths, params, i) for i in range(params["n"])]
        await asyncio.gather(*(decoder.decode(len(sequence.token_ids)) for sequence in sequences))
        return answer_text(sequences, len(request["token_ids"]), version).encode()


class Reward:
    """Of a group that is always worth learning from."""

    def __init__(self, total: float) -> None:
        self.total, self.parts = total, {"outcome": total}


def _reward(calls: Sequence[Call], verdicts: Sequence[Verdict], drafts: Sequence[str]) -> list[Reward]:
    return [Reward(float(verdict.is_correct)) for verdict in verdicts]


def lengths(costs: Costs, *, seconds_per_token: float = 0.0) -> StubOptions:
    """Mean half of the limit before it is cut there."""
    answers = [CODEC.tokenizer(f" \\boxed{{{number}}}").input_ids for number in range(10)]
    return StubOptions(
        slots=costs.slots,
        median_tokens=costs.limit / 2 / math.exp(SIGMA**2 / 2),
        sigma=SIGMA,
        seconds_per_token=seconds_per_token,
        filler=CODEC.tokenizer("a").input_ids[0],
        tails=[[*answer, END] for answer in answers],
    )


def make_collector(pool: WorkerPool, costs: Costs) -> BatchCollector:
    """Half of the problems through PDR, half as traces, as the experiment has it."""
    sampling = Sampling(temperature=1.0, top_p=1.0, max_tokens=costs.limit, seed=0)
    return BatchCollector(
        ProblemStream([problem(f"p{i}") for i in range(10_000)], seed=0),
        operator(costs.schedule, top_k=costs.schedule[0]),
        operator((1,), name="trace"),
        replace(settings(pool), sampling=sampling),
        EvenIsCorrect(),
        _reward,
        CollectOptions(
            problems_per_step=costs.problems_per_step,
            operator_fraction=0.5,
            num_generations=costs.num_generations,
            seed=0,
        ),
    )


async def seconds_of_a_step(
    pool: WorkerPool, costs: Costs, staleness: int, steps: int, publish: Callable[[int], int]
) -> float:
    """Mean of a training loop's steps after the first ones.

    ``publish`` is given a version, and gives the one that workers serve from then on.
    """
    producer = Producer(make_collector(pool, costs), max_staleness=staleness, last_step=steps)
    clock = asyncio.get_running_loop().time
    ends = []
    version = 0
    for step in range(1, steps + 1):
        batch = await producer.next(step, version)
        assert len(batch.groups) == costs.problems_per_step
        await asyncio.sleep(costs.update + costs.publish)
        version = publish(version + 1)
        ends.append(clock())
    await producer.close()
    return fmean(later - earlier for earlier, later in itertools.pairwise(ends[WARM_STEPS - 1 :]))


def simulate(costs: Costs, staleness: int, steps: int) -> tuple[float, float]:
    """Seconds of a step, and the share of its workers' time in which they decode."""

    async def run() -> tuple[float, float]:
        workers = SimulatedWorkers(costs, lengths(costs))
        endpoints = [Endpoint(url=url) for url in workers.decoders]
        config = RolloutConfig(max_concurrency=10**6, request_timeout_seconds=LIMIT_SECONDS)
        pool = WorkerPool(endpoints, config)
        pool._client = workers  # type: ignore[assignment]
        pool.api = VllmApi(workers)  # type: ignore[arg-type]
        async with pool:
            seconds = await seconds_of_a_step(pool, costs, staleness, steps, workers.publish)
            spent = asyncio.get_running_loop().time()
        return seconds, fmean(decoder.busy / spent for decoder in workers.decoders.values())

    return run_virtually(run())


def costs_of(config: JobConfig, split: GpuSplit) -> Costs:
    """What the plan says of a split."""
    plan = make_plan(config, training_calls)
    seconds = split.seconds
    assert seconds is not None

    def pace(active: int) -> float:
        return SCALE * token_seconds(config, plan.model, split.worker_memory, active, plan.work.mean_context)

    paces = [pace(active) for active in range(seconds.concurrency + 1)]
    return Costs(
        workers=split.workers,
        slots=seconds.concurrency,
        pace=paces.__getitem__,
        update=seconds.update,
        publish=seconds.publish,
        problems_per_step=config.algo.problems_per_step,
        num_generations=config.algo.num_generations,
        schedule=tuple(config.operator.schedule),
        limit=config.rollout.call_tokens // SCALE,
    )


def validate(steps: int) -> tuple[float, float]:
    """Seconds of a step in real time against a stub server, and simulated; staleness 1."""
    pace = 0.004
    costs = Costs(
        workers=1,
        slots=48,
        pace=lambda active: pace,
        update=1.0,
        publish=0.1,
        problems_per_step=8,
        num_generations=8,
        schedule=(4, 1),
        limit=288,
    )

    async def real(url: str) -> float:
        config = RolloutConfig(max_concurrency=1000)
        async with WorkerPool([Endpoint(url=url)], config) as pool:
            return await seconds_of_a_step(pool, costs, 1, steps, lambda version: 0)  # the stub's, always

    with stub_process(lengths(costs, seconds_per_token=pace)) as url:
        measured = asyncio.run(real(url))
    return measured, simulate(costs, 1, steps)[0]


def main() -> int:
    """Prints the comparison."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--validate", action="store_true", help="also in real time (half a minute)")
    parser.add_argument("options", nargs="*", help="of launch.plan, such as operator.schedule=[8,1]")
    arguments = parser.parse_args()

    def row(case: str, ours: float, theirs: float) -> None:
        line: dict[str, Any] = {"bench": "overlap", "case": case, "ours": round(ours, 1)}
        line |= {"theirs": round(theirs, 1), "ratio": round(theirs / ours, 2), "unit": "s a step"}
        print(json.dumps(line) if arguments.json else "  ".join(map(str, line.values())), flush=True)

    if arguments.validate:
        measured, simulated = validate(VALIDATED_STEPS)
        row("simulated against real time", simulated, measured)
    config = load("job", ["experiment=qwen3_8b_pdr", "nodes=4", "gpus=8", *arguments.options])
    splits = [split for split in make_plan(config, training_calls).splits if split.fits and split.seconds]
    best: dict[int, float] = {}
    for split in splits:
        costs = costs_of(config, split)
        found = {}
        for staleness in STALENESS:
            found[staleness], busy = simulate(costs, staleness, arguments.steps)
            best[staleness] = min(best.get(staleness, math.inf), found[staleness])
            name = f"{split.trainer}:{split.workers} GPUs, staleness {staleness}, workers busy {busy:.0%}"
            row(name, found[staleness], found[0])
    for staleness in STALENESS[1:]:
        row(f"staleness {staleness} against synchronous, each at its best split", best[staleness], best[0])
    return 0


if __name__ == "__main__":
    sys.exit(main())
