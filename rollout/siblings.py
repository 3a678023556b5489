"""Operators of the same family that select among answers, or stop when drafts agree; and all by kind.

Most published siblings of PDR are PDR with other options (``configs/operator``, ``docs/method.md``); these
need a class of their own.
"""

import asyncio
import random
from collections.abc import Sequence
from dataclasses import replace

from rollout.boxed import boxed_number
from rollout.costs import pdr_calls, select_calls
from rollout.operators import (
    Operator,
    ParallelDistilRefine,
    SequentialRefinement,
    Trace,
    elected,
    role_of,
)
from rollout.policy import Policy, Solution
from rollout.records import DRAFT, EMPTY, REFINE, VERIFY, Answers, Workspace
from rollout.sources import readable
from rollout.stages import Stage
from rollout.vote import largest_class
from rollout.workspace import distil, trust


class Majority(Operator):
    """Majority vote of traces over equivalent answers; ties go to the answer that appears first."""

    async def answer(self, policy: Policy, rng: random.Random, num_answers: int = 1) -> Answers:
        assert num_answers == 1, "a vote has one outcome"
        drafts = await policy.solve([EMPTY] * self.options.schedule[0], role=DRAFT, round=0)
        return await elected(policy, drafts)

    def calls(self, num_answers: int = 1) -> tuple[Stage, ...]:
        return (Stage(role=DRAFT, per_context=self.options.schedule[0]),)


class BestOfN(Operator):
    """The policy verifies each of its usable traces; the answer is the one that it trusts most."""

    async def answer(self, policy: Policy, rng: random.Random, num_answers: int = 1) -> Answers:
        assert num_answers == 1, "a choice has one outcome"
        drafts = await policy.solve([EMPTY] * self.options.schedule[0], role=DRAFT, round=0)
        usable = readable(policy, drafts, self.options.distil)
        if not usable:
            return Answers(calls=drafts[:1], waited_for=drafts)
        ranked, verifications = await trust(policy, usable, rng)
        return Answers(calls=(ranked[0].call,), waited_for=(*drafts, *verifications))

    def calls(self, num_answers: int = 1) -> tuple[Stage, ...]:
        width = self.options.schedule[0]
        return Stage(role=DRAFT, per_context=width), Stage(role=VERIFY, contexts=width, solutions=1)


class Select(Operator):
    """Calls read several traces and name the best: all in one match (GenSelect), or in a knockout.

    In a knockout, the winners of matches of ``match_size`` solutions meet again until one is left. Each match
    has ``votes`` calls; ties, and matches in which no call names a solution, go to the first of the match.
    The order is random.
    """

    async def answer(self, policy: Policy, rng: random.Random, num_answers: int = 1) -> Answers:
        assert num_answers == 1, "a choice has one outcome"
        drafts = await policy.solve([EMPTY] * self.options.schedule[0], role=DRAFT, round=0)
        usable = readable(policy, drafts, self.options.distil)
        if not usable:
            return Answers(calls=drafts[:1], waited_for=drafts)
        left = rng.sample(usable, len(usable))
        size = self.options.selection.match_size or len(left)
        # seen: solution -> the calls of the matches that it won, which its next match waits for.
        seen: dict[int, list[int]] = {solution.call: [] for solution in left}
        round = 0
        while len(left) > 1:
            matches = [left[start : start + size] for start in range(0, len(left), size)]
            left = await asyncio.gather(*(self._winner(policy, match, round, seen) for match in matches))
            round += 1
        return Answers(calls=(left[0].call,), waited_for=(*drafts, *seen[left[0].call]))

    async def _winner(
        self, policy: Policy, match: Sequence[Solution], round: int, seen: dict[int, list[int]]
    ) -> Solution:
        if len(match) == 1:
            return match[0]
        before = [call for solution in match for call in seen[solution.call]]
        votes = self.options.selection.votes
        calls = await policy.select(match, votes=votes, round=round, after=before)
        named = [boxed_number(policy.solution(call).text, len(match)) for call in calls]
        # ``max`` returns the first of equals.
        winner = match[max(range(len(match)), key=lambda place: named.count(place + 1))]
        seen[winner.call] = calls
        return winner

    def calls(self, num_answers: int = 1) -> tuple[Stage, ...]:
        selection = self.options.selection
        width = self.options.schedule[0]
        return select_calls(width, selection.match_size, selection.votes, self.options.distil)


class Adaptive(ParallelDistilRefine):
    """PDR that answers as soon as a round's drafts agree, and may add drafts while the first ones do not.

    In training it is PDR: a group needs all of its answers.
    """

    async def answer(self, policy: Policy, rng: random.Random, num_answers: int = 1) -> Answers:
        if num_answers > 1:
            return await super().answer(policy, rng, num_answers)
        options, widths = self.options, self.options.schedule
        workspaces = [EMPTY] * widths[0]
        for round, next_width in enumerate(widths[1:]):
            drafts = await policy.solve(workspaces, role=role_of(round), round=round, quorum=options.quorum)
            agreed = await self._agreed(policy, drafts)
            while not agreed and round == 0 and len(drafts) + widths[0] <= options.agreement.max_drafts:
                # These drafts read nothing; the parents state that they waited for the others (B_seq).
                later = Workspace(text="", parents=drafts)
                more = await policy.solve([later] * widths[0], role=DRAFT, round=0, quorum=options.quorum)
                drafts = (*drafts, *more)
                agreed = await self._agreed(policy, drafts)
            if agreed:
                return Answers(calls=(agreed[0],), waited_for=drafts)
            made = await distil(policy, drafts, next_width, options.distil, rng, previous=workspaces)
            # To go on was decided by all drafts, also by those that the distiller leaves out.
            workspaces = [_after(workspace, drafts) for workspace in made]
        return Answers(calls=await policy.solve(workspaces, role=REFINE, round=len(widths) - 1))

    async def _agreed(self, policy: Policy, drafts: tuple[int, ...]) -> list[int]:
        """Returns the drafts of the largest class of answers if it is large enough; else nothing."""
        agreement = self.options.agreement
        largest = await largest_class(policy, drafts)
        is_enough = len(drafts) >= agreement.least and len(largest) >= agreement.share * len(drafts)
        return largest if is_enough else []

    def calls(self, num_answers: int = 1) -> tuple[Stage, ...]:
        """As ``Operator.calls``; in evaluation the most that it makes, if drafts never agree."""
        options = self.options
        first = options.schedule[0]
        if num_answers == 1:
            first *= max(1, options.agreement.max_drafts // first)
        widths = (first, *options.schedule[1:-1], num_answers)
        return pdr_calls(widths, options.distil, self._num_workspaces(widths))


def _after(workspace: Workspace, drafts: Sequence[int]) -> Workspace:
    return replace(workspace, parents=tuple(dict.fromkeys((*workspace.parents, *drafts))))


OPERATORS: dict[str, type[Operator]] = {
    "trace": Trace,
    "sr": SequentialRefinement,
    "pdr": ParallelDistilRefine,
    "adaptive": Adaptive,
    "majority": Majority,
    "best_of_n": BestOfN,
    "genselect": Select,
}
"""The operators of ``operator.kind``."""
