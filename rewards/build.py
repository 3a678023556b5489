"""From ``rewards.*`` options to a scorer."""

from configs.schema import RewardsConfig
from rewards.scorer import Scorer


def build_scorer(config: RewardsConfig) -> Scorer:
    """The scorer that a config describes; its worker processes start when they are first needed."""
    return Scorer(
        num_workers=config.num_workers,
        limit_seconds=config.limit_seconds,
        memory_limit_mb=config.memory_limit_mb,
    )
