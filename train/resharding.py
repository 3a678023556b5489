"""A checkpoint for another number of ranks or ZeRO stage, by DeepSpeed's universal checkpoints.

DeepSpeed's converter joins the shards of every trained weight's fp32 copy and of its moments. The result is a
folder beside the checkpoint, which is complete or absent, and is removed once it has been loaded.
"""

import hashlib
import logging
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from accelerate import Accelerator

from configs.run_folder import MANIFEST, UNFINISHED
from train.distributed import from_rank_zero, wait_for_all
from train.manifest import is_sealed, remove, seal
from train.sharding import Sharding

logger = logging.getLogger(__name__)

PREFIX = "resharded_"
WORKERS = "2"
"""Processes of the converter; each holds the shard of one rank, or one weight."""
SPACE = 2.1
"""Bytes that a conversion needs at once, in bytes of the shards: pieces and the whole."""
GIB = 2**30
STATES = ("fp32.pt", "exp_avg.pt", "exp_avg_sq.pt")
"""Files of one weight in a universal checkpoint."""
MODEL_STATES = ("mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_model_states.pt")
"""File with the counters of a model, as ZeRO-1 and 2 and as ZeRO-3 call it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shards:
    """How the state of a run is sharded."""

    ranks: int
    zero_stage: int
    """ZeRO stage; 0 without DeepSpeed."""

    def __str__(self) -> str:
        return f"{self.ranks} ranks at ZeRO stage {self.zero_stage}"


def shards_of(accelerator: Accelerator, sharding: Sharding) -> Shards:
    """Returns how this run is sharded."""
    return Shards(ranks=accelerator.num_processes, zero_stage=sharding.stage)


def refuse_unless_resharded(
    checkpoint: Path, written: Shards, accelerator: Accelerator, sharding: Sharding
) -> None:
    """Checks that a checkpoint with the shards ``written`` can be converted for this run.

    Raises:
        ValueError: If it cannot.
    """
    why = sharding.why_not_resharded if written.zero_stage else "it was written without DeepSpeed"
    if why is not None:
        raise ValueError(
            f"{checkpoint} was written by {written} (0: no DeepSpeed), but this run has "
            f"{shards_of(accelerator, sharding)}, and {why}. Set num_processes to {written.ranks} and use an "
            f"accelerate file with zero_stage {written.zero_stage}, or start a new run from its weights with "
            f"model.path={checkpoint / 'policy'}."
        )


def load_resharded(
    checkpoint: Path,
    written: Shards,
    accelerator: Accelerator,
    sharding: Sharding,
    *,
    timeout_seconds: float,
) -> None:
    """Loads a checkpoint with the shards ``written``; rank 0 converts it first. Every rank must call it.

    Ranks that the checkpoint does not know keep the RNGs that the run's seed gave them.

    Raises:
        RuntimeError: As ``reshard`` does, on every rank.
    """
    made: Path | RuntimeError | None = None
    if accelerator.is_main_process:
        here = shards_of(accelerator, sharding)
        logger.warning("%s was written by %s; it is converted for %s.", checkpoint, written, here)
        try:
            made = reshard(checkpoint, timeout_seconds=timeout_seconds)
        except RuntimeError as error:
            made = error
    folder = from_rank_zero(accelerator, made, what="the converted checkpoint")
    if isinstance(folder, RuntimeError):
        raise folder
    with sharding.reads_resharded(accelerator._models):
        accelerator.load_state(str(folder))
    wait_for_all(accelerator)
    if accelerator.is_main_process:
        discard(checkpoint)


def resharded_folder(checkpoint: Path) -> Path:
    """Returns where the converted state of ``checkpoint`` is kept until it has been loaded."""
    # By its content: a step may be made again by other options.
    mark = hashlib.blake2s((checkpoint / MANIFEST).read_bytes(), digest_size=4).hexdigest()
    return checkpoint.with_name(f"{PREFIX}{checkpoint.name}_{mark}")


def reshard(checkpoint: Path, *, timeout_seconds: float) -> Path:
    """Converts a checkpoint, unless that is done, and returns the folder. Only rank 0 calls it.

    Raises:
        RuntimeError: If the disk has too little space, or the conversion fails or takes too long.
    """
    final = resharded_folder(checkpoint)
    if is_sealed(final):
        return final
    unfinished = final.with_name(final.name + UNFINISHED)
    shutil.rmtree(unfinished, ignore_errors=True)
    _check_space(checkpoint)
    for model in sorted(checkpoint.glob("pytorch_model*")):
        if model.is_dir():
            _convert(model, unfinished / model.name, timeout_seconds)
            _fit_every_stage(unfinished / model.name)
    for path in checkpoint.iterdir():  # the schedule, and the RNGs of every rank
        if path.is_file() and path.name != MANIFEST:
            shutil.copy2(path, unfinished)
    seal(unfinished)
    remove(final)
    os.replace(unfinished, final)
    return final


def discard(checkpoint: Path) -> None:
    """Removes the converted state of ``checkpoint``; no-op if there is none."""
    remove(resharded_folder(checkpoint))


def _check_space(checkpoint: Path) -> None:
    needed = SPACE * sum(path.stat().st_size for path in checkpoint.rglob("*_optim_states.pt"))
    free = shutil.disk_usage(checkpoint).free
    if free < needed:
        raise RuntimeError(
            f"{checkpoint} must be converted for another number of ranks or ZeRO stage, which takes about "
            f"{needed / GIB:.2f} GiB beside it for the time being; {free / GIB:.2f} GiB are free."
        )


def _convert(source: Path, target: Path, timeout_seconds: float) -> None:
    target.mkdir(parents=True)
    command = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal"]
    command += ["--input_folder", str(source), "--output_folder", str(target), "--inject_missing_state"]
    command += ["--num_extract_workers", WORKERS, "--num_merge_workers", WORKERS]
    # A process of its own: its memory is free afterwards, and it must not take this rank's GPU.
    environment = {**os.environ, "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=timeout_seconds, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(
            f"Converting {source} for another number of ranks or ZeRO stage took longer than "
            f"train.collective_timeout_seconds = {timeout_seconds:g}. Raise it."
        ) from error
    if done.returncode:
        raise RuntimeError(
            f"DeepSpeed could not convert {source} for another number of ranks or ZeRO stage: "
            f"{(done.stderr or done.stdout).strip().splitlines()[-1]} Resume with those of the checkpoint."
        )


def _fit_every_stage(model: Path) -> None:
    """Adds what the readers of the other ZeRO stages expect; DeepSpeed converts within one stage only."""
    found = next(name for name in MODEL_STATES if (model / name).is_file())
    for name in MODEL_STATES:
        if name != found:
            shutil.copy2(model / found, model / name)
    common = model / "zero" / "optimizer_state.pt"
    # The checkpoint is this run's own, which is trusted (see docs/security.md).
    state = torch.load(common, weights_only=False, map_location="cpu")
    groups = state["param_groups"]
    inner = state.get("optimizer_state_dict")
    step = inner["state"][0]["step"] if inner else _step(model / "zero")
    state.setdefault("ds_version", version("deepspeed"))  # read by ZeRO-1 and 2, and not written by ZeRO-3
    state["optimizer_state_dict"] = {"state": {0: {"step": step}}, "param_groups": groups}
    torch.save(state, common)
    for weight in (model / "zero").rglob("fp32.pt"):
        torch.save(step, weight.with_name("step.pt"))
        for path in filter(Path.is_file, map(weight.with_name, STATES)):
            _as_one_entry(path)


def _as_one_entry(path: Path) -> None:
    """Rewrites a tensor as ZeRO-1 and 2 read it; ZeRO-3 is converted to bare tensors, and reads both."""
    content = torch.load(path, weights_only=False, map_location="cpu")
    if isinstance(content, torch.Tensor):
        torch.save({"param": content}, path)


def _step(folder: Path) -> object:
    """Returns the number of applied steps, which is the same for every weight."""
    return torch.load(next(folder.rglob("step.pt")), weights_only=False, map_location="cpu")
