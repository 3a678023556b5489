"""Turns the rows of one update into this rank's micro-batches, annotated with outputs of fixed models.

Each rank evaluates the models on its own micro-batches only, once, before the first update on the batch. The
micro-batches are the same in every pass, so the annotations apply to all passes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from accelerate import Accelerator
from torch import Tensor

from configs.schema import TrainingConfig
from train.batch.collate import MicroBatch, collate
from train.batch.packing import Bin, make_plan, separate, share_prompts
from train.batch.rows import Row
from train.distributed import sum_over_ranks
from train.loss.credit import split_updates, weigh
from train.loss.gae import TokenCredit, advantage_moments, credit_tokens, mean_and_std, whiten
from train.model.reference import Reference
from train.optimizer import TrainedModel
from train.teacher import with_teacher


@dataclass(frozen=True, slots=True, kw_only=True)
class Annotations:
    """Model outputs for the N trained tokens of one micro-batch; None where the loss does not need them."""

    old_logprobs: Tensor | None = None
    """Log-probs of the policy before its first update on this batch, shape ``(N,)``."""
    ref_logprobs: Tensor | None = None
    """Log-probs of the reference model, shape ``(N,)``."""
    credit: TokenCredit | None = None
    """Estimates of the critic before its first update on this batch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateBatch:
    """Data of one optimizer step: the rows of all ranks, and this rank's micro-batches of them."""

    rows: list[Row]
    """Rows of all ranks."""
    bins: list[Bin]
    """This rank's micro-batches, one per micro-step."""
    annotations: list[Annotations]
    """Annotations of each of ``bins``."""


class Annotator:
    """Packs rows for this rank and annotates them with the models as they are before the updates."""

    def __init__(
        self,
        config: TrainingConfig,
        accelerator: Accelerator,
        *,
        policy: TrainedModel,
        reference: Reference | None,
        critic: TrainedModel | None,
        shares_prompts: bool,
        hidden_size: int,
    ) -> None:
        """``critic`` is one with its own backbone, or None; a critic on the trunk is part of ``policy``."""
        self._config = config
        self._accelerator = accelerator
        self._policy = policy
        self._reference = reference
        self._critic = critic
        self._shares_prompts = shares_prompts
        self._hidden_size = hidden_size

    def parts(self, rows: Sequence[Row], roles: Sequence[str]) -> tuple[list[UpdateBatch], dict[str, float]]:
        """Returns one part per optimizer step of a pass, and metrics of the critic's advantages, if any.

        Parts without a row that can change the policy are dropped: their step would only follow momentum.
        """
        algo = self._config.algo
        longest = self._config.rollout.call_tokens
        if algo.opd_coef:
            # Before any update, for all parts: the teacher is the policy that sampled the batch.
            rows = with_teacher(rows, self._bins, partial(self._scored, roles=roles), self._accelerator)
        weighted = [
            weigh(part, algo, max_completion_length=longest) for part in split_updates(rows, algo.num_updates)
        ]
        parts = [self._part(part, roles) for part in weighted if part]
        return self._whitened(parts, roles) if algo.has_critic else (parts, {})

    def micro_batches(self, part: UpdateBatch, roles: Sequence[str]) -> Iterator[MicroBatch]:
        """Yields this rank's micro-batches, annotated, on its device."""
        for bin, notes in zip(part.bins, part.annotations, strict=True):
            yield self._collate(bin, notes, roles)

    def _part(self, rows: list[Row], roles: Sequence[str]) -> UpdateBatch:
        bins = self._bins(rows)
        return UpdateBatch(rows=rows, bins=bins, annotations=[self._annotate(bin, roles) for bin in bins])

    def _bins(self, rows: Sequence[Row]) -> list[Bin]:
        """Returns this rank's micro-batches of ``rows``."""
        budget = self._config.train.tokens_per_micro_batch
        packed = share_prompts(rows, tokens_per_row=budget) if self._shares_prompts else separate(rows)
        plan = make_plan(
            packed,
            tokens_per_micro_batch=budget,
            world_size=self._accelerator.num_processes,
            hidden_size=self._hidden_size,
        )
        # Every rank computes the same plan from the same rows, so no communication is needed.
        return [step[self._accelerator.process_index] for step in plan]

    @torch.no_grad()
    def _scored(self, bin: Bin, roles: Sequence[str]) -> tuple[MicroBatch, Tensor]:
        """Returns a micro-batch and the policy's log-probs of its trained tokens."""
        batch = self._collate(bin, Annotations(), roles)
        return batch, self._policy.model(batch)[0]

    @torch.no_grad()
    def _annotate(self, bin: Bin, roles: Sequence[str]) -> Annotations:
        """Evaluates the models on one micro-batch, all results of shape ``(N,)``."""
        algo = self._config.algo
        # With a single update the policy is still the old policy, and ``objective`` detaches its log-probs.
        needs_old = algo.updates_per_batch > 1
        # A critic without a backbone of its own returns its values from the policy's forward pass.
        needs_policy = needs_old or (algo.has_critic and self._critic is None)
        if not (needs_policy or self._reference or self._critic):
            return Annotations()
        batch = self._collate(bin, Annotations(), roles)
        logprobs, _, values = self._policy.model(batch) if needs_policy else (None, None, None)
        if self._critic is not None:
            values = self._critic.model(batch)
        return Annotations(
            old_logprobs=logprobs if needs_old else None,
            ref_logprobs=self._reference.logprobs(batch) if self._reference else None,
            credit=None if values is None else credit_tokens(batch, values, gamma=algo.gamma, lam=algo.lam),
        )

    def _whitened(
        self, parts: list[UpdateBatch], roles: Sequence[str]
    ) -> tuple[list[UpdateBatch], dict[str, float]]:
        """Whitens advantages per role over all parts and ranks, if ``algo.whiten_advantages`` is set.

        The metrics are those before whitening. Every rank must call it.
        """
        credits = [notes.credit for part in parts for notes in part.annotations if notes.credit is not None]
        # Sums, unlike means and deviations, can be added over ranks: shape (num_roles, 3).
        moments = advantage_moments(credits, len(roles)).to(self._accelerator.device)
        mean, std = mean_and_std(sum_over_ranks(self._accelerator, moments))
        metrics = {f"advantage_std/{role}": value for role, value in zip(roles, std.tolist(), strict=True)}
        if not self._config.algo.whiten_advantages:
            return parts, metrics
        whitened = [
            replace(
                part,
                annotations=[
                    replace(notes, credit=whiten(notes.credit, mean, std)) if notes.credit else notes
                    for notes in part.annotations
                ],
            )
            for part in parts
        ]
        return whitened, metrics

    def _collate(self, bin: Bin, notes: Annotations, roles: Sequence[str]) -> MicroBatch:
        batch = collate(bin.rows, roles=roles).to(self._accelerator.device)
        batch = replace(
            batch,
            old_logprobs=notes.old_logprobs,
            ref_logprobs=notes.ref_logprobs,
            temperatures=self._temperatures(batch, roles),
        )
        if notes.credit is None:
            return batch
        # The critic's advantages, one per token, replace those of the group.
        return replace(
            batch,
            advantages=notes.credit.advantages,
            old_values=notes.credit.values,
            returns=notes.credit.returns,
        )

    def _temperatures(self, batch: MicroBatch, roles: Sequence[str]) -> Tensor | None:
        """Returns the temperature of every trained token; None if all roles have the run's."""
        rollout = self._config.rollout
        if not rollout.roles.changed():
            return None
        of_roles = torch.tensor([rollout.temperature_of(role) for role in roles], device=batch.roles.device)
        return of_roles[batch.roles]
