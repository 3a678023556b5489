"""Training data: one prompt, the completions that share it, and the inputs of the loss for each."""

from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from rollout.groups import GroupKey


@dataclass(frozen=True, slots=True)
class RowShape:
    """Token counts of one row; the remaining columns are padding."""

    prompt: int
    completions: tuple[int, ...]

    @property
    def pairs(self) -> float:
        """Number of (query, key) pairs in causal attention: P^2 / 2 + sum of L_i (P + L_i / 2)."""
        own = sum(n * (self.prompt + n / 2) for n in self.completions)
        return self.prompt**2 / 2 + own


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Branch:
    """One completion; each array has one entry per completion token.

    The weights apply to each trained token and include every normalisation (see ``train.loss.averaging``).
    """

    call_id: str
    """Id of the sampled call; see ``rollout.groups.call_id``."""
    role: str
    is_positive: bool
    """True for a correct sample, which the imitation loss uses."""
    reward: float
    completion_ids: np.ndarray
    sampler_logprobs: np.ndarray
    train_mask: np.ndarray
    advantages: np.ndarray
    """Advantages from the group's baseline; replaced by the critic's if there is one."""
    policy_weight: float = 0.0
    imitation_weight: float = 0.0
    entropy_weight: float = 0.0
    teacher_prompt_ids: tuple[int, ...] = ()
    """Context in which the policy, as its own teacher, scores the completion; else empty."""
    teacher_logprobs: np.ndarray | None = None
    """The teacher's log-probs, one entry per completion token; None without a teacher."""

    @property
    def num_trained(self) -> int:
        """Number of tokens in the loss."""
        return int(self.train_mask.sum())

    @property
    def has_gradient(self) -> bool:
        """True if any token can change the policy: by its advantage, its teacher or the imitation loss."""
        is_taught = self.teacher_logprobs is not None and self.num_trained > 0
        has_advantage = bool(self.policy_weight and (is_taught or self.advantages[self.train_mask].any()))
        return has_advantage or bool(self.imitation_weight and self.num_trained)

    def without_weight(self) -> Self:
        """Returns the same tokens with zero weights: they do not influence the policy."""
        return replace(self, policy_weight=0.0, imitation_weight=0.0, entropy_weight=0.0)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Row:
    """A prompt and the completions that share it."""

    key: GroupKey
    """Group within which the completions were compared; in a packed row of several groups, the first."""
    prompt_ids: np.ndarray
    branches: tuple[Branch, ...]

    @property
    def num_tokens(self) -> int:
        """Length of the row as a model input."""
        return len(self.prompt_ids) + sum(len(branch.completion_ids) for branch in self.branches)

    @property
    def num_trained(self) -> int:
        """Number of tokens in the loss."""
        return sum(branch.num_trained for branch in self.branches)

    @property
    def shape(self) -> RowShape:
        """Token counts that attention needs."""
        completions = tuple(len(branch.completion_ids) for branch in self.branches)
        return RowShape(prompt=len(self.prompt_ids), completions=completions)
