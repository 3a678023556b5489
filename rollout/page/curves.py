"""Metrics over steps, thinned to what a page can hold."""

import math
from collections.abc import Mapping, Sequence

from rollout.page.sources import evenly
from rollout.page.view import Curves

POINTS = 1_000
"""Most steps of a run in the page; the others are left out."""
DIGITS = 6


def curves(lines: Sequence[Mapping[str, float]], keep: Sequence[int] = (), points: int = POINTS) -> Curves:
    """Returns the metrics as columns.

    Args:
        lines: Metrics by step, each with the key ``step``.
        keep: Steps that are kept whatever is left out, such as those with an alarm.
        points: Most steps besides these.
    """
    chosen = set(evenly(range(len(lines)), points))
    kept = [line for place, line in enumerate(lines) if place in chosen or int(line["step"]) in set(keep)]
    names = sorted({name for line in kept for name in line if name != "step"})
    note = ""
    if len(kept) < len(lines):
        note = (
            f"{len(kept)} of {len(lines)} steps are drawn, evenly spaced, with all steps that have an alarm."
        )
    return Curves(
        steps=tuple(int(line["step"]) for line in kept),
        values={name: tuple(_rounded(line.get(name)) for line in kept) for name in names},
        note=note,
    )


def _rounded(value: float | None) -> float | None:
    """Returns a value with few digits; None for one that is not a finite number, as JSON has none."""
    if not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(f"{value:.{DIGITS}g}")
