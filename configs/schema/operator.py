"""The improvement operator and its prompts."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from configs.schema.checks import above, at_least, choice, choice_or_import, share

DISTILLERS = (
    "global_summary",
    "recursive_summary",
    "shared_topk",
    "per_sample_topk",
    "random_k",
    "all",
    "oracle",
)
SUMMARIES = ("global_summary", "recursive_summary")
"""Distillers whose workspace is written by a call."""
KINDS = ("trace", "sr", "pdr", "adaptive", "majority", "best_of_n", "genselect")
EVALUATION_ONLY = ("majority", "best_of_n", "genselect")
"""Operators that select among answers and write none: there is nothing to train."""
PDR_KINDS = ("pdr", "adaptive")
"""Operators that are PDR in training."""
SOURCES = ("solution", "full", "tail")
OUTCOMES = ("answer", "mean", "majority")
OWN = ("source", "outcome", "draft_policy")
"""Options that a compared operator never takes from the run's own operator: only from its own file."""


@dataclass(kw_only=True)
class PromptsConfig:
    """The prompt texts of the calls, written for this project: the paper's are not public."""

    system: str = ""
    """System prompt: the first turn of every call; of a model without a chat template, a paragraph in front.
    Empty: none."""
    examples: str | None = None
    """File of JSON lines with question and answer (the whole text of a good completion), or the name of one
    in configs/operator/prompts: worked examples that traces and drafts of the first round read as earlier
    turns; without a chat template, as paragraphs. Lines that hold drafts, too, are worked refinements, which
    calls with a workspace read."""
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
    update: str = MISSING
    """Prompt of a summary that also reads the last workspace. Placeholders: {question}, {workspace},
    {drafts}, {kappa}."""
    select: str = MISSING
    """Prompt that asks for the number of the best of several solutions. Placeholders: {question},
    {drafts}."""


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
    """``trace`` (one chain of thought), ``sr`` (sequential refinement), ``pdr``, ``adaptive`` (PDR that stops
    when drafts agree), ``majority``, ``best_of_n``, ``genselect`` (calls that name the best of several
    solutions), or ``package.module:Class``, a subclass of rollout.operators.Operator."""

    schedule: list[int] = field(default_factory=lambda: [4, 1])
    """Number of calls in each round (its width), e.g. [8,4,1]. The last width is 1, the answer; with another
    outcome, the size of the population. For trace [1], for sr [1,1,...], for majority, best_of_n and
    genselect [n], the number of traces to select from."""

    outcome: str = "answer"
    """Result of a pdr in evaluation: ``answer``, the only call of the last round; ``mean``, all calls of the
    last round, whose accuracy is the population's mean; ``majority``, their most frequent answer. Training
    widens the last round to the group in each case."""

    error_analysis: bool = False
    """Ask the policy for the errors of its solution between rounds of sr."""

    draft_policy: str = "own"
    """Policy that writes the drafts: own (the one that refines) or endpoint (that of rollout.draft_url)."""

    distiller: str = "shared_topk"
    """Method that turns drafts into a workspace: global_summary, recursive_summary, shared_topk,
    per_sample_topk, random_k, all, oracle, or ``package.module:function``, an async function of a
    rollout.distiller.DistilContext."""

    source: str = "solution"
    """Part of a draft that is read: ``solution`` (what follows the thinking), ``full`` (the whole completion,
    thinking included) or ``tail`` (its last tail_tokens tokens). With full and tail, drafts that were cut
    or never closed their thinking are read, too. The report names a source other than solution."""

    tail_tokens: int = 4096
    """Number of tokens at the end of a draft that are read with source=tail."""

    top_k: int = 4
    """Number of drafts (k) that shared_topk, per_sample_topk, random_k and oracle keep. They are ranked only
    if more than k are usable."""

    oracle: str = "only_correct"
    """Drafts that the oracle admits: only_correct or only_wrong. It uses gold answers: for ablations only."""

    quorum: float = 1.0
    """Share of a round's drafts that its distil waits for; the others are then aborted on the worker."""

    workspace_tokens: int = 8192
    """Limit of a workspace (kappa), in tokens of the policy's tokenizer."""

    match_size: int = 0
    """Number of solutions that one call of genselect compares (G); winners meet again until one is left. 0:
    all solutions in one match."""

    votes: int = 1
    """Number of calls of genselect that vote in each match (V)."""

    agree_share: float = 0.75
    """Share of a round's drafts that must have equivalent answers for adaptive to stop."""

    agree_min: int = 3
    """Least number of drafts in a round after which adaptive may stop."""

    max_drafts: int = 0
    """Limit of the first round's drafts of adaptive: while they disagree, it draws as many again as the
    schedule's first width. 0: it draws no more."""

    drafts: list[int] = field(default_factory=list)
    """In training, the range [min, max] from which the number of drafts in the first round is drawn for each
    problem, in place of the schedule's first width. Empty: the schedule's."""

    top_k_range: list[int] = field(default_factory=list)
    """In training, the range [min, max] from which top_k is drawn for each workspace. Empty: top_k."""

    distillers: list[str] = field(default_factory=list)
    """In training, the distillers from which one is drawn for each problem. Empty: distiller."""

    thinking: ThinkingConfig = field(default_factory=ThinkingConfig)
    prompts: PromptsConfig = field(default_factory=PromptsConfig)

    def __post_init__(self) -> None:
        choice_or_import("operator.kind", self.kind, KINDS, "package.module:Class")
        for option, names in (("distiller", [self.distiller]), ("distillers", self.distillers)):
            for name in names:
                choice_or_import(f"operator.{option}", name, DISTILLERS, "package.module:function")
        choice("operator.draft_policy", self.draft_policy, ("own", "endpoint"))
        if self.draft_policy != "own" and self.quorum < 1:
            raise ValueError(
                f"operator.quorum is {self.quorum}, but the drafts come from a chat endpoint "
                "(operator.draft_policy=endpoint), which cannot return part of a draft. Set it to 1."
            )
        choice("operator.oracle", self.oracle, ("only_correct", "only_wrong"))
        at_least("operator.top_k", self.top_k, 1)
        choice("operator.source", self.source, SOURCES)
        choice("operator.outcome", self.outcome, OUTCOMES)
        at_least("operator.tail_tokens", self.tail_tokens, 1)
        at_least("operator.workspace_tokens", self.workspace_tokens, 16)
        self._check_choices()
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

    def _check_choices(self) -> None:
        """Checks the options of genselect and adaptive."""
        if self.match_size < 0 or self.match_size == 1:
            raise ValueError(
                f"operator.match_size must be 0 (all solutions in one match) or at least 2, got "
                f"{self.match_size}."
            )
        at_least("operator.votes", self.votes, 1)
        above("operator.agree_share", self.agree_share, 0)
        share("operator.agree_share", self.agree_share)
        at_least("operator.agree_min", self.agree_min, 2)
        if self.kind == "adaptive" and 0 < self.max_drafts < self.schedule[0]:
            raise ValueError(
                f"operator.max_drafts is {self.max_drafts}, but the first round of operator.schedule has "
                f"{self.schedule[0]} drafts. Raise it, or set 0 to draw no more."
            )

    def _check_schedule(self) -> None:
        kind, schedule = self.kind, self.schedule
        if kind in EVALUATION_ONLY:
            if len(schedule) != 1:
                raise ValueError(
                    f"operator.schedule of {kind} must be [n], the traces to select from; got {schedule}."
                )
            return
        if self.outcome != "answer":
            self._check_population()
        elif schedule[-1] != 1:
            raise ValueError(
                f"operator.schedule must end in 1, the call that writes the answer; got {schedule}. "
                f"Did you mean {[*schedule, 1]}?"
            )
        if kind == "trace" and schedule != [1]:
            raise ValueError(f"operator.schedule of trace must be [1], got {schedule}.")
        if kind == "sr" and (set(schedule) != {1} or len(schedule) < 2):
            raise ValueError(f"operator.schedule of sr must be [1,1,...], got {schedule}.")
        if kind in PDR_KINDS and len(schedule) < 2:
            raise ValueError(f"operator.schedule of {kind} needs two rounds or more, got {schedule}.")

    def _check_population(self) -> None:
        if self.kind != "pdr":
            raise ValueError(f"operator.outcome is {self.outcome}, which is for pdr; kind is {self.kind}.")
        if self.schedule[-1] < 2:
            raise ValueError(
                f"operator.outcome is {self.outcome}, so operator.schedule must end in the size of the "
                f"population, at least 2; got {self.schedule}."
            )


def operator_name(spec: object) -> str:
    """Returns the name in reports of one entry of ``operators``: ``pdr``, or ``pdr(schedule=[8,4,1])``.

    Args:
        spec: The name of a file in configs/operator, or a mapping of one such name to options.

    Raises:
        ValueError: If it is neither.
    """
    name, options = operator_spec(spec)
    if "name" in options:
        return str(options["name"])
    own = ",".join(f"{key}={value}".replace(" ", "").replace("'", "") for key, value in options.items())
    return f"{name}({own})" if own else name


def operator_spec(spec: object) -> tuple[str, dict[str, Any]]:
    """Returns the name of the file and the options of one entry of ``operators``.

    Raises:
        ValueError: If it is neither a name nor a mapping of one name to options.
    """
    if isinstance(spec, str):
        return spec, {}
    if isinstance(spec, Mapping) and len(spec) == 1:
        name, options = next(iter(spec.items()))
        if isinstance(name, str) and isinstance(options, Mapping):
            return name, {str(key): value for key, value in options.items()}
    raise ValueError(
        f"operators holds {spec!r}. Write the name of an operator, or one with its options: "
        "{pdr:{schedule:[8,4,1]}}."
    )
