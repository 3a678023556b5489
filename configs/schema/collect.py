"""Selection of the problems that a step draws, and of the groups that it learns from."""

from dataclasses import dataclass, field

from configs.schema.checks import at_least, choice, choice_or_import, share


@dataclass(frozen=True, slots=True)
class NamedFilter:
    """Open intervals of the accuracies within which an operator's groups are kept; None: any."""

    drafts: tuple[float, float] | None = None
    answers: tuple[float, float] | None = None


FILTERS = {
    "none": NamedFilter(),
    "pacore_stage1": NamedFilter(drafts=(0.0, 9 / 24)),
    "pacore_stage2": NamedFilter(answers=(0.0, 1.0)),
}
"""Filters by name. PaCoRe (arXiv 2601.05593) has 24 messages per problem; 9/24 is its bound for maths."""


@dataclass(kw_only=True)
class CollectConfig:
    """Selection of problems and groups. Dropped groups are counted by reason; ``max_refill`` replaces
    them."""

    draft_source: str = "fresh"
    """Drafts of the operator's first round: fresh (new samples), reuse (the traces of the same problem, so
    that an operator group costs only its refinements), cached (drafts of draft_cache, up to their number) or
    reference (samples of the frozen initial policy, from rollout.num_draft_workers)."""

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

    filter: str = "none"
    """Keep an operator's groups by the rule of a paper: pacore_stage1 (drafts with 0 < accuracy < 9/24) or
    pacore_stage2 (answers with 0 < accuracy < 1). Or ``package.module:function``, which returns for a
    rollout.groups.Group and its Rollout the reason to drop the group, or None. In addition to the other
    options."""

    balance: str = "none"
    """none, or majority_wrong: at least balance_share of a step's operator problems are ones whose drafts'
    majority is wrong. Their places stay empty if max_refill finds too few (AggLM's hard problems)."""

    balance_share: float = 0.5
    """See balance."""

    max_refill: int = 0
    """Number of times that a step draws further problems to replace those left without a group."""

    max_refused_share: float = 0.1
    """Stop the run once workers refused more than this share of its problems, and at least 20."""

    curriculum: str = "none"
    """none, or learnability: draw a problem with pass rate p of its plain attempts in a share 4 p (1 - p) of
    the epochs, at least in a tenth of them. Refills are drawn evenly. Needs data that a run sees more than
    once."""

    max_history_pass_rate: float | None = None
    """Do not draw a problem again once at least this share of its plain attempts was correct. null: no
    limit."""

    def __post_init__(self) -> None:
        choice("collect.draft_source", self.draft_source, ("fresh", "reuse", "cached", "reference"))
        at_least("collect.max_staleness", self.max_staleness, 0)
        if (self.draft_source == "cached") != (self.draft_cache is not None):
            raise ValueError(
                f"collect.draft_source is {self.draft_source} and collect.draft_cache {self.draft_cache}: "
                "draft_cache goes with draft_source=cached."
            )
        choice_or_import("collect.filter", self.filter, tuple(FILTERS), "package.module:function")
        choice("collect.curriculum", self.curriculum, ("none", "learnability"))
        choice("collect.balance", self.balance, ("none", "majority_wrong"))
        share("collect.balance_share", self.balance_share)
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
