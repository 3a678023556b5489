"""Which traces get a teacher, and what it reads."""

import asyncio
import random

from fakes import Request, ScriptedPolicy, boxed, operator
from test_rollout_collector import _collector

from rollout.collection.collector import CollectedBatch
from rollout.collection.groups import ancestors
from rollout.records import TRACE


def _collected(script=boxed, **changes) -> CollectedBatch:
    options = {
        "problems_per_step": 8,
        "num_generations": 6,
        "num_workspaces": 3,
        "reuse_traces": True,
        "teaches": True,
        "pdr": operator((3, 1), "random_k", top_k=2),
    }
    return asyncio.run(_collector(ScriptedPolicy(script=script), **(options | changes)).collect(1))


def test_a_teacher_reads_a_workspace_of_the_same_problem_that_led_to_a_right_answer_without_the_trace():
    batch = _collected()
    operators = {r.problem.id: r for r in batch.rollouts if r.operator == "pdr"}
    taught = untaught = 0
    for group in batch.groups:
        for sample in group.samples:
            if group.key.role != TRACE:
                assert sample.teacher_prompt_ids == ()
                continue
            rollout = operators[group.key.problem_id]
            scores = {}
            for place in rollout.answers:
                read = {rollout.calls[i].completion_ids for i in ancestors(rollout, place)}
                if sample.call.completion_ids not in read:
                    of_context = scores.setdefault(rollout.calls[place].prompt_ids, [])
                    of_context.append(rollout.verdicts[place].is_correct)
            best = max((sum(right) / len(right) for right in scores.values()), default=0)
            if best == 0:
                assert sample.teacher_prompt_ids == ()
                untaught += 1
            else:
                right = scores[sample.teacher_prompt_ids]
                assert sum(right) / len(right) == best
                taught += 1
    assert taught and untaught
    assert batch.metrics["collect/taught"] == taught


def test_without_a_right_answer_or_a_usable_draft_there_is_no_teacher():
    def odd_when_refined(request: Request, rng: random.Random) -> str:
        return boxed(request, rng) if request.kind == "SOLVE" else "<think>t</think>\\boxed{1}"

    assert _collected(odd_when_refined).metrics["collect/taught"] == 0
    unclosed = _collected(lambda request, rng: boxed(request, rng).replace("</think>", ""))
    assert unclosed.metrics["collect/taught"] == 0
    assert any(sample.is_correct for group in unclosed.groups for sample in group.samples)


def test_no_trace_has_a_teacher_unless_asked_for():
    batch = _collected(teaches=False)
    assert "collect/taught" not in batch.metrics
    assert not any(sample.teacher_prompt_ids for group in batch.groups for sample in group.samples)
