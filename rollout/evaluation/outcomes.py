"""Reduces rollouts to outcomes, of which ten thousand fit in memory; groups them by problem and operator."""

import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import fmean
from typing import Any

from configs.thinking import ThinkingMarks
from rollout.budget import budget, chains
from rollout.evaluation.measures import Ballot
from rollout.records import ATTEMPTS, Call, Rollout
from rollout.thinking import split
from rollout.verdicts import measures_of, value_of
from rollout.vote import Same, equivalence_classes

Key = tuple[str, str, int]
"""Problem id, operator and sample: the identity of one rollout of an evaluation."""

ABORTED = "abort"
"""``finish`` of a call that was aborted: its tokens count, but it is not an attempt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """A call that answers the problem, without its texts."""

    correct: bool
    answer: str | None
    """The answer as written; None if there is none."""
    label: str
    truncated: bool
    """True if the call reached its token limit."""
    b_seq: int
    """Tokens in + out on the heaviest chain of calls that ends in this call."""
    copied: bool | None = None
    """True if its solution equals that of a draft it read, up to white space; None if it read no draft."""
    value: float | None = None
    """The number that a custom reward returned; None for the built-in checks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """The attempts of one round. ``b_total``: tokens in + out of all calls up to and including them."""

    attempts: tuple[Attempt, ...]
    b_total: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One evaluated rollout. Its last round holds only the answer, or the population whose mean counts.

    An answer that is chosen among drafts, as by a vote, has a round of its own, which repeats the chosen
    attempt with the whole cost of the choice. Rollouts of an operator that may stop early differ in their
    number of rounds.
    """

    problem_id: str
    operator: str
    sample: int
    status: str
    """Status of the answer's verdict; of a population, of its first answer's."""
    rounds: tuple[Round, ...]
    completion_tokens: int
    """Completion tokens of all calls."""
    started: float = 0.0
    """Unix time, in seconds."""
    seconds: float = 0.0
    """Wall time of the rollout, its verdicts included."""
    counts: Mapping[str, int] = field(default_factory=dict)
    """See ``Rollout.counts``."""
    measures: Mapping[str, float] = field(default_factory=dict)
    """Sums of what the verdicts on all attempts cost and measured, see ``records.measures_of``."""

    @property
    def key(self) -> Key:
        return (self.problem_id, self.operator, self.sample)

    @property
    def final(self) -> Attempt:
        """The answer; of a population, the first."""
        return self.rounds[-1].attempts[0]

    @property
    def correct(self) -> bool:
        return self.final.correct

    @property
    def b_seq(self) -> int:
        return self.final.b_seq

    @property
    def b_total(self) -> int:
        return self.rounds[-1].b_total


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A rollout without an answer from any endpoint, with the reason. It has no verdict."""

    problem_id: str
    operator: str
    sample: int
    reason: str

    @property
    def key(self) -> Key:
        return (self.problem_id, self.operator, self.sample)


def reduce(
    rollout: Rollout, sample: int, marks: ThinkingMarks, *, started: float = 0.0, seconds: float = 0.0
) -> Outcome:
    """Returns the outcome of a rollout.

    Args:
        rollout: A scored rollout.
        sample: Number of the rollout among those of its problem and operator.
        marks: Marks that separate solutions from thinking.
        started: Unix time, in seconds.
        seconds: Wall time.
    """
    answers, calls = rollout.answers, rollout.calls
    heaviest = chains(calls)
    # Round number -> positions of its attempts; an aborted one is left out unless it is the answer.
    by_round: dict[int, list[int]] = {}
    for place, call in enumerate(calls):
        if call.role in ATTEMPTS and (place in answers or call.finish != ABORTED):
            by_round.setdefault(call.round, []).append(place)
    last = by_round.pop(calls[answers[0]].round)
    rounds = [
        Round(
            attempts=tuple(_attempt(rollout, place, heaviest[place], marks) for place in places),
            b_total=_total_until(calls, number),
        )
        for number, places in sorted(by_round.items())
    ]
    # The answer was chosen among several attempts: these are a round before it.
    if len(last) > len(answers):
        drafts = tuple(_attempt(rollout, place, heaviest[place], marks) for place in last)
        rounds.append(Round(attempts=drafts, b_total=_total_until(calls, calls[answers[0]].round)))
    spent = {answer: budget(rollout, answer) for answer in answers}
    accepted = tuple(_attempt(rollout, answer, spent[answer].b_seq, marks) for answer in answers)
    rounds.append(Round(attempts=accepted, b_total=spent[answers[0]].b_total))
    return Outcome(
        problem_id=rollout.problem.id,
        operator=rollout.operator,
        sample=sample,
        status=rollout.verdicts[answers[0]].status,
        rounds=tuple(rounds),
        completion_tokens=sum(call.usage.completion_tokens for call in calls),
        started=started,
        seconds=seconds,
        counts=dict(rollout.counts),
        measures=measures_of(rollout.verdicts.values()),
    )


def outcome_to_json(outcome: Outcome) -> dict[str, Any]:
    """Returns an outcome as plain data, for one line of a journal."""
    return asdict(outcome)


def outcome_from_json(data: Mapping[str, Any]) -> Outcome:
    """The inverse of ``outcome_to_json``.

    Raises:
        TypeError, KeyError: If another version of this record wrote the data.
    """
    rounds = tuple(
        Round(attempts=tuple(_attempt_from_json(each) for each in item["attempts"]), b_total=item["b_total"])
        for item in data["rounds"]
    )
    return Outcome(**{**data, "rounds": rounds, "operator": sys.intern(data["operator"])})


def _attempt_from_json(data: Mapping[str, Any]) -> Attempt:
    return Attempt(**{**data, "label": sys.intern(data["label"]), "answer": _interned(data["answer"])})


def _attempt(rollout: Rollout, place: int, b_seq: int, marks: ThinkingMarks) -> Attempt:
    call, verdict = rollout.calls[place], rollout.verdicts[place]
    return Attempt(
        correct=verdict.is_correct,
        answer=_interned(verdict.answer),
        label=call.label,
        truncated=call.finish == "length",
        b_seq=b_seq,
        copied=_copied(rollout, place, marks),
        value=value_of(verdict),
    )


def _interned(text: str | None) -> str | None:
    """Returns the shared copy of a text: the rollouts of a problem have few different answers."""
    return None if text is None else sys.intern(text)


def _copied(rollout: Rollout, place: int, marks: ThinkingMarks) -> bool | None:
    """See ``Attempt.copied``."""
    calls, drafts = rollout.calls, rollout.drafts_behind(place)
    if not drafts:
        return None
    own = _solution(calls[place], marks)
    return bool(own) and any(own == _solution(calls[draft], marks) for draft in drafts)


def _solution(call: Call, marks: ThinkingMarks) -> str:
    return " ".join(split(call.text, finish=call.finish, marks=marks).solution.split())


def _total_until(calls: Sequence[Call], number: int) -> int:
    """Returns the tokens of all rounds before ``number``, and of its attempts.

    Distil, verify and analyse calls that read a round's attempts count towards the next round.
    """
    return sum(
        call.num_tokens
        for call in calls
        if call.round < number or (call.round == number and call.role in ATTEMPTS)
    )


AnswerClasses = Mapping[str, Mapping[str, int]]
"""Problem id -> answer as written -> number of its class of equivalent answers."""


async def group_answers(outcomes: Iterable[Outcome], same: Same) -> AnswerClasses:
    """Groups the answers of each problem into classes of mathematical equivalence, over all its rollouts.

    Args:
        outcomes: Outcomes in an order that does not depend on timing: an answer joins the first class that
            it fits.
        same: Decides equivalence.
    """
    # Dicts as ordered sets: each answer once, in order of appearance.
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
    """Returns the votes of attempts at one problem."""
    known = classes.get(problem, {})
    return [Ballot(choice=None if a.answer is None else known[a.answer], right=a.correct) for a in attempts]


def by_problem(outcomes: Iterable[Outcome]) -> dict[str, list[Outcome]]:
    """Groups outcomes by problem, in order of appearance."""
    return _grouped(outcomes, lambda item: item.problem_id)


def by_operator(outcomes: Iterable[Outcome]) -> dict[str, list[Outcome]]:
    """Groups outcomes by operator, in order of appearance."""
    return _grouped(outcomes, lambda item: item.operator)


def _grouped(outcomes: Iterable[Outcome], name: Callable[[Outcome], str]) -> dict[str, list[Outcome]]:
    grouped: dict[str, list[Outcome]] = defaultdict(list)
    for item in outcomes:
        grouped[name(item)].append(item)
    return dict(grouped)


def accuracy_by_problem(outcomes: Iterable[Outcome], number: int = -1) -> dict[str, float]:
    """Returns per problem the mean over its rollouts of the mean over the attempts of round ``number``."""
    return {
        problem: fmean(fmean(a.correct for a in item.rounds[number].attempts) for item in items)
        for problem, items in by_problem(outcomes).items()
    }


def pass_at_width(outcomes: Iterable[Outcome], number: int) -> float:
    """Returns the mean over problems of the share of rollouts with a right attempt in round ``number``."""
    return fmean(
        fmean(any(a.correct for a in item.rounds[number].attempts) for item in items)
        for items in by_problem(outcomes).values()
    )
