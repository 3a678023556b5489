"""What is trained on: one prompt and the completions that share it, with what the loss needs of each."""

from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from rollout.records import GroupKey


@dataclass(frozen=True, slots=True)
class RowShape:
    """Tokens of one row; what follows them is padding."""

    prompt: int
    completions: tuple[int, ...]

    @property
    def pairs(self) -> float:
        """Queries and keys that attention pairs."""
        own = sum(n * (self.prompt + n / 2) for n in self.completions)
        return self.prompt**2 / 2 + own


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Branch:
    """One completion; each array has one entry per completion token.

    The weights are those of each trained token and hold every normalisation (see ``train.loss.averaging``).
    """

    call_id: str
    """The sampled call; see ``rollout.records.call_id``."""
    role: str
    is_positive: bool
    """A correct sample, which imitation learns from."""
    reward: float
    completion_ids: np.ndarray
    sampler_logprobs: np.ndarray
    train_mask: np.ndarray
    advantages: np.ndarray
    """Those of its group; a critic's take their place."""
    policy_weight: float = 0.0
    imitation_weight: float = 0.0
    entropy_weight: float = 0.0

    @property
    def num_trained(self) -> int:
        """Tokens in the loss."""
        return int(self.train_mask.sum())

    @property
    def has_gradient(self) -> bool:
        """Whether any token of it can move the policy: by its advantage or by imitation."""
        has_advantage = bool(self.policy_weight and self.advantages[self.train_mask].any())
        return has_advantage or bool(self.imitation_weight and self.num_trained)

    def without_weight(self) -> Self:
        """The same tokens with no influence on the policy."""
        return replace(self, policy_weight=0.0, imitation_weight=0.0, entropy_weight=0.0)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Row:
    """A prompt and the completions that share it."""

    key: GroupKey
    """The group that the completions were compared in."""
    prompt_ids: np.ndarray
    branches: tuple[Branch, ...]

    @property
    def num_tokens(self) -> int:
        """Length of the row in the model."""
        return len(self.prompt_ids) + sum(len(branch.completion_ids) for branch in self.branches)

    @property
    def num_trained(self) -> int:
        """Tokens in the loss."""
        return sum(branch.num_trained for branch in self.branches)

    @property
    def shape(self) -> RowShape:
        """What attention must know of it."""
        completions = tuple(len(branch.completion_ids) for branch in self.branches)
        return RowShape(prompt=len(self.prompt_ids), completions=completions)
