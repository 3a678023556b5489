"""Formats Markdown tables, and accuracies with their intervals.

Reports, studies, model cards and ``launch.table`` use it, so it imports only the standard library.
"""

from collections.abc import Iterable, Sequence


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Returns the lines of a table, ``| a | b |``, the head first."""
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]


def percent(share: float | None) -> str:
    """Returns a share in percent, ``84.2``; an empty string for None."""
    return "" if share is None else f"{100 * share:.1f}"


def percent_interval(share: float, low: float, high: float, *, sign: str = "") -> str:
    """Returns a share and its interval in percent: ``84.2 [81.2, 87.1]``.

    Args:
        share: A number from 0 to 1, or a difference of two shares.
        low: Lower end of its interval.
        high: Upper end of its interval.
        sign: ``+`` also writes the sign of positive numbers, for differences.
    """
    return f"{100 * share:{sign}.1f} [{100 * low:{sign}.1f}, {100 * high:{sign}.1f}]"
