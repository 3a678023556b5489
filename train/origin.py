"""What a run is made of, so that its folder is not resumed with another model or other problems.

The evaluation before the first step is recognised by the model that the run starts from; later evaluations
also by the checkpoints of other runs that it resumed; stored rollouts of its next steps by the whole origin.
A run that is resumed with other options of the trainer (a learning rate, say) keeps its origin.
"""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from configs.compose import load_operator
from configs.run_folder import CHECKPOINTS, MANIFEST
from configs.schema import TrainingConfig
from rewards.build import gold_checker
from rollout.evaluation.identity import Identity, evaluation_identity
from rollout.evaluation.journal import check_journal
from rollout.evaluation.model_files import served_model
from rollout.problems.duplicates import held_out_in_training
from rollout.problems.loading import load_eval, load_train
from rollout.records import Problem
from train.checkpoint_files import POLICY_DIR, TrainerState, find_checkpoint, read_state
from train.phases import BEFORE, journals_until, phase_path
from train.resumed import changed_options, refuse_other_parameters

logger = logging.getLogger(__name__)

LARGEST_READ = 2**20
"""Bytes of a file above which ``check_resumed`` leaves its checksum to the trainer."""
DIGEST_LENGTH = 8
"""Hexadecimal digits of the digest of one problem."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """What the policies of a run were made from. Checkpoints store it."""

    model: Mapping[str, str]
    """The initial model: ``served_model``."""
    problems: str
    """Digests of the training problems (id, question, gold answer, other columns), in order, joined."""
    checkpoints: tuple[str, ...] = ()
    """Digests of the manifests of checkpoints of other runs that were resumed, the earliest first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunData:
    """The problems of a run, and the identity of its rollouts."""

    problems: Sequence[Problem]
    held_out: Sequence[Problem]
    origin: Origin
    identity: Identity
    """Identity of the evaluation before the first step."""

    def of_phase(self, phase: str) -> Identity:
        """Returns the identity of a phase's evaluation."""
        if phase == BEFORE:
            return self.identity
        return replace(
            self.identity,
            shared={**self.identity.shared, "checkpoints resumed from": list(self.origin.checkpoints)},
        )


def check_resumed(config: TrainingConfig) -> None:
    """Checks what a run resumes as its trainer does, before any process is started.

    No-op if there is nothing to resume. Loads no torch, and reads no large file of a checkpoint.

    Raises:
        FileNotFoundError, ValueError: Like ``find_checkpoint`` and ``load_run_data``.
    """
    path = find_checkpoint(config, largest=LARGEST_READ)
    if path is not None or any(journals_until(config, 0)):
        load_run_data(config, None if path is None else str(path))


def load_run_data(config: TrainingConfig, checkpoint: str | None) -> RunData:
    """Loads the problems, and refuses a folder or a checkpoint of another model, of other data or operators.

    Raises:
        FileNotFoundError: If a data file or the model does not exist.
        ValueError: If a problem is invalid, the checkpoint to resume from was made from another model or
            other problems or trained other parameters, or an evaluation in ``output_dir`` that the run would
            report is not one of it.
    """
    check_gold = gold_checker(config.rewards)
    problems = load_train(config.data, check_gold)
    held_out = load_eval(config.data, check_gold)
    if both := held_out_in_training(problems, held_out):
        logger.warning(
            "%d of %d held-out problems are also training problems (the first: %s), so their accuracy tells "
            "nothing about unseen ones.", len(both), len(held_out), both[0].id,
        )  # fmt: skip
    model = served_model(config.model, config.rollout)
    origin = Origin(model=model, problems=digest_of(problems))
    step = 0
    if checkpoint is not None:
        path = Path(checkpoint)
        refuse_other_parameters(changed_options(path, config), config, path)
        state = read_state(path)
        step = state.step
        origin = replace(origin, checkpoints=_checkpoints(config, path, state))
        refuse_other_origin(path, state.origin, origin, problems)
    identity = evaluation_identity(
        seed=config.seed,
        model=model,
        operators=[load_operator(name, config.operator) for name in config.train.eval_operators],
        base=config.operator,
        rollout=config.rollout,
        rewards=config.rewards,
    )
    data = RunData(problems=problems, held_out=held_out, origin=origin, identity=identity)
    for phase in journals_until(config, step):
        check_journal(phase_path(config, phase), data.of_phase(phase), held_out)
    return data


def digest_of(problems: Sequence[Problem]) -> str:
    """Returns the digests of problems, joined: a changed problem can be named by its place."""
    return "".join(
        hashlib.blake2s(
            repr((p.id, p.question, p.answer, p.columns)).encode(), digest_size=DIGEST_LENGTH // 2
        ).hexdigest()
        for p in problems
    )


def refuse_other_origin(
    path: Path, before: Mapping[str, Any], now: Origin, problems: Sequence[Problem]
) -> None:
    """Checks that a checkpoint belongs to a run of the same initial model and the same training problems.

    Args:
        path: The checkpoint, for the message.
        before: The origin that it stores.
        now: The origin of the run that resumes it.
        problems: The training problems now.

    Raises:
        ValueError: If the model or the problems differ; the message names what. Also if an earlier version
            wrote the checkpoint, which does not tell.
    """
    if not before:
        raise ValueError(
            f"{path} does not tell which model and problems its run was made from: an earlier version wrote "
            f"it. To use it, {_anew(path)}"
        )
    differing = Identity(shared=before["model"], operators={}).differences(
        Identity(shared=now.model, operators={})
    )
    differing += _changed(before["problems"], now.problems, problems)
    if differing:
        raise ValueError(
            f"{path} belongs to a run that was made from something else: {'; '.join(differing)}. Restore "
            f"that to resume the run. Otherwise {_anew(path)}"
        )


def _anew(path: Path) -> str:
    policy = path / POLICY_DIR
    return f"start a new run from its weights: set model.path={policy}, resume=none and a new output_dir."


def _changed(before: str, now: str, problems: Sequence[Problem]) -> list[str]:
    """Returns how the training problems differ, as phrases."""
    if before == now:
        return []
    was, number = len(before) // DIGEST_LENGTH, len(problems)
    if was != number:
        return [f"the number of training problems was {was} and is {number}"]
    places = range(0, len(now), DIGEST_LENGTH)
    changed = [
        problem.id
        for place, problem in zip(places, problems, strict=True)
        if before[place : place + DIGEST_LENGTH] != now[place : place + DIGEST_LENGTH]
    ]
    where = f"the first where {changed[0]!r} is now"
    return [f"{len(changed)} of {number} training problems changed or moved, {where}"]


def _checkpoints(config: TrainingConfig, path: Path, state: TrainerState) -> tuple[str, ...]:
    """Returns digests of the checkpoints of other runs behind a run that resumes ``path``, ``path`` included
    if it is one of them."""
    before = tuple(state.origin.get("checkpoints", ()))
    if path.resolve().parent == (Path(config.output_dir) / CHECKPOINTS).resolve():
        return before
    return *before, hashlib.blake2b((path / MANIFEST).read_bytes(), digest_size=8).hexdigest()
