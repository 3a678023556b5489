"""One rank of ``python -m train``: builds the run of a checked config and trains."""

import os
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import NoReturn

import torch
from transformers import set_seed

from configs.exit_status import ALARM
from configs.rank_errors import record_reason
from configs.schema import TrainingConfig
from configs.stopping import STOP
from rollout.tokenizer import load_codec
from rollout.workers.fleet import warn_if_emulated
from train.distributed import from_rank_zero, leave, make_accelerator, refuse_shared_gpus
from train.health.response import UnhealthyRun
from train.last_words import last_words
from train.loop import Trainer
from train.origin import load_run_data
from train.preemption import leave_alarm, leave_marker, status
from train.rank_zero import assemble
from train.start import decide_start

FAILURES = (ValueError, FileNotFoundError, RuntimeError)
"""Errors during start-up that are reported in one line, without a traceback."""


def main(config: TrainingConfig, overrides: list[str]) -> None:
    """Runs one rank; rank 0 also owns workers, data, scorer and reports."""
    is_main = int(os.environ.get("RANK", "0")) == 0
    came_to_end, alarm = False, None
    with ExitStack() as stack:
        with STOP.at_once(lambda: _stop_at_start(config, is_main=is_main)):
            trainer = _start(config, overrides, stack, is_main=is_main)
        if trainer is None:
            return
        try:
            came_to_end = trainer.run()
        except UnhealthyRun as error:
            alarm = str(error)
    if is_main and (came_to_end or alarm):
        print(last_words(config))
    if alarm:
        if is_main:
            print(leave_alarm(config.output_dir, alarm), file=sys.stderr)
        record_reason(f"train: {alarm}")
        leave(status(ALARM))
    if not came_to_end:
        leave(status())


def _start(
    config: TrainingConfig, overrides: list[str], stack: ExitStack, *, is_main: bool
) -> Trainer | None:
    """Returns this rank's trainer once every model is loaded and the workers answer; None if done."""
    try:
        refuse_shared_gpus(config)
        # On every rank: if it fails, all ranks end and none waits.
        load_codec(config.model, config.rollout, config.operator.prompts)
        start = decide_start(config, is_main=is_main)
        # Before any worker starts, and before anything on disk is reported as this run's.
        data = load_run_data(config, start.checkpoint) if is_main else None
        if start.is_done:
            if is_main:
                print(f"{config.output_dir} is finished: step {config.train.max_steps} was reached.")
                print(last_words(config))
            return None
        set_seed(config.seed)
        if is_main:
            warn_if_emulated(
                "model.dtype",
                config.model.dtype,
                Path(config.model.path),
                "an update may take 40 times as long",
            )
        outside = assemble(config, overrides, data, stack) if data else None
        # A worker on a GPU measures the free memory while it starts, so no rank may allocate any then.
        opens_first = torch.cuda.is_available()
        if outside and opens_first:
            outside.open(stack)
    except FAILURES as error:
        _give_up(error, is_main=is_main)
    accelerator = make_accelerator(config)
    collaborators = outside.collaborators if outside else None
    try:
        trainer = Trainer(config, accelerator, collaborators, STOP, start.checkpoint)
    except ValueError as error:  # a model that cannot be trained; other errors keep their traceback
        _give_up(error, is_main=is_main)
    try:
        if outside and not opens_first:
            outside.open(stack)  # the workers have been starting while the model was loaded
    except FAILURES as error:
        _give_up(error, is_main=is_main)
    # From here on a request to stop is a decision of all ranks, so none may leave this function earlier.
    from_rank_zero(accelerator, True, what="that the workers are up")
    return trainer


def _stop_at_start(config: TrainingConfig, *, is_main: bool) -> int:
    if is_main:
        print(leave_marker(config.output_dir, STOP.name, step=None))
    return status()


def _give_up(error: Exception, *, is_main: bool) -> NoReturn:
    record_reason(f"train: {error}")
    sys.exit(f"train: {error}" if is_main else 1)
