"""The improvement operator and its prompts."""

from dataclasses import dataclass, field

from omegaconf import MISSING

from configs.schema.checks import at_least, choice, choice_or_import

DISTILLERS = ("global_summary", "shared_topk", "per_sample_topk", "random_k", "all", "oracle")
KINDS = ("trace", "sr", "pdr", "majority", "best_of_n")
EVALUATION_ONLY = ("majority", "best_of_n")
"""Operators that select among answers and write none: there is nothing to train."""


@dataclass(kw_only=True)
class PromptsConfig:
    """The prompt texts of the calls, written for this project: the paper's are not public."""

    solve: str = MISSING
    """Prompt of a trace or a draft. Placeholder: {question}."""
    draft: str = MISSING
    """Text of one draft in a workspace. Placeholders: {number}, {solution}. Solutions that contain the word
    before {number}, in any case, are fenced."""
    refine: str = MISSING
    """Prompt of a refinement. Placeholders: {question}, {workspace}."""
    distil: str = MISSING
    """Prompt of a workspace summary. Placeholders: {question}, {drafts}, {kappa}."""
    verify: str = MISSING
    """Prompt of a verification. Placeholders: {question}, {solution}."""
    analyse: str = MISSING
    """Prompt that asks for the errors of a solution. Placeholders: {question}, {solution}."""
    analysis: str = MISSING
    """Text of the workspace made from an error analysis. Placeholders: {draft}, {analysis}."""


@dataclass(kw_only=True)
class ThinkingConfig:
    """The marks around thinking, and the text that closes it by force."""

    open: str = "<think>"
    """Mark that opens the thinking part of a completion."""

    close: str = "</think>"
    """Mark that closes it. What follows is the solution, the only part that may enter a workspace."""

    force: str = "\n\nTime is up. I give my final answer now.\n</think>\n\n"
    """Text inserted when thinking reaches rollout.thinking_tokens; must contain the closing mark."""

    def __post_init__(self) -> None:
        if self.close not in self.force:
            raise ValueError(
                f"operator.thinking.force must contain operator.thinking.close, which is {self.close!r}; "
                f"got {self.force!r}."
            )


@dataclass(kw_only=True)
class OperatorConfig:
    """The improvement operator, which turns drafts into a workspace and a workspace into an answer."""

    name: str = "pdr"
    """Name in reports; that of its file in configs/operator."""

    kind: str = "pdr"
    """``trace`` (one chain of thought), ``sr`` (sequential refinement), ``pdr``, ``majority``, ``best_of_n``,
    or ``package.module:Class``, a subclass of rollout.operators.Operator."""

    schedule: list[int] = field(default_factory=lambda: [4, 1])
    """Number of calls in each round (its width), e.g. [8,4,1]. The last width is 1, the answer. For trace
    [1], for sr [1,1,...], for majority and best_of_n [n], the number of traces to select from."""

    error_analysis: bool = False
    """Ask the policy for the errors of its solution between rounds of sr."""

    distiller: str = "shared_topk"
    """Method that turns drafts into a workspace: global_summary, shared_topk, per_sample_topk, random_k, all,
    oracle, or ``package.module:function``, an async function of a rollout.distiller.DistilContext."""

    top_k: int = 4
    """Number of drafts (k) that shared_topk, per_sample_topk, random_k and oracle keep. They are ranked only
    if more than k are usable."""

    oracle: str = "only_correct"
    """Drafts that the oracle admits: only_correct or only_wrong. It uses gold answers: for ablations only."""

    quorum: float = 1.0
    """Share of a round's drafts that its distil waits for; the others are then aborted on the worker."""

    workspace_tokens: int = 8192
    """Limit of a workspace (kappa), in tokens of the policy's tokenizer."""

    drafts: list[int] = field(default_factory=list)
    """In training, the range [min, max] from which the number of drafts in the first round is drawn for each
    problem, in place of the schedule's first width. Empty: the schedule's."""

    top_k_range: list[int] = field(default_factory=list)
    """In training, the range [min, max] from which top_k is drawn for each problem. Empty: top_k."""

    distillers: list[str] = field(default_factory=list)
    """In training, the distillers from which one is drawn for each problem. Empty: distiller."""

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
                "[] turns it off."
            )

    def _check_schedule(self) -> None:
        kind, schedule = self.kind, self.schedule
        if kind in EVALUATION_ONLY:
            if len(schedule) != 1:
                raise ValueError(
                    f"operator.schedule of {kind} must be [n], the traces to select from; got {schedule}."
                )
            return
        if schedule[-1] != 1:
            raise ValueError(
                f"operator.schedule must end in 1, the call that writes the answer; got {schedule}. "
                f"Did you mean {[*schedule, 1]}?"
            )
        if kind == "trace" and schedule != [1]:
            raise ValueError(f"operator.schedule of trace must be [1], got {schedule}.")
        if kind == "sr" and (set(schedule) != {1} or len(schedule) < 2):
            raise ValueError(f"operator.schedule of sr must be [1,1,...], got {schedule}.")
        if kind == "pdr" and len(schedule) < 2:
            raise ValueError(f"operator.schedule of pdr needs two rounds or more, got {schedule}.")
