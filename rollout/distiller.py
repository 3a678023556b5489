"""Interface of a distiller: a function from a round's drafts to workspaces, with its declared cost.

The built-in distillers are in ``rollout/workspace.py``.
"""

import inspect
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from rollout.policy import Policy, Solution
from rollout.records import EMPTY, Workspace
from rollout.stages import Stage


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillerOptions:
    """Options of the step from drafts to workspaces."""

    name: str
    """A key of ``DISTILLERS``, or ``package.module:function``."""
    top_k: int
    """Drafts that a top-k or random-k distiller keeps."""
    top_k_range: tuple[int, ...] = ()
    """Minimum and maximum of the drafts that such a distiller keeps in a workspace, drawn for each workspace;
    empty: ``top_k``."""
    kappa: int
    """Bound of a workspace, in tokens of the policy's own tokenizer."""
    oracle: str = "only_correct"
    """Drafts that the oracle admits: ``only_correct`` or ``only_wrong``."""
    source: str = "solution"
    """Part of a draft that is read: ``solution``, ``full`` or ``tail`` (``rollout.sources``)."""
    tail_tokens: int = 4096
    """Tokens at the end of a draft that are read with ``tail``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DistilContext:
    """Input of a distiller."""

    policy: Policy
    """The policy on one problem."""
    drafts: Sequence[Solution]
    """The round's usable solutions, at least one; what ``options.source`` reads of them."""
    num: int
    """Number of workspaces to return, each drawn independently: another sample, ranking or choice."""
    options: DistillerOptions
    rng: random.Random
    """Source of every random choice of the distiller; the calls have their own seeds."""
    previous: Workspace = EMPTY
    """The workspace that all of the drafts read, for a distiller that ``updates`` it; else empty."""

    def draw_k(self) -> int:
        """Returns the number of drafts to keep in one workspace: ``top_k``, or one drawn from its range."""
        bounds = self.options.top_k_range
        return self.rng.randint(*bounds) if bounds else self.options.top_k


@dataclass(frozen=True, slots=True, kw_only=True)
class DistilCost:
    """The calls of one distil step, and the number of solutions in a workspace."""

    solutions: int
    """Solutions that a workspace holds before kappa cuts it; a summary counts as one."""
    calls: tuple[Stage, ...] = ()
    """Calls to the policy, by stage; empty for a distiller that only chooses drafts."""


Distil = Callable[[DistilContext], Awaitable[list[Workspace]]]
"""``await draw(context)`` returns ``context.num`` workspaces of at most kappa tokens."""
Cost = Callable[[int, int, DistillerOptions], DistilCost]
"""``cost(drafts, num, options)`` returns the cost of ``num`` workspaces from ``drafts`` usable drafts."""


@dataclass(frozen=True, slots=True)
class Distiller:
    """A function that makes workspaces, and what is known about it before it runs."""

    draw: Distil
    one_each: bool = False
    """True: each call of a round has its own workspace; False: all calls share one."""
    cost: Cost | None = None
    """The cost of ``draw``; None if undeclared, which ``launch.plan`` refuses."""
    updates: bool = False
    """True: its calls also read the last workspace, from the second round on."""

    def num_workspaces(self, width: int, wanted: int | None = None, *, readers: int = 1) -> int:
        """Returns the number of workspaces for ``width`` calls: ``wanted``, or the distiller's own number.

        The calls share them evenly; with ``one_each``, each is read by at least ``readers`` calls, or by all
        if they are fewer.
        """
        if wanted or not self.one_each:
            return wanted or 1
        return max((n for n in range(1, width + 1) if not width % n and width // n >= readers), default=1)


def is_distil(function: object) -> bool:
    """Returns True for an async function that takes one argument."""
    if not inspect.iscoroutinefunction(function):
        return False
    try:
        inspect.signature(function).bind(None)
    except TypeError:
        return False
    return True
