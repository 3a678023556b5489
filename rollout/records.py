"""The records of sampling: problem, prompt, completion, call, workspace, rollout.

All are frozen. A *call* is one sampled sequence (what is trained on); a *rollout* is the whole graph of
calls on one problem.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from rollout.turns import Turn
from rollout.verdicts import Verdict

TRACE = "trace"
"""A plain long chain of thought: the only call of its rollout."""
DRAFT = "draft"
"""A solution attempt that a distiller may read."""
DISTIL = "distil"
"""A call that writes a workspace from drafts."""
VERIFY = "verify"
"""A call that judges one draft, so that top-k distillers can rank."""
ANALYSE = "analyse"
"""A call that lists the errors of one solution, for the next round of sequential refinement."""
SELECT = "select"
"""A call that reads several solutions and names the best by its number."""
REFINE = "refine"
"""A solution attempt given problem and workspace."""
AMORTISE = "amortise"
"""An operator's answer as a sample of the plain problem: the role of a group, never that of a call made."""
ATTEMPTS = (TRACE, DRAFT, REFINE)
"""Roles whose calls answer the problem and therefore have a verdict."""

OWN = "own"
"""The policy that the run trains or evaluates."""
ENDPOINT = "endpoint"
"""Another policy, at ``rollout.draft_url``."""
REFERENCE = "reference"
"""The frozen initial policy, on workers that receive no weights."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """A question with its gold answer."""

    id: str
    question: str
    answer: str
    source: str = ""
    columns: str = ""
    """The other fields of its row as a JSON object, which rewards may read; empty if there are none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """Input of one call: as text for chat endpoints, as ids for the run's own workers."""

    text: str
    """The user's turn, without the chat template."""
    ids: tuple[int, ...]
    """Token ids of all turns in the chat template, ready to be completed."""
    context: str
    """Name of the prefix that calls share; a call that continues after a forced close keeps it."""
    before: tuple[Turn, ...] = ()
    """Turns before the user's: the system prompt and the examples."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """Sampling parameters of one request. ``max_tokens`` counts completion tokens."""

    temperature: float
    top_p: float
    max_tokens: int
    seed: int
    stop_token_ids: tuple[int, ...] = ()
    """Ids that end the completion, in addition to the end of sequence; the id itself is kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Tokens in and tokens out of one call."""

    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionSpan:
    """Completion tokens ``[start, end)`` were sampled by policy ``version``."""

    version: int
    start: int
    end: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """One sample as the endpoint returned it: ids and log-probs, never re-tokenised text."""

    token_ids: tuple[int, ...]
    """Empty if the endpoint returns only text."""
    logprobs: tuple[float, ...]
    """One entry per token id: its log-prob when it was sampled."""
    finish: str
    """``stop`` (end of sequence), ``length`` (``max_tokens`` reached) or ``abort`` (by ``Sampler.abort``)."""
    versions: tuple[VersionSpan, ...]
    usage: Usage
    text: str | None = None
    """Returned by chat endpoints in place of ids."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One model call: the sequence that is trained on.

    Example: the thinking (T) reached its budget, so it was closed by force (F), and the policy then
    wrote its solution (S)::

        Call(prompt_ids=X + C,                        # problem, then workspace
             completion_ids=T + F + S,
             train_mask=(True,) * len(T) + (False,) * len(F) + (True,) * len(S), ...)

    ``completion_ids``, ``sampler_logprobs`` and ``train_mask`` have one entry per completion token.
    ``parents`` are the positions in ``Rollout.calls`` of the calls whose text this prompt was built from.
    """

    role: str
    round: int
    parents: tuple[int, ...]
    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    sampler_logprobs: tuple[float, ...]
    train_mask: tuple[bool, ...]
    versions: tuple[VersionSpan, ...]
    finish: str
    text: str
    """The decoded completion; used to build the next prompt and to score, never to train."""
    label: str
    """Result of the split into thinking and solution: ``ok``, or the defect (``thinking.LABELS``)."""
    usage: Usage
    seconds: float
    is_given: bool = False
    """True for a draft that was sampled for another rollout: it costs nothing here."""
    policy: str = OWN
    """Policy that wrote it: ``own``, ``endpoint`` or ``reference``. Only ``own`` has versions that matter."""

    @property
    def policy_version(self) -> int:
        """The oldest policy version that sampled a token of this call."""
        return min(span.version for span in self.versions)

    @property
    def num_tokens(self) -> int:
        """Tokens in plus tokens out."""
        return self.usage.prompt_tokens + self.usage.completion_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Workspace:
    """Text of at most kappa tokens, of post-thinking solutions unless ``operator.source`` names thoughts.

    ``parents`` are the calls it was made from; ``truncated`` is True if the bound cut its content.
    """

    text: str
    parents: tuple[int, ...]
    truncated: bool = False

    @property
    def is_empty(self) -> bool:
        """True if no draft had a usable solution, or in the first round: calls get the plain problem."""
        return not self.text


EMPTY = Workspace(text="", parents=())
"""C(0): the workspace of the first round."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """Result of an operator, as positions of its calls."""

    calls: tuple[int, ...]
    """The answers: one in evaluation, or a population whose mean counts; a group in training."""
    waited_for: tuple[int, ...] = ()
    """Calls that the choice of the answer waited for without being its parents: votes, verifications."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """The graph of calls that an operator made on one problem."""

    problem: Problem
    operator: str
    calls: tuple[Call, ...]
    answers: tuple[int, ...]
    """Positions of the answers in ``calls``: one in evaluation, or a population whose mean counts
    (``operator.outcome=mean``); ``num_generations`` in training."""
    waited_for: tuple[int, ...] = ()
    """See ``Answers``."""
    verdicts: Mapping[int, Verdict] = field(default_factory=dict)
    """Verdict of each scored call, by its position."""
    counts: Mapping[str, int] = field(default_factory=dict)
    """Number of events, by name: labels of solutions, cut workspaces, fallbacks."""

    def drafts_behind(self, place: int) -> list[int]:
        """Same as the function ``drafts_behind``, for a call of this rollout."""
        return drafts_behind(self.calls, place)


class Linked(Protocol):
    """The part of a call that tells where it stands in its rollout's graph."""

    @property
    def role(self) -> str: ...
    @property
    def parents(self) -> tuple[int, ...]: ...


def drafts_behind(calls: Sequence[Linked | None], place: int) -> list[int]:
    """Returns the attempts that a call's workspace was made from, pasted or summarised.

    ``calls`` are those of a rollout; None for one that has not returned.
    """
    drafts: list[int] = []
    call = calls[place]
    for parent in call.parents if call is not None else ():
        source = calls[parent]
        if source is not None and source.role in ATTEMPTS:
            drafts.append(parent)
        elif source is not None and source.role == DISTIL:
            drafts += drafts_behind(calls, parent)
    return drafts


def context_key(prompt_ids: tuple[int, ...]) -> str:
    """Returns a short, stable name of a context, for group keys and logs."""
    return hashlib.blake2s(repr(prompt_ids).encode(), digest_size=8).hexdigest()
