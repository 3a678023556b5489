"""What a comparison says of two operators: which is better, that they are equal, or that it cannot say.

The rule, on the paired interval of ``a - b``: clear of 0, the better one is named; within ``MARGIN`` on both
sides, they are equal; otherwise the comparison was not fine enough. Two rows are compared at matched cost if
their B_total, and at matched latency if their B_seq, differ by a factor of at most ``MATCHED``. Voting is
always there: for cost, the vote that was matched to the operator; for latency, the widest vote that is not
slower.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from rollout.evaluation.report_rows import Difference, ReportRow, row_name, short_name

MARGIN = 0.02
"""Difference of two accuracies that is taken as none."""
MATCHED = 1.25
"""Largest factor between two matched budgets."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """The comparison of two rows of a report."""

    a: str
    """Name of the first row; a vote without the operators that it is matched to."""
    b: str
    difference: Difference
    b_total_ratio: float
    """B_total of a over that of b."""
    b_seq_ratio: float
    """B_seq of a over that of b."""
    at_cost: bool
    """True if the two are matched in B_total."""
    at_latency: bool
    """True if the two are matched in B_seq."""
    is_main: bool
    """False if one of them is a vote that is matched to the other in neither budget."""

    @property
    def sentence(self) -> str:
        """The finding in words."""
        item = self.difference
        if item.ci_low > 0 or item.ci_high < 0:
            better, worse = (self.a, self.b) if item.ci_low > 0 else (self.b, self.a)
            return f"{better} is better than {worse}."
        if item.ci_low >= -MARGIN and item.ci_high <= MARGIN:
            return f"{self.a} and {self.b} are equal within {100 * MARGIN:.0f} points."
        return f"{self.a} and {self.b} were not measured finely enough to tell."


def findings(rows: Sequence[ReportRow], differences: Sequence[Difference]) -> list[Finding]:
    """Returns the findings on the pairs of ``differences``, without pairs of votes.

    Args:
        rows: The rows of the report.
        differences: Differences of final rows, named as in ``report_rows.pairwise``.
    """
    final = {row_name(row): row for row in rows if row.final}
    found = []
    for item in differences:
        a, b = final.get(item.a), final.get(item.b)
        if a is not None and b is not None and (a.vote is None or b.vote is None):
            found.append(_finding(item, a, b, list(final.values())))
    return found


def _finding(item: Difference, a: ReportRow, b: ReportRow, rows: Sequence[ReportRow]) -> Finding:
    voting = a.vote is not None or b.vote is not None
    at_cost = _is_matched_vote(a, b) if voting else _is_close(a.b_total, b.b_total)
    at_latency = _is_widest_vote(a, b, rows) if voting else _is_close(a.b_seq, b.b_seq)
    return Finding(
        a=short_name(a),
        b=short_name(b),
        difference=item,
        b_total_ratio=a.b_total / b.b_total,
        b_seq_ratio=a.b_seq / b.b_seq,
        at_cost=at_cost,
        at_latency=at_latency,
        is_main=not voting or at_cost or at_latency,
    )


def _is_close(first: float, second: float) -> bool:
    return max(first, second) <= MATCHED * min(first, second)


def _is_matched_vote(a: ReportRow, b: ReportRow) -> bool:
    vote, other = (a, b) if a.vote is not None else (b, a)
    return vote.vote is not None and other.operator in vote.vote.matched_to


def _is_widest_vote(a: ReportRow, b: ReportRow, rows: Sequence[ReportRow]) -> bool:
    vote, other = (a, b) if a.vote is not None else (b, a)
    in_time = [
        row for row in rows if row.vote is not None and row.phase == other.phase and _is_in_time(row, other)
    ]
    return bool(in_time) and vote is max(in_time, key=lambda row: row.width)


def _is_in_time(vote: ReportRow, other: ReportRow) -> bool:
    return vote.b_seq <= MATCHED * other.b_seq
