"""Collects the scored groups of one training step from a stream of problems."""

import asyncio
import logging
import random
from collections import Counter
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from rollout.build import Ranges
from rollout.collection.amortise import Amortiser
from rollout.collection.draft_cache import DraftCache
from rollout.collection.groups import Credited, DroppedGroup, GroupFilter, RewardGroup
from rollout.collection.problem_stream import ProblemStream
from rollout.collection.replay import Replay
from rollout.collection.step_groups import Selection, StepGroups
from rollout.collection.teacher import Teacher, scored
from rollout.grading import Grader
from rollout.groups import Group
from rollout.operators import Operator, run_operator
from rollout.policy import derive_seed
from rollout.policy_settings import PolicySettings
from rollout.records import DRAFT, REFERENCE, Call, Problem, Rollout
from rollout.sampler import RequestRefused
from rollout.verdicts import measures_of

logger = logging.getLogger(__name__)

FEWEST_REFUSED = 20
"""Below this number of refused problems their share does not end a run: a few may be too long."""
MAX_STEPS_WITHOUT_GROUPS = 10
"""The run ends after this many steps in a row without a kept group: nothing is being learned."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectedBatch:
    """Training data of one step. The loss reads only ``groups``."""

    groups: tuple[Group, ...]
    rollouts: tuple[Rollout, ...]
    """All rollouts, in the order of the numbers in their call ids."""
    metrics: Mapping[str, float]
    dropped: tuple[DroppedGroup, ...] = ()
    """Groups that are not trained on, with the reasons."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectOptions:
    """Options of the collection of one step."""

    problems_per_step: int
    """Groups of a step, operator and trace together."""
    operator_fraction: float
    """Share of them that the operator answers."""
    num_generations: int
    """Samples of a trace, and answers of an operator rollout."""
    seed: int
    num_workspaces: int = 1
    """Workspaces that the answers of an operator rollout share evenly."""
    middle_readers: int = 1
    """Least number of calls of a middle round that share a workspace."""
    max_refill: int = 0
    max_refused_share: float = 1.0
    """Maximum share of all problems so far that workers may refuse."""
    reuse_traces: bool = False
    """A problem's traces are also the drafts of its operator rollout."""
    reference_drafts: bool = False
    """The frozen initial policy writes the drafts."""
    teaches: bool = False
    """With ``reuse_traces``: traces get the policy that reads a workspace of their problem as a teacher."""
    majority_wrong_share: float = 0.0
    """Least share of the operator's problems whose drafts' majority is wrong; others are dropped."""
    ranges: Ranges = field(default_factory=Ranges)
    credited: Credited = field(default_factory=Credited)


@dataclass(frozen=True, slots=True)
class ProblemUse:
    """Use of a drawn problem. With both set, the traces are the operator's drafts."""

    trace: bool = False
    operator: bool = False


class BatchCollector:
    """Runs trace and operator on the next problems, side by side, and filters the groups."""

    def __init__(
        self,
        stream: ProblemStream,
        operator: Operator,
        trace: Operator,
        settings: PolicySettings,
        grader: Grader,
        reward: RewardGroup,
        options: CollectOptions,
        *,
        keep: GroupFilter | None = None,
        cache: DraftCache | None = None,
        replay: Replay | None = None,
        amortise: Amortiser | None = None,
        teacher: Teacher | None = None,
    ) -> None:
        """Stores the parts; nothing is drawn or sampled yet.

        With ``cache``, drafts are taken from it up to their number, and the rest is sampled. With
        ``replay``, no finished rollout is sampled again after a resume. With ``amortise``, right answers of
        the operator are samples of the plain problem, too; no filter drops them. With ``teacher``, another
        model scores every sample that is kept.
        """
        self.stream = stream
        drafts = REFERENCE if options.reference_drafts else operator.options.draft_policy
        self._operator = type(operator)(
            replace(
                operator.options,
                num_workspaces=options.num_workspaces,
                middle_readers=options.middle_readers,
                draft_policy=drafts,
            )
        )
        self._trace = trace
        self._settings = settings
        self._grader = grader
        self._options = options
        self._selection = Selection(
            reward=reward,
            grader=grader,
            credited=options.credited,
            keep=keep or GroupFilter(),
            amortise=amortise,
            teaches=options.teaches,
            majority_wrong_share=options.majority_wrong_share,
        )
        self._teacher = teacher
        self._cache = cache
        self.replay = replay
        self._steps_without_groups = 0
        self._num_tried = 0
        self._num_refused = 0

    async def collect(self, step: int) -> CollectedBatch:
        """Returns the groups of one step.

        It draws its problems before its first wait, so steps may overlap. A problem whose prompt a worker
        refuses is skipped and counted; a worker that does not answer ends the run.

        Raises:
            RuntimeError: If no worker answers, no problem has a rollout, too large a share of the problems
                was refused, or ``MAX_STEPS_WITHOUT_GROUPS`` steps in a row kept no group.
        """
        # ``missing`` holds the uses without a kept group; each refill tries them on other problems.
        missing = self._uses()
        found = StepGroups(self._selection, sum(use.operator for use in missing))
        refused: list[RequestRefused] = []
        drawn: set[str] = set()
        refills, num_tried = -1, 0
        while missing and refills < self._options.max_refill:
            refills += 1
            unfilled = []
            problems = self._draw(step, refills, len(missing), drawn)
            drawn |= {problem.id for problem in problems}
            results = await self._run(step, refills, missing, problems)
            num_tried += len(results)
            for use, result in zip(missing, results, strict=True):
                if isinstance(result, RequestRefused):
                    refused.append(result)
                    unfilled.append(use)
                    continue
                filled = await found.add(result, has_traces=use.trace and use.operator)
                unfilled += self._unfilled(use, filled)
            missing = unfilled
        if not found.rollouts:
            raise RuntimeError(f"None of {len(refused)} problems has a rollout: {refused[0]}")
        self._check_refused(num_tried, refused)
        reasons = Counter(each.reason for each in found.dropped)
        self._guard(found.groups, reasons)
        metrics: dict[str, float] = {"collect/refused": len(refused), "collect/refills": refills}
        metrics |= {f"collect/dropped_{reason}": count for reason, count in reasons.items()}
        metrics |= found.counts
        groups = found.groups
        if self._teacher is not None:
            groups = await scored(groups, self._teacher)
            metrics["collect/taught"] = sum(bool(s.teacher_logprobs) for each in groups for s in each.samples)
        return CollectedBatch(
            groups=tuple(groups),
            rollouts=tuple(found.rollouts),
            metrics=metrics | _metrics(found.rollouts),
            dropped=tuple(found.dropped),
        )

    def _uses(self) -> list[ProblemUse]:
        """Returns the uses of a step: ``problems_per_step`` of operator and trace together."""
        num = self._options.problems_per_step
        num_operator = round(self._options.operator_fraction * num)
        if not self._options.reuse_traces:
            return [ProblemUse(operator=True)] * num_operator + [ProblemUse(trace=True)] * (
                num - num_operator
            )
        # A problem that is used for both fills two groups, one of the trace and one of the operator.
        return [ProblemUse(trace=True, operator=True)] * num_operator + [ProblemUse(trace=True)] * (
            num - 2 * num_operator
        )

    def _unfilled(self, use: ProblemUse, filled: Sequence[bool]) -> list[ProblemUse]:
        """Returns the uses to repeat on another problem; an operator that reuses traces needs new traces."""
        trace = use.trace and not filled[0]
        operator = use.operator and not filled[-1]
        if operator and self._options.reuse_traces:
            trace = True
        return [ProblemUse(trace=trace, operator=operator)] if trace or operator else []

    def _draw(self, step: int, refill: int, num: int, drawn: set[str]) -> list[Problem]:
        if not refill:
            return self.stream.draw(num)
        seed = derive_seed(self._options.seed, step, refill, "problems")
        return self.stream.draw_extra(num, seed=seed, besides=drawn)

    async def _run(
        self, step: int, refill: int, uses: Sequence[ProblemUse], problems: Sequence[Problem]
    ) -> list[list[Rollout] | RequestRefused]:
        """Runs each use on its problem."""
        # Seeds by place, not by problem: one that is drawn twice in a step is sampled again.
        seeds = [derive_seed(self._options.seed, step, refill, place) for place in range(len(uses))]
        work = [
            self._once(step, f"{refill}/{place}/{problem.id}", use, problem, seed)
            for place, (use, problem, seed) in enumerate(zip(uses, problems, seeds, strict=True))
        ]
        # The first failure ends the step at once; what the others finished is in the replay.
        tasks = [asyncio.create_task(_or_refused(each)) for each in work]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()

    async def _once(
        self, step: int, place: str, use: ProblemUse, problem: Problem, seed: int
    ) -> list[Rollout]:
        """Returns the rollouts of one use of a problem: those from before a resume, or new ones."""
        if self.replay and (rollouts := self.replay.find(step, place)) is not None:
            return rollouts
        run = partial(
            run_operator,
            problem,
            settings=self._settings,
            grader=self._grader,
            seed=seed,
            num_answers=self._options.num_generations,
        )
        rollouts = []
        if use.trace:
            rollouts.append(await run(self._trace))
        if use.operator:
            rng = random.Random(derive_seed(seed, problem.id, "operator"))
            operator = self._options.ranges.draw(self._operator, rng)
            drafts = self._given_drafts(problem, operator, rollouts, rng)
            rollouts.append(await run(operator, given_drafts=drafts))
        if self.replay:
            self.replay.add(step, place, rollouts)
        return rollouts

    def _given_drafts(
        self, problem: Problem, operator: Operator, traces: Sequence[Rollout], rng: random.Random
    ) -> list[Call]:
        width = operator.options.schedule[0]
        if traces:
            calls = list(traces[0].calls)
            return rng.sample(calls, min(width, len(calls)))
        return self._cache.draw(problem.id, width, rng) if self._cache else []

    def _check_refused(self, num_tried: int, refused: Sequence[RequestRefused]) -> None:
        """Raises ``RuntimeError`` if too many problems were refused: the rest would be another data set."""
        self._num_tried += num_tried
        self._num_refused += len(refused)
        share = self._num_refused / self._num_tried
        if refused and self._num_refused >= FEWEST_REFUSED and share > self._options.max_refused_share:
            raise RuntimeError(
                f"Workers refused {self._num_refused} of {self._num_tried} problems, a larger share than "
                f"collect.max_refused_share = {self._options.max_refused_share:g}. The last: {refused[-1]} "
                "Raise rollout.max_model_len, or remove such problems from the data."
            )

    def _guard(self, groups: Sequence[Group], reasons: Mapping[str, int]) -> None:
        """Raises ``RuntimeError`` after ``MAX_STEPS_WITHOUT_GROUPS`` steps without a kept group."""
        self._steps_without_groups = 0 if groups else self._steps_without_groups + 1
        if self._steps_without_groups >= MAX_STEPS_WITHOUT_GROUPS:
            raise RuntimeError(
                f"{self._steps_without_groups} steps in a row kept no group (the last dropped "
                f"{dict(reasons)}): nothing can be learned from them. Check the difficulty of the problems "
                "and the verdicts in metrics.jsonl; raise collect.max_refill, or widen what collect keeps."
            )


async def _or_refused(work: Awaitable[list[Rollout]]) -> list[Rollout] | RequestRefused:
    try:
        return await work
    except RequestRefused as error:
        logger.warning("A problem was skipped: %s", error)
        return error


def _metrics(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """Returns metrics of what the loss does not read: drafts, workspaces, verdicts."""
    counts: Counter[str] = Counter()
    statuses: Counter[str] = Counter()
    costs: Counter[str] = Counter()
    drafts: list[bool] = []
    for rollout in rollouts:
        counts.update(rollout.counts)
        statuses.update(verdict.status for verdict in rollout.verdicts.values())
        costs.update(measures_of(rollout.verdicts.values()))
        drafts += [
            verdict.is_correct
            for place, verdict in rollout.verdicts.items()
            if rollout.calls[place].role == DRAFT
        ]
    metrics: dict[str, float] = {f"collect/{name}": count for name, count in counts.items()}
    metrics |= {f"verdict/{status}": count for status, count in statuses.items()}
    metrics |= costs
    calls = [call for rollout in rollouts for call in rollout.calls]
    metrics["collect/tokens"] = sum(len(call.completion_ids) for call in calls if not call.is_given)
    metrics["collect/given_drafts"] = sum(call.is_given for call in calls)
    if drafts:
        metrics["draft/accuracy"] = sum(drafts) / len(drafts)
    return metrics
