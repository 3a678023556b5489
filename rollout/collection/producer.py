"""Collects the next batches while the trainer works on the current one."""

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from rollout.collection.collector import BatchCollector, CollectedBatch
from rollout.collection.groups import DroppedGroup
from rollout.groups import Group


class Producer:
    """Collects batches up to ``max_staleness`` steps ahead of the trainer, all on one event loop.

    The batch of a step begins when the trainer asks for the batch ``max_staleness`` steps before it, so the
    policy is updated at most ``max_staleness`` times between a batch's start and its use. Batches are
    collected side by side, so that workers stay busy while one batch waits for its longest calls, and are
    returned in order. With 0 nothing runs ahead.

    The producer owns the run's position in its data: it saves, resumes and closes the problem stream and the
    replay that its collector reads.
    """

    def __init__(self, collector: BatchCollector, *, max_staleness: int, last_step: int) -> None:
        """``last_step`` is the run's last step: nothing is collected beyond it."""
        self._collector = collector
        self._stream = collector.stream
        self._replay = collector.replay
        self._max_staleness = max_staleness
        self._last_step = last_step
        self._ahead: dict[int, asyncio.Task[CollectedBatch]] = {}
        """Batches that were not returned yet, collected or in progress, by step."""
        self._positions: dict[int, int] = {}
        """The stream's position before each of them."""

    def state_dict(self) -> dict[str, Any]:
        """Returns the stream's state before the batches that were not returned yet; a resume repeats them."""
        state = self._stream.state_dict()
        # The earliest such batch is where a resumed run continues to draw.
        return state | {"position": self._positions[min(self._positions)]} if self._positions else state

    def resume(self, after_step: int, state: Mapping[str, Any] | None) -> list[int]:
        """Resumes a run that made ``after_step`` steps; called once, before the first ``next``.

        Returns the steps that have stored rollouts (``Replay.start``).
        """
        assert not self._ahead, "a run is resumed before its first step"
        if state is not None:
            self._stream.load_state_dict(state)
        return self._replay.start(after_step) if self._replay else []

    async def rewind(self, state: Mapping[str, Any]) -> None:
        """Continues at an earlier ``state``: cancels the batches in progress and removes all stored rollouts.

        They were sampled by policies that the trainer has given up.
        """
        await self._cancel()
        self._stream.load_state_dict(state)
        if self._replay:
            self._replay.clear()

    def forget(self, until_step: int) -> None:
        """Removes the stored rollouts of the steps up to ``until_step``, which a checkpoint covers."""
        if self._replay:
            self._replay.forget(until_step)

    async def next(self, step: int, version: int) -> CollectedBatch:
        """Returns the batch of ``step`` for a trainer whose policy has version ``version``.

        Groups with a token older than ``version - max_staleness`` are dropped and counted.

        Raises:
            RuntimeError: Raised by ``BatchCollector.collect``, at the step whose batch failed.
        """
        for ahead in range(step, min(step + self._max_staleness, self._last_step) + 1):
            if ahead not in self._ahead:
                self._ahead[ahead] = asyncio.ensure_future(self._collect(ahead))
        batch = await self._ahead[step]
        del self._ahead[step], self._positions[step]
        # Only here, in order of the steps: a batch's problems must not depend on which batch ended first.
        self._stream.remember(batch.rollouts)
        return without_stale(batch, oldest=version - self._max_staleness)

    async def close(self) -> None:
        """Cancels the batches in progress and closes the replay."""
        await self._cancel()
        if self._replay:
            self._replay.close()

    async def _cancel(self) -> None:
        for work in self._ahead.values():
            work.cancel()
        await asyncio.gather(*self._ahead.values(), return_exceptions=True)
        self._ahead.clear()
        self._positions.clear()

    async def _collect(self, step: int) -> CollectedBatch:
        # Tasks start in the order of their creation, and a batch draws its problems when it starts.
        self._positions[step] = self._stream.position
        return await self._collector.collect(step)


def without_stale(batch: CollectedBatch, *, oldest: int) -> CollectedBatch:
    """Returns ``batch`` without groups that have a token of a policy version below ``oldest``; counts them.

    Only trained tokens matter: a refinement may read a workspace that an older policy wrote.
    """
    kept = tuple(group for group in batch.groups if _oldest(group) >= oldest)
    stale = [DroppedGroup(group=group, reason="stale") for group in batch.groups if _oldest(group) < oldest]
    if not stale:
        return batch
    metrics = dict(batch.metrics) | {"collect/dropped_stale": len(stale)}
    return replace(batch, groups=kept, metrics=metrics, dropped=(*batch.dropped, *stale))


def _oldest(group: Group) -> int:
    return min(sample.call.policy_version for sample in group.samples)
