"""The loop: collect, credit, update, publish, report, evaluate, checkpoint. Read ``Trainer.run`` first.

The trainer is blind to how samples came about. It sees groups of samples with masks, rewards and the
log-probs of their sampler. Rank 0 alone talks to the outside (``Collaborators``).
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from transformers import AutoTokenizer
from transformers.utils.logging import disable_progress_bar

from configs.schema import TrainingConfig
from rollout.collect import CollectedBatch
from train.checkpoint import Checkpoints, TrainerState, config_fingerprint, find_checkpoint, read_state
from train.collate import MicroBatch, collate
from train.credit import credit, split_updates, weigh
from train.distributed import from_rank_zero, sum_over_ranks
from train.metrics import Stopwatch, TokenMetrics, group_metrics
from train.objective import objective
from train.optimizer import PolicyOptimizer, StepOutcome
from train.packing import make_plan, separate, share_prompts
from train.policy import PolicyModel, can_share_prompts, load_model, save_weights
from train.report import Reporter
from train.rows import Row

MAX_REFUSED_STEPS = 3
"""So many refused optimizer steps in a row stop the run."""

ROLLOUTS_SHOWN = 2
"""Rollouts written as text at each checkpoint."""


class Collector(Protocol):
    """Gives the scored groups of one step."""

    def next(self, step: int) -> CollectedBatch: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


class Publisher(Protocol):
    """Makes the workers serve the weights of an HF folder; returns when they do."""

    def publish(self, directory: Path, version: int) -> None: ...


class Evaluator(Protocol):
    """Measures the policy that the workers serve; names of metrics start with ``eval/``."""

    def evaluate(self, step: int) -> Mapping[str, float]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Collaborators:
    """Rank 0's links to the outside."""

    collector: Collector
    publisher: Publisher
    evaluator: Evaluator
    reporter: Reporter


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """What every rank needs of one step: the credited rows, and rank 0's metrics of their groups."""

    rows: list[Row]
    metrics: dict[str, float]


class Trainer:
    """One rank of a run."""

    def __init__(
        self, config: TrainingConfig, accelerator: Accelerator, collaborators: Collaborators | None
    ) -> None:
        """``collaborators`` are given on rank 0 and None elsewhere. Loads the model."""
        assert (collaborators is not None) == accelerator.is_main_process
        disable_progress_bar()  # The run has one bar, the reporter's.
        self.config = config
        self.accelerator = accelerator
        self.outside = collaborators
        self.model = load_model(config.model)
        self._shares_prompts = can_share_prompts(self.model)
        policy = PolicyModel(self.model, temperature=config.rollout.temperature)
        self.optimizer = PolicyOptimizer(
            accelerator, policy, config.algo, num_steps=config.train.max_steps * config.algo.num_updates
        )
        tokenizer = AutoTokenizer.from_pretrained(
            config.model.path, trust_remote_code=config.model.trust_remote_code
        )
        self.checkpoints = Checkpoints(config, accelerator, self.model, tokenizer)
        self.step = 0
        """Finished steps."""
        self.policy_version = 0
        self._refused_in_a_row = 0

    def run(self) -> None:
        """Trains until ``train.max_steps``."""
        self._start()
        if self.step == 0 and self.config.train.eval_at_start:
            self._evaluate()
        while self.step < self.config.train.max_steps:
            clock = Stopwatch()
            with clock("collect"):
                batch = self._collect()
            with clock("update"):
                metrics = self._update_policy(batch)
            self.step += 1
            with clock("publish"):
                self._publish()
            with clock("evaluate"):
                metrics |= self._evaluate_if_due()
            self._report(batch, metrics, clock)
            self._checkpoint_if_due()
        # After the last checkpoint: a run that is killed here resumes with the evaluation alone.
        if self.config.train.eval_at_end:
            self._evaluate()
        self._finish()

    def _start(self) -> None:
        path = from_rank_zero(
            self.accelerator,
            find_checkpoint(self.config) if self.outside else None,
            what="the checkpoint to resume from",
        )
        if path is not None:
            state = self.checkpoints.load(path)
            self.step, self.policy_version = state.step, state.policy_version
        if self.outside:
            self.outside.reporter.start(self.step)
            if path is not None:
                self.outside.reporter.note(f"Resumed from {path}, step {self.step}.")
                self.outside.collector.load_state_dict(state.collector)
        if path is not None:
            self._publish_version(self.policy_version)

    def _collect(self) -> Batch:
        batch = None
        if self.outside:
            collected = self.outside.collector.next(self.step + 1)
            rows = credit(collected.groups, self.config.algo)
            batch = Batch(rows=rows, metrics=dict(collected.metrics) | group_metrics(collected.groups, rows))
            if (self.step + 1) % self.config.train.save_steps == 0 or self.step == 0:
                self.outside.reporter.write_rollouts(self.step + 1, collected.rollouts[:ROLLOUTS_SHOWN])
        return from_rank_zero(self.accelerator, batch, what=f"the groups of step {self.step + 1}")

    def _update_policy(self, batch: Batch) -> dict[str, float]:
        """``num_updates`` optimizer steps, each on its own part of the groups."""
        roles = sorted({branch.role for row in batch.rows for branch in row.branches})
        tokens = TokenMetrics(roles, self.accelerator.device)
        learning_rate = self.optimizer.learning_rate
        outcomes: list[StepOutcome] = []
        for part in split_updates(batch.rows, self.config.algo.num_updates):
            longest = self.config.rollout.max_completion_length
            rows = weigh(part, self.config.algo, max_completion_length=longest)
            # Nothing to learn from: a step would only follow the optimizer's momentum.
            if rows:
                outcome = self._update(rows, roles, tokens)
                self._guard(outcome, rows)
                outcomes.append(outcome)
        sums = sum_over_ranks(self.accelerator, tokens.sums)
        metrics = tokens.result(sums, num_updates=len(outcomes))
        norms = [outcome.grad_norm for outcome in outcomes]
        return metrics | {
            "grad_norm": sum(norms) / len(norms) if norms else 0.0,
            "learning_rate": learning_rate,
            "updates": float(sum(outcome.applied for outcome in outcomes)),
            "updates_refused": float(sum(not outcome.applied for outcome in outcomes)),
        }

    def _update(self, rows: Sequence[Row], roles: Sequence[str], tokens: TokenMetrics) -> StepOutcome:
        """One optimizer step on the rows of all ranks."""
        train = self.config.train
        if self._shares_prompts:
            rows = share_prompts(rows, tokens_per_row=train.tokens_per_micro_batch)
        else:
            rows = separate(rows)
        plan = make_plan(
            rows,
            tokens_per_micro_batch=train.tokens_per_micro_batch,
            world_size=self.accelerator.num_processes,
        )
        outcome = None
        for number, bins in enumerate(plan, start=1):
            mine = bins[self.accelerator.process_index]
            micro = collate(mine.rows, roles=roles, head_chunks=mine.head_chunks)
            loss = self._micro_loss(micro.to(self.accelerator.device), tokens)
            outcome = self.optimizer.backward(loss, is_last=number == len(plan))
        assert outcome is not None
        return outcome

    def _micro_loss(self, batch: MicroBatch, tokens: TokenMetrics) -> torch.Tensor:
        """This micro-batch's part of the loss of an update."""
        logprobs, entropies = self.optimizer.model(batch)
        loss, terms = objective(batch, logprobs, self.config.algo)
        tokens.add(batch, terms, entropies)
        return loss

    def _guard(self, outcome: StepOutcome, rows: Sequence[Row]) -> None:
        """Counts refused steps in a row; the batch is kept for inspection.

        Raises:
            RuntimeError: At the third in a row.
        """
        if outcome.applied:
            self._refused_in_a_row = 0
            return
        self._refused_in_a_row += 1
        saved = Path(self.config.output_dir) / "debug" / f"step_{self.step + 1:06d}.pt"
        if self.outside:
            saved.parent.mkdir(parents=True, exist_ok=True)
            torch.save(list(rows), saved)
            self.outside.reporter.note(
                f"Loss or gradient is not finite in step {self.step + 1}; no update was made. Batch: {saved}"
            )
        if self._refused_in_a_row >= MAX_REFUSED_STEPS:
            raise RuntimeError(
                f"Loss or gradient was not finite {self._refused_in_a_row} times in a row, at last in step "
                f"{self.step + 1}. None of these updates was made; the batches are in {saved.parent}. "
                "Lower algo.learning_rate, or look for sampler_logprobs that are far from the policy's."
            )

    def _publish(self) -> None:
        self.policy_version += 1
        self._publish_version(self.policy_version)

    def _publish_version(self, version: int) -> None:
        """Writes the weights and makes the workers serve them; the folder stays until the next version."""
        folder = Path(self.config.output_dir) / "weights"
        directory = folder / f"version_{version:06d}"
        save_weights(self.model, directory, is_main=self.outside is not None)
        if self.outside:
            self.outside.publisher.publish(directory, version)
            for old in folder.glob("version_*"):
                if old != directory:
                    shutil.rmtree(old)

    def _evaluate_if_due(self) -> dict[str, float]:
        train = self.config.train
        due = train.eval_steps and self.step % train.eval_steps == 0 and self.step < train.max_steps
        return self._evaluate() if due else {}

    def _evaluate(self) -> dict[str, float]:
        return dict(self.outside.evaluator.evaluate(self.step)) if self.outside else {}

    def _report(self, batch: Batch, metrics: dict[str, float], clock: Stopwatch) -> None:
        if self.outside:
            written = batch.metrics.get("collect/tokens", 0.0)
            seconds = {"tokens_per_second": written / clock.total, **clock.result()}
            version = {"policy_version": float(self.policy_version)}
            self.outside.reporter.log(self.step, batch.metrics | metrics | seconds | version)

    def _checkpoint_if_due(self) -> None:
        train = self.config.train
        if self.step % train.save_steps and self.step != train.max_steps:
            return
        collector = self.outside.collector.state_dict() if self.outside else {}
        self.checkpoints.save(
            TrainerState(
                step=self.step,
                policy_version=self.policy_version,
                world_size=self.accelerator.num_processes,
                config_fingerprint=config_fingerprint(self.config),
                collector=collector,
            )
        )
        if self.outside:
            self.outside.reporter.draw()

    def _finish(self) -> None:
        if self.outside:
            self.outside.reporter.close()
        self.accelerator.end_training()


def is_finished(config: TrainingConfig) -> bool:
    """Whether ``resume`` names a run that already made ``max_steps``; ask before starting workers."""
    path = find_checkpoint(config)
    return path is not None and read_state(path).step >= config.train.max_steps
