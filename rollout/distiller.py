"""A distiller: a function from a round's drafts to workspaces, and what is known of it before it runs.

The built-in ones are in ``rollout/workspace.py``.
"""

import inspect
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from rollout.policy import Policy, Solution
from rollout.records import Workspace
from rollout.stages import Stage


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillerOptions:
    """How drafts become a workspace."""

    name: str
    """A key of ``DISTILLERS``, or ``package.module:function``."""
    top_k: int
    """Drafts kept by a top-k or random-k distiller."""
    kappa: int
    """The bound, in tokens of the policy's own tokenizer."""
    oracle: str = "only_correct"
    """Drafts that the oracle admits: ``only_correct`` or ``only_wrong``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DistilContext:
    """What a distiller is given."""

    policy: Policy
    """The policy on one problem."""
    drafts: Sequence[Solution]
    """The round's usable solutions, at least one."""
    num: int
    """Workspaces wanted of these drafts, each drawn anew: by another sample, ranking or choice."""
    options: DistillerOptions
    rng: random.Random
    """For every choice that it makes; the calls have seeds of their own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DistilCost:
    """The calls of one distil, and how much a workspace then holds."""

    solutions: int
    """Solutions that a workspace holds before kappa cuts it; a summary counts as one."""
    calls: tuple[Stage, ...] = ()
    """Calls to the policy, stage after stage; a distiller that only chooses makes none."""


Distil = Callable[[DistilContext], Awaitable[list[Workspace]]]
"""``await draw(context)`` returns ``context.num`` workspaces of at most kappa tokens."""
Cost = Callable[[int, int, DistillerOptions], DistilCost]
"""``cost(drafts, num, options)``: what ``num`` workspaces of so many usable drafts take."""


@dataclass(frozen=True, slots=True)
class Distiller:
    """A way to make workspaces, and what is known of it before it runs."""

    draw: Distil
    one_each: bool = False
    """Whether the calls of a round have a workspace each, or share one."""
    cost: Cost | None = None
    """The calls that it makes; None: not declared, so ``launch.plan`` refuses."""

    def num_workspaces(self, width: int, wanted: int | None = None) -> int:
        """Workspaces for ``width`` calls: ``wanted``, or as many as the distiller itself makes."""
        return wanted or (width if self.one_each else 1)


def is_distil(function: object) -> bool:
    """Whether it is an async function that takes one argument."""
    if not inspect.iscoroutinefunction(function):
        return False
    try:
        inspect.signature(function).bind(None)
    except TypeError:
        return False
    return True
