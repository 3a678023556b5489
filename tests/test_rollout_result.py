"""What a notebook is shown of a rollout: the scripted policy's calls, as text."""

import asyncio

from fakes import EvenIsCorrect, Request, ScriptedPolicy, operator, problem, settings

from rollout.budget import budget
from rollout.operators import Operator, run_on, run_operator
from rollout.policy import Policy
from rollout.result import Result, readable


def _result(made: Operator, sampler: ScriptedPolicy | None = None) -> Result:
    policy = Policy(problem(), settings(sampler or ScriptedPolicy()), EvenIsCorrect(), 0)
    return readable(policy, asyncio.run(run_on(policy, made, 0)))


def test_a_workspace_is_shown_as_the_policy_read_it():
    sampler = ScriptedPolicy()
    result = _result(operator((3, 2, 1), "all"), sampler)
    read = [call.workspace for call in result.graph]
    assert read[:3] == ["", "", ""]
    assert read[3] == read[4] != read[5]
    prompts = [request.prompt for request in sampler.of("REFINE")]
    assert prompts == [f"REFINE question p WORKSPACE {text}" for text in (read[3], read[5])]
    assert "secret" not in read[3] and read[3].count("solution") == 3


def test_a_refinement_of_nothing_shows_no_workspace():
    result = _result(operator((2, 1)), ScriptedPolicy(script=lambda request, rng: "no box"))
    assert [call.workspace for call in result.graph] == ["", "", ""]
    assert result.answer is None
    assert "answer: None" in str(result)


def test_a_summary_is_the_workspace_of_those_that_read_it():
    def script(request: Request, rng) -> str:
        return "so far: 8" if request.kind == "DISTIL" else "<think>hm</think>it is \\boxed{8}"

    *_, summary, refinement = _result(operator((2, 1), "global_summary"), ScriptedPolicy(script=script)).graph
    assert (summary.role, summary.text, summary.answer) == ("distil", "so far: 8", None)
    assert refinement.workspace == summary.text
    assert refinement.parents == (2,)


def test_answer_text_and_budgets_are_those_of_the_rollout():
    result = _result(operator((3, 1)))
    rollout = result.rollout
    same = run_operator(problem(), operator((3, 1)), settings(ScriptedPolicy()), EvenIsCorrect(), 0)
    expected = [call.completion_ids for call in asyncio.run(same).calls]
    assert [call.completion_ids for call in rollout.calls] == expected
    spent = budget(rollout, rollout.answers[0])
    assert (result.b_seq, result.b_total) == (spent.b_seq, spent.b_total)
    assert result.b_total == sum(call.tokens for call in result.graph)
    assert result.answer == result.graph[-1].answer
    assert result.text == f"solution {result.answer} is \\boxed{{{result.answer}}}"
    assert "secret thought" in result.graph[-1].text
    assert [call.parents for call in result.graph[:3]] == [()] * 3
    assert sorted(result.graph[3].parents) == [0, 1, 2]


def test_a_vote_shows_the_answer_that_won():
    answers = iter(["2", "5", "5", "7"])
    script = lambda request, rng: f"\\boxed{{{next(answers)}}}"  # noqa: E731
    result = _result(operator((4,), name="majority"), ScriptedPolicy(script=script))
    assert result.answer == "5"
    assert [call.answer for call in result.graph] == ["2", "5", "5", "7"]


def test_the_short_form_is_one_line_and_the_long_one_shows_each_workspace_once():
    result = _result(operator((2, 3, 1), "all"))
    assert "\n" not in repr(result)
    assert f"answer={result.answer!r}, b_seq={result.b_seq}, b_total={result.b_total}, calls=6" in repr(
        result
    )
    shown = str(result)
    for place, call in enumerate(result.graph):
        assert f"[{place}] {call.role}, round {call.round};" in shown
    first_line = result.graph[2].workspace.splitlines()[0]
    assert shown.count(f"| {first_line}\n") == 1
    assert shown.count("workspace: that of [2]") == 2
    assert shown.endswith(f"| {result.text}")


def test_a_long_question_does_not_fill_the_short_form():
    result = _result(operator((2, 1)))
    assert len(repr(result)) < 200
