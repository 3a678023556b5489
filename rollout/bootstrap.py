"""Intervals over problems: pure functions."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 10_000
LEVEL = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A mean with its 95% percentile-bootstrap interval."""

    mean: float
    low: float
    high: float


def bootstrap(values: Sequence[float], *, seed: int = 0, resamples: int = RESAMPLES) -> Interval:
    """Interval of the mean of ``values``, one per problem, resampling problems.

    For a paired difference give the differences per problem: their noise of common difficulty cancels.

    Raises:
        ValueError: If there are no values.
    """
    if len(values) == 0:
        raise ValueError("bootstrap needs at least one problem.")
    array = np.asarray(values, dtype=np.float64)
    rng = np.random.default_rng(seed)
    # In blocks, so that memory does not grow with the number of problems times resamples.
    block = max(1, min(resamples, 4_000_000 // len(array)))
    means: list[float] = []
    while len(means) < resamples:
        size = min(block, resamples - len(means))
        draws = rng.integers(0, len(array), size=(size, len(array)))
        means.extend(array[draws].mean(axis=1))
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(mean=float(array.mean()), low=float(low), high=float(high))
