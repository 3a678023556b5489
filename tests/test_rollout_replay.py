"""What was finished before a kill is not sampled again, and comes back as it was."""

import asyncio
import math
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fakes import EvenIsCorrect, ScriptedPolicy, operator, problem, roll, settings

from rewards.verdict import Verdict
from rollout.collection.collector import BatchCollector, CollectedBatch, CollectOptions
from rollout.collection.groups import GroupFilter
from rollout.collection.problem_stream import ProblemStream
from rollout.collection.producer import Producer
from rollout.collection.replay import SETTINGS, Replay
from rollout.records import Rollout

SCHEDULE = (4, 1)


class Reward:
    def __init__(self, total: float) -> None:
        self.total, self.parts = total, {"outcome": total}


class Grader(EvenIsCorrect):
    """With the verdicts of a real scorer, which is what is kept."""

    async def score(self, problem: Any, completion: str, attempt: Any) -> Any:
        verdict = await super().score(problem, completion, attempt)
        return Verdict(status=verdict.status, answer=verdict.answer, found_by="box", seconds=0.25)


def _replay(folder: Path, kind: str = "as ever") -> Replay:
    return Replay(folder, kind, Verdict)


def _collector(sampler: ScriptedPolicy, replay: Replay | None, **changes: Any) -> BatchCollector:
    options = {"problems_per_step": 6, "operator_fraction": 0.5, "num_generations": 3, "seed": 0}
    return BatchCollector(
        ProblemStream([problem(f"p{i}") for i in range(40)], seed=0),
        operator(SCHEDULE),
        operator((1,), name="trace"),
        settings(sampler),
        Grader(),
        lambda calls, verdicts, drafts: [Reward(float(verdict.is_correct)) for verdict in verdicts],
        CollectOptions(**(options | changes)),
        keep=GroupFilter(drop_equal_rewards=True),
        replay=replay,
    )


def _same(one: CollectedBatch, other: CollectedBatch) -> bool:
    """Apart from what time it took."""

    def timeless(rollouts: Sequence[Rollout]) -> list[Rollout]:
        calls = [tuple(replace(call, seconds=0.0) for call in rollout.calls) for rollout in rollouts]
        return [replace(r, calls=c, waited_for=()) for r, c in zip(rollouts, calls, strict=True)]

    groups = [
        [
            [(sample.reward, replace(sample.call, seconds=0.0)) for sample in group.samples]
            for group in batch.groups
        ]
        for batch in (one, other)
    ]
    return groups[0] == groups[1] and timeless(one.rollouts) == timeless(other.rollouts)


@pytest.fixture
def rollout() -> Rollout:
    """With everything that a rollout may hold, and numbers that text would not keep."""
    made = roll(ScriptedPolicy(), operator((4, 2, 1), "global_summary"), num_answers=3)
    calls = list(made.calls)
    calls[0] = replace(
        calls[0], sampler_logprobs=(float("-inf"), 0.1 + 0.2, *calls[0].sampler_logprobs[2:]), is_given=True
    )
    verdicts = {i: Verdict(status="wrong", answer="½", value=math.pi) for i in made.answers}
    return replace(made, calls=tuple(calls), verdicts=verdicts, counts={"workspace/truncated": 2})


def test_a_rollout_comes_back_as_it_was(tmp_path: Path, rollout: Rollout):
    first = _replay(tmp_path)
    first.add(3, "0/1/p", [rollout, rollout])
    first.close()
    again = _replay(tmp_path)
    assert again.start(2) == [3]
    assert again.find(3, "0/1/p") == [rollout, rollout]
    assert again.find(3, "0/2/q") is None
    assert again.find(4, "0/1/p") is None


def test_what_a_kill_cut_off_is_dropped_and_the_file_goes_on(tmp_path: Path, rollout: Rollout):
    first = _replay(tmp_path)
    for place in "ab":
        first.add(1, place, [rollout])
    first.close()
    (path,) = tmp_path.glob("*.msgpack")
    whole = path.read_bytes()
    for cut in (1, 5, len(whole) // 2 - 3):
        path.write_bytes(whole[:-cut])
        again = _replay(tmp_path)
        assert again.find(1, "a") == [rollout]
        assert again.find(1, "b") is None
        again.add(1, "c", [rollout])
        again.close()
        assert _replay(tmp_path).find(1, "c") == [rollout]


@pytest.mark.parametrize(
    "garbage", [b"\xff" * 8, b"\x00" * 200, b"\x10" + b"\x00" * 7, bytes(range(256)) * 4]
)
def test_garbage_in_place_of_a_record_is_dropped_with_a_warning(
    tmp_path: Path, rollout: Rollout, garbage: bytes, caplog: pytest.LogCaptureFixture
):
    first = _replay(tmp_path)
    first.add(1, "a", [rollout])
    first.close()
    (path,) = tmp_path.glob("*.msgpack")
    whole = path.read_bytes()
    path.write_bytes(whole + garbage)
    assert _replay(tmp_path).find(1, "a") == [rollout]
    assert f"bytes {len(whole)} to {len(whole) + len(garbage)} are no whole record" in caplog.text
    assert path.read_bytes() == whole


def test_a_record_with_a_changed_byte_is_never_read_as_rollouts(tmp_path: Path, rollout: Rollout):
    first = _replay(tmp_path)
    for place in "ab":
        first.add(1, place, [rollout])
    first.close()
    (path,) = tmp_path.glob("*.msgpack")
    whole = path.read_bytes()
    for place in random.Random(0).sample(range(len(whole)), 200):
        changed = bytearray(whole)
        changed[place] ^= 1 << place % 8
        path.write_bytes(changed)
        found = [_replay(tmp_path).find(1, name) for name in "ab"]
        assert found == ([None, None] if place < len(whole) // 2 else [[rollout], None])


def test_damaged_settings_count_as_others(tmp_path: Path, rollout: Rollout):
    _replay(tmp_path).add(1, "a", [rollout])
    (tmp_path / SETTINGS).write_bytes(b"\xff\xfe")
    assert _replay(tmp_path).find(1, "a") is None


def test_rollouts_of_other_settings_are_removed(tmp_path: Path, rollout: Rollout):
    first = _replay(tmp_path)
    first.add(1, "a", [rollout])
    first.close()
    assert _replay(tmp_path).find(1, "a")
    assert _replay(tmp_path, "temperature 0.5").find(1, "a") is None
    assert _replay(tmp_path).find(1, "a") is None


def test_only_what_follows_on_the_checkpoint_is_kept(tmp_path: Path, rollout: Rollout):
    def steps(after: int) -> list[int]:
        replay = _replay(tmp_path)
        for step in (3, 4, 5):
            replay.add(step, "a", [rollout])
        return replay.start(after)

    assert steps(0) == []  # the steps before 3 would be made anew, and the policy with them
    assert steps(2) == [3, 4, 5]
    assert steps(4) == [5]
    assert steps(5) == []


def test_a_checkpoint_makes_rollouts_superfluous(tmp_path: Path, rollout: Rollout):
    replay = _replay(tmp_path)
    for step in (1, 2, 3):
        replay.add(step, "a", [rollout])
    replay.forget(2)
    assert [path.name for path in tmp_path.glob("*.msgpack")] == ["step_000003.msgpack"]
    replay.clear()
    assert not list(tmp_path.glob("*.msgpack"))


class Killed(BaseException):
    pass


class MortalPolicy(ScriptedPolicy):
    """Lives for ``left`` requests."""

    left = 10**9

    async def generate(self, *arguments: Any, **options: Any) -> Any:
        self.left -= 1
        if self.left < 0:
            raise Killed
        return await super().generate(*arguments, **options)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 0.95])
def test_a_step_that_was_cut_off_samples_only_what_is_missing(tmp_path: Path, share: float):
    """A refill, too: which problems take whose place does not change."""
    whole = ScriptedPolicy()
    straight = _collector(whole, None, max_refill=3)
    expected = asyncio.run(straight.collect(1))
    assert expected.metrics["collect/refills"] > 0
    mortal = MortalPolicy()
    mortal.left = int(share * len(whole.requests))
    with pytest.raises(Killed):
        asyncio.run(_collector(mortal, _replay(tmp_path), max_refill=3).collect(1))
    heir = ScriptedPolicy()
    collector = _collector(heir, _replay(tmp_path), max_refill=3)
    batch = asyncio.run(collector.collect(1))
    assert _same(batch, expected)
    assert batch.metrics == expected.metrics
    assert collector.stream.position == straight.stream.position
    assert len(heir.requests) <= len(whole.requests)
    if share > 0.5:
        assert len(heir.requests) < len(whole.requests)


def test_batches_collected_ahead_are_there_after_a_kill(tmp_path: Path):
    """The trainer used step 1 and was killed while step 2 and 3 were there."""

    async def first() -> list[CollectedBatch]:
        producer = Producer(_collector(ScriptedPolicy(), _replay(tmp_path)), max_staleness=2, last_step=9)
        assert producer.resume(0, None) == []
        batches = [await producer.next(step, step - 1) for step in (1, 2, 3)]
        await asyncio.gather(*producer._ahead.values())
        await producer.close()
        return batches

    async def second(sampler: ScriptedPolicy) -> tuple[list[int], list[CollectedBatch]]:
        producer = Producer(_collector(sampler, _replay(tmp_path)), max_staleness=2, last_step=5)
        steps = producer.resume(0, None)
        batches = [await producer.next(step, step - 1) for step in (1, 2, 3, 4, 5)]
        await producer.close()
        return steps, batches

    before = asyncio.run(first())
    heir = ScriptedPolicy()
    steps, after = asyncio.run(second(heir))
    assert steps == [1, 2, 3, 4, 5]
    assert heir.requests == []
    assert all(_same(one, other) for one, other in zip(before, after, strict=False))


@pytest.mark.parametrize("staleness", [0, 2])
def test_after_a_rewind_the_same_problems_are_sampled_anew(staleness: int, tmp_path: Path):
    def drawn(batch: CollectedBatch) -> list[str]:
        return [rollout.problem.id for rollout in batch.rollouts]

    async def run() -> None:
        policy = ScriptedPolicy()
        producer = Producer(_collector(policy, _replay(tmp_path)), max_staleness=staleness, last_step=6)
        states, seen = {}, {}
        for step in range(1, 5):
            states[step - 1] = producer.state_dict()
            seen[step] = drawn(await producer.next(step, step - 1))
        assert list(tmp_path.glob("*.msgpack"))
        await producer.rewind(states[2])
        assert not list(tmp_path.glob("*.msgpack"))
        assert producer.state_dict() == states[2]
        asked = len(policy.requests)
        assert [drawn(await producer.next(step, step + 2)) for step in (3, 4)] == [seen[3], seen[4]]
        # No rollout of the steps given up is used again, be it stored or in progress.
        calls = {(r.prompt, r.sampling.seed) for r in policy.requests[asked:]}
        assert {(r.prompt, r.sampling.seed) for r in policy.requests[:asked]} & calls
        assert {path.stem for path in tmp_path.glob("*.msgpack")} >= {"step_000003", "step_000004"}
        await producer.close()

    asyncio.run(run())
