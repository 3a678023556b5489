"""Plans the rollouts of operators over a data set, and makes them, a bounded number at a time."""

import asyncio
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from rollout.evaluation.matched_votes import MAJORITY, TRACE, matches
from rollout.evaluation.outcomes import Failure, Key, Outcome, reduce
from rollout.evaluation.progress import Progress, Sink
from rollout.evaluation.report_rows import base_name
from rollout.grading import Grader
from rollout.operators import Operator, run_operator
from rollout.policy import derive_seed
from rollout.policy_settings import PolicySettings
from rollout.records import Problem, Rollout
from rollout.sampler import CallFailed


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedRollout:
    """One rollout to make."""

    problem: Problem
    operator: Operator
    sample: int

    @property
    def key(self) -> Key:
        return (self.problem.id, self.operator.name, self.sample)


class Record(Sink, Protocol):
    """A sink that keeps the outcomes it received."""

    outcomes: list[Outcome]

    @property
    def done(self) -> Collection[Key]:
        """The rollouts that need not be made again."""
        ...


class InMemory:
    """A record in memory: keeps outcomes and drops the graphs of calls."""

    def __init__(self) -> None:
        self.outcomes: list[Outcome] = []
        self.failures: dict[Key, Failure] = {}

    @property
    def done(self) -> set[Key]:
        return {outcome.key for outcome in self.outcomes}

    def add(self, outcome: Outcome, rollout: Rollout) -> None:
        self.outcomes.append(outcome)

    def add_failure(self, failure: Failure) -> None:
        self.failures[failure.key] = failure


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Operators to compare with each other, and with votes of as many traces as each of them costs."""

    problems: Sequence[Problem]
    operators: Sequence[Operator]
    trace: Operator
    """The plain trace, also if it is not among the operators."""
    samples: int
    """Rollouts per problem and operator."""

    @property
    def num_traces(self) -> int:
        """Traces per problem that do not depend on the operators' cost; 0 if all are majority votes.

        Otherwise at least one, to measure the cost of a trace.
        """
        if any(operator.name == TRACE for operator in self.operators):
            return self.samples
        return int(any(base_name(operator.name) != MAJORITY for operator in self.operators))

    def planned(self) -> Iterator[PlannedRollout]:
        """Yields the operators' rollouts, and the traces that measure the cost of a trace."""
        names = [operator.name for operator in self.operators]
        for problem in self.problems:
            for sample in range(self.samples):
                for operator in self.operators:
                    yield PlannedRollout(problem=problem, operator=operator, sample=sample)
            if TRACE not in names:
                yield from self._traces(problem, 0, self.num_traces)

    def planned_votes(self, outcomes: Iterable[Outcome]) -> Iterator[PlannedRollout]:
        """Yields the further traces that the matched votes need, given the cost of the operators."""
        counted = [outcome for outcome in outcomes if self.counts(outcome.key)]
        needed = max((match.votes for match in matches(counted, self.num_traces)), default=0)
        for problem in self.problems:
            yield from self._traces(problem, self.num_traces, needed)

    def counts(self, key: Key) -> bool:
        """Returns True for a rollout of this comparison; a journal may hold more operators and samples.

        All traces count: votes use as many as they need.
        """
        _, operator, sample = key
        return operator == TRACE or (sample < self.samples and operator in {o.name for o in self.operators})

    def _traces(self, problem: Problem, start: int, stop: int) -> Iterator[PlannedRollout]:
        for sample in range(start, stop):
            yield PlannedRollout(problem=problem, operator=self.trace, sample=sample)


def missing(planned: Iterable[PlannedRollout], done: Collection[Key]) -> Iterator[PlannedRollout]:
    """Returns the planned rollouts that are not in ``done``."""
    return (item for item in planned if item.key not in done)


async def make_missing(
    comparison: Comparison,
    settings: PolicySettings,
    grader: Grader,
    record: Record,
    *,
    seed: int,
    max_in_flight: int,
) -> None:
    """Makes the rollouts of a comparison that ``record`` does not hold, with progress bars.

    The operators' rollouts come first: their cost decides how many traces the matched votes need.
    """

    async def make(title: str, planned: Callable[[], Iterator[PlannedRollout]]) -> None:
        # ``planned`` is called again for each pass, so that no list of all rollouts is held in memory.
        done = record.done
        total = sum(1 for _ in planned())
        left = sum(1 for _ in missing(planned(), done))
        with Progress(record, title=title, total=total, done=total - left) as sink:
            todo = missing(planned(), done)
            limit = min(left, max_in_flight)
            counted = sink.counting(settings)
            await evaluate(todo, counted, grader, sink, seed=seed, max_in_flight=limit)

    await make("evaluate", comparison.planned)
    await make("traces for the votes", lambda: comparison.planned_votes(record.outcomes))


async def evaluate(
    planned: Iterable[PlannedRollout],
    settings: PolicySettings,
    grader: Grader,
    sink: Sink,
    *,
    seed: int,
    max_in_flight: int = 512,
) -> None:
    """Makes the rollouts of ``planned``, with no barrier between them.

    A rollout is taken from ``planned`` only when it starts, so memory does not grow with their number. A
    rollout whose call failed after all retries goes to ``sink.add_failure``; any other error ends the
    evaluation.

    Args:
        planned: Rollouts in the order in which they start.
        settings: Settings of the policy.
        grader: Scores completions.
        sink: Receives each rollout as it ends.
        seed: Each rollout's seed is derived from it and from the rollout's key, so an interrupted
            evaluation asks for the same samples when it resumes.
        max_in_flight: Maximum of rollouts in progress at once.
    """
    # One iterator for all workers: each takes the next rollout when it is free.
    waiting = iter(planned)

    async def work() -> None:
        for item in waiting:
            await _run(item, settings, grader, sink, seed)

    workers = [asyncio.create_task(work()) for _ in range(max_in_flight)]
    try:
        await asyncio.gather(*workers)
    finally:
        for worker in workers:
            worker.cancel()


async def _run(item: PlannedRollout, settings: PolicySettings, grader: Grader, sink: Sink, seed: int) -> None:
    # ``started`` is compared across starts; durations need a clock that is never set back.
    started, clock = time.time(), time.perf_counter()
    own_seed = derive_seed(seed, "evaluate", item.sample)
    try:
        rollout = await run_operator(item.problem, item.operator, settings, grader, own_seed)
    except CallFailed as error:
        problem, operator, sample = item.key
        sink.add_failure(Failure(problem_id=problem, operator=operator, sample=sample, reason=str(error)))
        return
    seconds = time.perf_counter() - clock
    sink.add(reduce(rollout, item.sample, settings.marks, started=started, seconds=seconds), rollout)
