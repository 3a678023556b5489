"""What makes the numbers of a report mean little, for its first lines."""

from collections.abc import Iterable

from rollout.evaluation.report_rows import ReportRow
from rollout.evaluation.tables import percent

MAX_SHARE = 0.1
"""Share above which an event is named."""


def alarms(rows: Iterable[ReportRow]) -> list[str]:
    """Returns a sentence for each row with an event above ``MAX_SHARE``, in the order of the rows.

    The events: attempts that ran into their token limit, or have no answer; answers that are ``unparsable``;
    rollouts in which a workspace had no usable draft.
    """
    return [f"{_place(row)}: {', '.join(found)}." for row in rows if (found := _events(row))]


def _events(row: ReportRow) -> list[str]:
    whole = row.whole
    events = (
        ("of the attempts ran into the token limit", row.truncated),
        ("of the attempts have no answer", row.no_answer),
        ("of the answers are unparsable", whole and whole.statuses.get("unparsable")),
        ("of the rollouts had no usable draft", whole and whole.no_draft),
    )
    return [f"{percent(share)}% {event}" for event, share in events if share and share > MAX_SHARE]


def _place(row: ReportRow) -> str:
    place = f"{row.operator} {row.phase}".rstrip()
    return place if row.final else f"{place}, round {row.round + 1}"
