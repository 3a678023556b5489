"""B_seq and B_total from the graph of calls."""

import dataclasses

import pytest
from fakes import ScriptedPolicy, operator, problem, roll

from rollout.budget import Budget, budget
from rollout.records import DISTIL, DRAFT, REFINE, TRACE, VERIFY, Call, Rollout, Usage
from rollout.workspace import DISTILLERS


def _call(role: str, round: int, tokens_in: int, tokens_out: int, *parents: int) -> Call:
    return Call(
        role=role,
        round=round,
        parents=parents,
        prompt_ids=(5,) * tokens_in,
        completion_ids=(6,) * tokens_out,
        sampler_logprobs=(0.0,) * tokens_out,
        train_mask=(True,) * tokens_out,
        versions=(),
        finish="stop",
        text="",
        label="ok",
        usage=Usage(prompt_tokens=tokens_in, completion_tokens=tokens_out),
        seconds=0.0,
    )


def _rollout(*calls: Call) -> Rollout:
    return Rollout(problem=problem(), operator="pdr", calls=calls, answers=(len(calls) - 1,))


def test_a_trace_spends_what_its_call_reads_and_writes():
    assert budget(_rollout(_call(TRACE, 0, 10, 90)), 0) == Budget(b_seq=100, b_total=100)


def test_two_drafts_and_an_answer_by_hand():
    rollout = _rollout(
        _call(DRAFT, 0, 10, 20),  # 30
        _call(DRAFT, 0, 10, 50),  # 60, the longest of its round
        _call(REFINE, 1, 40, 30, 0, 1),  # 70
    )
    assert budget(rollout, 2) == Budget(b_seq=60 + 70, b_total=30 + 60 + 70)


def test_three_two_one_with_summaries_by_hand():
    rollout = _rollout(
        _call(DRAFT, 0, 10, 20),  # 0: 30
        _call(DRAFT, 0, 10, 40),  # 1: 50, on the path
        _call(DRAFT, 0, 10, 10),  # 2: 20
        _call(DISTIL, 0, 70, 15, 2, 0, 1),  # 3: 85, on the path
        _call(REFINE, 1, 25, 35, 3),  # 4: 60, on the path
        _call(REFINE, 1, 25, 5, 3),  # 5: 30
        _call(DISTIL, 1, 45, 12, 4, 5),  # 6: 57, on the path
        _call(REFINE, 2, 22, 18, 6),  # 7: 40, the answer
    )
    assert budget(rollout, 7) == Budget(
        b_seq=50 + 85 + 60 + 57 + 40, b_total=30 + 50 + 20 + 85 + 60 + 30 + 57 + 40
    )


def test_verify_calls_stand_on_the_path_of_what_they_let_through():
    rollout = _rollout(
        _call(DRAFT, 0, 10, 20),
        _call(DRAFT, 0, 10, 30),
        _call(VERIFY, 0, 25, 5, 0),  # path so far 60
        _call(VERIFY, 0, 35, 4, 1),  # path so far 79, the heaviest
        _call(REFINE, 1, 20, 10, 0, 2, 3),
    )
    assert budget(rollout, 4) == Budget(b_seq=40 + 39 + 30, b_total=30 + 40 + 30 + 39 + 30)


@pytest.mark.parametrize("shorter", [1, 20, 49])
def test_a_parallel_draft_shorter_than_the_longest_leaves_b_seq_alone(shorter: int):
    drafts = [_call(DRAFT, 0, 10, 50), _call(DRAFT, 0, 10, shorter)]
    one = budget(_rollout(drafts[0], _call(REFINE, 1, 30, 9, 0)), 1)
    two = budget(_rollout(*drafts, _call(REFINE, 1, 30, 9, 0, 1)), 2)
    assert two.b_seq == one.b_seq
    assert two.b_total == one.b_total + 10 + shorter


@pytest.mark.parametrize("distiller", DISTILLERS)
@pytest.mark.parametrize("schedule", [(1,), (1, 1, 1), (4, 1), (3, 2, 1)])
def test_b_total_is_the_sum_over_all_calls_and_bounds_b_seq(schedule: tuple[int, ...], distiller: str):
    rollout = roll(ScriptedPolicy(), operator(schedule, distiller, top_k=2))
    (answer,) = rollout.answers
    spent = budget(rollout, answer)
    assert spent.b_total == sum(len(c.prompt_ids) + len(c.completion_ids) for c in rollout.calls)
    assert (spent.b_seq == spent.b_total) == (max(schedule) == 1)
    assert spent.b_seq <= spent.b_total


@pytest.mark.parametrize(("distiller", "role"), [("global_summary", DISTIL), ("shared_topk", VERIFY)])
def test_what_a_distiller_asks_the_policy_is_on_the_path(distiller: str, role: str):
    rollout = roll(ScriptedPolicy(), operator((4, 1), distiller, top_k=2))
    (answer,) = rollout.answers
    before = budget(rollout, answer).b_seq
    longer = tuple(
        dataclasses.replace(call, usage=dataclasses.replace(call.usage, completion_tokens=1000))
        if call.role == role
        else call
        for call in rollout.calls
    )
    assert budget(dataclasses.replace(rollout, calls=longer), answer).b_seq > before + 900


def test_a_choice_among_answers_waits_for_all_that_it_reads():
    rollout = dataclasses.replace(
        _rollout(
            _call(DRAFT, 0, 10, 20),  # 30, chosen
            _call(DRAFT, 0, 10, 90),  # 100
            _call(VERIFY, 0, 30, 5, 0),  # 30 + 35
        ),
        answers=(0,),
        waited_for=(0, 1, 2),
    )
    assert budget(rollout, 0) == Budget(b_seq=100, b_total=165)
