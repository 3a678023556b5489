"""On-policy distillation: which traces get a teacher, and in which context it scores them.

The teacher is the policy itself as it reads a workspace of the same problem. A workspace that was made from a
trace would make that trace likely because it holds it, so no teacher reads the trace that it scores.
"""

from dataclasses import dataclass, replace

from rollout.collection.groups import ancestors
from rollout.records import ATTEMPTS, Group, Rollout


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
