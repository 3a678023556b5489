"""Turns problems into scored groups and rollouts: operators, workspaces, budgets, workers, publishing.

For notebooks (docs/python.md) the package exports the names below, each loaded on first use.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rollout.api import (
        best_of_n,
        evaluate,
        evaluate_async,
        majority,
        open_policy,
        pdr,
        run,
        run_async,
        sr,
        trace,
    )
    from rollout.opened import OpenPolicy
    from rollout.result import Evaluation, Result

_HOMES = {"Evaluation": "rollout.result", "OpenPolicy": "rollout.opened", "Result": "rollout.result"}
"""Modules of the exported names that are not in ``rollout.api``."""

__all__ = [
    "Evaluation",
    "OpenPolicy",
    "Result",
    "best_of_n",
    "evaluate",
    "evaluate_async",
    "majority",
    "open_policy",
    "pdr",
    "run",
    "run_async",
    "sr",
    "trace",
]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(importlib.import_module(_HOMES.get(name, "rollout.api")), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
