"""Calls from the trainer's thread into the engine's event loop: receives batches, sends weights."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from configs.schema import TrainingConfig
from rollout.collection.collector import CollectedBatch
from rollout.collection.producer import Producer
from rollout.endpoints.client import RequestCounts
from rollout.engine import RolloutEngine
from train.model.policy import HostWeights

STATE_SECONDS = 60.0
"""Time limit for the engine's loop to return the producer's state."""
CLOSE_SECONDS = 30.0
"""Time limit for ending the collection."""


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

    def publish(self, weights: HostWeights, version: int) -> None:
        """Returns once every worker serves ``version``; raises as ``rollout.weights.publish`` does."""
        if self.config.rollout.weight_transfer != "directory":
            self._send(weights.state, version)
            return
        folder = WeightsFolder(Path(self.config.output_dir))
        directory = folder.write(weights, version)
        self._send(directory, version)
        folder.keep_only(directory)

    def sleep(self) -> None:
        """Returns once every worker has freed its GPU memory; raises as ``rollout.weights.publish`` does."""
        limit = self.config.rollout.publish_timeout_seconds
        self.engine.run(self.engine.publisher.sleep(), limit, what="putting the workers to sleep")

    def _send(self, weights: Path | Mapping[str, Tensor], version: int) -> None:
        work = self.engine.publisher.publish(weights, version)
        limit = self.config.rollout.publish_timeout_seconds
        self.engine.run(work, limit, what=f"publishing version {version} to the workers")
