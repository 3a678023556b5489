"""Verifiers and reward shaping: text in, verdict out, independent of models and torch.

The package exports the names below (docs/rewards.md). Each is loaded on first use.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rewards.adapters.trl import AsyncTrlReward, TrlReward
    from rewards.api import score
    from rewards.facts import Draft, Facts
    from rewards.gold import check_gold
    from rewards.judge import Judge, JudgeOptions
    from rewards.scorer import Scorer
    from rewards.shaping import RewardInput, Shaper
    from rewards.verdict import Verdict

_HOMES = {
    "AsyncTrlReward": "rewards.adapters.trl",
    "Draft": "rewards.facts",
    "Facts": "rewards.facts",
    "Judge": "rewards.judge",
    "JudgeOptions": "rewards.judge",
    "RewardInput": "rewards.shaping",
    "Scorer": "rewards.scorer",
    "Shaper": "rewards.shaping",
    "TrlReward": "rewards.adapters.trl",
    "Verdict": "rewards.verdict",
    "check_gold": "rewards.gold",
    "score": "rewards.api",
}

__all__ = [
    "AsyncTrlReward",
    "Draft",
    "Facts",
    "Judge",
    "JudgeOptions",
    "RewardInput",
    "Scorer",
    "Shaper",
    "TrlReward",
    "Verdict",
    "check_gold",
    "score",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
