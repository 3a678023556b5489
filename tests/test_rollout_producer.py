"""Collecting ahead of the trainer."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from fakes import ScriptedPolicy
from test_rollout_collector import _collector

from rollout.collection.collector import CollectedBatch
from rollout.collection.producer import Producer, without_stale
from rollout.records import Rollout, VersionSpan


class Slow:
    """A collector that takes a moment a batch and says when it began; its batches are empty."""

    replay = None

    def __init__(self, fails_at: int | None = None) -> None:
        self.stream = self  # which remembers and has a position, too
        self.began: list[int] = []
        self.remembered: list[Sequence[Rollout]] = []
        self.ended: list[int] = []
        self.fails_at = fails_at

    async def collect(self, step: int) -> CollectedBatch:
        self.began.append(step)
        await asyncio.sleep(0.001)
        if step == self.fails_at:
            raise RuntimeError(f"no worker answered in step {step}")
        self.ended.append(step)
        return CollectedBatch(groups=(), rollouts=(), metrics={"step": float(step)})

    @property
    def position(self) -> int:
        return len(self.began)

    def remember(self, rollouts: Sequence[Rollout]) -> None:
        self.remembered.append(rollouts)

    def state_dict(self) -> dict[str, Any]:
        return {"position": self.position, "history": len(self.remembered)}


def _producer(collector: Any, staleness: int, last: int = 6) -> Producer:
    return Producer(collector, max_staleness=staleness, last_step=last)


@pytest.mark.parametrize("staleness", [0, 1, 3])
def test_batches_come_in_order_and_none_begins_too_early(staleness: int):
    async def run() -> None:
        collector = Slow()
        producer = _producer(collector, staleness)
        for step in range(1, 7):
            batch = await producer.next(step, step - 1)
            assert batch.metrics["step"] == step
            await asyncio.sleep(0.02)  # the trainer is busy
            assert collector.ended == list(range(1, min(step + staleness, 6) + 1))
        await producer.close()

    asyncio.run(run())


def test_batches_are_collected_side_by_side_and_begin_in_order():
    async def run() -> None:
        collector = Slow()
        producer = _producer(collector, 3)
        work = asyncio.ensure_future(producer.next(1, 0))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert (collector.began, collector.ended) == ([1, 2, 3, 4], [])
        await work
        await producer.close()

    asyncio.run(run())


@pytest.mark.parametrize("staleness", [0, 1, 2])
def test_its_state_is_that_before_the_first_batch_not_handed_over(staleness: int):
    async def run() -> None:
        collector = Slow()
        producer = _producer(collector, staleness)
        assert producer.state_dict() == {"position": 0, "history": 0}
        for step in range(1, 4):
            await producer.next(step, step - 1)
            assert producer.state_dict() == {"position": step, "history": step}
            await asyncio.sleep(0.02)
            assert producer.state_dict() == {"position": step, "history": step}
        await producer.close()

    asyncio.run(run())


def test_an_error_is_raised_at_its_step():
    async def run() -> None:
        collector = Slow(fails_at=2)
        producer = _producer(collector, 2)
        await producer.next(1, 0)
        await asyncio.sleep(0.02)
        with pytest.raises(RuntimeError, match="in step 2"):
            await producer.next(2, 1)
        assert len(collector.remembered) == 1
        await producer.close()

    asyncio.run(run())


def test_a_resumed_run_collects_again_what_was_not_handed_over():
    def problems(batch: CollectedBatch) -> list[str]:
        return [rollout.problem.id for rollout in batch.rollouts]

    async def run() -> None:
        straight = _collector(ScriptedPolicy(), problems=30)
        expected = [problems(await straight.collect(step)) for step in range(1, 5)]
        first = _producer(_collector(ScriptedPolicy(), problems=30), 1)
        seen = [problems(await first.next(step, step - 1)) for step in (1, 2)]
        await asyncio.sleep(0.05)  # step 3 is collected, and lost
        state = first.state_dict()
        await first.close()
        second = _producer(_collector(ScriptedPolicy(), problems=30), 1)
        assert second.resume(2, state) == []
        seen += [problems(await second.next(step, step - 1)) for step in (3, 4)]
        await second.close()
        assert seen == expected

    asyncio.run(run())


def test_groups_with_a_token_that_is_too_old_are_dropped_and_counted():
    batch = asyncio.run(_collector(ScriptedPolicy()).collect(0))
    first = batch.groups[0]
    sample = first.samples[0]
    spans = (VersionSpan(version=3, start=0, end=1), VersionSpan(version=5, start=1, end=2))
    mixed = replace(sample, call=replace(sample.call, versions=spans))
    groups = (replace(first, samples=(mixed, *first.samples[1:])), *batch.groups[1:])
    later = replace(batch, groups=groups)
    oldest = {min(s.call.policy_version for s in group.samples) for group in batch.groups[1:]}
    assert oldest == {0}
    assert without_stale(later, oldest=0) == later
    alone = replace(later, groups=(replace(first, samples=(mixed,)),))
    assert without_stale(alone, oldest=3) == alone
    assert without_stale(alone, oldest=4).groups == ()
    one_is_older = without_stale(replace(later, groups=groups[:1]), oldest=3)
    assert (one_is_older.groups, one_is_older.metrics["collect/dropped_stale"]) == ((), 1)
    none = without_stale(later, oldest=4)
    assert none.groups == ()
    assert none.metrics["collect/dropped_stale"] == len(groups)
