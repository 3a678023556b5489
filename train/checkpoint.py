"""Checkpoints that are whole or absent: ``checkpoints/step_000020``.

A checkpoint is written aside, made durable, sealed by a manifest of checksums and renamed. Whatever happens
on the way, the one before it is untouched; one that was damaged later is seen, and the one before it is used.

A checkpoint holds the sharded state that DeepSpeed saves (weights, moments), scheduler and RNGs of every
rank, ``trainer_state.json``, and the policy as a plain HF folder ``policy/`` (with LoRA merged, and the
adapters alone in ``adapter/``). That folder costs one copy of
the weights beside three or more of optimizer state, and makes export a copy: exact, and in need of no
process group, DeepSpeed or knowledge of the ZeRO stage.
"""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml
from accelerate import Accelerator
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from configs.run_folder import CHECKPOINTS, UNFINISHED, is_whole, refuse_used
from configs.schema import TrainingConfig
from train.manifest import damage, is_sealed, remove, seal, sync
from train.model.policy import save_adapter, save_weights
from train.sharding import Sharding, sharding_of

logger = logging.getLogger(__name__)

STATE_FILE = "trainer_state.json"
CONFIG_FILE = "config.yaml"
POLICY_DIR = "policy"
ADAPTER_DIR = "adapter"
GIB = 2**30
SPACE_MARGIN = 1.1

RESUMABLE_CHANGES = ("resume", "output_dir", "train", "rollout")
"""Parts of the config that may differ between a run and its continuation without a warning."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerState:
    """Where a run stands, beside what the accelerator saves."""

    step: int
    """Finished steps."""
    policy_version: int
    world_size: int
    zero_stage: int
    """0 without DeepSpeed."""
    config_fingerprint: str
    collector: Mapping[str, Any] = field(default_factory=dict)
    """The collector's own state: its position in the data."""
    metric: float | None = None
    """What ``train.keep_best`` names, if it was measured at this step."""


def config_fingerprint(config: TrainingConfig) -> str:
    """A short hash of what must not change when a run goes on."""
    relevant = {k: v for k, v in asdict(config).items() if k not in RESUMABLE_CHANGES}
    return hashlib.blake2s(
        json.dumps(relevant, sort_keys=True, default=str).encode(), digest_size=8
    ).hexdigest()


class Checkpoints:
    """The checkpoints of one run. Every rank calls ``save`` and ``load``; the files are made by all."""

    def __init__(
        self,
        config: TrainingConfig,
        accelerator: Accelerator,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        critic: nn.Module | None = None,
    ) -> None:
        self._config = config
        self._critic = critic
        self._accelerator = accelerator
        self._sharding = sharding_of(accelerator)
        self._model = model
        self._tokenizer = tokenizer
        self.directory = Path(config.output_dir) / CHECKPOINTS

    def save(self, state: TrainerState) -> Path:
        """Writes a checkpoint under a temporary name, renames it, then removes those not kept.

        Raises:
            RuntimeError: If the disk has no room for it.
        """
        final = self.directory / f"step_{state.step:06d}"
        unfinished = final.with_name(final.name + UNFINISHED)
        is_main = self._accelerator.is_main_process
        if is_main:
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir(parents=True)
            self._check_space()
        self._accelerator.wait_for_everyone()
        self._accelerator.save_state(str(unfinished))
        save_weights(self._model, self._sharding, unfinished / POLICY_DIR, is_main=is_main)
        if self._config.model.lora_r:
            base = self._config.model.path
            save_adapter(self._model, self._sharding, unfinished / ADAPTER_DIR, base=base, is_main=is_main)
        if is_main:
            for folder in (POLICY_DIR, *([ADAPTER_DIR] if self._config.model.lora_r else [])):
                self._tokenizer.save_pretrained(unfinished / folder)
            config = yaml.safe_dump(asdict(self._config), sort_keys=False)
            (unfinished / CONFIG_FILE).write_text(config, encoding="utf-8")
            (unfinished / STATE_FILE).write_text(json.dumps(asdict(state), indent=2), encoding="utf-8")
        # Every rank's shard must be written before the name says that the checkpoint is whole.
        self._accelerator.wait_for_everyone()
        if is_main:
            seal(unfinished)
            remove(final)
            os.replace(unfinished, final)
            sync(self.directory)
            self._remove_old()
        self._accelerator.wait_for_everyone()
        return final

    def _check_space(self) -> None:
        needed = checkpoint_bytes(self._sharding, self._model, self._critic) * SPACE_MARGIN
        free = shutil.disk_usage(self.directory).free
        if free < needed:
            raise RuntimeError(
                f"A checkpoint takes about {needed / GIB:.2f} GiB, and {self.directory} has "
                f"{free / GIB:.2f} GiB free. The checkpoints there are untouched: make room or lower "
                "train.keep_last, and go on with resume=auto."
            )

    def _remove_old(self) -> None:
        whole = finished_checkpoints(self.directory)
        measured = [(metric, path) for path in whole if (metric := read_state(path).metric) is not None]
        kept = set(whole[-self._config.train.keep_last :])
        if self._config.train.keep_best and measured:
            kept.add(max(measured)[1])
        for path in whole:
            if path not in kept:
                remove(path)

    def load(self, path: Path) -> TrainerState:
        """Restores weights, moments, scheduler and RNGs of every rank.

        Raises:
            ValueError: If the checkpoint was written by another number of ranks, or at another ZeRO stage:
                moments are stored as they were sharded.
        """
        state = read_state(path)
        anew = f"start a new run from its weights with model.path={path / POLICY_DIR}"
        if state.world_size != self._accelerator.num_processes:
            raise ValueError(
                f"{path} was written by {state.world_size} ranks and this run has "
                f"{self._accelerator.num_processes}; set num_processes to {state.world_size}, or {anew}."
            )
        if state.zero_stage != (stage := self._sharding.stage):
            raise ValueError(
                f"{path} was written at ZeRO stage {state.zero_stage} and this run has stage {stage} (0: no "
                f"DeepSpeed); take the accelerate file with zero_stage {state.zero_stage}, or {anew}."
            )
        if state.config_fingerprint != config_fingerprint(self._config):
            logger.warning(
                "%s was written with other settings (see its %s); going on with the current ones.",
                path,
                CONFIG_FILE,
            )
        self._accelerator.load_state(str(path))
        return state


def checkpoint_bytes(sharding: Sharding, policy: nn.Module, critic: nn.Module | None = None) -> int:
    """About what a checkpoint takes.

    Of every weight a copy, and a second one in ``policy/``; of those that are trained fp32 weights and two
    moments, too.
    """
    total = 0
    for model, copies in ((policy, 2), (critic, 1)):
        for parameter in model.parameters() if model is not None else ():
            each = copies * parameter.element_size() + (3 * 4 if parameter.requires_grad else 0)
            total += each * sharding.num_elements(parameter)
    return total


def find_checkpoint(config: TrainingConfig) -> Path | None:
    """What ``resume`` names: None for ``none`` and for ``auto`` without a checkpoint.

    ``auto`` passes over checkpoints that were damaged, with a warning.

    Raises:
        FileNotFoundError: If ``resume`` is a path without a whole checkpoint.
        ValueError: If that checkpoint was damaged, or ``resume`` is ``none`` and ``output_dir`` holds
            checkpoints of another run.
    """
    if config.resume in ("none", "auto"):
        if config.resume == "none":
            refuse_used(Path(config.output_dir))
        return _newest_sound(finished_checkpoints(Path(config.output_dir) / CHECKPOINTS))
    path = Path(config.resume)
    if not is_sealed(path):
        raise FileNotFoundError(
            f"resume is {config.resume!r}, which is no whole checkpoint; give a folder such as "
            "outputs/train/checkpoints/step_000020, or auto, or none."
        )
    if wrong := damage(path):
        raise ValueError(f"resume is {config.resume!r}, a checkpoint that was damaged: {wrong}.")
    return path


def _newest_sound(whole: list[Path]) -> Path | None:
    """The newest of these that is as it was written.

    Raises:
        ValueError: If there are some and all were damaged: to start anew would hide that.
    """
    for path in reversed(whole):
        wrong = damage(path)
        if wrong is None:
            return path
        logger.warning("Passing over %s, which was damaged: %s.", path, wrong)
    if whole:
        raise ValueError(
            f"Every checkpoint in {whole[0].parent} was damaged; the newest: {damage(whole[-1])}. Remove "
            "them to start anew."
        )
    return None


def finished_checkpoints(directory: Path) -> list[Path]:
    """Whole checkpoints, oldest first. Half-written ones are left alone, with a warning."""
    whole = []
    for path in sorted(directory.glob("step_*")):
        if is_whole(path):
            whole.append(path)
        else:
            logger.warning("Ignoring %s: it was not written to its end.", path)
    return whole


def read_state(path: Path) -> TrainerState:
    """The ``trainer_state.json`` of a checkpoint."""
    return TrainerState(**json.loads((path / STATE_FILE).read_text(encoding="utf-8")))
