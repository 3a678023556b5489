"""Calls from the trainer's thread into the engine's event loop: receives batches, sends weights."""

import asyncio
import shutil
from collections.abc import Coroutine, Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from configs.schema import TrainingConfig
from rollout.collection.collector import CollectedBatch
from rollout.collection.producer import Producer
from rollout.endpoints.client import RequestCounts
from rollout.engine import RolloutEngine
from rollout.weights.broadcast import FeedPublisher
from train.model.weights import HostWeights, PolicyWeights

STATE_SECONDS = 60.0
"""Time limit for the engine's loop to return the producer's state."""
BACKSTOP = 10.0
"""Limit of a whole publish, in limits of its parts, which end earlier with an error that names the worker."""
CLOSE_SECONDS = 30.0
"""Time limit for ending the collection."""

T = TypeVar("T")


@dataclass(slots=True)
class EngineCollector:
    """Calls the producer on the engine's event loop, from the trainer's thread."""

    engine: RolloutEngine
    producer: Producer
    timeout_seconds: float
    _seen: RequestCounts = field(default_factory=RequestCounts)
    """The pool's counts after the previous batch."""

    def next(self, step: int, version: int) -> CollectedBatch:
        """Returns the batch of ``step``, with the share of prompt tokens that were cached among its metrics.

        Raises as ``RolloutEngine.run`` does.
        """
        batch = self.engine.run(
            self.producer.next(step, version), self.timeout_seconds, what=f"the batch of step {step}"
        )
        before, self._seen = self._seen, replace(self.engine.pool.counts)
        read = self._seen.prompt_tokens - before.prompt_tokens
        cached = self._seen.cached_tokens - before.cached_tokens
        if not read:  # the whole batch was finished before a resume
            return batch
        return replace(batch, metrics={**batch.metrics, "workers/cached_share": cached / read})

    def state_dict(self) -> dict[str, Any]:
        async def state() -> dict[str, Any]:
            return self.producer.state_dict()

        return self.engine.run(state(), STATE_SECONDS, what="reading the producer's state")

    def resume(self, after_step: int, state: Mapping[str, Any] | None) -> list[int]:
        return self.producer.resume(after_step, state)

    def rewind(self, state: Mapping[str, Any]) -> None:
        self.engine.run(self.producer.rewind(state), CLOSE_SECONDS, what="going back in the data")

    def forget(self, until_step: int) -> None:
        async def forget() -> None:
            self.producer.forget(until_step)

        self.engine.run(forget(), STATE_SECONDS, what=f"dropping the rollouts of steps until {until_step}")

    def close(self) -> None:
        self.engine.run(self.producer.close(), CLOSE_SECONDS, what="ending the collection")


class WeightsFolder:
    """``weights/version_000001``: folders from which workers load; the last one is kept."""

    def __init__(self, output_dir: Path) -> None:
        self._folder = output_dir.absolute() / "weights"

    def write(self, weights: HostWeights, version: int) -> Path:
        """Writes ``weights`` as a plain HF folder and returns its path."""
        directory = self._folder / f"version_{version:06d}"
        weights.save(directory)
        return directory

    def keep_only(self, directory: Path) -> None:
        """Removes all other versions, which no worker needs any more."""
        for old in self._folder.glob("version_*"):
            if old != directory:
                shutil.rmtree(old)


@dataclass(frozen=True, slots=True)
class EnginePublisher:
    """Calls the publisher on the engine's event loop, from the trainer's thread."""

    engine: RolloutEngine
    config: TrainingConfig

    def publish(self, weights: PolicyWeights, version: int) -> None:
        """Returns once every worker serves ``version``; raises as ``rollout.weights.publish`` does."""
        if self.config.rollout.weight_transfer != "directory":
            self._stream(weights, version)
            return
        folder = WeightsFolder(Path(self.config.output_dir))
        directory = folder.write(weights.to_host(), version)
        self._wait(self.engine.publisher.publish(directory, version), version)
        folder.keep_only(directory)

    def weights_will_change(self) -> None:
        """Waits until no restarted worker reads the published weights from the trainer's memory any more."""
        publisher = self.engine.publisher
        if isinstance(publisher, FeedPublisher):
            publisher.weights_will_change()

    def sleep(self) -> None:
        """Returns once every worker has freed its GPU memory; raises as ``rollout.weights.publish`` does."""
        limit = self.config.rollout.publish_timeout_seconds
        self.engine.run(self.engine.publisher.sleep(), limit, what="putting the workers to sleep")

    def _stream(self, weights: PolicyWeights, version: int) -> None:
        """Gathers each bucket in this thread while the engine's sends the one before."""
        publisher = self.engine.publisher
        assert isinstance(publisher, FeedPublisher)
        feed = self._wait(publisher.open(weights, version), version)
        sent = self.engine.submit(publisher.publish(feed, version))
        try:
            for part in weights.parts():
                feed.put(part)
        except BaseException as error:
            feed.fail(repr(error))
            with suppress(RuntimeError):  # the publish then fails for that reason
                self._wait(_result(sent), version)
            raise
        self._wait(_result(sent), version)

    def _wait(self, work: Coroutine[Any, Any, T], version: int) -> T:
        limit = BACKSTOP * self.config.rollout.publish_timeout_seconds
        return self.engine.run(work, limit, what=f"publishing version {version} to the workers")


async def _result(future: "Future[T]") -> T:
    return await asyncio.wrap_future(future)
