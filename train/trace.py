"""The trace from each advantage back to its problem: ``groups/step_000012.jsonl``, one line per call.

A line joins three sources: the rollout (problem, role, parents, text, verdict), the group (reward, kept or
dropped, advantage) and the update (weights, the trainer's log-prob, the share of the loss).
``python -m train.explain`` reads it.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from rollout.collection.amortise import amortised_id
from rollout.collection.collector import CollectedBatch
from rollout.groups import Group, Sample, call_id
from rollout.records import AMORTISE, OWN, Rollout, VersionSpan, context_key
from rollout.verdicts import grounds
from train.batch.rows import Branch, Row

FOLDER = "groups"
TEXT_CHARACTERS = 2_000
"""Number of characters stored from the end of a completion (the answer) and of a prompt (the workspace)."""
PROMPT_TOKENS = 2_000
"""Number of tokens that are decoded from the end of a prompt."""
MIB = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateRecord:
    """Record of one call in an update, from the first pass over its batch.

    Non-finite numbers, as in a refused step, are read back as None, because JSON cannot represent them.
    """

    trained_tokens: int
    advantage: float | None
    """Mean advantage over trained tokens: the critic's if there is one, otherwise the group's."""
    policy_weight: float
    """Weight of each trained token in the policy loss."""
    imitation_weight: float
    """Weight of each trained token in the imitation loss."""
    trainer_logprob: float | None
    """Sum over trained tokens, computed by the trainer during this update."""
    loss: float | None
    """Contribution of this call to the loss of the update: policy, KL, imitation and entropy terms."""
    teacher_kl: float | None = None
    """Mean over trained tokens of log policy - log teacher, an estimate of the reverse KL divergence; None
    without a teacher."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CreditRecord:
    """Reward and advantage of a call within its group."""

    group_size: int
    reward: float | None
    reward_parts: Mapping[str, float]
    """Terms whose weighted sum is the reward."""
    dropped: str | None
    """Reason why the group was dropped before training, or None."""
    advantage: float | None
    """Advantage from the group's baseline; None if the group was dropped."""
    update: UpdateRecord | None
    """Record of the update; None if the call was dropped, or skipped as it cannot change the policy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CallRecord:
    """One line of the trace. Non-finite numbers are read back as None.

    An answer that is also a sample of the plain problem has a second line, with role ``amortise``, that
    prompt, and the answer as its parent.
    """

    call_id: str
    problem_id: str
    question: str
    gold: str
    operator: str
    role: str
    round: int
    parents: tuple[str, ...]
    """Ids of the calls from which its prompt was built."""
    context: str
    """Key of the prompt: calls with equal keys read the same workspace, and form one group if credited."""
    prompt: str
    """End of the prompt as text."""
    text: str
    """End of the completion as text."""
    finish: str
    label: str
    """Result of splitting the completion into thinking and solution."""
    verdict: str | None
    """Status of its verdict; None for calls without an answer."""
    answer: str | None
    prompt_tokens: int
    completion_tokens: int
    versions: tuple[VersionSpan, ...]
    sampler_logprob: float | None
    """Sum of the sampler's log-probs over tokens that may be trained."""
    credit: CreditRecord | None
    """Credit; None if the call is in no group, such as a draft or summary that is not credited."""
    policy: str = OWN
    """Policy that wrote it; see ``rollout.records.Call``."""
    found_by: str = ""
    """How the answer was found, and below the reason of the verdict; empty if the verifier did not tell."""
    reason: str = ""


class GroupTrace:
    """Writes the trace of each step to a folder of limited size. Created on rank 0 only."""

    def __init__(self, output_dir: Path, *, limit_mib: int, decode: Callable[[Sequence[int]], str]) -> None:
        """``decode`` turns token ids into text, special tokens included."""
        self._folder = output_dir / FOLDER
        self._limit = limit_mib * MIB
        self._decode = decode

    def start(self, step: int) -> None:
        """Removes traces of steps after ``step``, because a resumed run repeats these steps."""
        for path in self._folder.glob("step_*.jsonl"):
            if _step_of(path) > step:
                path.unlink()

    def write(
        self, step: int, batch: CollectedBatch, rows: Sequence[Row], updates: Mapping[str, UpdateRecord]
    ) -> None:
        """Writes the trace of one step.

        Args:
            step: Number of the step, from 1.
            batch: The collected batch.
            rows: Its groups after ``credit``, in the same order.
            updates: Records of all ranks, by call id.
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
        retrained = {sample.call_id: sample for group in batch.groups for sample in _amortised(group)}
        # Calls of a group share their prompt, so each prompt is decoded only once.
        prompts: dict[tuple[int, ...], tuple[str, str]] = {}
        for number, rollout in enumerate(batch.rollouts):
            for place, call in enumerate(rollout.calls):
                name = call_id(number, place)
                context, prompt = self._prompt(call.prompt_ids, prompts)
                record = _record(rollout, number, place, context, prompt, credits.get(name))
                yield record
                if (sample := retrained.get(amortised_id(name))) is not None:
                    context, prompt = self._prompt(sample.call.prompt_ids, prompts)
                    yield replace(
                        record,
                        call_id=sample.call_id,
                        role=AMORTISE,
                        round=0,
                        parents=(name,),
                        context=context,
                        prompt=prompt,
                        prompt_tokens=len(sample.call.prompt_ids),
                        credit=credits[sample.call_id],
                    )

    def _prompt(self, ids: tuple[int, ...], known: dict[tuple[int, ...], tuple[str, str]]) -> tuple[str, str]:
        """Returns key and end of a prompt; ``known`` holds those decoded so far."""
        if ids not in known:
            text = self._decode(ids[-PROMPT_TOKENS:])[-TEXT_CHARACTERS:]
            known[ids] = (context_key(ids), text)
        return known[ids]

    def _keep_below_limit(self, newest: Path) -> None:
        """Removes the oldest traces until the folder is within its limit; the newest is always kept."""
        sizes = {path: path.stat().st_size for path in self._folder.glob("step_*.jsonl")}
        total = sum(sizes.values())
        for path in sorted(sizes, key=_step_of):
            if total <= self._limit or path == newest:
                return
            total -= sizes[path]
            path.unlink()


def _amortised(group: Group) -> tuple[Sample, ...]:
    return group.samples if group.key.role == AMORTISE else ()


def credit_records(
    batch: CollectedBatch, rows: Sequence[Row], updates: Mapping[str, UpdateRecord]
) -> dict[str, CreditRecord]:
    """Returns the credit of each call in a group, by call id; arguments as for ``GroupTrace.write``."""
    branches = {branch.call_id: branch for row in rows for branch in row.branches}
    dropped = [(each.group, each.reason) for each in batch.dropped]
    return {
        sample.call_id: _credit(group, sample, reason, branches.get(sample.call_id), updates)
        for group, reason in [*((group, None) for group in batch.groups), *dropped]
        for sample in group.samples
    }


def trace_path(output_dir: Path, step: int) -> Path:
    """Returns the path of the trace of a step."""
    return output_dir / FOLDER / f"step_{step:06d}.jsonl"


def traced_steps(output_dir: Path) -> list[int]:
    """Returns the steps that have a trace, in ascending order."""
    return sorted(_step_of(path) for path in (output_dir / FOLDER).glob("step_*.jsonl"))


def read_trace(path: Path) -> list[CallRecord]:
    """Reads the calls of a step.

    Raises:
        FileNotFoundError: If ``path`` does not exist.
        ValueError: If a line was not written by ``GroupTrace``; the message names the line.
    """
    decode = msgspec.json.Decoder(CallRecord).decode
    records = []
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            records.append(decode(line))
        except msgspec.MsgspecError as error:
            raise ValueError(
                f"{path}, line {number}: not a call in the format of this version: {error}"
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
    """Returns the group's advantage, equal for all tokens; None without a branch or without tokens."""
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
        policy=call.policy,
        **({} if verdict is None else grounds(verdict)),
    )


def _masked_sum(values: Iterable[float], mask: Iterable[bool]) -> float:
    return sum(value for value, counts in zip(values, mask, strict=True) if counts)
