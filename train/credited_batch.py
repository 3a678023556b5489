"""The data of one step: what was collected, credited."""

from dataclasses import dataclass

from configs.schema import TrainingConfig
from rollout.collection.collector import CollectedBatch
from train.batch.rows import Row
from train.loss.credit import credit
from train.metrics import group_metrics, kept_cache_share, staleness_metrics


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Data of one step on every rank: the credited rows, and rank 0's metrics of their groups."""

    rows: list[Row]
    metrics: dict[str, float]
    collected: CollectedBatch | None = None
    """Source of the rows, on rank 0 only; None on the other ranks."""


def credited(collected: CollectedBatch, config: TrainingConfig, policy_version: int) -> Batch:
    """Returns the rows of rank 0's collected groups with their advantages, and the metrics of the groups."""
    rows = credit(collected.groups, config.algo)
    metrics = dict(collected.metrics) | group_metrics(collected.groups, rows)
    metrics |= staleness_metrics(collected.rollouts, policy_version)
    if config.rollout.pause_mode == "keep_cache":
        metrics["staleness/kept_cache_share"] = kept_cache_share(collected.rollouts)
    return Batch(rows=rows, metrics=metrics)
