"""An operator over a data set: scored rollouts, and accuracy against token budgets."""

import asyncio
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from rollout.bootstrap import Interval, bootstrap
from rollout.budget import budget
from rollout.operators import Operator
from rollout.policy import PolicySettings, derive_seed
from rollout.records import Problem, Rollout, Score
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


async def evaluate(
    problems: Sequence[Problem],
    operators: Sequence[Operator],
    settings: PolicySettings,
    score: Score,
    *,
    samples: int,
    seed: int,
    on_rollout: Callable[[int, Rollout], None],
) -> list[Outcome]:
    """Every operator on every problem, ``samples`` times, all side by side.

    ``on_rollout(sample, rollout)`` is called as each rollout ends.
    """

    async def one(problem: Problem, operator: Operator, sample: int) -> Outcome:
        own_seed = derive_seed(seed, "evaluate", sample)
        rollout = await run_operator(problem, operator, settings, score, own_seed)
        on_rollout(sample, rollout)
        return outcome(rollout, sample)

    jobs = [one(p, o, s) for p in problems for s in range(samples) for o in operators]
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


def rollout_to_json(sample: int, rollout: Rollout) -> dict[str, Any]:
    """A rollout as a graph of calls, for rollouts.jsonl."""
    return {
        "problem": asdict(rollout.problem),
        "operator": rollout.operator,
        "sample": sample,
        "answers": list(rollout.answers),
        "counts": dict(rollout.counts),
        "verdicts": {
            str(place): {"status": verdict.status, "answer": verdict.answer}
            for place, verdict in rollout.verdicts.items()
        },
        "calls": [asdict(call) for call in rollout.calls],
    }


def write_outcomes(path: Path, outcomes: Sequence[Outcome]) -> None:
    """Writes outcomes in one piece: the file is whole or absent."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".tmp")
    aside.write_text("".join(json.dumps(asdict(item)) + "\n" for item in outcomes))
    aside.replace(path)


def read_outcomes(path: Path) -> list[Outcome]:
    """Reads what ``write_outcomes`` wrote."""
    return [Outcome(**json.loads(line)) for line in path.read_text().splitlines()]
