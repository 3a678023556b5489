"""Samples that are compared with one another: what ``train`` reads of a step.

A *group* is a set of samples drawn from one context.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from rollout.records import Call


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupKey:
    """Key of a group: two samples share a baseline only if their keys are equal."""

    problem_id: str
    role: str
    round: int
    context: str


def call_id(rollout: int, place: int) -> str:
    """Returns the name of call ``place`` of a step's rollout ``rollout``, kept up to its loss: ``"17.4"``."""
    return f"{rollout}.{place}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One call with its reward. ``reward_parts`` are the terms whose weighted sum is ``reward``."""

    call_id: str
    """See ``call_id``."""
    call: Call
    reward: float
    is_correct: bool
    status: str
    reward_parts: Mapping[str, float] = field(default_factory=dict)
    teacher_prompt_ids: tuple[int, ...] = ()
    """Context in which the policy, as its own teacher, scores the completion; else empty."""
    teacher_logprobs: tuple[float, ...] = ()
    """Log-probs of the completion's tokens under another model as the teacher; else empty."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Samples drawn from one ``prompt_ids``. Groups may differ in size; a group of one has no baseline."""

    key: GroupKey
    prompt_ids: tuple[int, ...]
    samples: tuple[Sample, ...]

    def __post_init__(self) -> None:
        for sample in self.samples:
            assert sample.call.prompt_ids == self.prompt_ids, "a group shares one context"
