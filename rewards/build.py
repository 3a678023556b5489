"""Builds a scorer and a shaper from the options of a run."""

from dataclasses import asdict

from configs.schema import RewardsConfig, ThinkingConfig
from configs.thinking import ThinkingMarks
from rewards.answers.extract import Rules
from rewards.scorer import Scorer
from rewards.shaping import Shaper, ShapingOptions


def build_scorer(
    config: RewardsConfig, thinking: ThinkingConfig, *, prompt_opens_thinking: bool = False
) -> Scorer:
    """Returns the scorer that a config describes; its worker processes are forked on first use."""
    return Scorer(
        num_workers=config.num_workers,
        limit_seconds=config.limit_seconds,
        memory_limit_mb=config.memory_limit_mb,
        forms=config.forms,
        ordered_lists=config.ordered_lists,
        marks=_marks(thinking, prompt_opens_thinking),
        custom_path=config.path if config.kind == "custom" else None,
        max_failure_share=config.max_failure_share,
    )


def build_shaper(
    config: RewardsConfig, thinking: ThinkingConfig, *, prompt_opens_thinking: bool = False
) -> Shaper:
    """Returns the shaper (weighted sum of reward terms) that a config describes."""
    rules = Rules(forms=tuple(config.forms), marks=_marks(thinking, prompt_opens_thinking))
    options = ShapingOptions(
        wrong_reward=config.wrong_reward, overlong_buffer=config.overlong_buffer, rules=rules
    )
    return Shaper(weights=asdict(config.weights), options=options)


def _marks(thinking: ThinkingConfig, prompt_opens_thinking: bool) -> ThinkingMarks:
    return ThinkingMarks(open=thinking.open, close=thinking.close, opened_by_prompt=prompt_opens_thinking)
