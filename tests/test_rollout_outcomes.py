"""What a rollout is reduced to."""

import json
from dataclasses import replace

import pytest
from fakes import Reply, Request, ScriptedPolicy, operator, roll

from configs.thinking import ThinkingMarks
from rollout.budget import budget
from rollout.evaluation.outcomes import outcome_from_json, outcome_to_json, reduce
from rollout.records import ATTEMPTS, DISTIL, DRAFT, REFINE, VERIFY

MARKS = ThinkingMarks()


def _even(request: Request, rng) -> str:
    return f"\\boxed{{{2 * rng.randrange(50)}}}"


def test_an_outcome_has_the_budget_and_verdict_of_the_answer():
    rollout = roll(ScriptedPolicy(), operator((4, 1)))
    (answer,) = rollout.answers
    result = reduce(rollout, 3, MARKS, started=5.0, seconds=2.5)
    spent = budget(rollout, answer)
    assert (result.b_seq, result.b_total) == (spent.b_seq, spent.b_total)
    assert result.correct == rollout.verdicts[answer].is_correct
    assert result.status == rollout.verdicts[answer].status
    assert result.final.answer == rollout.verdicts[answer].answer
    assert result.key == ("p", "pdr", 3)
    assert (result.started, result.seconds) == (5.0, 2.5)
    assert result.completion_tokens == sum(call.usage.completion_tokens for call in rollout.calls)


@pytest.mark.parametrize(
    ("schedule", "distiller"),
    [((1,), "random_k"), ((1, 1, 1), "random_k"), ((8, 4, 1), "per_sample_topk"), ((4, 1), "global_summary")],
)
def test_every_attempt_stands_in_its_round_once(schedule: tuple[int, ...], distiller: str):
    rollout = roll(ScriptedPolicy(), operator(schedule, distiller, top_k=2))
    result = reduce(rollout, 0, MARKS)
    assert tuple(len(each.attempts) for each in result.rounds) == schedule
    answers = [rollout.verdicts[i].answer for i, call in enumerate(rollout.calls) if call.role in ATTEMPTS]
    assert sorted(a.answer or "" for each in result.rounds for a in each.attempts) == sorted(
        map(str, answers)
    )


def test_a_round_costs_what_it_takes_to_stop_there():
    rollout = roll(ScriptedPolicy(), operator((4, 2, 1), "shared_topk", top_k=2))
    tokens = {
        role: [c.num_tokens for c in rollout.calls if c.role == role] for role in (DRAFT, VERIFY, REFINE)
    }
    result = reduce(rollout, 0, MARKS)
    assert len(tokens[VERIFY]) == 4
    middle = sum(c.num_tokens for c in rollout.calls if c.role == REFINE and c.round == 1)
    assert result.rounds[0].b_total == sum(tokens[DRAFT])
    assert result.rounds[1].b_total == sum(tokens[DRAFT]) + sum(tokens[VERIFY]) + middle
    assert result.rounds[2].b_total == sum(c.num_tokens for c in rollout.calls)
    assert [a.b_seq for a in result.rounds[0].attempts] == tokens[DRAFT]


def test_an_answer_chosen_among_drafts_is_a_round_of_its_own():
    rollout = roll(ScriptedPolicy(), operator((4, 1)))
    drafts = tuple(call for call in rollout.calls if call.role == DRAFT)
    chosen = replace(rollout, calls=drafts, answers=(2,), verdicts={i: rollout.verdicts[i] for i in range(4)})
    result = reduce(chosen, 0, MARKS)
    assert [len(each.attempts) for each in result.rounds] == [4, 1]
    assert result.final.answer == result.rounds[0].attempts[2].answer
    assert result.final.copied is None
    assert result.b_total == result.rounds[0].b_total == sum(call.num_tokens for call in drafts)


@pytest.mark.parametrize("name", ["majority", "best_of_n"])
def test_choosers_wait_for_all_drafts_and_choose_one_of_them(name: str):
    rollout = roll(ScriptedPolicy(), operator((5,), name=name))
    result = reduce(rollout, 0, MARKS)
    drafts = [call.num_tokens for call in rollout.calls if call.role == DRAFT]
    assert [len(each.attempts) for each in result.rounds] == [5, 1]
    assert result.final.answer in {a.answer for a in result.rounds[0].attempts}
    assert [a.b_seq for a in result.rounds[0].attempts] == drafts
    assert result.rounds[0].b_total == sum(drafts)
    assert result.b_total == sum(call.num_tokens for call in rollout.calls)
    assert result.b_seq >= max(drafts)


def test_an_aborted_draft_is_paid_for_but_is_no_attempt():
    rollout = roll(ScriptedPolicy(), operator((4, 1), "random_k"))
    calls = [replace(call, finish="abort") if i == 1 else call for i, call in enumerate(rollout.calls)]
    result = reduce(replace(rollout, calls=tuple(calls)), 0, MARKS)
    assert [len(each.attempts) for each in result.rounds] == [3, 1]
    assert result.b_total == sum(call.num_tokens for call in calls)
    assert result.rounds[0].b_total == sum(call.num_tokens for call in calls[:4])


@pytest.mark.parametrize("distiller", ["random_k", "global_summary"])
def test_a_copy_is_a_solution_that_a_draft_behind_the_workspace_has_too(distiller: str):
    def script(request: Request, rng) -> str:
        thought = rng.randrange(10**6)
        if request.kind == "REFINE" and "question new" in request.prompt:
            return f"<think>{thought}</think>another way: \\boxed{{4}}"
        return f"<think>{thought}</think>\n the  sum is \\boxed{{4}}"

    copied = reduce(roll(ScriptedPolicy(script), operator((2, 1), distiller)), 0, MARKS)
    fresh = reduce(roll(ScriptedPolicy(script), operator((2, 1), distiller), name="new"), 0, MARKS)
    assert (copied.final.copied, fresh.final.copied) == (True, False)
    assert [a.copied for a in copied.rounds[0].attempts] == [None, None]


def test_a_cut_completion_is_truncated_and_labels_are_kept():
    def script(request: Request, rng) -> Reply:
        return Reply(text="<think>on and on", finish="length")

    result = reduce(roll(ScriptedPolicy(script), operator((1,), name="trace")), 0, MARKS)
    assert (result.final.truncated, result.final.answer, result.correct) == (True, None, False)
    assert result.final.label == "unclosed"


def test_an_outcome_comes_back_from_json():
    for schedule, distiller in (((1,), "random_k"), ((4, 2, 1), "per_sample_topk")):
        result = reduce(roll(ScriptedPolicy(_even), operator(schedule, distiller, top_k=2)), 1, MARKS)
        assert outcome_from_json(json.loads(json.dumps(outcome_to_json(result)))) == result


def test_distil_calls_are_paid_by_the_round_that_reads_them():
    rollout = roll(ScriptedPolicy(), operator((2, 1), "global_summary"))
    result = reduce(rollout, 0, MARKS)
    distil = sum(call.num_tokens for call in rollout.calls if call.role == DISTIL)
    refine = sum(call.num_tokens for call in rollout.calls if call.role == REFINE)
    assert distil > 0
    assert result.rounds[1].b_total - result.rounds[0].b_total == distil + refine
