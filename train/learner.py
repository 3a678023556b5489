"""One collected batch -> optimizer steps. Every rank has a learner; all of them do the same steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from accelerate import Accelerator

from configs.schema import TrainingConfig
from train.collate import MicroBatch, collate
from train.credit import split_updates, weigh
from train.metrics import TokenMetrics, update_metrics
from train.objective import objective
from train.optimizer import PolicyOptimizer, StepOutcome
from train.packing import Bin, make_plan, separate, share_prompts
from train.policy import PolicyModel, can_share_prompts, load_model
from train.reference import Reference
from train.refusal import RefusalGuard
from train.rows import Row


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """What models that stand still during the updates say of the tokens of one micro-batch."""

    old_logprobs: torch.Tensor | None = None
    """Shape ``(N,)``, of the policy before its first update on this batch."""
    ref_logprobs: torch.Tensor | None = None
    """Shape ``(N,)``, of the reference model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What one optimizer step is made on: all rows, and this rank's micro-batches of them."""

    rows: list[Row]
    bins: list[Bin]
    scores: list[Scores]


class Learner:
    """The policy, its optimizer, and the frozen models that its loss needs."""

    def __init__(self, config: TrainingConfig, accelerator: Accelerator, guard: RefusalGuard) -> None:
        """Loads the models. ``guard`` sees the outcome of every optimizer step."""
        self._config = config
        self._accelerator = accelerator
        self._guard = guard
        self.model = load_model(config.model)
        self._shares_prompts = can_share_prompts(self.model)
        policy = PolicyModel(
            self.model,
            temperature=config.rollout.temperature,
            entropy_has_gradient=config.algo.entropy_coef != 0,
        )
        num_steps = config.train.max_steps * config.algo.updates_per_batch
        self.optimizer = PolicyOptimizer(accelerator, policy, config.algo, num_steps=num_steps)
        self._reference = Reference(config, accelerator) if config.algo.beta else None

    def learn(self, rows: Sequence[Row], step: int) -> dict[str, float]:
        """``num_iterations`` passes over the rows, ``num_updates`` optimizer steps each; their metrics.

        Raises:
            RuntimeError: When the guard has seen too many refused steps in a row.
        """
        algo = self._config.algo
        roles = sorted({branch.role for row in rows for branch in row.branches})
        tokens = TokenMetrics(roles, self._accelerator.device)
        learning_rate = self.optimizer.learning_rate
        parts = [self._prepare(part, roles) for part in self._weighted_parts(rows)]
        outcomes: list[StepOutcome] = []
        for _ in range(algo.num_iterations):
            for part in parts:
                outcome = self._update(part, roles, tokens)
                self._guard.check(outcome, part.rows, step)
                outcomes.append(outcome)
        metrics = tokens.result(self._accelerator, num_updates=len(outcomes))
        return metrics | update_metrics(outcomes, learning_rate)

    def _weighted_parts(self, rows: Sequence[Row]) -> list[list[Row]]:
        """The rows of each update that can teach something; a step on none would only follow momentum."""
        algo = self._config.algo
        longest = self._config.rollout.call_tokens
        parts = split_updates(rows, algo.num_updates)
        weighted = [weigh(part, algo, max_completion_length=longest) for part in parts]
        return [part for part in weighted if part]

    def _prepare(self, rows: list[Row], roles: Sequence[str]) -> Part:
        """Packs the rows of one update and scores this rank's part of them, before anything is updated."""
        budget = self._config.train.tokens_per_micro_batch
        packed = share_prompts(rows, tokens_per_row=budget) if self._shares_prompts else separate(rows)
        plan = make_plan(packed, tokens_per_micro_batch=budget, world_size=self._accelerator.num_processes)
        bins = [step[self._accelerator.process_index] for step in plan]
        return Part(rows=rows, bins=bins, scores=[self._score(part, roles) for part in bins])

    @torch.no_grad()
    def _score(self, part: Bin, roles: Sequence[str]) -> Scores:
        needs_old = self._config.algo.updates_per_batch > 1
        if not needs_old and self._reference is None:
            return Scores()
        batch = self._collate(part, Scores(), roles)
        return Scores(
            old_logprobs=self.optimizer.model(batch)[0] if needs_old else None,
            ref_logprobs=self._reference.logprobs(batch) if self._reference else None,
        )

    def _collate(self, part: Bin, scores: Scores, roles: Sequence[str]) -> MicroBatch:
        batch = collate(part.rows, roles=roles, head_chunks=part.head_chunks).to(self._accelerator.device)
        return replace(batch, old_logprobs=scores.old_logprobs, ref_logprobs=scores.ref_logprobs)

    def _update(self, part: Part, roles: Sequence[str], tokens: TokenMetrics) -> StepOutcome:
        """One optimizer step on the rows of all ranks."""
        outcome = None
        for number, (rows, scores) in enumerate(zip(part.bins, part.scores, strict=True), start=1):
            batch = self._collate(rows, scores, roles)
            logprobs, entropies = self.optimizer.model(batch)
            loss, terms = objective(batch, logprobs, entropies, self._config.algo)
            tokens.add(batch, terms)
            outcome = self.optimizer.backward(loss, is_last=number == len(part.bins))
        assert outcome is not None
        return outcome
