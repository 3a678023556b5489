"""Markdown tables, and how an accuracy with its interval is written in one.

Reports, studies and model cards use it, and so does ``launch.table``: it imports only the standard library.
"""

from collections.abc import Iterable, Sequence


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a table: ``| a | b |``, the head's first."""
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]


def percent(share: float | None) -> str:
    """A share in percent: ``84.2``; an empty cell if it is not known."""
    return "" if share is None else f"{100 * share:.1f}"


def percent_interval(share: float, low: float, high: float, *, sign: str = "") -> str:
    """A share and its interval in percent: ``84.2 [81.2, 87.1]``.

    Args:
        share: From 0 to 1, or a difference of two shares.
        low: Lower end of its interval.
        high: Upper end of its interval.
        sign: ``+`` writes the sign of positive numbers, too, as a difference needs it.
    """
    return f"{100 * share:{sign}.1f} [{100 * low:{sign}.1f}, {100 * high:{sign}.1f}]"
