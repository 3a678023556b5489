"""The improvement operator: draft in parallel, distil into a bounded workspace, refine from it.

The core of the method (Madaan et al., arXiv 2510.01123), with M_r the width of round r and kappa the
bound of the workspace::

    S(r) = { s_i ~ M(x, C(r-1)) },  i = 1..M_r        drafts, in parallel
    C(r) = D(x, S(r)),  |C(r)| <= kappa               distil; C(0) is empty, C(r) reads S(r) only
    M_R  = 1                                          the last call is the answer

What flows through PDR with widths ``(M_0, ..., M_R)``::

    Problem
      -> solve     M_0 drafts: tuple of M_0 positions in the list of calls
      -> solution  usable Solutions: at most M_0, each (call, label, text)
      -> distil D  list of M_1 Workspaces, each of at most kappa tokens
      -> solve     M_1 calls: tuple of M_1 positions; then solution, D and solve again, once per round
      -> Answers   the last round's positions: 1 in evaluation, ``num_answers`` in training
      -> Rollout   all calls, the answers and one verdict per attempt

Training and inference run the same code. Training asks for a group of answers instead of one, which share
``num_workspaces`` workspaces, as ``middle_readers`` calls of an earlier round do; it may also draw M, k and
the distiller per problem, and hand in given drafts. ``calls`` declares what ``answer`` costs, for plans.
``rollout/siblings.py`` holds the rest of the family: it selects among answers or stops early. A custom
operator is one more class like these and one YAML file (docs/operators.md).
"""

import asyncio
import random
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from rollout.costs import pdr_calls, sequential_calls
from rollout.distiller import DistillerOptions
from rollout.grading import Grader
from rollout.policy import Policy, derive_seed
from rollout.policy_settings import PolicySettings
from rollout.records import ATTEMPTS, DRAFT, EMPTY, OWN, REFINE, TRACE, Answers, Call, Problem, Rollout
from rollout.stages import Stage
from rollout.vote import largest_class
from rollout.workspace import carry_over, distil, find_distiller


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectionOptions:
    """Options of matches between solutions."""

    match_size: int = 0
    """Solutions that one call compares; 0: all."""
    votes: int = 1
    """Calls that vote in each match."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AgreementOptions:
    """When PDR stops before its last round."""

    share: float = 0.75
    """Share of a round's drafts that must have equivalent answers."""
    least: int = 3
    """Least number of drafts in such a round."""
    max_drafts: int = 0
    """Limit of the first round's drafts, which grow while they disagree; 0: they do not grow."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorOptions:
    """Options of an operator (``configs/schema/operator.py``)."""

    name: str
    """Name of the operator in reports."""
    schedule: tuple[int, ...]
    """Calls in each round; ``(1,)`` for a trace."""
    distil: DistillerOptions
    error_analysis: bool = False
    draft_policy: str = OWN
    """Policy that writes the drafts: ``own``, ``endpoint`` or ``reference``."""
    quorum: float = 1.0
    """Share of a round's drafts that the distil step waits for."""
    outcome: str = "answer"
    """Result of PDR in evaluation: the last round's only call, or ``mean`` or ``majority`` of its calls."""
    selection: SelectionOptions = SelectionOptions()
    agreement: AgreementOptions = AgreementOptions()
    num_workspaces: int | None = None
    """Workspaces that a group of answers shares evenly; None: the distiller's own number."""
    middle_readers: int = 1
    """Least number of calls of a middle round that share a workspace, as far as the round is wide enough."""


class Operator(ABC):
    """A way to answer a problem with several calls."""

    def __init__(self, options: OperatorOptions) -> None:
        self.options = options
        self.name = options.name

    @abstractmethod
    async def answer(self, policy: Policy, rng: random.Random, num_answers: int = 1) -> Answers:
        """Makes the calls that lead to an answer.

        Args:
            policy: The policy on one problem; it records every call.
            rng: Source of every random choice of the operator; the calls have their own seeds.
            num_answers: Samples of the last call: 1 in evaluation, a group in training.
        """

    def calls(self, num_answers: int = 1) -> tuple[Stage, ...]:
        """Returns the calls that ``answer`` makes on one problem if every draft is usable, by stage.

        The last stage holds the answers. Nothing is sampled: plans use this method without workers.

        Raises:
            ValueError: If the operator or its distiller declares no calls.
        """
        kind = type(self)
        raise ValueError(
            f"The operator {kind.__module__}:{kind.__qualname__} declares no calls, so they are not known "
            "before it runs. Add a method calls next to answer (rollout.operators.Operator.calls, "
            "docs/operators.md)."
        )

    def __init_subclass__(cls) -> None:
        # A subclass with its own ``answer`` makes other calls than its parent declares.
        if "answer" in vars(cls) and "calls" not in vars(cls):
            cls.calls = Operator.calls


class Trace(Operator):
    """A plain long chain of thought."""

    async def answer(self, policy: Policy, rng: random.Random, num_answers: int = 1) -> Answers:
        return Answers(calls=await policy.solve([EMPTY] * num_answers, role=TRACE, round=0))

    def calls(self, num_answers: int = 1) -> tuple[Stage, ...]:
        return (Stage(role=TRACE, per_context=num_answers),)


class SequentialRefinement(Operator):
    """Each call reads the previous solution and, with ``error_analysis``, a list of its errors."""

    async def answer(self, policy: Policy, rng: random.Random, num_answers: int = 1) -> Answers:
        workspace = EMPTY
        last = len(self.options.schedule) - 1
        for round in range(last):
            drafts = await policy.solve([workspace], role=role_of(round), round=round)
            workspace = await carry_over(
                policy, drafts, self.options.distil, error_analysis=self.options.error_analysis
            )
        return Answers(calls=await policy.solve([workspace] * num_answers, role=REFINE, round=last))

    def calls(self, num_answers: int = 1) -> tuple[Stage, ...]:
        rounds, options = len(self.options.schedule), self.options.distil
        return sequential_calls(rounds, options, num_answers, error_analysis=self.options.error_analysis)


class ParallelDistilRefine(Operator):
    """PDR: every round drafts in parallel and distils the workspaces of the next round."""

    async def answer(self, policy: Policy, rng: random.Random, num_answers: int = 1) -> Answers:
        widths = self._widths(num_answers)
        shared = self._num_workspaces(widths)
        workspaces = [EMPTY] * widths[0]
        for round, next_width in enumerate(widths[1:]):
            # drafts: positions of this round's calls; workspaces: one for each call of the next round.
            drafts = await policy.solve(
                workspaces, role=role_of(round), round=round, quorum=self.options.quorum
            )
            workspaces = await distil(
                policy, drafts, next_width, self.options.distil, rng, shared[round], previous=workspaces
            )
        answers = await policy.solve(workspaces, role=REFINE, round=len(widths) - 1)
        if self.options.outcome == "majority" and num_answers == 1:
            return await elected(policy, answers)
        return Answers(calls=answers)

    def calls(self, num_answers: int = 1) -> tuple[Stage, ...]:
        widths = self._widths(num_answers)
        return pdr_calls(widths, self.options.distil, self._num_workspaces(widths))

    def _num_workspaces(self, widths: Sequence[int]) -> list[int | None]:
        """Returns the number of workspaces of each round after the first; None: the distiller's own.

        Calls that are compared with one another share a workspace, so training draws fewer of them.
        """
        distiller, least = find_distiller(self.options.distil.name), self.options.middle_readers
        middle = [distiller.num_workspaces(width, readers=least) for width in widths[1:-1]]
        return [*middle, self.options.num_workspaces]

    def _widths(self, num_answers: int) -> tuple[int, ...]:
        # The schedule ends in 1, or in a population; training widens that last round to the group.
        is_population = self.options.outcome != "answer" and num_answers == 1
        return (*self.options.schedule[:-1], self.options.schedule[-1] if is_population else num_answers)


def role_of(round: int) -> str:
    """Returns the role of the attempts of a round."""
    return DRAFT if round == 0 else REFINE


async def elected(policy: Policy, attempts: tuple[int, ...]) -> Answers:
    """Returns the first attempt with the most frequent answer; the first of all if none has an answer."""
    chosen = await largest_class(policy, attempts) or attempts
    return Answers(calls=(chosen[0],), waited_for=attempts)


async def run_operator(
    problem: Problem,
    operator: Operator,
    settings: PolicySettings,
    grader: Grader,
    seed: int,
    num_answers: int = 1,
    given_drafts: Sequence[Call] = (),
) -> Rollout:
    """Runs ``operator`` on ``problem`` and returns the scored rollout; equal seeds ask for equal samples.

    ``given_drafts`` replace the first drafts, up to their number.

    Raises:
        CallFailed: If a call got no answer.
        ValueError: If a group was asked for, and the operator returned another number of answers.
    """
    policy = Policy(problem, settings, grader, seed, given_drafts)
    return await run_on(policy, operator, seed, num_answers)


async def run_on(policy: Policy, operator: Operator, seed: int, num_answers: int = 1) -> Rollout:
    """Like ``run_operator``, with a ``Policy`` of the caller that has made no call yet."""
    problem = policy.problem
    policy.draft_policy = operator.options.draft_policy
    rng = random.Random(derive_seed(seed, problem.id, operator.name))
    answers = await operator.answer(policy, rng, num_answers)
    if num_answers > 1 and len(answers.calls) != num_answers:
        raise ValueError(
            f"The operator {operator.name} returned {len(answers.calls)} answers, but training compares a "
            f"group of {num_answers} (algo.num_generations): its method answer must return num_answers of "
            "them. An operator that selects among its drafts has nothing to train."
        )
    calls = tuple(policy.calls)
    # Verdicts run side by side; one that an oracle already asked for is not scored twice.
    places = [i for i, call in enumerate(calls) if call.role in ATTEMPTS]
    verdicts = await asyncio.gather(*(policy.verdict(i) for i in places))
    return Rollout(
        problem=problem,
        operator=operator.name,
        calls=calls,
        answers=answers.calls,
        waited_for=answers.waited_for,
        verdicts=dict(zip(places, verdicts, strict=True)),
        counts=dict(policy.counts),
    )
