"""The records that cross borders: problem, call, rollout, group.

All are frozen. A *call* is one sampled sequence (what is trained on); a *rollout* is the whole graph of
calls on one problem; a *group* is a set of samples drawn from one context and compared with one another.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

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
REFINE = "refine"
"""A solution attempt given problem and workspace."""
ATTEMPTS = (TRACE, DRAFT, REFINE)
"""Roles whose calls answer the problem, and so have a verdict."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """A question with its gold answer."""

    id: str
    question: str
    answer: str
    source: str = ""


class Verdict(Protocol):
    """What the rollout side needs to know of a scorer's verdict."""

    @property
    def status(self) -> str: ...
    @property
    def answer(self) -> str | None: ...
    @property
    def is_correct(self) -> bool: ...


class Grader(Protocol):
    """What rollouts need of a verifier; passed in, so that they know none."""

    async def score(self, problem: Problem, completion: str) -> Verdict:
        """The verdict on a whole completion, thinking included."""
        ...

    def answer(self, completion: str) -> str | None:
        """The answer that a completion gives, whether right or wrong; None if it gives none."""
        ...

    async def same(self, first: str, second: str) -> bool:
        """Whether two answers are mathematically equivalent."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """What one call is given: as text for endpoints that chat, as ids for our own workers."""

    text: str
    """The user's turn, without the chat template."""
    ids: tuple[int, ...]
    """The same with its template, ready to be completed."""
    context: str
    """Names the prefix that calls share; a call that goes on after a forced close keeps its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How one request is sampled. ``max_tokens`` counts completion tokens."""

    temperature: float
    top_p: float
    max_tokens: int
    seed: int
    stop_token_ids: tuple[int, ...] = ()
    """Ids that end the completion besides the end of sequence; the id itself is kept."""


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
    """What an endpoint returned for one sample: ids and log-probs, never re-tokenised text."""

    token_ids: tuple[int, ...]
    """Empty if the endpoint gives only text."""
    logprobs: tuple[float, ...]
    finish: str
    """``stop`` (end of sequence), ``length`` (``max_tokens`` reached) or ``abort`` (by ``Sampler.abort``)."""
    versions: tuple[VersionSpan, ...]
    usage: Usage
    text: str | None = None
    """Given by endpoints that chat, in place of ids."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One model call, the sequence that is trained on.

    Example: thinking ran into its budget, so it was closed by force (F), and the policy went on to
    write its solution (S)::

        Call(prompt_ids=X + C,                        # problem, then workspace
             completion_ids=T + F + S,
             train_mask=(True,) * len(T) + (False,) * len(F) + (True,) * len(S), ...)

    ``parents`` are positions in ``Rollout.calls`` whose text this prompt was built from.
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
    """What the split into thinking and solution found: ``ok``, or what is malformed (``thinking.LABELS``)."""
    usage: Usage
    seconds: float
    is_given: bool = False
    """Sampled for another rollout and handed to this one, as a draft: it costs nothing here."""

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
    """Text of at most kappa tokens, made only of post-thinking solutions.

    ``parents`` are the calls it was made from; ``truncated`` says that the bound cut something.
    """

    text: str
    parents: tuple[int, ...]
    truncated: bool = False

    @property
    def is_empty(self) -> bool:
        """No draft had a usable solution (or it is the first round): solve the plain problem."""
        return not self.text


EMPTY = Workspace(text="", parents=())
"""C(0)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """What an operator came to, as positions of its calls."""

    calls: tuple[int, ...]
    """The answers: one in evaluation, a group in training."""
    waited_for: tuple[int, ...] = ()
    """Calls that are no parents of the answer, but that its choice waited for: votes, verifications."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """The graph of calls that an operator made on one problem."""

    problem: Problem
    operator: str
    calls: tuple[Call, ...]
    answers: tuple[int, ...]
    """Positions of the answers in ``calls``: one in evaluation, ``num_generations`` in training."""
    waited_for: tuple[int, ...] = ()
    """See ``Answers``."""
    verdicts: Mapping[int, Verdict] = field(default_factory=dict)
    """Verdict of each scored call, by its position."""
    counts: Mapping[str, int] = field(default_factory=dict)
    """How often something worth counting happened: labels of solutions, cut workspaces, fallbacks."""

    def drafts_behind(self, place: int) -> list[int]:
        """The attempts that a call's workspace was made from, be it pasted or summarised."""
        drafts: list[int] = []
        for parent in self.calls[place].parents:
            if self.calls[parent].role in ATTEMPTS:
                drafts.append(parent)
            elif self.calls[parent].role == DISTIL:
                drafts += self.drafts_behind(parent)
        return drafts


def context_key(prompt_ids: tuple[int, ...]) -> str:
    """A short, stable name of a context, for group keys and logs."""
    return hashlib.blake2s(repr(prompt_ids).encode(), digest_size=8).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupKey:
    """What must be equal for two samples to share a baseline."""

    problem_id: str
    role: str
    round: int
    context: str


def call_id(rollout: int, place: int) -> str:
    """Names call ``place`` of rollout number ``rollout`` of a step, all the way to its loss: ``"17.4"``."""
    return f"{rollout}.{place}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One call with its reward. ``reward_parts`` are the terms that ``reward`` is the weighted sum of."""

    call_id: str
    """See ``call_id``."""
    call: Call
    reward: float
    is_correct: bool
    status: str
    reward_parts: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Samples drawn from one ``prompt_ids``. Groups may differ in size; a group of one has no baseline."""

    key: GroupKey
    prompt_ids: tuple[int, ...]
    samples: tuple[Sample, ...]

    def __post_init__(self) -> None:
        for sample in self.samples:
            assert sample.call.prompt_ids == self.prompt_ids, "a group shares one context"
