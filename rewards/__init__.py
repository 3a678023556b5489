"""Verifiers and reward shaping: text in, verdict out, independent of models and torch.

For notebooks (docs/python.md) the package exports the names below. Each is loaded on first use.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rewards.api import score
    from rewards.verdict import Verdict

__all__ = ["Verdict", "score"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        home = "rewards.verdict" if name == "Verdict" else "rewards.api"
        return getattr(importlib.import_module(home), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
