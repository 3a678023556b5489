"""Outcomes by problem and operator, and their answers as votes."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from statistics import fmean

from rollout.measures import Ballot
from rollout.outcome import Attempt, Outcome
from rollout.vote import Same, equivalence_classes

AnswerClasses = Mapping[str, Mapping[str, int]]
"""For each problem, for each answer as it was written, the number of its class of equivalent answers."""


async def group_answers(outcomes: Iterable[Outcome], same: Same) -> AnswerClasses:
    """Puts the answers of each problem into classes of mathematical equivalence, over all its rollouts.

    Args:
        outcomes: In an order that does not depend on timing: an answer joins the first class that it fits.
        same: Decides equivalence.
    """
    written: dict[str, dict[str, None]] = defaultdict(dict)
    for outcome in outcomes:
        for each in outcome.rounds:
            written[outcome.problem_id] |= {a.answer: None for a in each.attempts if a.answer is not None}
    classes: dict[str, dict[str, int]] = {}
    for problem, answers in written.items():
        distinct = list(answers)
        found = await equivalence_classes(distinct, same)
        classes[problem] = {distinct[i]: number for number, members in enumerate(found) for i in members}
    return classes


def ballots(problem: str, attempts: Iterable[Attempt], classes: AnswerClasses) -> list[Ballot]:
    """Attempts at one problem, as voters."""
    known = classes.get(problem, {})
    return [Ballot(choice=None if a.answer is None else known[a.answer], right=a.correct) for a in attempts]


def by_problem(outcomes: Iterable[Outcome]) -> dict[str, list[Outcome]]:
    """The outcomes of each problem, in order."""
    grouped: dict[str, list[Outcome]] = defaultdict(list)
    for item in outcomes:
        grouped[item.problem_id].append(item)
    return dict(grouped)


def by_operator(outcomes: Iterable[Outcome]) -> dict[str, list[Outcome]]:
    """The outcomes of each operator, operators in order of appearance."""
    grouped: dict[str, list[Outcome]] = defaultdict(list)
    for item in outcomes:
        grouped[item.operator].append(item)
    return dict(grouped)


def accuracy_by_problem(outcomes: Iterable[Outcome], number: int = -1) -> dict[str, float]:
    """Per problem, the mean over its rollouts of the mean over the attempts of round ``number``."""
    return {
        problem: fmean(fmean(a.correct for a in item.rounds[number].attempts) for item in items)
        for problem, items in by_problem(outcomes).items()
    }


def pass_at_width(outcomes: Iterable[Outcome], number: int) -> float:
    """Mean over problems of the share of rollouts with at least one right attempt in round ``number``."""
    return fmean(
        fmean(any(a.correct for a in item.rounds[number].attempts) for item in items)
        for items in by_problem(outcomes).values()
    )
