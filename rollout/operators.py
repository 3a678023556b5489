"""The improvement operator: draft in parallel, distil into a bounded workspace, refine from it.

The core of the method (Madaan et al., arXiv 2510.01123), with M_r the width of round r and kappa the
bound of the workspace::

    S(r) = { s_i ~ M(x, C(r-1)) },  i = 1..M_r        drafts, in parallel
    C(r) = D(x, S(r)),  |C(r)| <= kappa               distil; C(0) is empty, C(r) reads S(r) only
    M_R  = 1                                          the last call gives the answer

A trace is the schedule [1]; sequential refinement is [1, 1, ...] with the previous solution as the
workspace. Training widens the last round to a group: that is the only difference to inference.
"""

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from rollout.policy import Policy
from rollout.records import DRAFT, REFINE, TRACE
from rollout.workspace import DISTILLERS, EMPTY, DistillerOptions, Workspace, paste


@dataclass(frozen=True, slots=True, kw_only=True)
class Operator:
    """One operator. ``name`` is what reports call it."""

    name: str
    schedule: tuple[int, ...]
    distiller: str
    options: DistillerOptions

    def widened(self, num_generations: int) -> "Operator":
        """The same operator with a group of answers, as training samples it."""
        schedule = (*self.schedule[:-1], num_generations)
        return Operator(name=self.name, schedule=schedule, distiller=self.distiller, options=self.options)


async def improve(policy: Policy, operator: Operator, rng: random.Random) -> list[int]:
    """Runs the operator on the policy's problem; gives the calls of the last round.

    Drafts without a usable solution never enter a workspace; if none is left, the next round falls
    back to the plain problem.
    """
    distil = DISTILLERS[operator.distiller]
    workspaces = [EMPTY] * operator.schedule[0]
    drafts: list[int] = []
    for round, width in enumerate(operator.schedule):
        role = TRACE if len(operator.schedule) == 1 else DRAFT if round == 0 else REFINE
        drafts = await _solve_all(policy, workspaces, role, round)
        if round == len(operator.schedule) - 1:
            break
        next_width = operator.schedule[round + 1]
        solutions = [policy.solution(draft) for draft in drafts]
        policy.counts.update(f"label/{solution.label}" for solution in solutions)
        usable = [solution for solution in solutions if solution.is_usable]
        if not usable:
            workspaces = [Workspace(text="", parents=tuple(drafts))] * next_width
        elif width == 1:
            workspaces = [paste(policy, usable, operator.options.kappa)] * next_width
        else:
            workspaces = await distil(policy, usable, next_width, operator.options, rng)
        for workspace in set(workspaces):
            policy.counts["workspace/fallback"] += workspace.is_empty
            policy.counts["workspace/truncated"] += workspace.truncated
    return drafts


async def _solve_all(policy: Policy, workspaces: Sequence[Workspace], role: str, round: int) -> list[int]:
    """One attempt for each workspace; equal workspaces share one request, and so one prefix."""
    ordered = sorted(workspaces, key=lambda w: (w.text, w.parents))
    shared = [list(same) for _, same in groupby(ordered, key=lambda w: (w.text, w.parents))]
    calls = await asyncio.gather(
        *(
            policy.solve(
                role=role,
                round=round,
                workspace=same[0].text,
                parents=same[0].parents,
                num=len(same),
            )
            for same in shared
        )
    )
    return [call for some in calls for call in some]
