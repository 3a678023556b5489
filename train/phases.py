"""The evaluations of a run by phase (before training, after a step, after training), as files on disk."""

import json
import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from configs.schema import TrainingConfig

BEFORE, AFTER = "before", "after"
COMPLETE = "complete.json"
"""Written into a phase's folder after its last rollout; holds what was asked for."""


def phase_of(step: int, config: TrainingConfig) -> str:
    """Returns ``before`` for step 0, ``after`` for the last step, otherwise ``step_N``."""
    if step == 0:
        return BEFORE
    return AFTER if step == config.train.max_steps else f"step_{step:06d}"


def journals_until(config: TrainingConfig, after_step: int) -> Iterator[str]:
    """Yields the phases on disk that a run which made ``after_step`` steps keeps."""
    made_after = {BEFORE: 0, AFTER: config.train.max_steps}
    for path in sorted((Path(config.output_dir) / "evaluation").glob("step_*/")):
        made_after[path.name] = int(path.name.removeprefix("step_"))
    for phase, step in made_after.items():
        if step <= after_step and phase_path(config, phase).exists():
            yield phase


def phase_path(config: TrainingConfig, phase: str) -> Path:
    """Returns the path of a phase's rollouts."""
    return Path(config.output_dir) / "evaluation" / phase / "rollouts.jsonl"


def mark_complete(config: TrainingConfig, phase: str) -> None:
    """Records that every rollout of a phase was made, whole or not at all."""
    path = phase_path(config, phase).with_name(COMPLETE)
    aside = path.with_suffix(".tmp")
    aside.write_text(json.dumps(_asked_for(config), indent=1) + "\n", encoding="utf-8")
    os.replace(aside, path)


def is_complete(config: TrainingConfig, phase: str) -> bool:
    """True if every rollout that ``config`` asks of a phase was made.

    The journal alone does not tell: it exists from the first rollout on.
    """
    try:
        marked = json.loads(phase_path(config, phase).with_name(COMPLETE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return marked == _asked_for(config)


def _asked_for(config: TrainingConfig) -> dict[str, Any]:
    train = config.train
    return {"operators": train.eval_operators, "samples": train.eval_samples, "data": asdict(config.data)}
