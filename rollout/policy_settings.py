"""Settings of the policy that all problems of a run share, and what differs by role."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from configs.thinking import ThinkingMarks
from rollout.codec import Codec
from rollout.forcing import ThinkingLimit
from rollout.prompts import PromptTexts
from rollout.records import DRAFT, OWN, Sampling
from rollout.sampler import Sampler


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleSettings:
    """How the calls of one role are sampled."""

    sampling: Sampling
    limit: ThinkingLimit | None
    sampler: Sampler | None = None
    """Another policy's sampler; None: that of the run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicySettings:
    """Settings that all problems of a run share."""

    sampler: Sampler
    codec: Codec
    prompts: PromptTexts
    marks: ThinkingMarks
    sampling: Sampling
    limit: ThinkingLimit | None = None
    """Budget forcing of every call; None for no limit on thinking."""
    roles: Mapping[str, RoleSettings] = field(default_factory=dict)
    """Roles whose calls are sampled otherwise."""
    drafts: Mapping[str, RoleSettings] = field(default_factory=dict)
    """How other policies sample drafts, by ``Call.policy``."""

    def of(self, role: str, policy: str = OWN) -> RoleSettings:
        """Returns how ``policy`` samples the calls of ``role``; other policies sample drafts only."""
        if role == DRAFT and policy != OWN:
            if policy not in self.drafts:
                raise ValueError(
                    f"The drafts come from the policy {policy!r}, which has no worker here: set "
                    "rollout.draft_url and rollout.draft_model to a chat endpoint."
                )
            return self.drafts[policy]
        return self.roles.get(role) or RoleSettings(sampling=self.sampling, limit=self.limit)
