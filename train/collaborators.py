"""Rank 0's interfaces to workers, data and files. The trainer knows nothing else of the outside world."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from rollout.collection.collector import CollectedBatch
from train.model.weights import PolicyWeights
from train.report import Reporter
from train.trace import GroupTrace


class Collector(Protocol):
    """Collects the scored groups of one step."""

    def next(self, step: int, version: int) -> CollectedBatch:
        """Returns the batch of ``step`` for a policy of ``version``."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Returns the state that ``resume`` needs, for a checkpoint."""
        ...

    def resume(self, after_step: int, state: Mapping[str, Any] | None) -> list[int]:
        """Is called once, before the first ``next``; returns the steps with rollouts of a previous run."""
        ...

    def rewind(self, state: Mapping[str, Any]) -> None:
        """Is called on a rollback: drops all rollouts and batches, and continues at the ``state``."""
        ...

    def forget(self, until_step: int) -> None:
        """Is called once a checkpoint includes the steps up to ``until_step``: drops their rollouts."""
        ...


class Publisher(Protocol):
    """Makes the workers serve new weights."""

    def publish(self, weights: PolicyWeights, version: int) -> None:
        """Reads ``weights`` and returns once every worker serves them as ``version``."""
        ...

    def weights_will_change(self) -> None:
        """Is called before the policy's weights change, by an update or by loading a checkpoint."""
        ...

    def sleep(self) -> None:
        """Is called before an update if workers share the trainer's GPUs; they wake at the next publish."""
        ...


class Evaluator(Protocol):
    """Evaluates the policy that the workers serve."""

    def start(self, after_step: int) -> None:
        """Called before the first ``evaluate`` and on a rollback: drops the results of later policies."""
        ...

    def evaluate(self, step: int) -> Mapping[str, float]:
        """Returns metrics whose names start with ``eval/``."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Collaborators:
    """Rank 0's interfaces to workers, data and files."""

    collector: Collector
    publisher: Publisher
    evaluator: Evaluator
    reporter: Reporter
    trace: GroupTrace
    origin: Mapping[str, Any]
    """What the run was made from, for its checkpoints."""
