"""What a rollout is reduced to, so that ten thousand fit in memory; outcomes by problem and operator."""

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
from rollout.vote import Same, equivalence_classes

Key = tuple[str, str, int]
"""Problem id, operator, sample: what one rollout of an evaluation is known by."""

ABORTED = "abort"
"""The finish of a call that was ended from outside: it is paid for, but it is no attempt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """A call that answers the problem, without its texts."""

    correct: bool
    answer: str | None
    """As it was written; None if there was none."""
    label: str
    truncated: bool
    """It ran into its token limit."""
    b_seq: int
    """Tokens in + out on the heaviest chain of calls that ends in it."""
    copied: bool | None = None
    """Its solution is that of a draft behind its workspace, but for white space; None without such drafts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """The attempts of one round. ``b_total``: tokens in + out of all calls needed to come so far."""

    attempts: tuple[Attempt, ...]
    b_total: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One evaluated rollout. Its last round holds the answer and nothing else.

    An answer that is chosen among drafts, as by a vote, is a round of its own: the chosen attempt stands
    there once more, with the whole cost of the choice.
    """

    problem_id: str
    operator: str
    sample: int
    status: str
    """Of the answer's verdict."""
    rounds: tuple[Round, ...]
    completion_tokens: int
    """Tokens that all calls wrote."""
    started: float = 0.0
    """Unix time, seconds."""
    seconds: float = 0.0
    """Wall time of the rollout, its verdicts included."""
    counts: Mapping[str, int] = field(default_factory=dict)
    """As in ``Rollout.counts``."""

    @property
    def key(self) -> Key:
        return (self.problem_id, self.operator, self.sample)

    @property
    def final(self) -> Attempt:
        """The answer."""
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
    """A rollout that got no answer from any endpoint, with the reason. It has no verdict."""

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
    """The outcome of a rollout with one answer.

    Args:
        rollout: Scored.
        sample: Which of the problem's rollouts it is.
        marks: Tell solutions from thinking.
        started: Unix time, seconds.
        seconds: Wall time.
    """
    (answer,) = rollout.answers
    calls = rollout.calls
    heaviest = chains(calls)
    by_round: dict[int, list[int]] = {}
    for place, call in enumerate(calls):
        if call.role in ATTEMPTS and (place == answer or call.finish != ABORTED):
            by_round.setdefault(call.round, []).append(place)
    spent = budget(rollout, answer)
    last = by_round.pop(calls[answer].round)
    rounds = [
        Round(
            attempts=tuple(_attempt(rollout, place, heaviest[place], marks) for place in places),
            b_total=_total_until(calls, number),
        )
        for number, places in sorted(by_round.items())
    ]
    if len(last) > 1:
        drafts = tuple(_attempt(rollout, place, heaviest[place], marks) for place in last)
        rounds.append(Round(attempts=drafts, b_total=_total_until(calls, calls[answer].round)))
    accepted = _attempt(rollout, answer, spent.b_seq, marks)
    rounds.append(Round(attempts=(accepted,), b_total=spent.b_total))
    return Outcome(
        problem_id=rollout.problem.id,
        operator=rollout.operator,
        sample=sample,
        status=rollout.verdicts[answer].status,
        rounds=tuple(rounds),
        completion_tokens=sum(call.usage.completion_tokens for call in calls),
        started=started,
        seconds=seconds,
        counts=dict(rollout.counts),
    )


def outcome_to_json(outcome: Outcome) -> dict[str, Any]:
    """Plain data for one line of a journal."""
    return asdict(outcome)


def outcome_from_json(data: Mapping[str, Any]) -> Outcome:
    """The inverse of ``outcome_to_json``.

    Raises:
        TypeError, KeyError: If the data was written by another version of this record.
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
    )


def _interned(text: str | None) -> str | None:
    """Rollouts of a problem give few different answers; one copy of each is enough."""
    return None if text is None else sys.intern(text)


def _copied(rollout: Rollout, place: int, marks: ThinkingMarks) -> bool | None:
    calls, drafts = rollout.calls, rollout.drafts_behind(place)
    if not drafts:
        return None
    own = _solution(calls[place], marks)
    return bool(own) and any(own == _solution(calls[draft], marks) for draft in drafts)


def _solution(call: Call, marks: ThinkingMarks) -> str:
    return " ".join(split(call.text, finish=call.finish, marks=marks).solution.split())


def _total_until(calls: Sequence[Call], number: int) -> int:
    """Tokens of all rounds before ``number``, and of its attempts.

    What is distilled, verified or analysed of a round's attempts is paid for by the next round.
    """
    return sum(
        call.num_tokens
        for call in calls
        if call.round < number or (call.round == number and call.role in ATTEMPTS)
    )


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
    """The outcomes of each problem, problems in order of appearance."""
    return _grouped(outcomes, lambda item: item.problem_id)


def by_operator(outcomes: Iterable[Outcome]) -> dict[str, list[Outcome]]:
    """The outcomes of each operator, operators in order of appearance."""
    return _grouped(outcomes, lambda item: item.operator)


def _grouped(outcomes: Iterable[Outcome], name: Callable[[Outcome], str]) -> dict[str, list[Outcome]]:
    grouped: dict[str, list[Outcome]] = defaultdict(list)
    for item in outcomes:
        grouped[name(item)].append(item)
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
