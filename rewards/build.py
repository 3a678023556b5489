"""Builds a scorer and a shaper from the options of a run."""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from configs.schema import RewardsConfig, ThinkingConfig
from configs.schema.rewards import JudgeConfig
from configs.thinking import ThinkingMarks
from rewards.answers.extract import Rules
from rewards.judge import Judge, JudgeOptions
from rewards.scorer import Scorer
from rewards.shaping import Shaper, ShapingOptions
from rewards.tasks.choosing import Tasks
from rewards.tasks.task import Limits


def build_scorer(
    config: RewardsConfig, thinking: ThinkingConfig, *, prompt_opens_thinking: bool = False
) -> Scorer:
    """Returns the scorer that a config describes; its worker processes are forked on first use.

    Raises:
        ValueError: If the judge's key is no key.
        RuntimeError: If the kind is ``code`` and programs cannot be confined on this machine.
    """
    return Scorer(
        num_workers=config.num_workers,
        limit_seconds=config.limit_seconds,
        memory_limit_mb=config.memory_limit_mb,
        forms=config.forms,
        ordered_lists=config.ordered_lists,
        marks=_marks(thinking, prompt_opens_thinking),
        kind=config.kind,
        kind_column=config.kind_column,
        relative_tolerance=config.relative_tolerance,
        absolute_tolerance=config.absolute_tolerance,
        custom_path=config.path,
        judge=_judge(config.judge),
        max_failure_share=config.max_failure_share,
    )


def gold_checker(config: RewardsConfig) -> Callable[[str, Mapping[str, Any]], str | None]:
    """Returns the check of golds of a data set: ``check(gold, columns)`` as ``Scorer.check_gold``, without
    the scorer's processes."""
    tasks = Tasks(
        config.kind,
        config.kind_column,
        rules=Rules(),
        limits=Limits(seconds=config.limit_seconds, memory_mb=config.memory_limit_mb),
        ordered_lists=config.ordered_lists,
        tolerances=(config.relative_tolerance, config.absolute_tolerance),
        custom_path=config.path,
        pool=None,
        has_judge=config.judge.url is not None,
    )
    return lambda gold, columns: tasks.of(columns).check_gold(gold, columns)


def _judge(config: JudgeConfig) -> Judge | None:
    if config.url is None or config.model is None:
        return None
    return Judge(JudgeOptions(**{**asdict(config), "url": config.url, "model": config.model}))


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
