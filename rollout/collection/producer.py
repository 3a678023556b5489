"""Collects the next batches while the trainer is busy with the last one."""

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from rollout.collection.collector import BatchCollector, CollectedBatch
from rollout.collection.groups import DroppedGroup
from rollout.records import Group


class Producer:
    """Batches of a collector, up to ``max_staleness`` steps ahead of the trainer; all on one event loop.

    A batch begins when the trainer asks for the one ``max_staleness`` steps before it, so the policy is
    updated at most so many times between its start and its use. Batches are collected side by side, so that
    workers have something to do while one waits for its longest calls, and handed over in order. With 0
    nothing runs ahead.

    The run's place in its data is the producer's: the stream of problems and the replay of rollouts that its
    collector reads are saved, resumed and closed here.
    """

    def __init__(self, collector: BatchCollector, *, max_staleness: int, last_step: int) -> None:
        """``last_step`` is the last that will be asked for: nothing is collected beyond it."""
        self._collector = collector
        self._stream = collector.stream
        self._replay = collector.replay
        self._max_staleness = max_staleness
        self._last_step = last_step
        self._ahead: dict[int, asyncio.Task[CollectedBatch]] = {}
        """By step, the batches not handed over: collected or under way."""
        self._positions: dict[int, int] = {}
        """Where the stream stood before each of them."""

    def state_dict(self) -> dict[str, Any]:
        """The stream's state without the batches not handed over, which a resumed run makes again."""
        state = self._stream.state_dict()
        return state | {"position": self._positions[min(self._positions)]} if self._positions else state

    def resume(self, after_step: int, state: Mapping[str, Any] | None) -> list[int]:
        """Takes up a run that made ``after_step`` steps; call it once, before the first ``next``.

        Returns the steps of which there are rollouts from before (``Replay.start``).
        """
        assert not self._ahead, "a run is resumed before its first step"
        if state is not None:
            self._stream.load_state_dict(state)
        return self._replay.start(after_step) if self._replay else []

    def forget(self, until_step: int) -> None:
        """Drops the rollouts of steps that a checkpoint holds."""
        if self._replay:
            self._replay.forget(until_step)

    async def next(self, step: int, version: int) -> CollectedBatch:
        """The batch of ``step`` for a trainer whose policy is ``version``.

        Groups with a token older than ``version - max_staleness`` are dropped and counted.

        Raises:
            RuntimeError: What ``BatchCollector.collect`` raises, at the step whose batch it concerns.
        """
        for ahead in range(step, min(step + self._max_staleness, self._last_step) + 1):
            if ahead not in self._ahead:
                self._ahead[ahead] = asyncio.ensure_future(self._collect(ahead))
        batch = await self._ahead[step]
        del self._ahead[step], self._positions[step]
        self._stream.remember(batch.rollouts)
        return without_stale(batch, oldest=version - self._max_staleness)

    async def close(self) -> None:
        """Ends what is being collected."""
        for work in self._ahead.values():
            work.cancel()
        await asyncio.gather(*self._ahead.values(), return_exceptions=True)
        self._ahead.clear()
        self._positions.clear()
        if self._replay:
            self._replay.close()

    async def _collect(self, step: int) -> CollectedBatch:
        # Tasks begin in the order in which they were made, and a batch draws its problems as it begins.
        self._positions[step] = self._stream.position
        return await self._collector.collect(step)


def without_stale(batch: CollectedBatch, *, oldest: int) -> CollectedBatch:
    """``batch`` without groups that hold a token of a policy version below ``oldest``; they are counted.

    Only what would be trained counts: a refinement may read a workspace that an older policy wrote.
    """
    kept = tuple(group for group in batch.groups if _oldest(group) >= oldest)
    stale = [DroppedGroup(group=group, reason="stale") for group in batch.groups if _oldest(group) < oldest]
    if not stale:
        return batch
    metrics = dict(batch.metrics) | {"collect/dropped_stale": len(stale)}
    return replace(batch, groups=kept, metrics=metrics, dropped=(*batch.dropped, *stale))


def _oldest(group: Group) -> int:
    return min(sample.call.policy_version for sample in group.samples)
