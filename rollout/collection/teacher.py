"""On-policy distillation: which samples get a teacher, and in which context it scores them.

Either the teacher is the policy itself as it reads a workspace of the same problem (``taught``). A workspace
that was made from a trace would make that trace likely because it holds it, so no teacher reads the trace
that it scores. Or it is another model, which scores every sample in the sample's own context (``scored``).
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from rollout.collection.groups import ancestors
from rollout.groups import Group, Sample
from rollout.records import AMORTISE, ATTEMPTS, Rollout


class Teacher(Protocol):
    """Another model, which scores given tokens."""

    async def logprobs(self, prompt_ids: Sequence[int], completion_ids: Sequence[int]) -> Sequence[float]:
        """Returns the log-prob of each completion token, given all tokens before it, at temperature 1."""
        ...


async def scored(groups: Sequence[Group], teacher: Teacher) -> list[Group]:
    """Returns the groups with the teacher's log-probs of every sample of their own contexts.

    Amortised answers were sampled in another context than that of their group: they have no teacher.
    """

    async def of_sample(sample: Sample) -> Sample:
        call = sample.call
        if not call.completion_ids:  # aborted before its first token
            return sample
        return replace(
            sample, teacher_logprobs=tuple(await teacher.logprobs(call.prompt_ids, call.completion_ids))
        )

    async def of_group(group: Group) -> Group:
        if group.key.role == AMORTISE:
            return group
        return replace(group, samples=tuple(await asyncio.gather(*map(of_sample, group.samples))))

    return await asyncio.gather(*map(of_group, groups))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Context:
    """A prompt with a workspace, as the operator's answers read it."""

    prompt_ids: tuple[int, ...]
    accuracy: float
    """Share of its answers that are right."""
    read: frozenset[tuple[int, ...]]
    """Completions of the attempts that the workspace was made from."""


def taught(traces: Group, operator: Rollout) -> Group:
    """Returns a problem's traces, each with the prompt of its teacher if there is one.

    It is the context whose answers are right most often (the first of several), among those that led to a
    right answer and were not made from the trace.

    Args:
        traces: Samples of the plain problem.
        operator: The operator's rollout on the same problem.
    """
    contexts = sorted(_contexts(traces, operator), key=lambda context: -context.accuracy)
    samples = []
    for sample in traces.samples:
        own = sample.call.completion_ids
        prompts = [context.prompt_ids for context in contexts if own not in context.read]
        samples.append(replace(sample, teacher_prompt_ids=prompts[0] if prompts else ()))
    return replace(traces, samples=tuple(samples))


def _contexts(traces: Group, operator: Rollout) -> list[_Context]:
    answers: dict[tuple[int, ...], list[int]] = {}
    for place in operator.answers:
        answers.setdefault(operator.calls[place].prompt_ids, []).append(place)
    contexts = []
    for prompt_ids, places in answers.items():
        right = sum(operator.verdicts[place].is_correct for place in places)
        # Without a usable draft the answers read the plain problem, from which nothing is learned.
        if not right or prompt_ids == traces.prompt_ids:
            continue
        behind = [operator.calls[place] for place in ancestors(operator, places[0])]
        read = frozenset(call.completion_ids for call in behind if call.role in ATTEMPTS)
        contexts.append(_Context(prompt_ids=prompt_ids, accuracy=right / len(places), read=read))
    return contexts
