"""Bootstrap intervals over problems: pure functions."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 10_000
LEVEL = 0.95
BLOCK = 4_000_000
"""Maximum of numbers drawn at once; bounds memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfidenceInterval:
    """A mean with its 95% percentile-bootstrap interval."""

    mean: float
    low: float
    high: float


def bootstrap(values: Sequence[float], *, seed: int = 0, resamples: int = RESAMPLES) -> ConfidenceInterval:
    """Returns the interval of the mean of ``values``, one per problem, by resampling problems.

    For a paired difference, pass the differences per problem: the noise of common difficulty cancels.

    Raises:
        ValueError: If there are no values.
    """
    return bootstrap_ratio(values, np.ones(len(values)), seed=seed, resamples=resamples)


def bootstrap_ratio(
    numerators: Sequence[float],
    denominators: Sequence[float] | np.ndarray,
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> ConfidenceInterval:
    """Returns the interval of sum(numerators) / sum(denominators), one of each per problem.

    Problems are resampled. Resamples in which the event never happened (all denominators 0) have no ratio
    and are skipped.

    Raises:
        ValueError: If there are no problems, or the event never happened in any.
    """
    # (2, P): numerator and denominator of each of the P problems.
    pairs = np.stack([np.asarray(numerators, dtype=np.float64), np.asarray(denominators, dtype=np.float64)])
    if pairs.shape[1] == 0 or pairs[1].sum() == 0:
        raise ValueError("bootstrap needs at least one problem.")
    # Resampling problems = drawing the count of each of the D distinct columns, and D is small.
    # distinct: (2, D); counts: (D,).
    distinct, counts = np.unique(pairs, axis=1, return_counts=True)
    rng = np.random.default_rng(seed)
    block = max(1, min(resamples, BLOCK // len(counts)))
    ratios: list[np.ndarray] = []
    for done in range(0, resamples, block):
        size = min(block, resamples - done)
        # (size, D) @ (D, 2) -> (size, 2): both sums of each resample.
        sums = rng.multinomial(counts.sum(), counts / counts.sum(), size=size) @ distinct.T
        happened = sums[sums[:, 1] > 0]
        ratios.append(happened[:, 0] / happened[:, 1])
    low, high = np.quantile(np.concatenate(ratios), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return ConfidenceInterval(mean=float(pairs[0].sum() / pairs[1].sum()), low=float(low), high=float(high))
