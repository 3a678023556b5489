"""From the trainer's thread to the engine's loop: what does not end in time is named."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from stub_server import StubOptions, stub_process

from configs.schema import DataConfig, ModelConfig, RolloutConfig, TrainingConfig
from rollout.engine import RolloutEngine
from train.engine_links import EngineCollector, EnginePublisher


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RolloutEngine]:
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    with (
        stub_process(StubOptions()) as url,
        RolloutEngine(RolloutConfig(urls=[url]), "model", tmp_path) as engine,
    ):
        yield engine


class Stuck:
    """In place of the producer and of the publisher: never ends."""

    async def next(self, step: int, version: int) -> Any:
        await asyncio.sleep(3600)

    async def publish(self, weights: Any, version: int) -> None:
        await asyncio.sleep(3600)

    async def sleep(self) -> None:
        await asyncio.sleep(3600)


class Weights:
    """In place of the policy's weights."""

    def to_host(self) -> "Weights":
        return self

    def save(self, directory: Path) -> None:
        directory.mkdir(parents=True)


def test_a_batch_that_does_not_come_in_time_is_named_by_its_step(engine: RolloutEngine):
    collector = EngineCollector(engine, Stuck(), 0.1)  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match=r"did not finish the batch of step 7 within 0\.1 s\."):
        collector.next(7, 3)


def test_a_publish_that_does_not_end_in_time_is_named_by_its_version(engine: RolloutEngine, tmp_path: Path):
    engine.publisher = Stuck()  # type: ignore[assignment]
    config = TrainingConfig(
        output_dir=str(tmp_path),
        model=ModelConfig(path="model"),
        data=DataConfig(path="unused.jsonl"),
        rollout=RolloutConfig(publish_timeout_seconds=0.1),
    )
    publisher = EnginePublisher(engine=engine, config=config)
    with pytest.raises(RuntimeError, match=r"did not finish publishing version 3 to the workers within 1 s"):
        publisher.publish(Weights(), 3)  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match=r"did not finish putting the workers to sleep within 0\.1 s\."):
        publisher.sleep()
