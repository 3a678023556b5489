"""Sampling of the calls of one role, where it differs from the run's."""

from dataclasses import dataclass, field, fields


@dataclass(kw_only=True)
class RoleConfig:
    """Sampling of the calls of one role. null: as the run's option of the same name."""

    temperature: float | None = None
    """Sampling temperature of these calls."""

    top_p: float | None = None
    """Nucleus of these calls."""

    thinking_tokens: int | None = None
    """Limit of the thinking of these calls."""


@dataclass(kw_only=True)
class RolesConfig:
    """Sampling of the calls of each role."""

    trace: RoleConfig = field(default_factory=RoleConfig)
    draft: RoleConfig = field(default_factory=RoleConfig)
    refine: RoleConfig = field(default_factory=RoleConfig)
    distil: RoleConfig = field(default_factory=RoleConfig)
    verify: RoleConfig = field(default_factory=RoleConfig)
    analyse: RoleConfig = field(default_factory=RoleConfig)
    select: RoleConfig = field(default_factory=RoleConfig)

    def changed(self) -> dict[str, RoleConfig]:
        """Returns the roles that have an option of their own."""
        every = {item.name: getattr(self, item.name) for item in fields(self)}
        return {name: role for name, role in every.items() if role != RoleConfig()}
