"""What a step is measured by: names and reductions. Writing them is ``train.report``.

Names: ``<quantity>/<role>`` for what differs between sub-batches, ``time/<stage>`` for seconds.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from rollout.records import TRACE, Group, Sample
from train.collate import MicroBatch
from train.objective import TokenTerms
from train.optimizer import StepOutcome
from train.rows import Row

TOKEN_SUMS = ("tokens", "loss", "entropy", "kl", "clip", "ref_kl")


class TokenMetrics:
    """Sums over trained tokens, per role; added over micro-batches and ranks, then averaged.

    Tokens that cannot move the policy (all samples of their group got the same reward, and none is to be
    imitated) never reach the model and are not in these averages.
    """

    def __init__(self, roles: Sequence[str], device: torch.device) -> None:
        self._roles = tuple(roles)
        self.sums = torch.zeros(len(self._roles), len(TOKEN_SUMS), dtype=torch.float64, device=device)

    def add(self, batch: MicroBatch, terms: TokenTerms) -> None:
        """Adds one micro-batch. Tokens without weight, those of a filler row, are skipped."""
        counts = (batch.policy_weights != 0) | (batch.imitation_weights != 0)
        columns = (
            torch.ones_like(terms.entropies),
            batch.policy_weights * terms.token_loss,
            terms.entropies,
            terms.sampler_kl,
            terms.is_clipped.float(),
            terms.ref_kl,
        )
        values = torch.stack(columns, dim=-1).double()[counts]
        self.sums.index_add_(0, batch.roles[counts], values)

    def result(self, sums: Tensor, *, num_updates: int) -> dict[str, float]:
        """Metrics from ``sums`` that were added over ranks; ``loss`` is the mean over updates."""
        metrics: dict[str, float] = {"loss": float(sums[:, 1].sum()) / max(num_updates, 1)}
        for role, row in zip(self._roles, sums.tolist(), strict=True):
            tokens, loss, *means = row
            metrics[f"trained_tokens/{role}"] = tokens
            metrics[f"loss/{role}"] = loss / max(num_updates, 1)
            for name, total in zip(TOKEN_SUMS[2:], means, strict=True):
                if tokens:
                    metrics[f"{name}/{role}"] = total / tokens
        return metrics


def group_metrics(groups: Sequence[Group], rows: Sequence[Row]) -> dict[str, float]:
    """Rewards, accuracy, lengths and advantages of a collected batch, per role.

    Args:
        groups: What was collected.
        rows: The same groups after ``credit``, in the same order.
    """
    samples: dict[str, list[Sample]] = defaultdict(list)
    advantages: dict[str, list[float]] = defaultdict(list)
    no_signal: dict[str, list[bool]] = defaultdict(list)
    for group, row in zip(groups, rows, strict=True):
        samples[group.key.role].extend(group.samples)
        firsts = [float(branch.advantages[0]) for branch in row.branches if len(branch.advantages)]
        advantages[group.key.role].extend(firsts)
        no_signal[group.key.role].append(not any(firsts))
    metrics: dict[str, float] = {"groups": float(len(groups))}
    for role, of_role in samples.items():
        lengths = [len(sample.call.completion_ids) for sample in of_role]
        metrics |= {
            f"reward/{role}": float(np.mean([sample.reward for sample in of_role])),
            f"accuracy/{role}": float(np.mean([sample.is_correct for sample in of_role])),
            f"completion_tokens/{role}": float(np.mean(lengths)),
            f"truncated/{role}": float(np.mean([sample.call.finish == "length" for sample in of_role])),
            f"advantage_std/{role}": float(np.std(advantages[role])),
            f"groups_without_signal/{role}": float(np.mean(no_signal[role])),
        }
        for part in sorted({part for sample in of_role for part in sample.reward_parts}):
            values = [sample.reward_parts.get(part, 0.0) for sample in of_role]
            metrics[f"reward_parts/{part}/{role}"] = float(np.mean(values))
    everything = [sample for of_role in samples.values() for sample in of_role]
    if everything:
        metrics["reward"] = float(np.mean([sample.reward for sample in everything]))
    operator = [sample.is_correct for role, of in samples.items() if role != TRACE for sample in of]
    if operator:
        metrics["accuracy/operator"] = float(np.mean(operator))
    return metrics


def update_metrics(outcomes: Sequence[StepOutcome], learning_rate: float) -> dict[str, float]:
    """Metrics of the optimizer steps on one batch; ``learning_rate`` is that of the first."""
    norms = [outcome.grad_norm for outcome in outcomes]
    return {
        "grad_norm": sum(norms) / len(norms) if norms else 0.0,
        "learning_rate": learning_rate,
        "updates": float(sum(outcome.applied for outcome in outcomes)),
        "updates_refused": float(sum(not outcome.applied for outcome in outcomes)),
    }


class Stopwatch:
    """Seconds by stage of one step."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        begin = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[stage] += time.perf_counter() - begin

    @property
    def total(self) -> float:
        """Seconds since this step began."""
        return time.perf_counter() - self._start

    def result(self) -> dict[str, float]:
        """``time/<stage>`` and ``time/step``."""
        stages = {f"time/{stage}": seconds for stage, seconds in self._seconds.items()}
        return stages | {"time/step": self.total}
