"""Which checkpoints of a run are whole, which one a run resumes from, and the state that it stores.

Loads no torch, so that ``python -m launch`` can look at a checkpoint before it starts any process.
"""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from configs.run_folder import CHECKPOINTS, is_whole, refuse_used
from configs.schema import TrainingConfig
from train.manifest import additions, damage, is_sealed

logger = logging.getLogger(__name__)

STATE_FILE = "trainer_state.json"
POLICY_DIR = "policy"
ADAPTER_DIR = "adapter"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerState:
    """Progress of a run, in addition to the state that the accelerator saves."""

    step: int
    """Number of finished steps."""
    policy_version: int
    world_size: int
    zero_stage: int
    """ZeRO stage; 0 without DeepSpeed."""
    config_fingerprint: str
    collector: Mapping[str, Any] = field(default_factory=dict)
    """State of the collector: its position in the data."""
    metric: float | None = None
    """Value of the metric ``train.keep_best``; None if it was not measured at this step."""
    origin: Mapping[str, Any] = field(default_factory=dict)
    """What the run was made from: a ``train.origin.Origin`` as JSON. Empty if an earlier version wrote it."""


def find_checkpoint(config: TrainingConfig, *, largest: int | None = None) -> Path | None:
    """Returns the checkpoint that ``resume`` names: None for ``none``, and for ``auto`` without a checkpoint.

    ``auto`` skips damaged checkpoints, with a warning.

    Args:
        config: The config of the run.
        largest: Files of more bytes are not read to find damage (``train.manifest.damage``).

    Raises:
        FileNotFoundError: If ``resume`` is a path without a whole checkpoint.
        ValueError: If that checkpoint is damaged, the chosen one holds files that were added later, or
            ``resume`` is ``none`` and ``output_dir`` holds checkpoints of another run.
    """
    if config.resume in ("none", "auto"):
        if config.resume == "none":
            refuse_used(Path(config.output_dir))
        return _newest_sound(finished_checkpoints(Path(config.output_dir) / CHECKPOINTS), largest)
    path = Path(config.resume)
    if not is_sealed(path):
        raise FileNotFoundError(
            f"resume is {config.resume!r}, which is not a whole checkpoint; it must be a folder such as "
            "outputs/train/checkpoints/step_000020, or auto, or none."
        )
    if wrong := damage(path, largest=largest):
        raise ValueError(f"resume is {config.resume!r}, a checkpoint that is damaged: {wrong}.")
    refuse_additions(path)
    return path


def _newest_sound(whole: list[Path], largest: int | None) -> Path | None:
    """Returns the newest undamaged checkpoint, or None if ``whole`` is empty.

    Raises:
        ValueError: If all of them are damaged (starting from the beginning would hide that), or files were
            added to the one (resuming from an earlier one would waste steps for what is quickly removed).
    """
    for path in reversed(whole):
        wrong = damage(path, largest=largest)
        if wrong is None:
            refuse_additions(path)
            return path
        logger.warning("Skipping %s, which is damaged: %s.", path, wrong)
    if whole:
        raise ValueError(
            f"Every checkpoint in {whole[0].parent} is damaged; the newest: "
            f"{damage(whole[-1], largest=largest)}. Remove them to start from the beginning."
        )
    return None


def refuse_additions(path: Path) -> None:
    """Checks that a checkpoint holds only what was written with it.

    Raises:
        ValueError: If it holds more: the files could be loaded in place of its own.
    """
    if added := additions(path):
        raise ValueError(
            f"{path} holds files that were not written with it: {', '.join(added[:5])}"
            f"{' ...' if len(added) > 5 else ''}. Move them elsewhere."
        )


def finished_checkpoints(directory: Path) -> list[Path]:
    """Returns whole checkpoints, oldest first. Incomplete ones are skipped, with a warning."""
    whole = []
    for path in sorted(directory.glob("step_*")):
        if is_whole(path):
            whole.append(path)
        else:
            logger.warning("Skipping %s: it is incomplete.", path)
    return whole


def read_state(path: Path) -> TrainerState:
    """Reads the ``trainer_state.json`` of a checkpoint."""
    return TrainerState(**json.loads((path / STATE_FILE).read_text(encoding="utf-8")))
