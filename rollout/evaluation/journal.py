"""``rollouts.jsonl``: every rollout, appended as it ends, so that an evaluation can be resumed.

The first line holds ``identity``: what the rollouts were made with. A journal accepts only rollouts of an
equal identity; when a comparison gains an operator, another such line is appended, and the last one counts.
Each other line holds ``outcome`` (or ``failure``) first, then the problem and the graph of calls, in the
order in which rollouts ended.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, fields
from itertools import groupby
from pathlib import Path
from typing import Any

import msgspec

from rollout.budget import budget
from rollout.evaluation.identity import Identity, changed_problems
from rollout.evaluation.outcomes import Failure, Key, Outcome, outcome_from_json, outcome_to_json
from rollout.records import Call, Problem, Rollout, Usage
from rollout.verdicts import Verdict, grounds, value_of

_WITHOUT_CALLS = (b'{"identity":', b'{"failure":')
_LEFT_OUT = ("train_mask", "sampler_logprobs", "versions", "usage")
"""Fields of a call that only training reads, or that are written in another form."""


class _Line(msgspec.Struct):
    """One line; the graph of calls is checked to be JSON, and not decoded."""

    identity: Identity | None = None
    outcome: msgspec.Raw = msgspec.Raw()
    failure: Failure | None = None
    problem: Problem | None = None


@dataclass(slots=True)
class _Content:
    """What a journal holds."""

    identity: Identity | None = None
    outcomes: dict[Key, Outcome] = field(default_factory=dict)
    failures: dict[Key, Failure] = field(default_factory=dict)
    problems: dict[str, Problem] = field(default_factory=dict)
    """Problem of every outcome, by id."""


class Journal:
    """An append-only file of rollouts of one identity. Use as a context manager.

    An existing file is read on entry: ``outcomes`` holds the finished rollouts, ``failures`` those that
    failed and have not succeeded since. An incomplete last line, left by a kill, is dropped. A file without a
    finished rollout is begun anew if its identity differs.

    Raises (on entry):
        ValueError: If the file holds rollouts of another identity, or of problems that changed
            (``check_journal``), or a line cannot be read.
    """

    def __init__(self, path: Path, identity: Identity, problems: Iterable[Problem]) -> None:
        self._path = path
        self._identity = identity
        self._problems = problems
        self.outcomes: list[Outcome] = []
        self.failures: dict[Key, Failure] = {}

    def __enter__(self) -> "Journal":
        self._path.parent.mkdir(parents=True, exist_ok=True)
        content = _Content()
        if self._path.exists():
            _drop_cut_line(self._path)
            content = _checked(self._path, self._identity, self._problems)
        is_begun = content.identity is not None
        self.outcomes = list(content.outcomes.values())
        self.failures = content.failures
        self._file = self._path.open("a" if is_begun else "w", encoding="utf-8")
        known = content.identity or Identity(shared=self._identity.shared, operators={})
        # Operators that are not compared now stay recorded: they may be compared again.
        merged = known.with_operators(self._identity)
        if merged != content.identity:
            self._write({"identity": asdict(merged)})
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    @property
    def done(self) -> set[Key]:
        """Keys of the rollouts that need not be made again."""
        return {outcome.key for outcome in self.outcomes}

    def add(self, outcome: Outcome, rollout: Rollout) -> None:
        """Appends one rollout."""
        self.outcomes.append(outcome)
        self.failures.pop(outcome.key, None)
        self._write(rollout_to_json(outcome, rollout))

    def add_failure(self, failure: Failure) -> None:
        """Appends one failed rollout."""
        self.failures[failure.key] = failure
        self._write({"failure": asdict(failure)})

    def _write(self, line: dict[str, Any]) -> None:
        self._file.write(msgspec.json.encode(line).decode() + "\n")
        self._file.flush()


def check_journal(path: Path, identity: Identity, problems: Iterable[Problem]) -> None:
    """Refuses the rollouts of another evaluation; no-op if there is no file.

    Raises:
        ValueError: If the journal holds finished rollouts of another identity, or of problems whose question
            or gold answer changed or that are gone; the message names what differs. Also if a line cannot be
            read, or an earlier version wrote the file.
    """
    if path.exists():
        _checked(path, identity, problems)


def _checked(path: Path, identity: Identity, problems: Iterable[Problem]) -> _Content:
    """Returns the content of a journal whose rollouts may be used; an empty one if it has no finished ones of
    the same identity."""
    content = _read(path)
    if content.identity is None:
        return _Content()
    differing = content.identity.differences(identity)
    if differing and not content.outcomes:
        return _Content()
    differing += changed_problems(content.problems, {problem.id: problem for problem in problems})
    if differing:
        raise ValueError(
            f"{path} holds rollouts that were made with something else: {'; '.join(differing)}. "
            f"Set output_dir to a new folder, or delete {path.parent}, or restore what it was made with."
        )
    return content


def read_journal(path: Path) -> tuple[list[Outcome], dict[Key, Failure]]:
    """Returns the finished rollouts of a journal, and those that only failed.

    An incomplete last line, left by a kill, is skipped.

    Raises:
        ValueError: If a line is torn or holds neither, or the first one no identity; the message names it.
    """
    content = _read(path)
    return list(content.outcomes.values()), content.failures


def _read(path: Path) -> _Content:
    content = _Content()
    for number, line in enumerate(_lines(path), start=1):
        if line.identity is not None:
            content.identity = line.identity
        elif content.identity is None:
            raise ValueError(
                f"{path} line {number} does not tell what the rollouts were made with (model, operators, "
                "verifier): an earlier version wrote the file. Set output_dir to a new folder, or delete "
                f"{path.parent}."
            )
        elif line.problem is not None and (data := bytes(line.outcome)):
            outcome = _outcome(path, number, data)
            content.outcomes[outcome.key] = outcome
            content.problems.setdefault(line.problem.id, line.problem)
        elif line.failure is not None:
            content.failures[line.failure.key] = line.failure
        else:
            raise _unreadable(path, number, "it has neither outcome with problem nor failure")
    content.failures = {k: v for k, v in content.failures.items() if k not in content.outcomes}
    return content


def _lines(path: Path) -> Iterator[_Line]:
    decoder = msgspec.json.Decoder(_Line)
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.endswith(b"\n"):
                return
            try:
                yield decoder.decode(line)
            except msgspec.ValidationError as error:
                raise _unreadable(path, number, str(error)) from error
            except msgspec.DecodeError as error:
                raise ValueError(
                    f"{path} line {number} is torn: it was cut off while it was written, or damaged later "
                    f"({error}). Remove that line, so that its rollout is made again, or delete "
                    f"{path.parent}."
                ) from error


def _outcome(path: Path, number: int, data: bytes) -> Outcome:
    try:
        return outcome_from_json(msgspec.json.decode(data))
    except (ValueError, TypeError, KeyError) as error:
        raise _unreadable(path, number, repr(error)) from error


def _unreadable(path: Path, number: int, cause: str) -> ValueError:
    return ValueError(
        f"{path} line {number} is not a rollout as this version writes it ({cause}); "
        "set output_dir to a new folder, or delete the file."
    )


def _drop_cut_line(path: Path) -> None:
    # Backwards in steps of 64 KiB: the file may hold gigabytes, and only its last newline matters.
    with path.open("rb+") as file:
        size = file.seek(0, 2)
        step = 1 << 16
        end = size
        while end > 0:
            start = max(0, end - step)
            file.seek(start)
            newline = file.read(end - start).rfind(b"\n")
            if newline >= 0:
                file.truncate(start + newline + 1)
                return
            end = start
        file.truncate(0)


def rollout_to_json(outcome: Outcome, rollout: Rollout) -> dict[str, Any]:
    """Returns one line of ``rollouts.jsonl``: the outcome first, then the graph of calls."""
    return {
        "outcome": outcome_to_json(outcome),
        "budgets": asdict(budget(rollout, rollout.answers[0])),
        "problem": asdict(rollout.problem),
        "answers": list(rollout.answers),
        "waited_for": list(rollout.waited_for),
        "counts": dict(rollout.counts),
        "verdicts": {str(place): _verdict_to_json(verdict) for place, verdict in rollout.verdicts.items()},
        "calls": [_call_to_json(call) for call in rollout.calls],
    }


def _verdict_to_json(verdict: Verdict) -> dict[str, Any]:
    value = value_of(verdict)
    number = {} if value is None else {"value": value}
    return {"status": verdict.status, "answer": verdict.answer, **number, **grounds(verdict)}


def _call_to_json(call: Call) -> dict[str, Any]:
    # asdict would copy every token one by one.
    kept = {item.name: getattr(call, item.name) for item in fields(call) if item.name not in _LEFT_OUT}
    return {
        **kept,
        "usage": asdict(call.usage),
        "policy_version": call.policy_version if call.versions else None,
        "forced": _forced(call),
    }


def read_calls(path: Path) -> Iterator[tuple[Problem, list[Call]]]:
    """Yields problem and calls of every finished rollout of a journal. Fields for training are empty.

    Raises:
        ValueError: If a line holds no rollout; the message names the line.
    """
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if line.startswith(_WITHOUT_CALLS) or not line.endswith(b"\n"):  # a kill cut the last one
                continue
            try:
                rollout = json.loads(line)
                yield Problem(**rollout["problem"]), [_call_from_json(call) for call in rollout["calls"]]
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(
                    f"{path} line {number} is not a rollout as python -m rollout writes it ({error!r})."
                ) from error


def _call_from_json(call: dict[str, Any]) -> Call:
    ids = tuple(call["completion_ids"])
    return Call(
        role=call["role"],
        round=call["round"],
        parents=tuple(call["parents"]),
        prompt_ids=tuple(call["prompt_ids"]),
        completion_ids=ids,
        sampler_logprobs=(),
        train_mask=(False,) * len(ids),
        versions=(),
        finish=call["finish"],
        text=call["text"],
        label=call["label"],
        usage=Usage(**call["usage"]),
        seconds=call["seconds"],
    )


def _forced(call: Call) -> list[tuple[int, int]]:
    """Returns the runs ``[start, end)`` of completion tokens that were forced, not sampled."""
    if all(call.train_mask):
        return []
    runs = groupby(range(len(call.train_mask)), key=call.train_mask.__getitem__)
    spans = [list(places) for sampled, places in runs if not sampled]
    return [(places[0], places[-1] + 1) for places in spans]
