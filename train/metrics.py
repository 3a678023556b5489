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
from accelerate import Accelerator
from torch import Tensor

from rollout.records import TRACE, Group, Sample
from train.collate import MicroBatch
from train.distributed import max_over_ranks, sum_over_ranks
from train.objective import TokenTerms
from train.optimizer import StepOutcome
from train.rows import Row


class TokenMetrics:
    """Sums and maxima over trained tokens, per role, added up over micro-batches and ranks.

    Tokens that cannot move the policy (all samples of their group got the same reward, and none is to be
    imitated) never reach the model and are not in these averages.
    """

    def __init__(self, roles: Sequence[str], device: torch.device) -> None:
        self._roles = tuple(roles)
        self._zeros = torch.zeros(len(self._roles), dtype=torch.float64, device=device)
        self._sums: dict[str, Tensor] = {}
        self._maxima: dict[str, Tensor] = {}

    def add(self, batch: MicroBatch, terms: TokenTerms) -> None:
        """Adds one micro-batch. Tokens without weight, those of a filler row, are skipped."""
        counts = (batch.policy_weights != 0) | (batch.imitation_weights != 0)
        roles = batch.roles[counts]
        summed = {
            "tokens": torch.ones_like(terms.token_loss),
            "loss": batch.policy_weights * terms.token_loss,
            "entropy": terms.entropies,
            "kl": terms.sampler_kl,
            "clip": terms.is_clipped,
            "mismatch": terms.mismatch,
            "mismatch_kl": terms.mismatch_kl,
            "mismatch_outside": terms.is_outside,
        }
        if terms.ref_kl is not None:
            summed["ref_kl"] = terms.ref_kl
        for name, values in summed.items():
            total = self._sums.get(name, self._zeros)
            self._sums[name] = total.index_add(0, roles, values[counts].double())
        for name, values in {"mismatch_max": terms.mismatch}.items():
            largest = self._maxima.get(name, self._zeros)
            self._maxima[name] = largest.scatter_reduce(0, roles, values[counts].double(), "amax")

    def result(self, accelerator: Accelerator, *, num_updates: int) -> dict[str, float]:
        """Metrics over all ranks, which must all call it; losses are means over updates."""
        if not num_updates:
            return {"loss": 0.0, **{f"trained_tokens/{role}": 0.0 for role in self._roles}}
        sums = sum_over_ranks(accelerator, torch.stack(list(self._sums.values()))).tolist()
        maxima = max_over_ranks(accelerator, torch.stack(list(self._maxima.values()))).tolist()
        metrics: dict[str, float] = {}
        for place, role in enumerate(self._roles):
            of_role = {name: of_roles[place] for name, of_roles in zip(self._sums, sums, strict=True)}
            tokens, loss = of_role.pop("tokens"), of_role.pop("loss")
            metrics |= {f"trained_tokens/{role}": tokens, f"loss/{role}": loss / num_updates}
            if tokens:
                largest = {name: of_roles[place] for name, of_roles in zip(self._maxima, maxima, strict=True)}
                means = {name: total / tokens for name, total in of_role.items()}
                metrics |= {f"{name}/{role}": value for name, value in (means | largest).items()}
        metrics["loss"] = sum(metrics[f"loss/{role}"] for role in self._roles)
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
