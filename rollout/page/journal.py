"""Reads ``rollouts.jsonl`` for the page: facts of every rollout, texts only of those that are shown."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec

from configs.thinking import ThinkingMarks
from rollout.page.flags import Facts
from rollout.page.recorded import RecordedCall, RecordedRollout, view
from rollout.page.sources import source_views
from rollout.page.view import RolloutView, SourceView
from rollout.records import Problem

READ_BYTES = 2**28
"""Of a larger file, every second, third, ... rollout is read."""
PROMPT_TOKENS = 4_000
"""Number of tokens that are decoded from the end of a prompt."""
_ROLLOUT = b'{"outcome":'

Decode = Callable[[Sequence[int]], str]


class _Usage(msgspec.Struct):
    prompt_tokens: int
    completion_tokens: int


class _Call(msgspec.Struct):
    role: str
    round: int
    parents: tuple[int, ...]
    prompt_ids: msgspec.Raw
    finish: str
    text: str
    label: str
    usage: _Usage
    policy_version: int | None = None


class _Verdict(msgspec.Struct):
    status: str
    answer: str | None = None
    found_by: str = ""
    reason: str = ""


class _Outcome(msgspec.Struct):
    operator: str


class _Line(msgspec.Struct):
    outcome: _Outcome
    problem: Problem
    answers: tuple[int, ...]
    verdicts: dict[int, _Verdict]
    calls: list[_Call]


def read_source(
    path: Path, source: str, marks: ThinkingMarks, decode: Decode | None, *, limit: int
) -> tuple[SourceView, list[RolloutView]]:
    """Returns the summary of a journal, and the rollouts of it that the page shows.

    Args:
        path: ``rollouts.jsonl``.
        source: Name of the source on the page.
        marks: Marks that separate thinking from solution.
        decode: Turns token ids into text, special tokens included; None if the tokenizer is not at hand.
        limit: Bytes of JSON that the rollouts may take.

    Raises:
        ValueError: If a line is not a rollout as this version writes it; the message names the line.
    """
    every = -(-path.stat().st_size // READ_BYTES) or 1
    offsets: list[int] = []
    facts: list[Facts] = []
    operators: list[str] = []
    for number, offset, line in _lines(path, every):
        rollout = _recorded(_decoded(path, number, line), source, None)
        offsets.append(offset)
        facts.append(rollout.facts)
        operators.append(rollout.operator)
    with path.open("rb") as file:

        def show(place: int) -> RolloutView:
            file.seek(offsets[place])
            line = msgspec.json.decode(file.readline(), type=_Line)
            return view(_recorded(line, source, decode), marks)

        note = "" if every == 1 else f"one of every {every} rollouts was read, because the file is large"
        return source_views(source, facts, operators, show, limit=limit, note=note)


def _lines(path: Path, every: int) -> Iterator[tuple[int, int, bytes]]:
    """Yields number, offset and content of one of ``every`` rollouts' lines."""
    offset = seen = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.startswith(_ROLLOUT) and line.endswith(b"\n"):  # a kill may have cut the last one
                if seen % every == 0:
                    yield number, offset, line
                seen += 1
            offset += len(line)


def _decoded(path: Path, number: int, line: bytes) -> _Line:
    try:
        return msgspec.json.decode(line, type=_Line)
    except msgspec.MsgspecError as error:
        raise ValueError(
            f"{path} line {number} is not a rollout as this version writes it: {error}"
        ) from error


def _recorded(line: _Line, source: str, decode: Decode | None) -> RecordedRollout:
    contexts = [hashlib.blake2s(bytes(call.prompt_ids), digest_size=8).hexdigest() for call in line.calls]
    prompts: dict[str, str] = {}
    if decode is not None:
        for context, call in zip(contexts, line.calls, strict=True):
            ids = msgspec.json.decode(call.prompt_ids, type=list[int]) if context not in prompts else []
            if ids:
                prompts[context] = decode(ids[-PROMPT_TOKENS:])
    return RecordedRollout(
        source=source,
        operator=line.outcome.operator,
        problem=line.problem.id,
        question=line.problem.question,
        gold=line.problem.answer,
        calls=tuple(
            _call(call, context, line.verdicts.get(place))
            for place, (call, context) in enumerate(zip(line.calls, contexts, strict=True))
        ),
        prompts=prompts,
        chosen=line.answers,
    )


def _call(call: _Call, context: str, verdict: _Verdict | None) -> RecordedCall:
    return RecordedCall(
        role=call.role,
        round=call.round,
        parents=call.parents,
        context=context,
        text=call.text,
        finish=call.finish,
        label=call.label,
        verdict=verdict.status if verdict else None,
        answer=verdict.answer if verdict else None,
        found_by=verdict.found_by if verdict else "",
        reason=verdict.reason if verdict else "",
        prompt_tokens=call.usage.prompt_tokens,
        completion_tokens=call.usage.completion_tokens,
        versions=() if call.policy_version is None else (call.policy_version,),
    )
