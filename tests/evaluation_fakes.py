"""Outcomes by hand, and evaluations of the scripted policy."""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from fakes import EvenIsCorrect, ScriptedPolicy, operator, problem, settings

from rollout.evaluation.evaluate import Comparison, PlannedRollout, evaluate, missing
from rollout.evaluation.identity import Identity
from rollout.evaluation.journal import Journal
from rollout.evaluation.outcomes import Attempt, Failure, Outcome, Round
from rollout.evaluation.report import Report, compare
from rollout.operators import Operator
from rollout.records import Rollout
from rollout.sampler import Sampler


def attempt(answer: str | None, *, correct: bool | None = None, b_seq: int = 100, **rest) -> Attempt:
    """An attempt whose answer is right if it is even."""
    right = answer is not None and int(answer) % 2 == 0 if correct is None else correct
    label = "no_answer" if answer is None else "ok"
    fields = {"label": label, "truncated": False, **rest}
    return Attempt(correct=right, answer=answer, b_seq=b_seq, **fields)


def outcome(
    name: str, *rounds: Sequence[str | None], operator: str = "trace", sample: int = 0, tokens: int = 100
) -> Outcome:
    """A rollout with these answers in each round; every call has ``tokens`` tokens."""
    made, calls = [], 0
    for number, answers in enumerate(rounds, start=1):
        calls += len(answers)
        attempts = tuple(attempt(answer, b_seq=number * tokens) for answer in answers)
        made.append(Round(attempts=attempts, b_total=calls * tokens))
    (final,) = made[-1].attempts
    return Outcome(
        problem_id=name,
        operator=operator,
        sample=sample,
        status="correct" if final.correct else "wrong",
        rounds=tuple(made),
        completion_tokens=calls * tokens // 2,
        started=float(sample),
        seconds=2.0,
    )


class Kept:
    """A sink that keeps what it gets."""

    def __init__(self) -> None:
        self.outcomes: list[Outcome] = []
        self.rollouts: list[Rollout] = []
        self.failures: list[Failure] = []

    def add(self, outcome: Outcome, rollout: Rollout) -> None:
        assert outcome.problem_id == rollout.problem.id
        self.outcomes.append(outcome)
        self.rollouts.append(rollout)

    def add_failure(self, failure: Failure) -> None:
        self.failures.append(failure)


IDENTITY = Identity(shared={"seed": 0, "weights of model.path": "aa"}, operators={"trace": {"schedule": [1]}})


def open_journal(path: Path, names: Iterable[str] = ()) -> Journal:
    """A journal of ``IDENTITY`` and the problems of these names."""
    return Journal(path, IDENTITY, [problem(name) for name in names])


TRACE = operator((1,), name="trace")
OPERATORS = (TRACE, operator((4, 1)), operator((1, 1), name="sr"))


def comparison(problems: int, operators: Sequence[Operator] = OPERATORS, samples: int = 2) -> Comparison:
    named = [problem(f"p{i}") for i in range(problems)]
    return Comparison(problems=named, operators=operators, trace=TRACE, samples=samples)


def run_comparison(
    made: Comparison,
    path: Path,
    policy: Sampler | None = None,
    *,
    keep: Callable[[Iterable[PlannedRollout]], Iterable[PlannedRollout]] = iter,
) -> Report:
    """What the command does, in a journal at ``path``; ``keep`` may leave jobs of the first stage out."""
    sampler = policy or ScriptedPolicy()
    with Journal(path, IDENTITY, made.problems) as journal:

        def run(jobs: Iterable[PlannedRollout]) -> None:
            work = evaluate(jobs, settings(sampler), EvenIsCorrect(), journal, seed=0, max_in_flight=8)
            asyncio.run(work)

        run(keep(missing(made.planned(), journal.done)))
        run(missing(made.planned_votes(journal.outcomes), journal.done))
        return report_of(made, journal)


def report_of(made: Comparison, journal: Journal) -> Report:
    work = compare(
        [each.name for each in made.operators],
        [each.id for each in made.problems],
        journal.outcomes,
        list(journal.failures.values()),
        EvenIsCorrect().same,
        num_traces=made.num_traces,
    )
    return asyncio.run(work)
