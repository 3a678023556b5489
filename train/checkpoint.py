"""Checkpoints that are whole or absent: ``checkpoints/step_000020``.

A checkpoint is written under a temporary name, made durable, sealed by a manifest of checksums, and renamed.
If writing is interrupted, the previous checkpoint is unaffected; if a checkpoint is damaged later, the damage
is detected and the previous one is used.

A checkpoint holds the sharded state that DeepSpeed saves (weights, moments), scheduler and RNGs of every
rank, ``trainer_state.json``, and the policy as a plain HF folder ``policy/`` (with LoRA merged, and the
adapters alone in ``adapter/``). That folder costs one copy of the weights, in addition to three or more of
optimizer state. It makes export an exact copy, which needs no process group, no DeepSpeed and no knowledge of
the ZeRO stage.
"""

import hashlib
import json
import logging
import os
import shutil
from dataclasses import asdict
from pathlib import Path

import yaml
from accelerate import Accelerator
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from configs.run_folder import CHECKPOINTS, UNFINISHED
from configs.schema import TrainingConfig
from train.checkpoint_files import (
    ADAPTER_DIR,
    POLICY_DIR,
    STATE_FILE,
    TrainerState,
    finished_checkpoints,
    read_state,
)
from train.deepspeed_zero import sharding_of
from train.distributed import wait_for_all
from train.health.rollbacks import measured_at
from train.manifest import remove, seal, sync
from train.model.policy import save_adapter, save_weights
from train.resharding import Shards, load_resharded, refuse_unless_resharded, shards_of
from train.resumed import (
    CONFIG_FILE,
    RESUMABLE_CHANGES,
    changed_options,
    describe,
    refuse_other_parameters,
)
from train.sharding import Sharding

logger = logging.getLogger(__name__)

GIB = 2**30
SPACE_MARGIN = 1.1


def config_fingerprint(config: TrainingConfig) -> str:
    """Returns a short hash of the settings that should not change when a run is resumed."""
    relevant = {k: v for k, v in asdict(config).items() if k not in RESUMABLE_CHANGES}
    return hashlib.blake2s(
        json.dumps(relevant, sort_keys=True, default=str).encode(), digest_size=8
    ).hexdigest()


class Checkpoints:
    """The checkpoints of one run. Every rank must call ``save`` and ``load``: each writes its own shard."""

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
        """Writes a checkpoint under a temporary name, renames it, then removes those that need not be kept.

        Raises:
            RuntimeError: If the disk has too little free space.
        """
        final = self.directory / f"step_{state.step:06d}"
        unfinished = final.with_name(final.name + UNFINISHED)
        is_main = self._accelerator.is_main_process
        if is_main:
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir(parents=True)
            self._check_space()
        wait_for_all(self._accelerator)
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
        # Every rank's shard must be written before the final name declares the checkpoint whole.
        wait_for_all(self._accelerator)
        if is_main:
            seal(unfinished)
            # It exists if it was damaged and the run resumed from an earlier checkpoint.
            remove(final)
            os.replace(unfinished, final)
            sync(self.directory)
            self._remove_old()
        wait_for_all(self._accelerator)
        return final

    def _check_space(self) -> None:
        needed = checkpoint_bytes(self._sharding, self._model, self._critic) * SPACE_MARGIN
        free = shutil.disk_usage(self.directory).free
        if free < needed:
            raise RuntimeError(
                f"A checkpoint takes about {needed / GIB:.2f} GiB, but {self.directory} has only "
                f"{free / GIB:.2f} GiB free. Existing checkpoints are unchanged: free disk space or lower "
                "train.keep_last, then resume with resume=auto."
            )

    def _remove_old(self) -> None:
        whole = finished_checkpoints(self.directory)
        measured = [(metric, path) for path in whole if (metric := read_state(path).metric) is not None]
        kept = set(whole[-self._config.train.keep_last :])
        if self._config.train.keep_best != "none" and measured:
            kept.add(max(measured)[1])
        if self._config.train.on_alarm == "rollback":
            kept |= self._for_rollback(whole)
        for path in whole:
            if path not in kept:
                remove(path)

    def _for_rollback(self, whole: list[Path]) -> set[Path]:
        """Returns the newest checkpoint whose policy was measured by now, and the next one that will be."""
        now, staleness = read_state(whole[-1]).step, self._config.collect.max_staleness
        seen = [path for path in whole if measured_at(read_state(path).step, staleness) <= now]
        # If none was seen, the oldest is the one that is seen next.
        return {*seen[-1:], *whole[len(seen) : len(seen) + 1]}

    def load(self, path: Path) -> TrainerState:
        """Restores weights, moments, scheduler and RNGs of every rank, and returns the stored state.

        Resume only from folders that you trust: DeepSpeed unpickles moments with ``weights_only=False``, so a
        checkpoint may run any code. Without DeepSpeed accelerate loads with ``weights_only=True``.

        Raises:
            ValueError: If the checkpoint was written by a different number of ranks or at a different ZeRO
                stage and cannot be converted, or holds moments of other parameters.
            RuntimeError: If the conversion fails.
        """
        state = read_state(path)
        written = Shards(ranks=state.world_size, zero_stage=state.zero_stage)
        is_resharded = written != shards_of(self._accelerator, self._sharding)
        if is_resharded:
            refuse_unless_resharded(path, written, self._accelerator, self._sharding)
        if state.config_fingerprint != config_fingerprint(self._config):
            changes = changed_options(path, self._config)
            refuse_other_parameters(changes, self._config, path)
            named = describe(changes) or "options of another version"
            logger.warning(
                "%s was written with different settings; resuming with the current ones: %s.", path, named
            )
        if is_resharded:
            limit = self._config.train.collective_timeout_seconds
            load_resharded(path, written, self._accelerator, self._sharding, timeout_seconds=limit)
        else:
            self._accelerator.load_state(str(path))
        return state


def checkpoint_bytes(sharding: Sharding, policy: nn.Module, critic: nn.Module | None = None) -> int:
    """Returns the approximate size of a checkpoint in bytes.

    Every weight of the policy is stored twice (the second copy is in ``policy/``), every weight of a critic
    once. Each trained weight adds an fp32 copy and two fp32 moments.
    """
    total = 0
    for model, copies in ((policy, 2), (critic, 1)):
        for parameter in model.parameters() if model is not None else ():
            each = copies * parameter.element_size() + (3 * 4 if parameter.requires_grad else 0)
            total += each * sharding.num_elements(parameter)
    return total
