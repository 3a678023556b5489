"""Advantages by explicit group. Pure; a batch is never reshaped into groups."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

STD_EPSILON = 1e-4
"""Added to the standard deviation, as in TRL's ``GRPOTrainer``."""

SCALE_REWARDS = ("group", "batch", "none")


def group_advantages(rewards: Sequence[Sequence[float]], *, scale_rewards: str = "group") -> list[np.ndarray]:
    """Centers each reward on the mean of its group, then scales.

    A group is the set of samples drawn from one context: the same problem and, for refinements, the
    same workspace. For groups ``g`` with rewards ``r_g1 .. r_gn`` (sizes may differ),

        A_gi = r_gi - mean(r_g)                                  (``none``, Dr. GRPO)
        A_gi = (r_gi - mean(r_g)) / (std(r_g) + STD_EPSILON)     (``group``, GRPO)
        A_gi = (r_gi - mean(r_g)) / (std(all r) + STD_EPSILON)   (``batch``)

    with the sample standard deviation (``n - 1``). A group whose rewards are all equal, or that has
    one sample, gets exactly zero.

    Args:
        rewards: One sequence of rewards per group.
        scale_rewards: ``group``, ``batch`` or ``none``.

    Returns:
        One float64 array of advantages per group, in the order given.

    Raises:
        ValueError: If ``scale_rewards`` is unknown or a reward is not finite.

    Example:
        >>> group_advantages([[1.0, -1.0, -1.0, -1.0], [1.0, 1.0]], scale_rewards="none")
        [array([ 1.5, -0.5, -0.5, -0.5]), array([0., 0.])]

    References:
        Shao et al., DeepSeekMath, https://arxiv.org/abs/2402.03300.
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
    return [_group(group, scale_rewards, batch_std) for group in groups]


def _group(rewards: np.ndarray, scale_rewards: str, batch_std: float) -> np.ndarray:
    # Equal rewards are zero by decision, not by rounding: mean([0.1] * 3) is not 0.1.
    if rewards.size < 2 or np.ptp(rewards) == 0:
        return np.zeros_like(rewards)
    centered = rewards - rewards.mean()
    if scale_rewards == "none":
        return centered
    std = _std(rewards) if scale_rewards == "group" else batch_std
    return centered / (std + STD_EPSILON)


def _std(rewards: np.ndarray) -> float:
    return float(rewards.std(ddof=1)) if rewards.size > 1 else 0.0
