"""What the run page shows, as data: these classes are the JSON that the page embeds."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """A part of a prompt."""

    text: str
    call: int | None = None
    """Position of the call whose solution this part is; None for the rest of the prompt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptView:
    """A prompt that calls of a rollout share."""

    segments: tuple[Segment, ...]
    """Empty if the prompt's text is not known."""
    left_out: int = 0
    """Number of characters left out at the start."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CreditView:
    """Reward and advantage of a call in training."""

    reward: float | None
    parts: Mapping[str, float]
    """Terms whose weighted sum is the reward."""
    advantage: float | None
    group_size: int
    dropped: str | None
    """Reason why its group was not trained on, or None."""
    trained_tokens: int | None
    loss: float | None
    """Contribution to the loss; None if the call was not trained on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CallView:
    """A node of the graph."""

    role: str
    round: int
    parents: tuple[int, ...]
    prompt: int
    """Position in ``RolloutView.prompts``."""
    reads_workspace: bool
    """True for an attempt whose prompt holds a workspace; calls with the same prompt share the workspace."""
    is_fallback: bool
    """True for a refinement that reads the plain problem, because no draft was usable."""
    thinking: str
    thinking_left_out: int
    """Number of characters left out of the start of ``thinking``; for ``solution`` in the next field."""
    solution: str
    solution_left_out: int
    finish: str
    label: str
    verdict: str | None
    answer: str | None
    found_by: str
    """How the answer was found; empty if it was not recorded."""
    reason: str
    """Reason for the verdict; empty if it needs none or was not recorded."""
    prompt_tokens: int
    completion_tokens: int
    versions: tuple[int, ...]
    """Policy versions that sampled its tokens."""
    credit: CreditView | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutView:
    """The graph of calls on one problem."""

    source: str
    """The step or phase: ``step 5``, ``evaluation after``, or ``evaluation``."""
    operator: str
    problem: str
    question: str
    gold: str
    flags: tuple[str, ...]
    """See ``flags.FLAGS``."""
    right: int
    """Right answers, of ``answers``; for drafts see ``drafts_right``."""
    answers: int
    drafts_right: int
    drafts: int
    tokens: int
    """Tokens in and out of all calls; a prompt counts once for each call."""
    chosen: tuple[int, ...]
    """Positions of the calls that are the rollout's answers."""
    prompts: tuple[PromptView, ...]
    calls: tuple[CallView, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceView:
    """A step or phase whose rollouts were read, and what of it the page holds."""

    source: str
    rollouts: int
    """Rollouts that were read."""
    shown: int
    flags: Mapping[str, int]
    """Number of read rollouts with each flag."""
    note: str = ""
    """What was not read, in words; empty if all of it was."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RowView:
    """A row of ``report.json``: an operator in a phase and round."""

    operator: str
    phase: str
    round: int
    final: bool
    problems: int
    samples: int
    accuracy: float
    ci_low: float
    ci_high: float
    b_seq: float
    b_total: float
    truncated: float | None
    no_answer: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class DifferenceView:
    """A paired difference of accuracies."""

    a: str
    b: str
    difference: float
    ci_low: float
    ci_high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """An event of a step, drawn into the curves."""

    step: int
    kind: str
    """``alarm`` or ``rollback``."""
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Curves:
    """Metrics over steps: ``values[name][i]`` belongs to ``steps[i]``; None where it was not logged."""

    steps: tuple[int, ...] = ()
    values: Mapping[str, tuple[float | None, ...]] = field(default_factory=dict)
    note: str = ""
    """What was left out, in words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunView:
    """One run or evaluation."""

    name: str
    kind: str
    """``training`` or ``evaluation``."""
    facts: Mapping[str, str]
    """What ran, in the order to show."""
    warnings: tuple[str, ...] = ()
    alarms: tuple[str, ...] = ()
    rows: tuple[RowView, ...] = ()
    differences: tuple[DifferenceView, ...] = ()
    curves: Curves = Curves()
    marks: tuple[Mark, ...] = ()
    sources: tuple[SourceView, ...] = ()
    rollouts: tuple[RolloutView, ...] = ()
    notes: tuple[str, ...] = ()
    """Files that are missing or could not be read, one sentence each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """The whole page."""

    title: str
    written: str
    """Time of writing."""
    runs: tuple[RunView, ...]
    flags: Mapping[str, str]
    """Definition of each flag."""


Options = Mapping[str, Any]
"""The content of ``config.yaml``."""
