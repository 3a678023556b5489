"""Metrics of a step: names and reductions. ``train.report`` writes them.

Names: ``<quantity>/<role>`` for quantities of a sub-batch, ``time/<stage>`` for seconds.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from rollout.groups import Group, Sample
from rollout.records import AMORTISE, OWN, TRACE, Rollout
from train.batch.collate import MicroBatch
from train.batch.rows import Row
from train.distributed import max_over_ranks, sum_over_ranks
from train.loss.objective import TokenTerms
from train.sharding import StepOutcome


class TokenMetrics:
    """Sums and maxima over trained tokens, per role, accumulated over micro-batches and ranks.

    Tokens that cannot change the policy (all samples of their group got the same reward, and none is
    imitated) never reach the model and are not part of these averages.
    """

    def __init__(self, roles: Sequence[str], device: torch.device) -> None:
        self._roles = tuple(roles)
        self._zeros = torch.zeros(len(self._roles), dtype=torch.float64, device=device)
        self._losses: dict[str, Tensor] = {}
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, Tensor] = {}
        self._maxima: dict[str, Tensor] = {}

    def add(self, batch: MicroBatch, terms: TokenTerms) -> None:
        """Adds one micro-batch. Tokens without weight, which belong to filler rows, are skipped."""
        counts = (batch.policy_weights != 0) | (batch.imitation_weights != 0)

        def counted(values: Tensor) -> Tensor:
            # 0 instead of left out: the host would wait for the number of tokens that are left.
            return torch.where(counts, values.double(), 0.0)

        for name, values in terms.losses.items():
            self._add(self._losses, name, batch.roles, counted(batch.policy_weights * values))
        for name, values in terms.means.items():
            has_it = counts & terms.only[name] if name in terms.only else counts
            self._add(self._sums, name, batch.roles, torch.where(has_it, values.double(), 0.0))
            self._add(self._counts, name, batch.roles, has_it.double())
        for name, values in terms.maxima.items():
            # Totals start at 0, so a 0 changes no maximum.
            largest = self._maxima.get(name, self._zeros)
            self._maxima[name] = largest.scatter_reduce(0, batch.roles, counted(values), "amax")

    def _add(self, totals: dict[str, Tensor], name: str, roles: Tensor, values: Tensor) -> None:
        """Adds ``values``, shape ``(N,)``, to the total of their roles, shape ``(num_roles,)``."""
        totals[name] = totals.get(name, self._zeros).index_add(0, roles, values)

    def result(self, accelerator: Accelerator, *, num_updates: int) -> dict[str, float]:
        """Returns metrics over all ranks; losses are means over updates. Every rank must call it."""
        metrics = {"loss": 0.0} | {f"trained_tokens/{role}": 0.0 for role in self._roles}
        if not num_updates:
            return metrics
        add = partial(sum_over_ranks, accelerator)
        losses, sums, counts = (_reduced(of, add) for of in (self._losses, self._sums, self._counts))
        maxima = _reduced(self._maxima, partial(max_over_ranks, accelerator))
        for place, role in enumerate(self._roles):
            # All terms count the same trained tokens; max selects one of the equal counts.
            tokens = max(of_roles[place] for of_roles in counts.values())
            metrics[f"trained_tokens/{role}"] = tokens
            if role != AMORTISE:
                metrics |= {f"{name}/{role}": of[place] / num_updates for name, of in losses.items()}
            if tokens:
                means = {
                    name: of[place] / counts[name][place] for name, of in sums.items() if counts[name][place]
                }
                means = _with_explained_variance(means)
                if role != AMORTISE:  # whose sampler read another prompt
                    means |= {name: of[place] for name, of in maxima.items()}
                metrics |= {f"{name}/{role}": value for name, value in means.items()}
        metrics["loss"] = sum(metrics.get(f"loss/{role}", 0.0) for role in self._roles)
        return metrics


def _reduced(totals: Mapping[str, Tensor], reduce: Callable[[Tensor], Tensor]) -> dict[str, list[float]]:
    """Reduces each total over all ranks; returns one number per role, by name."""
    if not totals:
        return {}
    # Stacked to (num_names, num_roles), so that one collective reduces them all.
    return dict(zip(totals, reduce(torch.stack(list(totals.values()))).tolist(), strict=True))


def _with_explained_variance(means: dict[str, float]) -> dict[str, float]:
    """Replaces the moments of returns and value errors by ``1 - Var(error) / Var(return)``."""
    if "return" not in means:
        return means
    variance = means.pop("return_squared") - means["return"] ** 2
    unexplained = means.pop("value_error_squared") - means.pop("value_error") ** 2
    return means | {"explained_variance": 1 - unexplained / variance if variance > 0 else 0.0}


def group_metrics(groups: Sequence[Group], rows: Sequence[Row]) -> dict[str, float]:
    """Returns rewards, accuracy, lengths and advantages of a collected batch, per role.

    Args:
        groups: The collected groups.
        rows: The same groups after ``credit``, in the same order.
    """
    samples: dict[str, list[Sample]] = defaultdict(list)
    advantages: dict[str, list[float]] = defaultdict(list)
    no_signal: dict[str, list[bool]] = defaultdict(list)
    for group, row in zip(groups, rows, strict=True):
        if group.key.role == AMORTISE:  # the operator's samples, which count there
            continue
        samples[group.key.role].extend(group.samples)
        # The group's advantage is the same for all tokens of a completion, so the first one suffices.
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


def staleness_metrics(rollouts: Sequence[Rollout], version: int) -> dict[str, float]:
    """Returns how many versions behind the policy the oldest token of a call is: mean per role, and maximum.

    Drafts, distil and verify calls count whether they are trained or not, so that a workspace written by an
    older policy is visible. Drafts of another policy have no such version.
    """
    lags: dict[str, list[int]] = defaultdict(list)
    for rollout in rollouts:
        for call in rollout.calls:
            if call.versions and call.policy == OWN:
                lags[call.role].append(version - call.policy_version)
    metrics = {f"staleness/{role}": float(np.mean(of_role)) for role, of_role in lags.items()}
    if lags:
        metrics["staleness/max"] = float(max(lag for of_role in lags.values() for lag in of_role))
    return metrics


def kept_cache_share(rollouts: Sequence[Rollout]) -> float:
    """Returns the share of the written tokens that read keys and values of older weights in their own call.

    Only with ``rollout.pause_mode=keep_cache``; otherwise these are computed again. Keys and values that
    stayed in a worker's prefix cache are not counted: workers do not report their versions.
    """
    spans = [(call.versions[0].version, span) for r in rollouts for call in r.calls for span in call.versions]
    written = sum(span.end - span.start for _, span in spans)
    older = sum(span.end - span.start for first, span in spans if span.version != first)
    return older / written if written else 0.0


def update_metrics(
    outcomes: Mapping[str, Sequence[StepOutcome]], learning_rates: Mapping[str, float]
) -> dict[str, float]:
    """Returns metrics of the optimizer steps on one batch.

    Args:
        outcomes: The steps of each model. Metrics of the critic have the prefix ``critic_``, those of the
            policy have none.
        learning_rates: Learning rate of each model in its first step.
    """
    metrics: dict[str, float] = {}
    for model, steps in outcomes.items():
        prefix = "" if model == "policy" else f"{model}_"
        norms = [step.grad_norm for step in steps]
        metrics |= {
            f"{prefix}grad_norm": sum(norms) / len(norms) if norms else 0.0,
            f"{prefix}learning_rate": learning_rates[model],
            f"{prefix}updates": float(sum(step.applied for step in steps)),
            f"{prefix}updates_refused": float(sum(not step.applied for step in steps)),
        }
    return metrics


class Stopwatch:
    """Measures the seconds of each stage of one step."""

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
        """Seconds since the stopwatch was created."""
        return time.perf_counter() - self._start

    def result(self) -> dict[str, float]:
        """Returns ``time/<stage>`` of each stage and ``time/step``."""
        stages = {f"time/{stage}": seconds for stage, seconds in self._seconds.items()}
        return stages | {"time/step": self.total}
