"""The rollouts of one step or phase: counted in full, shown in part."""

from collections import Counter
from collections.abc import Callable, Sequence

from rollout.page.choosing import choose
from rollout.page.flags import FLAGS, Facts
from rollout.page.view import RolloutView, SourceView

SHARE_BYTES = 2_500_000
"""Bytes of JSON of all rollouts of a page, over all its runs."""


def source_views(
    source: str,
    facts: Sequence[Facts],
    operators: Sequence[str],
    view: Callable[[int], RolloutView],
    *,
    limit: int,
    note: str = "",
) -> tuple[SourceView, list[RolloutView]]:
    """Returns the summary of a source, and the views of the rollouts that fit into ``limit`` bytes.

    Arguments are those of ``choose``, and those of ``SourceView``.
    """
    shown = choose(facts, operators, view, limit)
    counts = Counter(flag for each in facts for flag in each.flags)
    flags = {flag: counts[flag] for flag in FLAGS}
    return SourceView(source=source, rollouts=len(facts), shown=len(shown), flags=flags, note=note), shown


def evenly(items: Sequence[int], most: int) -> list[int]:
    """Returns at most ``most`` (at least 2) of the items, evenly spaced, the first and the last included."""
    if len(items) <= most:
        return list(items)
    last = len(items) - 1
    return [items[round(place * last / (most - 1))] for place in range(most)]
