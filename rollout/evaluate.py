"""An operator over a data set: scored rollouts, and accuracy against token budgets."""

import asyncio
import json
from collections import defaultdict
from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from rollout.bootstrap import Interval, bootstrap
from rollout.budget import budget
from rollout.operators import Operator
from rollout.policy import PolicySettings, derive_seed
from rollout.records import Grader, Problem, Rollout
from rollout.run import run_operator


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One evaluated rollout, reduced to what reports need."""

    problem_id: str
    operator: str
    sample: int
    correct: bool
    status: str
    b_seq: int
    b_total: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the report: mean accuracy of one operator over problems and samples."""

    operator: str
    phase: str
    problems: int
    samples: int
    accuracy: float
    ci_low: float
    ci_high: float
    b_seq: float
    b_total: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Accuracy of ``a`` minus accuracy of ``b``, paired by problem."""

    a: str
    b: str
    difference: float
    ci_low: float
    ci_high: float


Key = tuple[str, str, int]
"""Problem id, operator, sample: what one rollout of an evaluation is known by."""


async def evaluate(
    problems: Sequence[Problem],
    operators: Sequence[Operator],
    settings: PolicySettings,
    grader: Grader,
    *,
    samples: int,
    seed: int,
    on_rollout: Callable[[Outcome, Rollout], None],
    done: Container[Key] = (),
    max_in_flight: int = 512,
) -> list[Outcome]:
    """Every operator on every problem, ``samples`` times, with no barrier between problems.

    Args:
        problems: The held-out problems.
        operators: Compared with one another; each problem goes through all of them.
        settings: The policy.
        grader: Gives the verdict of a completion.
        samples: Rollouts per problem and operator.
        seed: Every rollout's seed derives from it and from its own key, so an interrupted evaluation
            asks for the same samples when it goes on.
        on_rollout: Called as each rollout ends.
        done: Rollouts to leave out.
        max_in_flight: Rollouts under way at once; bounds memory.
    """
    slots = asyncio.Semaphore(max_in_flight)

    async def one(problem: Problem, operator: Operator, sample: int) -> Outcome:
        async with slots:
            own_seed = derive_seed(seed, "evaluate", sample)
            rollout = await run_operator(problem, operator, settings, grader, own_seed)
        reduced = outcome(rollout, sample)
        on_rollout(reduced, rollout)
        return reduced

    jobs = [
        one(problem, operator, sample)
        for problem in problems
        for sample in range(samples)
        for operator in operators
        if (problem.id, operator.name, sample) not in done
    ]
    return list(await asyncio.gather(*jobs))


def outcome(rollout: Rollout, sample: int) -> Outcome:
    """Reduces a rollout with one answer."""
    (answer,) = rollout.answers
    spent = budget(rollout, answer)
    verdict = rollout.verdicts[answer]
    return Outcome(
        problem_id=rollout.problem.id,
        operator=rollout.operator,
        sample=sample,
        correct=verdict.is_correct,
        status=verdict.status,
        b_seq=spent.b_seq,
        b_total=spent.b_total,
    )


def accuracy_by_problem(outcomes: Iterable[Outcome]) -> dict[str, float]:
    """Mean over the samples of each problem."""
    correct: dict[str, list[bool]] = defaultdict(list)
    for item in outcomes:
        correct[item.problem_id].append(item.correct)
    return {problem: fmean(values) for problem, values in correct.items()}


def rows(outcomes: Sequence[Outcome], phase: str) -> list[Row]:
    """One row for each operator, in order of appearance."""
    by_operator: dict[str, list[Outcome]] = defaultdict(list)
    for item in outcomes:
        by_operator[item.operator].append(item)
    return [_row(name, phase, items) for name, items in by_operator.items()]


def _row(operator: str, phase: str, outcomes: Sequence[Outcome]) -> Row:
    by_problem = accuracy_by_problem(outcomes)
    interval = bootstrap(list(by_problem.values()))
    return Row(
        operator=operator,
        phase=phase,
        problems=len(by_problem),
        samples=len(outcomes) // len(by_problem),
        accuracy=interval.mean,
        ci_low=interval.low,
        ci_high=interval.high,
        b_seq=fmean(item.b_seq for item in outcomes),
        b_total=fmean(item.b_total for item in outcomes),
    )


def difference(a: str, of_a: Iterable[Outcome], b: str, of_b: Iterable[Outcome]) -> Difference:
    """Paired bootstrap over the problems that both have."""
    first, second = accuracy_by_problem(of_a), accuracy_by_problem(of_b)
    common = sorted(first.keys() & second.keys())
    interval: Interval = bootstrap([first[p] - second[p] for p in common])
    return Difference(a=a, b=b, difference=interval.mean, ci_low=interval.low, ci_high=interval.high)


def rollout_to_json(reduced: Outcome, rollout: Rollout) -> dict[str, Any]:
    """A rollout as a graph of calls, with its outcome: one line of rollouts.jsonl."""
    return {
        "outcome": asdict(reduced),
        "problem": asdict(rollout.problem),
        "answers": list(rollout.answers),
        "counts": dict(rollout.counts),
        "verdicts": {
            str(place): {"status": verdict.status, "answer": verdict.answer}
            for place, verdict in rollout.verdicts.items()
        },
        "calls": [asdict(call) for call in rollout.calls],
    }


def read_outcomes(path: Path) -> list[Outcome]:
    """The outcomes in a rollouts.jsonl; a last line that was cut by a kill is left out."""
    outcomes = []
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            if line.endswith("\n"):
                outcomes.append(Outcome(**json.loads(line)["outcome"]))
    return outcomes
