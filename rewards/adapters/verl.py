"""The scorer as verl's reward function.

    custom_reward_function.path=.../rewards/adapters/verl.py  custom_reward_function.name=compute_score

verl loads the file by its path and calls the function by keywords, in the trainer's process, in Ray workers
or in a pool of processes. The package must be importable there. Options of the scorer are the function's
keywords (``custom_reward_function.reward_kwargs.kind=choice``).
"""

import atexit
import json
import os
import threading
from collections.abc import Mapping
from typing import Any

from rewards.facts import Facts
from rewards.scorer import Scorer
from rewards.shaping import outcome

_lock = threading.Lock()
_scorers: dict[tuple[int, str], Scorer] = {}
_OPTIONS = (
    "num_workers", "limit_seconds", "memory_limit_mb", "forms", "ordered_lists", "kind", "kind_column",
    "relative_tolerance", "absolute_tolerance", "custom_path",
)  # fmt: skip


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: str,
    extra_info: Mapping[str, Any] | None = None,
    *,
    wrong_reward: float = 0.0,
    **options: Any,
) -> dict[str, float | str]:
    """Returns the reward as ``score``, and what verl logs beside it; the same keys for every completion.

    Args:
        data_source: Name of the data set; a fact for custom rewards (column ``data_source``).
        solution_str: The completion.
        ground_truth: The gold answer.
        extra_info: Other columns of the row; ``question`` is the question.
        wrong_reward: Score of an answer that is not correct. Also that of a failed check (``failed`` is 1).
        options: Options of ``Scorer``. Others, which verl passes to reward functions, are ignored.
    """
    chosen = {"forms": (), **{name: options[name] for name in _OPTIONS if name in options}}
    columns = {"data_source": data_source, **(extra_info or {})}
    question = columns.get("question")
    facts = Facts(question=question if isinstance(question, str) else None, columns=columns)
    verdict = _scorer(chosen).score_sync(gold=str(ground_truth), completion=solution_str, facts=facts)
    return {
        "score": wrong_reward if verdict.is_failure else outcome(verdict, wrong_reward=wrong_reward),
        "acc": float(verdict.is_correct),
        "pred": verdict.answer or "",
        "failed": float(verdict.is_failure),
    }


def _scorer(options: Mapping[str, Any]) -> Scorer:
    """Returns this process's scorer with these options: one made before a fork cannot be used after it."""
    key = os.getpid(), json.dumps(options, sort_keys=True, default=list)
    with _lock:
        if key not in _scorers:
            _scorers[key] = Scorer(**options)
            atexit.register(_scorers[key].close)
        return _scorers[key]
