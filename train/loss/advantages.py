"""Advantages by explicit group. Pure; a batch is never reshaped into groups."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np

STD_EPSILON = 1e-4
"""Added to the standard deviation, as in TRL's ``GRPOTrainer``."""

SCALE_REWARDS = ("group", "batch", "none")

Estimator = Callable[[np.ndarray], np.ndarray]
"""Rewards of one group, shape ``(n,)`` -> each reward less its baseline, shape ``(n,)``."""


def group_mean(rewards: np.ndarray) -> np.ndarray:
    """Subtracts the mean of the group, the sample itself included (GRPO): ``A_i = r_i - mean(r)``.

    References:
        Shao et al., DeepSeekMath, https://arxiv.org/abs/2402.03300.
    """
    return rewards - rewards.mean()


def leave_one_out(rewards: np.ndarray) -> np.ndarray:
    """Subtracts the mean of the *other* samples (RLOO): ``A_i = r_i - mean(r_j, j != i)``.

    Unbiased, whereas the group's mean scales the gradient by ``(n - 1) / n``.

    References:
        Ahmadian et al., Back to Basics, https://arxiv.org/abs/2402.14740.
    """
    return rewards - (rewards.sum() - rewards) / (rewards.size - 1)


def pass_at_k(rewards: np.ndarray, *, k: int) -> np.ndarray:
    """Returns gradient weights for the best of ``k`` samples; for 0/1 rewards this is pass@k.

    With ``n`` samples in a group and ``best`` the largest reward of a subset,

        A_i = k * ( E[best of k that include i] - E[best of k that do not] )

    over all such subsets, so that ``mean_i(A_i * grad logprob_i)`` is an unbiased estimate of the gradient
    of ``E[best of k]``. The second term is the leave-one-out baseline; it does not depend on sample i.
    ``k = 1`` is ``leave_one_out``. A group of at most ``k`` samples has no such baseline and gets zero.

    Args:
        rewards: Shape ``(n,)``, any real numbers.
        k: Size of the subsets, of which only the best sample counts.

    References:
        Walder and Karkhanis, Pass@K Policy Optimization, https://arxiv.org/abs/2505.15201: their estimator
        of the gradient of max_g@k, with a leave-one-out baseline.
    """
    if rewards.size <= k:
        return np.zeros_like(rewards)
    advantages = np.empty_like(rewards)
    for i, reward in enumerate(rewards):
        others = np.delete(rewards, i)
        best_with = _expected_best(np.maximum(others, reward), k - 1) if k > 1 else reward
        advantages[i] = k * (best_with - _expected_best(others, k))
    return advantages


def _expected_best(values: np.ndarray, size: int) -> float:
    """Returns the mean, over all subsets of ``size`` values, of the largest value in the subset."""
    # The value of rank j is the largest in C(j, size - 1) subsets: their other members all rank below it.
    share = [math.comb(below, size - 1) / math.comb(values.size, size) for below in range(values.size)]
    return float(np.sort(values) @ share)


def make_estimator(name: str, *, k: int) -> Estimator:
    """Returns the estimator named by ``algo.advantage_estimator``; only ``pass_at_k`` uses ``k``."""
    estimators: Mapping[str, Estimator] = {
        "group_mean": group_mean,
        "leave_one_out": leave_one_out,
        "pass_at_k": partial(pass_at_k, k=k),
    }
    return estimators[name]


def group_advantages(
    rewards: Sequence[Sequence[float]], *, scale_rewards: str = "group", center: Estimator = group_mean
) -> list[np.ndarray]:
    """Subtracts a baseline from each reward within its group, then scales the result.

    A group is the set of samples drawn from one context: the same problem and, for refinements, the
    same workspace. For groups ``g`` with rewards ``r_g1 .. r_gn`` (sizes may differ),

        A_gi = center(r_g)_i                                  (``none``, Dr. GRPO)
        A_gi = center(r_g)_i / (std(r_g) + STD_EPSILON)       (``group``, GRPO)
        A_gi = center(r_g)_i / (std(all r) + STD_EPSILON)     (``batch``)

    with the sample standard deviation (``n - 1``). A group whose rewards are all equal, or that has a
    single sample, gets exactly zero.

    Args:
        rewards: One sequence of rewards per group.
        scale_rewards: ``group``, ``batch`` or ``none``.
        center: ``group_mean``, ``leave_one_out``, or ``pass_at_k`` with ``k`` bound.

    Returns:
        One float64 array of advantages per group, in the order given.

    Raises:
        ValueError: If ``scale_rewards`` is unknown or a reward is not finite.

    Example:
        >>> group_advantages([[1.0, -1.0, -1.0, -1.0], [1.0, 1.0]], scale_rewards="none")
        [array([ 1.5, -0.5, -0.5, -0.5]), array([0., 0.])]

    References:
        Liu et al., Understanding R1-Zero-Like Training, https://arxiv.org/abs/2503.20783.
    """
    if scale_rewards not in SCALE_REWARDS:
        raise ValueError(
            f"algo.scale_rewards is {scale_rewards!r}; choose one of {', '.join(SCALE_REWARDS)}."
        )
    groups = [np.asarray(group, dtype=np.float64) for group in rewards]
    for position, group in enumerate(groups):
        if not np.isfinite(group).all():
            raise ValueError(f"group {position} has a reward that is not finite: {group.tolist()}")
    batch_std = _std(np.concatenate(groups)) if groups else 0.0
    return [_group(group, scale_rewards, batch_std, center) for group in groups]


def _group(rewards: np.ndarray, scale_rewards: str, batch_std: float, center: Estimator) -> np.ndarray:
    # Set to exactly zero rather than centred: rounding would leave a rest, as mean([0.1] * 3) is not 0.1.
    if rewards.size < 2 or np.ptp(rewards) == 0:
        return np.zeros_like(rewards)
    centered = center(rewards)
    if scale_rewards == "none":
        return centered
    std = _std(rewards) if scale_rewards == "group" else batch_std
    return centered / (std + STD_EPSILON)


def _std(rewards: np.ndarray) -> float:
    return float(rewards.std(ddof=1)) if rewards.size > 1 else 0.0
