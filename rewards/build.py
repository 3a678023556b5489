"""From `rewards.*` options to a scorer and a shaper."""

from configs.schema import RewardsConfig
from rewards.scorer import Scorer
from rewards.shaping import Shaper


def build_scorer(config: RewardsConfig) -> Scorer:
    """The scorer that a config describes; its worker processes start when they are first needed."""
    return Scorer(
        num_workers=config.num_workers,
        limit_seconds=config.limit_seconds,
        memory_limit_mb=config.memory_limit_mb,
        custom_path=config.path if config.kind == "custom" else None,
    )


def build_shaper(config: RewardsConfig) -> Shaper:
    """The weighted sum of reward terms that a config describes."""
    return Shaper(weights=config.weights)
