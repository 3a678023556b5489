"""From any advantage back to its problem: ``groups/step_000012.jsonl``, one line for each call of a step.

A line joins what three places know of a call: the rollout (problem, role, parents, text, verdict), the group
(reward, kept or dropped, advantage) and the update (weights, the trainer's log-prob, the share of the loss).
``python -m train.explain`` reads it.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from rollout.collection.collector import CollectedBatch
from rollout.records import Group, Rollout, Sample, VersionSpan, call_id, context_key
from train.batch.rows import Branch, Row
from train.call_terms import UpdateRecord

FOLDER = "groups"
TEXT_CHARACTERS = 2_000
"""Characters kept of a completion and of a prompt: their ends, where the answer and the workspace stand."""
PROMPT_TOKENS = 2_000
"""Tokens that are decoded of a prompt, from its end."""
MIB = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class CreditRecord:
    """What a call got within its group."""

    group_size: int
    reward: float | None
    reward_parts: Mapping[str, float]
    """Terms that the reward is the weighted sum of."""
    dropped: str | None
    """Why its group was not trained on; None if it was."""
    advantage: float | None
    """By the group's baseline; None if the group was dropped."""
    update: UpdateRecord | None
    """None if the call was dropped, or could not move the policy and was left out of the update."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CallRecord:
    """One line of the trace. Numbers that were not finite are read back as None."""

    call_id: str
    problem_id: str
    question: str
    gold: str
    operator: str
    role: str
    round: int
    parents: tuple[str, ...]
    """Call ids that its prompt was built from."""
    context: str
    """Names its prompt: calls of equal context read the same workspace, and are one group if credited."""
    prompt: str
    """The end of the prompt as text."""
    text: str
    """The end of the completion."""
    finish: str
    label: str
    """What the split into thinking and solution found."""
    verdict: str | None
    """Status of its verdict; None for calls that answer nothing."""
    answer: str | None
    prompt_tokens: int
    completion_tokens: int
    versions: tuple[VersionSpan, ...]
    sampler_logprob: float | None
    """Sum over tokens that may be trained, by the sampler."""
    credit: CreditRecord | None
    """None if the call is in no group: a draft or summary that is not credited."""


class GroupTrace:
    """Writes the trace of each step into a folder that stays below a size. Made on rank 0 only."""

    def __init__(self, output_dir: Path, *, limit_mib: int, decode: Callable[[Sequence[int]], str]) -> None:
        """``decode`` turns token ids into text, special tokens included."""
        self._folder = output_dir / FOLDER
        self._limit = limit_mib * MIB
        self._decode = decode

    def start(self, step: int) -> None:
        """Removes the steps after ``step``: a resumed run makes them again."""
        for path in self._folder.glob("step_*.jsonl"):
            if _step_of(path) > step:
                path.unlink()

    def write(
        self, step: int, batch: CollectedBatch, rows: Sequence[Row], updates: Mapping[str, UpdateRecord]
    ) -> None:
        """Writes one step.

        Args:
            step: From 1.
            batch: As it was collected.
            rows: Its groups after ``credit``, in the same order.
            updates: By call id, from all ranks.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        path = trace_path(self._folder.parent, step)
        encode = msgspec.json.Encoder().encode
        lines = [encode(record) + b"\n" for record in self._records(batch, rows, updates)]
        path.write_bytes(b"".join(lines))
        self._keep_below_limit(path)

    def _records(
        self, batch: CollectedBatch, rows: Sequence[Row], updates: Mapping[str, UpdateRecord]
    ) -> Iterator[CallRecord]:
        credits = credit_records(batch, rows, updates)
        prompts: dict[tuple[int, ...], tuple[str, str]] = {}
        for number, rollout in enumerate(batch.rollouts):
            for place, call in enumerate(rollout.calls):
                if call.prompt_ids not in prompts:
                    text = self._decode(call.prompt_ids[-PROMPT_TOKENS:])[-TEXT_CHARACTERS:]
                    prompts[call.prompt_ids] = (context_key(call.prompt_ids), text)
                context, prompt = prompts[call.prompt_ids]
                name = call_id(number, place)
                yield _record(rollout, number, place, context, prompt, credits.get(name))

    def _keep_below_limit(self, newest: Path) -> None:
        """Removes the oldest steps; the newest one stays even if it is larger than the limit."""
        sizes = {path: path.stat().st_size for path in self._folder.glob("step_*.jsonl")}
        total = sum(sizes.values())
        for path in sorted(sizes, key=_step_of):
            if total <= self._limit or path == newest:
                return
            total -= sizes[path]
            path.unlink()


def credit_records(
    batch: CollectedBatch, rows: Sequence[Row], updates: Mapping[str, UpdateRecord]
) -> dict[str, CreditRecord]:
    """What each call of a group got, by call id; arguments as for ``GroupTrace.write``."""
    branches = {branch.call_id: branch for row in rows for branch in row.branches}
    dropped = [(each.group, each.reason) for each in batch.dropped]
    return {
        sample.call_id: _credit(group, sample, reason, branches.get(sample.call_id), updates)
        for group, reason in [*((group, None) for group in batch.groups), *dropped]
        for sample in group.samples
    }


def trace_path(output_dir: Path, step: int) -> Path:
    """Where a run keeps the trace of a step."""
    return output_dir / FOLDER / f"step_{step:06d}.jsonl"


def traced_steps(output_dir: Path) -> list[int]:
    """Steps that have a trace, in order."""
    return sorted(_step_of(path) for path in (output_dir / FOLDER).glob("step_*.jsonl"))


def read_trace(path: Path) -> list[CallRecord]:
    """The calls of a step.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a line is not one of ``GroupTrace``; it names the line.
    """
    decode = msgspec.json.Decoder(CallRecord).decode
    records = []
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            records.append(decode(line))
        except msgspec.MsgspecError as error:
            raise ValueError(
                f"{path}, line {number}: not a call as this version writes it: {error}"
            ) from error
    return records


def _step_of(path: Path) -> int:
    return int(path.stem.removeprefix("step_"))


def _credit(
    group: Group,
    sample: Sample,
    reason: str | None,
    branch: Branch | None,
    updates: Mapping[str, UpdateRecord],
) -> CreditRecord:
    return CreditRecord(
        group_size=len(group.samples),
        reward=sample.reward,
        reward_parts=dict(sample.reward_parts),
        dropped=reason,
        advantage=_advantage(branch),
        update=updates.get(sample.call_id),
    )


def _advantage(branch: Branch | None) -> float | None:
    """The group's advantage, the same for every token; None for a branch without tokens or group."""
    return float(branch.advantages[0]) if branch is not None and len(branch.advantages) else None


def _record(
    rollout: Rollout, number: int, place: int, context: str, prompt: str, credit: CreditRecord | None
) -> CallRecord:
    call, verdict = rollout.calls[place], rollout.verdicts.get(place)
    return CallRecord(
        call_id=call_id(number, place),
        problem_id=rollout.problem.id,
        question=rollout.problem.question,
        gold=rollout.problem.answer,
        operator=rollout.operator,
        role=call.role,
        round=call.round,
        parents=tuple(call_id(number, parent) for parent in call.parents),
        context=context,
        prompt=prompt,
        text=call.text[-TEXT_CHARACTERS:],
        finish=call.finish,
        label=call.label,
        verdict=None if verdict is None else verdict.status,
        answer=None if verdict is None else verdict.answer,
        prompt_tokens=len(call.prompt_ids),
        completion_tokens=len(call.completion_ids),
        versions=call.versions,
        sampler_logprob=_masked_sum(call.sampler_logprobs, call.train_mask),
        credit=credit,
    )


def _masked_sum(values: Iterable[float], mask: Iterable[bool]) -> float:
    return sum(value for value, counts in zip(values, mask, strict=True) if counts)
