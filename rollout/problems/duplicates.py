"""Finds questions that occur more than once, within a data set or in training and held-out problems."""

from collections import defaultdict
from collections.abc import Iterable, Sequence

from rollout.records import Problem


def repeated(problems: Iterable[Problem]) -> list[list[Problem]]:
    """Returns the problems whose questions are equal but for capitals and white space, together."""
    by_question: defaultdict[str, list[Problem]] = defaultdict(list)
    for problem in problems:
        by_question[_key(problem)].append(problem)
    return [some for some in by_question.values() if len(some) > 1]


def held_out_in_training(training: Iterable[Problem], held_out: Iterable[Problem]) -> Sequence[Problem]:
    """Returns the held-out problems whose question is also a training problem's."""
    known = {_key(problem) for problem in training}
    return [problem for problem in held_out if _key(problem) in known]


def _key(problem: Problem) -> str:
    return " ".join(problem.question.casefold().split())
