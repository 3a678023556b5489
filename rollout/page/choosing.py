"""Chooses the rollouts that fit on the page: some of every kind."""

import random
from collections.abc import Callable, Sequence
from itertools import zip_longest

import msgspec

from rollout.page.flags import FLAGS, Facts
from rollout.page.view import RolloutView

LONGEST = 3
"""Number of the longest rollouts of a source that are among the first chosen."""


def choose(
    facts: Sequence[Facts], operators: Sequence[str], view: Callable[[int], RolloutView], limit: int
) -> list[RolloutView]:
    """Returns the views of as many rollouts as fit, in the order in which they were recorded.

    Rollouts with each flag, of each operator and the longest take turns, drawn at random with a fixed seed,
    so that the rare ones are there.

    Args:
        facts: Facts of every rollout of a source.
        operators: Their operators.
        view: Returns the view of the rollout at a position.
        limit: Bytes of JSON that the views may take together; the first is returned even if it is larger.
    """
    chosen: dict[int, RolloutView] = {}
    used = 0
    for place in _by_turns(facts, operators):
        candidate = view(place)
        size = len(msgspec.json.encode(candidate))
        if chosen and used + size > limit:
            break
        chosen[place] = candidate
        used += size
    return [chosen[place] for place in sorted(chosen)]


def _by_turns(facts: Sequence[Facts], operators: Sequence[str]) -> list[int]:
    """Returns the positions of all rollouts in the order in which they are taken."""
    shuffled = random.Random(0).sample(range(len(facts)), len(facts))
    queues = [[place for place in shuffled if flag in facts[place].flags] for flag in FLAGS]
    queues += [[place for place in shuffled if operators[place] == name] for name in dict.fromkeys(operators)]
    queues.append(sorted(shuffled, key=lambda place: -facts[place].tokens)[:LONGEST])
    turns = zip_longest(*queues)
    return list(dict.fromkeys(place for turn in turns for place in turn if place is not None))
