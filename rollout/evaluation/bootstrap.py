"""Bootstrap intervals over problems, which never degenerate: pure functions.

A bootstrap resamples only what was seen: of 8 problems without a right answer it makes the interval [0, 0].
Wilson's bound states what was not seen: with 95% confidence, problems unlike any of n are a share of at most
z^2 / (n + z^2). So the upper end is at least that of a set in which every problem has the lowest value seen,
but that share of them the highest possible value; the lower end likewise. For 0 of n and n of n this is
Wilson's interval.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 10_000
LEVEL = 0.95
Z = 1.959963984540054
"""Quantile of the normal distribution that belongs to ``LEVEL``."""
BLOCK = 4_000_000
"""Maximum of numbers drawn at once; bounds memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfidenceInterval:
    """A mean with its 95% percentile-bootstrap interval, widened as the module states."""

    mean: float
    low: float
    high: float


ACCURACY = (0.0, 1.0)
"""Bounds of an accuracy."""
DIFFERENCE = (-1.0, 1.0)
"""Bounds of the difference of two accuracies."""


def bootstrap(
    values: Sequence[float],
    bounds: tuple[float, float] = ACCURACY,
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> ConfidenceInterval:
    """Returns the interval of the mean of ``values``, one per problem, by resampling problems.

    For a paired difference, pass the differences per problem: the noise of common difficulty cancels.

    Args:
        values: One number per problem.
        bounds: Lowest and highest value that a problem could have.
        seed: Seed of the resampling.
        resamples: Number of resamples.

    Raises:
        ValueError: If there are no values.
    """
    return bootstrap_ratio(values, np.ones(len(values)), bounds, seed=seed, resamples=resamples)


def bootstrap_ratio(
    numerators: Sequence[float],
    denominators: Sequence[float] | np.ndarray,
    bounds: tuple[float, float] = ACCURACY,
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
    values = pairs[0][pairs[1] > 0] / pairs[1][pairs[1] > 0]
    unseen = Z**2 / (len(values) + Z**2)
    most, least = float(values.max()), float(values.min())
    return ConfidenceInterval(
        mean=float(pairs[0].sum() / pairs[1].sum()),
        low=min(float(low), most - unseen * (most - bounds[0])),
        high=max(float(high), least + unseen * (bounds[1] - least)),
    )
