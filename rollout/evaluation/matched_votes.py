"""Majority voting at matched B_total: the accuracy of an operator's tokens if they were spent on traces.

An operator that costs as much as m traces must beat the vote of m traces. For each operator, m is the
number of traces that its mean B_total buys. The votes come from the trace rollouts of the comparison;
if these are fewer than m, more traces are drawn.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

from rollout.evaluation.bootstrap import bootstrap
from rollout.evaluation.measures import maj_at_k, pass_at_k, shares, windows
from rollout.evaluation.outcomes import AnswerClasses, Outcome, ballots, by_operator, by_problem
from rollout.evaluation.report_rows import ReportRow, Vote, base_name

TRACE, MAJORITY = "trace", "majority"
"""Names of the two operators that are not matched: the unit of the match, and voting itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """``votes`` traces cost about as much as each of ``operators``."""

    votes: int
    operators: tuple[str, ...]


def matches(outcomes: Iterable[Outcome], num_traces: int) -> list[Match]:
    """Returns how many traces each operator's mean B_total buys, by number of votes.

    votes = max(1, floor(mean B_total of the operator / mean B_total of a trace))

    Operators with equal votes share a match. Empty if there is no trace to measure with.

    Args:
        outcomes: Outcomes of all operators.
        num_traces: Traces per problem that the comparison itself makes. The price of a trace is measured on
            these alone, so that drawing more does not change the number of votes.
    """
    grouped = by_operator(outcomes)
    traces = [item for item in grouped.get(TRACE, []) if item.sample < num_traces]
    if not traces:
        return []
    price = fmean(item.b_total for item in traces)
    bought: dict[int, list[str]] = {}
    for name, items in grouped.items():
        if base_name(name) not in (TRACE, MAJORITY):
            votes = max(1, int(fmean(item.b_total for item in items) / price))
            bought.setdefault(votes, []).append(name)
    return [Match(votes=votes, operators=tuple(names)) for votes, names in sorted(bought.items())]


def vote_row(
    match: Match, traces: Sequence[Outcome], classes: AnswerClasses, *, num_traces: int, failed: int
) -> ReportRow | None:
    """Returns the row of the vote of ``match.votes`` traces, averaged over all windows of a problem's traces.

    B_seq is that of the longest vote, B_total the sum of the votes. Problems with too few traces, because
    rollouts failed, are left out; None if no problem is left.

    Args:
        match: The number of votes, and the operators that it is matched to.
        traces: The trace rollouts, in order of their samples.
        classes: Result of ``group_answers``.
        num_traces: Traces per problem that the comparison made anyway.
        failed: Number of trace rollouts without an outcome.
    """
    # All traces made for the comparison vote; more are drawn only if these are fewer than the votes.
    votes, used = match.votes, max(match.votes, num_traces)
    grouped = {
        problem: items
        for problem, every in by_problem(item for item in traces if item.sample < used).items()
        if len(items := every[:used]) >= votes
    }
    if not grouped:
        return None
    accuracies = {
        problem: maj_at_k(ballots(problem, [item.final for item in items], classes), votes)
        for problem, items in grouped.items()
    }
    interval = bootstrap(list(accuracies.values()))
    passed = fmean(pass_at_k(len(items), sum(i.correct for i in items), votes) for items in grouped.values())
    voters = [item for items in grouped.values() for item in items]
    return ReportRow(
        operator=f"majority@{votes} (matched to {', '.join(match.operators)})",
        phase="",
        problems=len(grouped),
        samples=max(1 if len(items) == votes else len(items) for items in grouped.values()),
        accuracy=interval.mean,
        ci_low=interval.low,
        ci_high=interval.high,
        b_seq=fmean(_longest(items, votes) for items in grouped.values()),
        b_total=fmean(votes * fmean(item.b_total for item in items) for items in grouped.values()),
        round=0,
        final=True,
        width=votes,
        failed=failed,
        pass_at={str(votes): passed},
        maj_at={str(votes): interval.mean},
        pass_at_width=passed,
        truncated=fmean(item.final.truncated for item in voters),
        no_answer=fmean(item.final.answer is None for item in voters),
        labels=shares(item.final.label for item in voters),
        by_problem=accuracies,
        vote=Vote(votes=votes, matched_to=match.operators, traces=used, drawn=used - min(used, num_traces)),
    )


def _longest(items: Sequence[Outcome], votes: int) -> float:
    """Returns the mean over windows of the longest vote's B_seq."""
    runs = windows(len(items), votes)
    return fmean(max(items[i].b_seq for i in run) for run in runs)
