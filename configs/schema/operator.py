"""The improvement operator and its prompts."""

from dataclasses import dataclass, field

from omegaconf import MISSING

from configs.schema.checks import at_least, choice

DISTILLERS = ("global_summary", "shared_topk", "per_sample_topk", "random_k")
OPERATORS = ("trace", "sr", "pdr")


@dataclass(kw_only=True)
class PromptsConfig:
    """The texts of the five kinds of call. The paper's own are not public; these are ours."""

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


@dataclass(kw_only=True)
class OperatorConfig:
    """The improvement operator: how drafts become a workspace, and a workspace an answer."""

    name: str = "pdr"
    """``trace`` (one chain of thought), ``sr`` (sequential refinement) or ``pdr``."""

    schedule: list[int] = field(default_factory=lambda: [4, 1])
    """Calls in each round, e.g. [8,4,1]. The last width is 1: the answer. trace is [1], sr is [1,1,...]."""

    distiller: str = "shared_topk"
    """How drafts become a workspace: global_summary, shared_topk, per_sample_topk or random_k."""

    top_k: int = 4
    """Drafts that a top-k or random-k distiller keeps (k)."""

    workspace_tokens: int = 8192
    """The bound kappa on a workspace, in tokens of the policy's tokenizer."""

    think_open: str = "<think>"
    """Opens the thinking part of a completion."""

    think_close: str = "</think>"
    """Closes it. What follows is the solution, the only part that may enter a workspace."""

    prompts: PromptsConfig = field(default_factory=PromptsConfig)

    def __post_init__(self) -> None:
        choice("operator.name", self.name, OPERATORS)
        choice("operator.distiller", self.distiller, DISTILLERS)
        at_least("operator.top_k", self.top_k, 1)
        at_least("operator.workspace_tokens", self.workspace_tokens, 16)
        if not self.schedule or min(self.schedule) < 1:
            raise ValueError(f"operator.schedule must list widths of at least 1, got {self.schedule}.")
        if self.schedule[-1] != 1:
            raise ValueError(
                f"operator.schedule must end in 1, the call that gives the answer; got {self.schedule}. "
                f"Did you mean {[*self.schedule, 1]}?"
            )
        if self.name == "trace" and self.schedule != [1]:
            raise ValueError(f"operator.schedule of trace must be [1], got {self.schedule}.")
        if self.name == "sr" and (set(self.schedule) != {1} or len(self.schedule) < 2):
            raise ValueError(f"operator.schedule of sr must be [1,1,...], got {self.schedule}.")
        if self.name == "pdr" and len(self.schedule) < 2:
            raise ValueError(f"operator.schedule of pdr needs two rounds or more, got {self.schedule}.")
