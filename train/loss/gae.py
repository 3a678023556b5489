"""Generalised advantage estimation (GAE): per-token advantages from a critic. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from train.batch.collate import MicroBatch

WHITEN_EPSILON = 1e-8
"""Added to the standard deviation when advantages are whitened."""


def gae(rewards: np.ndarray, values: np.ndarray, *, gamma: float, lam: float) -> np.ndarray:
    """Returns the advantage of each action of one sequence.

        delta_t = r_t + gamma * V_{t+1} - V_t
        A_t     = delta_t + gamma * lam * A_{t+1}

    where V and A are 0 after the last action. With ``lam = 1`` the whole discounted return is compared with
    V_t, with ``lam = 0`` only the next step.

    Args:
        rewards: Shape ``(T,)``: reward of each action.
        values: Shape ``(T,)``: value of the state *before* each action.
        gamma: Discount per step, in [0, 1].
        lam: Discount of a temporal difference, in [0, 1].

    Returns:
        Float64, shape ``(T,)``. The return that V_t should predict is ``A_t + V_t``.

    Example:
        >>> gae(np.array([0.0, 1.0]), np.array([0.5, 0.5]), gamma=1.0, lam=1.0)
        array([0.5, 0.5])

    References:
        Schulman et al., https://arxiv.org/abs/1506.02438.
    """
    advantages = np.zeros(len(rewards), dtype=np.float64)
    # Backwards, because A_t needs A_{t+1}; both successors are 0 after the last action.
    next_value = next_advantage = 0.0
    for t in range(len(rewards) - 1, -1, -1):
        delta = rewards[t] + gamma * next_value - values[t]
        advantages[t] = next_advantage = delta + gamma * lam * next_advantage
        next_value = values[t]
    return advantages


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenCredit:
    """The critic's estimates for the N trained tokens of one micro-batch; each tensor has shape ``(N,)``."""

    values: Tensor
    advantages: Tensor
    returns: Tensor
    roles: Tensor
    is_trained: Tensor
    """False for the tokens of a filler row."""


def credit_tokens(batch: MicroBatch, values: Tensor, *, gamma: float, lam: float) -> TokenCredit:
    """Computes GAE within each completion, over its trained tokens; the last of them gets the reward.

    Forced tokens are not actions: the state after a trained token is the one before the next trained token.

    Args:
        batch: The micro-batch.
        values: Shape ``(N,)``: value of the state before each trained token.
        gamma: See ``gae``.
        lam: See ``gae``.
    """
    # Tokens of a completion are contiguous, so splitting at the cumulative lengths restores the sequences.
    lengths = torch.bincount(batch.sequences, minlength=batch.num_sequences).tolist()
    of_sequences = np.split(values.detach().cpu().double().numpy(), np.cumsum(lengths)[:-1])
    advantages = []
    for of_sequence, reward in zip(of_sequences, batch.rewards.tolist(), strict=True):
        rewards = np.zeros(len(of_sequence))
        rewards[-1:] = reward  # no-op for a completion without trained tokens
        advantages.append(gae(rewards, of_sequence, gamma=gamma, lam=lam))
    flat = torch.from_numpy(np.concatenate(advantages)).to(values)
    return TokenCredit(
        values=values,
        advantages=flat,
        returns=flat + values,
        roles=batch.roles,
        is_trained=batch.policy_weights != 0,
    )


def advantage_moments(credits: Sequence[TokenCredit], num_roles: int) -> Tensor:
    """Returns count, sum and sum of squares of each role's advantages, float64, shape ``(num_roles, 3)``."""
    moments = torch.zeros(num_roles, 3, dtype=torch.float64)
    for credit in credits:
        advantages = credit.advantages[credit.is_trained].double().cpu()
        columns = torch.stack([torch.ones_like(advantages), advantages, advantages.square()], dim=-1)
        moments.index_add_(0, credit.roles[credit.is_trained].cpu(), columns)
    return moments


def mean_and_std(moments: Tensor) -> tuple[Tensor, Tensor]:
    """Returns mean and standard deviation per role, each of shape ``(num_roles,)``.

    Args:
        moments: Shape ``(num_roles, 3)``, as ``advantage_moments`` returns them; sums over ranks are valid.
    """
    count, total, squares = moments.unbind(-1)
    mean = total / count.clamp(min=1)
    # Var = E[A^2] - E[A]^2, clamped because rounding may make it negative.
    return mean, (squares / count.clamp(min=1) - mean.square()).clamp(min=0).sqrt()


def whiten(credit: TokenCredit, mean: Tensor, std: Tensor) -> TokenCredit:
    """Returns ``credit`` with advantages ``(A - mean) / (std + WHITEN_EPSILON)`` of their role.

    ``mean`` and ``std`` have shape ``(num_roles,)``; indexing by role expands them to ``(N,)``.
    """
    scaled = (credit.advantages - mean.to(credit.advantages)[credit.roles]) / (
        std.to(credit.advantages)[credit.roles] + WHITEN_EPSILON
    )
    return replace(credit, advantages=scaled)
