"""Rows of a report: the results of one operator in one round, over all problems and samples."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from statistics import fmean
from typing import Any

from rollout.evaluation.bootstrap import DIFFERENCE, bootstrap
from rollout.evaluation.measures import Ballot, maj_at_k, mean_or_none, pass_at_k, powers_of_two, shares
from rollout.evaluation.outcomes import (
    AnswerClasses,
    Attempt,
    Outcome,
    accuracy_by_problem,
    ballots,
    by_problem,
    pass_at_width,
)
from rollout.evaluation.transitions import Transition, transition

FALLBACK = "workspace/fallback"
"""Count of the workspaces that no draft could enter; absent where an operator makes none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Whole:
    """Measures of whole rollouts, in final rows only; ``docs/metrics.md`` defines each field."""

    statuses: Mapping[str, float]
    counts: Mapping[str, float]
    no_draft: float | None
    seconds: float | None
    tokens_per_second: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Vote:
    """The traces behind a row of matched majority voting, per problem."""

    votes: int
    matched_to: tuple[str, ...]
    traces: int
    """Trace rollouts that the votes were taken from."""
    drawn: int
    """Number of these traces that were drawn for the votes alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportRow:
    """One operator in one round; ``docs/metrics.md`` defines each field.

    ``by_problem`` is the accuracy on each problem, for paired differences; the report has that of votes.
    """

    operator: str
    phase: str
    problems: int
    samples: int
    accuracy: float
    ci_low: float
    ci_high: float
    b_seq: float
    b_total: float
    round: int
    final: bool
    width: int
    failed: int
    pass_at: Mapping[str, float]
    maj_at: Mapping[str, float]
    pass_at_width: float
    truncated: float
    no_answer: float
    labels: Mapping[str, float]
    by_problem: Mapping[str, float]
    mean_reward: float | None = None
    transition: Transition | None = None
    whole: Whole | None = None
    vote: Vote | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Accuracy of ``a`` minus accuracy of ``b``, paired by problem."""

    a: str
    b: str
    problems: int
    difference: float
    ci_low: float
    ci_high: float


def operator_rows(
    outcomes: Sequence[Outcome],
    classes: AnswerClasses,
    *,
    phase: str = "",
    failed: int = 0,
    trace: Mapping[str, float] | None = None,
) -> list[ReportRow]:
    """Returns the rows of one operator, one for each round; the answer's row is last.

    A round before the answer counts the rollouts that reached it: an operator may stop early.

    Args:
        outcomes: All outcomes of one operator; at least one.
        classes: Result of ``group_answers``.
        phase: Copied into the rows.
        failed: Number of rollouts without an outcome.
        trace: Accuracy of traces per problem, to compare strata with; None if no traces were made.
    """
    last = max(len(item.rounds) for item in outcomes) - 1
    # Rollouts by the round that a row shows: each reached it before its answer.
    reached = [[item for item in outcomes if len(item.rounds) - 1 > number] for number in range(last)]
    rows = [
        _row(items, classes, number, trace or {}, phase=phase, failed=failed)
        for number, items in enumerate(reached)
    ]
    # -1: of each rollout the last round, whatever its number.
    answers = _row(outcomes, classes, -1, trace or {}, phase=phase, failed=failed, whole=_whole(outcomes))
    return [*rows, replace(answers, round=last, final=True)]


def _row(
    outcomes: Sequence[Outcome],
    classes: AnswerClasses,
    number: int,
    trace: Mapping[str, float],
    **rest: Any,
) -> ReportRow:
    """Returns the row of round ``number`` of these rollouts; -1: of their last rounds."""
    has_drafts = number > 0 or (number < 0 and all(len(item.rounds) > 1 for item in outcomes))
    grouped = by_problem(outcomes)
    rounds = [item.rounds[number] for item in outcomes]
    attempts = [attempt for each in rounds for attempt in each.attempts]
    accuracies = accuracy_by_problem(outcomes, number)
    interval = bootstrap(list(accuracies.values()))
    voters = [ballots(problem, _attempts(items, number), classes) for problem, items in grouped.items()]
    samples = max(len(items) for items in grouped.values())
    # Attempts per problem, over problems without failed rollouts: others have fewer.
    num = min(
        len(each) for each, items in zip(voters, grouped.values(), strict=True) if len(items) == samples
    )
    return ReportRow(
        operator=outcomes[0].operator,
        problems=len(grouped),
        samples=samples,
        accuracy=interval.mean,
        ci_low=interval.low,
        ci_high=interval.high,
        b_seq=fmean(fmean(a.b_seq for a in each.attempts) for each in rounds),
        b_total=fmean(each.b_total for each in rounds),
        round=number,
        final=False,
        width=max(len(each.attempts) for each in rounds),
        pass_at=_pass_at(voters, num),
        maj_at=_maj_at(voters, num),
        pass_at_width=pass_at_width(outcomes, number),
        truncated=fmean(a.truncated for a in attempts),
        no_answer=fmean(a.answer is None for a in attempts),
        labels=shares(a.label for a in attempts),
        by_problem=accuracies,
        mean_reward=mean_or_none(a.value for a in attempts),
        transition=transition(outcomes, number, classes, trace) if has_drafts else None,
        **rest,
    )


def _attempts(outcomes: Iterable[Outcome], number: int) -> list[Attempt]:
    return [attempt for item in outcomes for attempt in item.rounds[number].attempts]


def _pass_at(voters: Sequence[Sequence[Ballot]], num: int) -> dict[str, float]:
    """pass@k for powers of two up to ``num``, over the problems that have k attempts."""
    counted = [(len(each), sum(ballot.right for ballot in each)) for each in voters]
    return {
        str(k): fmean(pass_at_k(n, right, k) for n, right in counted if n >= k) for k in powers_of_two(num)
    }


def _maj_at(voters: Sequence[Sequence[Ballot]], num: int) -> dict[str, float]:
    """maj@k for powers of two up to ``num`` and for ``num``, over the problems that have k attempts."""
    ks = sorted({*powers_of_two(num), num})
    return {str(k): fmean(maj_at_k(each, k) for each in voters if len(each) >= k) for k in ks}


def _whole(outcomes: Sequence[Outcome]) -> Whole:
    counts: Counter[str] = Counter()
    for item in outcomes:
        counts.update(item.counts)
    timed = [item for item in outcomes if item.seconds > 0]
    return Whole(
        statuses=shares(item.status for item in outcomes),
        counts={name: counts[name] / len(outcomes) for name in sorted(counts)},
        no_draft=mean_or_none(item.counts[FALLBACK] > 0 for item in outcomes if FALLBACK in item.counts),
        seconds=mean_or_none(item.seconds for item in timed),
        tokens_per_second=mean_or_none(item.completion_tokens / item.seconds for item in timed),
    )


def difference(a: str, of_a: Mapping[str, float], b: str, of_b: Mapping[str, float]) -> Difference:
    """Returns the paired bootstrap of ``a - b`` over the problems that both have.

    Args:
        a: Name of the first.
        of_a: Its accuracy on each problem.
        b: Name of the second.
        of_b: Its accuracy on each problem.

    Raises:
        ValueError: If they share no problem.
    """
    common = sorted(of_a.keys() & of_b.keys())
    interval = bootstrap([of_a[problem] - of_b[problem] for problem in common], DIFFERENCE)
    return Difference(
        a=a,
        b=b,
        problems=len(common),
        difference=interval.mean,
        ci_low=interval.low,
        ci_high=interval.high,
    )


def pairwise(rows: Iterable[ReportRow]) -> list[Difference]:
    """Returns the differences of all pairs of final rows that share problems, later minus earlier row.

    For example ``pdr - trace``.
    """
    final = [row for row in rows if row.final]
    return [
        difference(row_name(b), b.by_problem, row_name(a), a.by_problem)
        for a, b in combinations(final, 2)
        if a.by_problem.keys() & b.by_problem.keys()
    ]


def base_name(operator: str) -> str:
    """Returns the operator of which ``operator`` is a variant: ``pdr`` for ``pdr(schedule=[8,4,1])``."""
    return operator.partition("(")[0]


def row_name(row: ReportRow) -> str:
    """Returns the name of a row in differences: its operator, and its phase if it has one."""
    return f"{row.operator} {row.phase}".strip()


def short_name(row: ReportRow) -> str:
    """As ``row_name``; of a vote only its number of votes: ``majority@5``."""
    return row_name(row) if row.vote is None else f"majority@{row.vote.votes}"
