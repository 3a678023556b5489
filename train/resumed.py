"""Settings of a resumed run that differ from its checkpoint's: they count, or are refused by name."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from configs.schema import TrainingConfig

CONFIG_FILE = "config.yaml"
RESUMABLE_CHANGES = ("resume", "output_dir", "train", "rollout")
"""Parts of the config that may change when a run is resumed, without a warning."""

Changes = dict[str, tuple[Any, Any]]
"""The stored and the current value of options that differ, by the option's dotted name."""


def changed_options(checkpoint: Path, config: TrainingConfig) -> Changes:
    """Returns the options whose current value is not the one stored in ``checkpoint``.

    Options that only one of the two has are left out: another version of the program wrote the checkpoint.
    """
    current = {name: part for name, part in asdict(config).items() if name not in RESUMABLE_CHANGES}
    return _differences(_read_config(checkpoint), current, "")


def _differences(stored: Mapping[str, Any], current: Mapping[str, Any], at: str) -> Changes:
    differences: dict[str, tuple[Any, Any]] = {}
    for name in current.keys() & stored.keys():
        before, now = stored[name], current[name]
        if isinstance(before, dict) and isinstance(now, dict):
            differences |= _differences(before, now, f"{at}{name}.")
        elif before != now:
            differences[at + name] = (before, now)
    return dict(sorted(differences.items()))


def refuse_other_parameters(changes: Changes, config: TrainingConfig, checkpoint: Path) -> None:
    """Checks that the run trains the parameters whose moments the checkpoint holds.

    Raises:
        ValueError: If a changed option selects other parameters or another precision.
    """
    algo, model = config.algo, config.model
    had_critic = changes.get("algo.loss_type", (algo.loss_type,))[0] == "ppo"
    decisive = ["model.dtype", "model.lora_r"]
    if model.lora_r:
        decisive.append("model.lora_target_modules")
    if had_critic != algo.has_critic:
        decisive.append("algo.loss_type")
    elif algo.has_critic:
        decisive.append("algo.critic")
    if refused := [name for name in decisive if name in changes]:
        raise ValueError(
            f"{checkpoint} was written with {describe({name: changes[name] for name in refused})}. The "
            "checkpoint's optimizer state belongs to the parameters that were trained then: restore the "
            f"option, or start a new run from its weights with model.path={checkpoint / 'policy'}."
        )


def updates_ratio(checkpoint: Path, config: TrainingConfig) -> float:
    """Returns the optimizer steps per collected batch, relative to those before ``checkpoint``.

    The learning rate's schedule counts optimizer steps: a batch that gets twice as many ends twice as far.
    """
    algo = _read_config(checkpoint)["algo"]
    return config.algo.updates_per_batch / (algo["num_updates"] * algo["num_iterations"])


def _read_config(checkpoint: Path) -> dict[str, Any]:
    return yaml.safe_load((checkpoint / CONFIG_FILE).read_text(encoding="utf-8"))


def describe(changes: Changes) -> str:
    """Returns the changes as a phrase such as ``algo.learning_rate 1e-06 (now 2e-06)``."""
    return ", ".join(f"{name} {before} (now {now})" for name, (before, now) in changes.items())
