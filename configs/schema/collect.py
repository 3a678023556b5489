"""Selection of the problems that a step draws, and of the groups that it learns from."""

from dataclasses import dataclass, field

from configs.schema.checks import at_least, choice, share


@dataclass(kw_only=True)
class CollectConfig:
    """Selection of problems and groups. Dropped groups are counted by reason; ``max_refill`` replaces
    them."""

    draft_source: str = "fresh"
    """Drafts of the operator's first round: fresh (new samples), reuse (the traces of the same problem, so
    that an operator group costs only its refinements) or cached (drafts of draft_cache, up to their
    number)."""

    draft_cache: str | None = None
    """The rollouts.jsonl of an earlier python -m rollout on the same problems."""

    max_staleness: int = 0
    """Number of steps that collection may run ahead of the policy. 0: strictly on-policy, the trainer
    waits."""

    drop_equal_rewards: bool = False
    """Drop groups whose rewards are all equal: they carry no signal (DAPO's dynamic sampling)."""

    max_pass_rate: float | None = None
    """Drop groups in which at least this share of the samples is correct. null: keep them."""

    draft_accuracy: list[float] = field(default_factory=lambda: [0.0, 1.0])
    """Keep an operator's groups only if the share of correct drafts lies within these two bounds."""

    max_refill: int = 0
    """Number of times that a step draws further problems to replace those left without a group."""

    max_refused_share: float = 0.1
    """Stop the run once workers refused more than this share of its problems, and at least 20."""

    max_history_pass_rate: float | None = None
    """Do not draw a problem again once at least this share of its plain attempts was correct. null: no
    limit."""

    def __post_init__(self) -> None:
        choice("collect.draft_source", self.draft_source, ("fresh", "reuse", "cached"))
        at_least("collect.max_staleness", self.max_staleness, 0)
        if (self.draft_source == "cached") != (self.draft_cache is not None):
            raise ValueError(
                f"collect.draft_source is {self.draft_source} and collect.draft_cache {self.draft_cache}: "
                "draft_cache goes with draft_source=cached."
            )
        at_least("collect.max_refill", self.max_refill, 0)
        share("collect.max_refused_share", self.max_refused_share)
        for name in ("max_pass_rate", "max_history_pass_rate"):
            if (value := getattr(self, name)) is not None:
                share(f"collect.{name}", value)
        bounds = self.draft_accuracy
        if len(bounds) != 2 or not 0 <= bounds[0] <= bounds[1] <= 1:
            raise ValueError(
                f"collect.draft_accuracy must be two shares, the lower first, got {bounds}; "
                "[0.0, 1.0] keeps all."
            )
