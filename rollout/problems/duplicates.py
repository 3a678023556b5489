"""Finds questions that occur more than once, within a data set or in training and held-out problems."""

from collections import defaultdict
from collections.abc import Iterable, Sequence

from rollout.records import Problem


def repeated(problems: Iterable[Problem]) -> list[list[Problem]]:
    """Returns the problems whose questions are equal but for capitals and white space, together."""
    by_question: defaultdict[str, list[Problem]] = defaultdict(list)
    for problem in problems:
        by_question[_key(problem.question)].append(problem)
    return [some for some in by_question.values() if len(some) > 1]


def held_out_in_training(training: Iterable[Problem], held_out: Iterable[Problem]) -> Sequence[Problem]:
    """Returns the held-out problems whose question is also a training problem's."""
    return asked_in(held_out, (problem.question for problem in training))


def asked_in(problems: Iterable[Problem], questions: Iterable[str]) -> Sequence[Problem]:
    """Returns the problems whose question is one of ``questions``, but for capitals and white space."""
    known = {_key(question) for question in questions}
    return [problem for problem in problems if _key(problem.question) in known]


def _key(question: str) -> str:
    return "".join(question.casefold().split())
