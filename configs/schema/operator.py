"""The improvement operator and its prompts."""

from dataclasses import dataclass, field

from omegaconf import MISSING

from configs.schema.checks import at_least, choice, choice_or_import

DISTILLERS = ("global_summary", "shared_topk", "per_sample_topk", "random_k", "all", "oracle")
KINDS = ("trace", "sr", "pdr", "majority", "best_of_n")
EVALUATION_ONLY = ("majority", "best_of_n")
"""Operators that choose among answers rather than write one: there is nothing to train."""


@dataclass(kw_only=True)
class PromptsConfig:
    """The texts of the six kinds of call. The paper's own are not public; these are ours."""

    solve: str = MISSING
    """Placeholder: {question}."""
    draft: str = MISSING
    """One draft inside a workspace. Placeholders: {number}, {solution}."""
    refine: str = MISSING
    """Placeholders: {question}, {workspace}."""
    distil: str = MISSING
    """Placeholders: {question}, {drafts}, {kappa}."""
    verify: str = MISSING
    """Placeholders: {question}, {solution}."""
    analyse: str = MISSING
    """Asks for the errors of a solution (error_analysis). Placeholders: {question}, {solution}."""
    analysis: str = MISSING
    """The workspace that comes of it. Placeholders: {draft}, {analysis}."""


@dataclass(kw_only=True)
class ThinkingConfig:
    """How thinking is marked, and how it is closed by force."""

    open: str = "<think>"
    """Opens the thinking part of a completion."""

    close: str = "</think>"
    """Closes it. What follows is the solution, the only part that may enter a workspace."""

    force: str = "\n\nTime is up. I give my final answer now.\n</think>\n\n"
    """Put in where thinking reaches rollout.thinking_tokens; must hold the closing mark."""

    def __post_init__(self) -> None:
        if self.close not in self.force:
            raise ValueError(
                f"operator.thinking.force must hold operator.thinking.close, which is {self.close!r}; "
                f"got {self.force!r}."
            )


@dataclass(kw_only=True)
class OperatorConfig:
    """The improvement operator: how drafts become a workspace, and a workspace an answer."""

    name: str = "pdr"
    """What reports call it; the name of its file in configs/operator."""

    kind: str = "pdr"
    """``trace`` (one chain of thought), ``sr`` (sequential refinement), ``pdr``, ``majority``, ``best_of_n``,
    or ``package.module:Class``, a subclass of rollout.operators.Operator."""

    schedule: list[int] = field(default_factory=lambda: [4, 1])
    """Calls in each round, e.g. [8,4,1]. The last width is 1: the answer. trace is [1], sr is [1,1,...];
    for majority and best_of_n it is [n], the traces to choose from."""

    error_analysis: bool = False
    """Between rounds of sr, ask the policy for the errors of its solution."""

    distiller: str = "shared_topk"
    """How drafts become a workspace: global_summary, shared_topk, per_sample_topk, random_k, all, oracle, or
    ``package.module:function``, an async function of a rollout.distiller.DistilContext."""

    top_k: int = 4
    """Drafts that shared_topk, per_sample_topk, random_k and oracle keep (k)."""

    oracle: str = "only_correct"
    """Drafts that the oracle admits: only_correct or only_wrong. It knows the gold: for ablations only."""

    quorum: float = 1.0
    """Share of a round's drafts that its distil waits for; the others are then aborted on the worker."""

    workspace_tokens: int = 8192
    """The bound kappa on a workspace, in tokens of the policy's tokenizer."""

    drafts: list[int] = field(default_factory=list)
    """In training, the least and the most drafts of the first round, drawn for each problem, in place of the
    first width of the schedule. Empty: the schedule's."""

    top_k_range: list[int] = field(default_factory=list)
    """In training, the least and the most for top_k, drawn for each problem. Empty: top_k."""

    distillers: list[str] = field(default_factory=list)
    """In training, distillers of which one is drawn for each problem. Empty: distiller."""

    thinking: ThinkingConfig = field(default_factory=ThinkingConfig)
    prompts: PromptsConfig = field(default_factory=PromptsConfig)

    def __post_init__(self) -> None:
        choice_or_import("operator.kind", self.kind, KINDS, "package.module:Class")
        for option, names in (("distiller", [self.distiller]), ("distillers", self.distillers)):
            for name in names:
                choice_or_import(f"operator.{option}", name, DISTILLERS, "package.module:function")
        choice("operator.oracle", self.oracle, ("only_correct", "only_wrong"))
        at_least("operator.top_k", self.top_k, 1)
        at_least("operator.workspace_tokens", self.workspace_tokens, 16)
        for name in ("drafts", "top_k_range"):
            self._check_range(name, getattr(self, name))
        if not 0 < self.quorum <= 1:
            raise ValueError(f"operator.quorum must lie above 0 and up to 1, got {self.quorum}.")
        if not self.schedule or min(self.schedule) < 1:
            raise ValueError(f"operator.schedule must list widths of at least 1, got {self.schedule}.")
        if self.kind in KINDS:
            self._check_schedule()

    def _check_range(self, name: str, values: list[int]) -> None:
        if values and not (len(values) == 2 and 1 <= values[0] <= values[1]):
            raise ValueError(
                f"operator.{name} must be two numbers of at least 1, the lower first, got {values}; "
                "[] leaves it alone."
            )

    def _check_schedule(self) -> None:
        kind, schedule = self.kind, self.schedule
        if kind in EVALUATION_ONLY:
            if len(schedule) != 1:
                raise ValueError(
                    f"operator.schedule of {kind} must be [n], the traces to choose from; got {schedule}."
                )
            return
        if schedule[-1] != 1:
            raise ValueError(
                f"operator.schedule must end in 1, the call that gives the answer; got {schedule}. "
                f"Did you mean {[*schedule, 1]}?"
            )
        if kind == "trace" and schedule != [1]:
            raise ValueError(f"operator.schedule of trace must be [1], got {schedule}.")
        if kind == "sr" and (set(schedule) != {1} or len(schedule) < 2):
            raise ValueError(f"operator.schedule of sr must be [1,1,...], got {schedule}.")
        if kind == "pdr" and len(schedule) < 2:
            raise ValueError(f"operator.schedule of pdr needs two rounds or more, got {schedule}.")
