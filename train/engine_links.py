"""Publishing from the trainer's thread: the policy in host memory -> workers that serve it."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from configs.schema import TrainingConfig
from rollout.engine import RolloutEngine
from train.model.policy import HostWeights


class WeightsFolder:
    """``weights/version_000001``: the version that workers load; the last one stays."""

    def __init__(self, output_dir: Path) -> None:
        self._folder = output_dir.absolute() / "weights"

    def write(self, weights: HostWeights, version: int) -> Path:
        """A plain HF folder."""
        directory = self._folder / f"version_{version:06d}"
        weights.save(directory)
        return directory

    def keep_only(self, directory: Path) -> None:
        """Removes the versions before, which no worker needs now."""
        for old in self._folder.glob("version_*"):
            if old != directory:
                shutil.rmtree(old)


@dataclass(frozen=True, slots=True)
class EnginePublisher:
    """The publisher on the engine's loop, for the synchronous trainer."""

    engine: RolloutEngine
    config: TrainingConfig

    def publish(self, weights: HostWeights, version: int) -> None:
        """Returns when every worker serves ``version``; raises as ``rollout.weights.publish`` does."""
        if self.config.rollout.weight_transfer != "directory":
            self._send(weights.state, version)
            return
        folder = WeightsFolder(Path(self.config.output_dir))
        directory = folder.write(weights, version)
        self._send(directory, version)
        folder.keep_only(directory)

    def sleep(self) -> None:
        """Returns when every worker has freed its GPU memory; raises as ``rollout.weights.publish`` does."""
        self.engine.run(self.engine.publisher.sleep(), self.config.rollout.publish_timeout_seconds)

    def _send(self, weights: Path | Mapping[str, Tensor], version: int) -> None:
        work = self.engine.publisher.publish(weights, version)
        self.engine.run(work, self.config.rollout.publish_timeout_seconds)
