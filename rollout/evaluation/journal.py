"""``rollouts.jsonl``: every rollout, appended as it ends, so that an evaluation can be resumed.

A line holds ``outcome`` (or ``failure``) first, then the problem and the graph of calls. Lines are in the
order in which rollouts ended.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, fields
from itertools import groupby
from pathlib import Path
from typing import Any

import msgspec

from rollout.budget import budget
from rollout.evaluation.outcomes import Failure, Key, Outcome, outcome_from_json, outcome_to_json
from rollout.records import Call, Rollout, Usage

_OUTCOME, _FAILURE = '{"outcome":', '{"failure":'
_LEFT_OUT = ("train_mask", "sampler_logprobs", "versions", "usage")
"""Fields of a call that only training reads, or that are written in another form."""


class Journal:
    """An append-only file of rollouts. Use as a context manager.

    An existing file is read on entry: ``outcomes`` holds the finished rollouts, ``failures`` those that
    failed and have not succeeded since. An incomplete last line, left by a kill, is dropped.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.outcomes: list[Outcome] = []
        self.failures: dict[Key, Failure] = {}

    def __enter__(self) -> "Journal":
        self._path.parent.mkdir(parents=True, exist_ok=True)
        if self._path.exists():
            self._drop_cut_line()
            self.outcomes, self.failures = read_journal(self._path)
        self._file = self._path.open("a", encoding="utf-8")
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

    def _drop_cut_line(self) -> None:
        # Backwards in steps of 64 KiB: the file may hold gigabytes, and only its last newline matters.
        with self._path.open("rb+") as file:
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


def read_journal(path: Path) -> tuple[list[Outcome], dict[Key, Failure]]:
    """Returns the finished rollouts of a journal, and those that only failed.

    Graphs of calls are not parsed. An incomplete last line, left by a kill, is skipped.

    Raises:
        ValueError: If a line holds neither; the message names the line.
    """
    outcomes: dict[Key, Outcome] = {}
    failures: dict[Key, Failure] = {}
    for item in _lines(path):
        if isinstance(item, Outcome):
            outcomes[item.key] = item
        else:
            failures[item.key] = item
    return list(outcomes.values()), {k: v for k, v in failures.items() if k not in outcomes}


def _lines(path: Path) -> Iterator[Outcome | Failure]:
    decoder = json.JSONDecoder()
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.endswith("\n"):
                return
            try:
                # ``raw_decode`` stops after the first value, so the graph of calls is not parsed.
                if line.startswith(_OUTCOME):
                    yield outcome_from_json(decoder.raw_decode(line, len(_OUTCOME))[0])
                else:
                    yield Failure(**decoder.raw_decode(line, len(_FAILURE))[0])
            except (ValueError, TypeError, KeyError) as error:
                raise ValueError(
                    f"{path} line {number} is not a rollout as this version writes it ({error!r}); "
                    "set output_dir to a new folder, or delete the file."
                ) from error


def rollout_to_json(outcome: Outcome, rollout: Rollout) -> dict[str, Any]:
    """Returns one line of ``rollouts.jsonl``: the outcome first, then the graph of calls."""
    return {
        "outcome": outcome_to_json(outcome),
        "budgets": asdict(budget(rollout, rollout.answers[0])),
        "problem": asdict(rollout.problem),
        "answers": list(rollout.answers),
        "waited_for": list(rollout.waited_for),
        "counts": dict(rollout.counts),
        "verdicts": {
            str(place): {"status": verdict.status, "answer": verdict.answer}
            for place, verdict in rollout.verdicts.items()
        },
        "calls": [_call_to_json(call) for call in rollout.calls],
    }


def _call_to_json(call: Call) -> dict[str, Any]:
    # asdict would copy every token one by one.
    kept = {item.name: getattr(call, item.name) for item in fields(call) if item.name not in _LEFT_OUT}
    return {
        **kept,
        "usage": asdict(call.usage),
        "policy_version": call.policy_version if call.versions else None,
        "forced": _forced(call),
    }


def read_calls(path: Path) -> Iterator[tuple[str, list[Call]]]:
    """Yields problem id and calls of every finished rollout of a journal. Fields for training are empty.

    Raises:
        ValueError: If a line holds no rollout; the message names the line.
    """
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if line.startswith(_FAILURE) or not line.endswith("\n"):  # a kill cut the last one
                continue
            try:
                rollout = json.loads(line)
                yield rollout["problem"]["id"], [_call_from_json(call) for call in rollout["calls"]]
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
