"""Measures of a round against the attempts of the round before it: kept, lost, found, copied, followed."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from rollout.evaluation.bootstrap import bootstrap_ratio
from rollout.evaluation.measures import (
    Flips,
    GivenDrafts,
    flips,
    follows_majority,
    given_right_drafts,
    mean_or_none,
)
from rollout.evaluation.outcomes import AnswerClasses, Outcome, Round, ballots, by_problem, pass_at_width


@dataclass(frozen=True, slots=True, kw_only=True)
class Stratum:
    """The rollouts of which some share of the drafts was right: none, at most half, more, or any at all."""

    rollouts: int
    accuracy: float
    """Mean over these rollouts, with equal weights; the interval is over problems."""
    ci_low: float
    ci_high: float
    trace: float | None
    """Accuracy of traces on the same problems, each weighted by its rollouts here; None without traces."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Transition:
    """Measures from one round to the next, defined in ``docs/metrics.md``. None: the event never happened."""

    drafts_pass_at_width: float
    right_given_drafts: Sequence[GivenDrafts]
    wrong_to_right: float
    right_to_wrong: float
    copy_rate: float | None
    majority_follow_rate: float | None
    all_wrong: Stratum | None
    some_right: Stratum | None
    minority_right: Stratum | None
    majority_right: Stratum | None


def transition(
    outcomes: Sequence[Outcome], number: int, classes: AnswerClasses, trace: Mapping[str, float]
) -> Transition:
    """Returns the measures from round ``number - 1`` to round ``number`` of one operator.

    Args:
        outcomes: Outcomes of one operator.
        number: Number of the later round, at least 1; -1: the last round of each rollout.
        classes: Result of ``group_answers``.
        trace: Accuracy of traces per problem; empty if there are none.
    """
    grouped = by_problem(outcomes)
    changed = _mean_flips(grouped, number)
    return Transition(
        drafts_pass_at_width=pass_at_width(outcomes, number - 1),
        right_given_drafts=given_right_drafts(
            (_marks(item.rounds[number - 1]), _marks(item.rounds[number])) for item in outcomes
        ),
        wrong_to_right=changed.wrong_to_right,
        right_to_wrong=changed.right_to_wrong,
        copy_rate=mean_or_none(a.copied for item in outcomes for a in item.rounds[number].attempts),
        majority_follow_rate=mean_or_none(_followed(outcomes, number, classes)),
        all_wrong=_stratum(grouped, number, lambda right: right == 0, trace),
        some_right=_stratum(grouped, number, lambda right: right > 0, trace),
        minority_right=_stratum(grouped, number, lambda right: 0 < right <= 0.5, trace),
        majority_right=_stratum(grouped, number, lambda right: right > 0.5, trace),
    )


def _marks(each: Round) -> list[bool]:
    return [attempt.correct for attempt in each.attempts]


def _mean_flips(grouped: Mapping[str, Sequence[Outcome]], number: int) -> Flips:
    """Returns means over problems of means over rollouts, like accuracies, so that both add up."""
    per_problem = [
        [flips(_marks(item.rounds[number - 1]), _marks(item.rounds[number])) for item in items]
        for items in grouped.values()
    ]
    return Flips(
        right_to_wrong=fmean(fmean(f.right_to_wrong for f in items) for items in per_problem),
        wrong_to_right=fmean(fmean(f.wrong_to_right for f in items) for items in per_problem),
    )


def _followed(outcomes: Iterable[Outcome], number: int, classes: AnswerClasses) -> Iterable[bool | None]:
    for item in outcomes:
        before = ballots(item.problem_id, item.rounds[number - 1].attempts, classes)
        for ballot in ballots(item.problem_id, item.rounds[number].attempts, classes):
            yield follows_majority([draft.choice for draft in before], ballot.choice)


def _stratum(
    grouped: Mapping[str, Sequence[Outcome]],
    number: int,
    belongs: Callable[[float], bool],
    trace: Mapping[str, float],
) -> Stratum | None:
    """Returns the rollouts whose share of right attempts in the round before belongs; None without any."""
    # Problem id -> accuracy of round ``number`` in each of its rollouts that belong to the stratum.
    means = {
        problem: [
            fmean(_marks(item.rounds[number]))
            for item in items
            if belongs(fmean(_marks(item.rounds[number - 1])))
        ]
        for problem, items in grouped.items()
    }
    sizes = [len(values) for values in means.values()]
    if not any(sizes):
        return None
    # A ratio of sums, since problems have different numbers of rollouts in a stratum.
    interval = bootstrap_ratio([sum(values) for values in means.values()], sizes)
    weights = {problem: len(values) for problem, values in means.items() if problem in trace}
    weight = sum(weights.values())
    return Stratum(
        rollouts=sum(sizes),
        accuracy=interval.mean,
        ci_low=interval.low,
        ci_high=interval.high,
        trace=sum(trace[problem] * size for problem, size in weights.items()) / weight if weight else None,
    )
