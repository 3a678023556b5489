"""Right answers of the operator as samples of the plain problem."""

import asyncio
import random
from dataclasses import replace

import pytest
from fakes import CODEC, PROMPTS, Reply, Request, ScriptedPolicy, boxed, operator, roll, settings
from test_rollout_collector import _collector

from configs.compose import load
from rollout.collection.amortise import Amortiser, answer_id, mention_pattern
from rollout.collection.groups import GroupFilter
from rollout.prompts import prompt_texts
from rollout.records import AMORTISE, REFINE, TRACE, Rollout


def _cut_sometimes(request: Request, rng: random.Random) -> Reply:
    text = boxed(request, rng)
    return Reply(text=text, finish=rng.choice(["stop", "length"]))


def _speaks(request: Request, rng: random.Random) -> str:
    said = rng.choice(["2 + 2 is 4.", "Solution 2 is right."])
    return f"<think>{said}</think>the result is \\boxed{{{rng.randrange(100)}}}"


def _rolled(script=boxed, num_answers: int = 12) -> Rollout:
    return roll(ScriptedPolicy(script=script), operator((4, 1)), num_answers=num_answers)


def _amortiser(most: int = 0) -> Amortiser:
    return Amortiser(settings(ScriptedPolicy()), most)


def test_right_answers_become_samples_of_the_plain_prompt_token_by_token():
    rollout = _rolled()
    result = _amortiser()(rollout, 7)
    assert result.group is not None and result.mentions == 0
    assert (result.group.key.role, result.group.key.problem_id) == (AMORTISE, "p")
    # The prompt is that of a trace of the same problem, so that both can share it.
    (trace,) = roll(ScriptedPolicy(), operator((1,), name="trace")).calls
    assert result.group.prompt_ids == trace.prompt_ids == rollout.calls[0].prompt_ids
    right = [place for place in rollout.answers if rollout.verdicts[place].is_correct]
    assert 0 < len(right) < len(rollout.answers)
    assert [answer_id(sample.call_id) for sample in result.group.samples] == [f"7.{place}" for place in right]
    for place, sample in zip(right, result.group.samples, strict=True):
        answer = rollout.calls[place]
        assert answer.role == REFINE and answer.prompt_ids != result.group.prompt_ids
        assert sample.call == replace(answer, role=AMORTISE, round=0, prompt_ids=result.group.prompt_ids)


def test_an_answer_that_was_cut_off_is_no_sample():
    rollout = _rolled(_cut_sometimes)
    group = _amortiser()(rollout, 0).group
    assert group is not None
    right = [rollout.calls[p].finish for p in rollout.answers if rollout.verdicts[p].is_correct]
    assert "length" in right
    assert len(group.samples) == right.count("stop")


def test_a_problem_gives_at_most_so_many_samples():
    rollout = _rolled()
    all_of_them, two = _amortiser()(rollout, 0).group, _amortiser(2)(rollout, 0).group
    assert all_of_them is not None and two is not None
    assert two.samples == all_of_them.samples[:2] != all_of_them.samples


def test_an_answer_to_the_plain_problem_itself_is_no_amortised_one():
    trace = roll(ScriptedPolicy(), operator((1,), name="trace"), num_answers=12)
    assert _amortiser()(trace, 0).group is None
    # Without a usable draft the operator falls back to the plain problem.
    unclosed = _rolled(lambda request, rng: boxed(request, rng).replace("</think>", ""))
    assert any(verdict.is_correct for verdict in unclosed.verdicts.values())
    assert _amortiser()(unclosed, 0).group is None


def test_answers_that_speak_of_their_workspace_are_left_out_and_counted():
    rollout = _rolled(_speaks)
    result = _amortiser()(rollout, 0)
    right = [rollout.calls[p].text for p in rollout.answers if rollout.verdicts[p].is_correct]
    speak = [text for text in right if "Solution 2" in text]
    assert result.group is not None
    assert 0 < result.mentions == len(speak) < len(right)
    assert all("Solution 2" not in sample.call.text for sample in result.group.samples)


def test_words_of_the_question_are_not_speaking_of_a_workspace():
    rollout = _rolled(_speaks)
    asked = replace(rollout, problem=replace(rollout.problem, question="Is solution 2 acidic?"))
    result = _amortiser()(asked, 0)
    assert result.mentions == 0


@pytest.mark.parametrize(
    ("text", "speaks"),
    [
        ("Draft 2 adds wrongly.", True),
        ("All drafts agree.", True),
        ("The workspace holds 4 and 5.", True),
        ("As in solution #3, x = 2.", True),
        ("The earlier attempts differ.", True),
        ("The reference solution is right.", True),
        ("The majority is 12.", True),
        ("Most say 12.", True),
        ("Candidate 4 and attempt 1 disagree.", True),
        ("The equation has two solutions, 2 and 3.", False),
        ("So the answer is \\boxed{12}. An answer of 12 fits.", False),
        ("My first attempt to factor it works.", True),
        ("A draughty room, a drafting table, no preference.", False),
        ("Most of the terms cancel; all of it is 4.", False),
    ],
)
def test_what_counts_as_speaking_of_a_workspace(text: str, speaks: bool):
    prompts = prompt_texts(load("evaluation", ["model.path=x", "data.path=x"]).operator.prompts)
    assert bool(mention_pattern(prompts).search(text)) == speaks


def test_a_draft_template_of_ones_own_brings_its_own_word():
    own = replace(PROMPTS, draft="Versuch {number}: {solution}")
    assert mention_pattern(own).search("Der zweite Versuch stimmt.")
    assert not mention_pattern(PROMPTS).search("Der zweite Versuch stimmt.")
    assert CODEC.encode_prompt(own.solve_text("q")) == CODEC.encode_prompt(PROMPTS.solve_text("q"))


def test_a_collector_adds_amortised_groups_that_no_filter_drops():
    amortise = Amortiser(settings(ScriptedPolicy()))
    keep = GroupFilter(drop_equal_rewards=True, max_pass_rate=0.99)
    plain = asyncio.run(_collector(ScriptedPolicy(), num_generations=6, keep=keep).collect(1))
    more = asyncio.run(
        _collector(ScriptedPolicy(), num_generations=6, keep=keep, amortise=amortise).collect(1)
    )
    added = [group for group in more.groups if group.key.role == AMORTISE]
    assert [group.key for group in more.groups if group.key.role != AMORTISE] == [g.key for g in plain.groups]
    assert {group.key.role for group in plain.groups} == {TRACE, REFINE}
    right = sum(sample.is_correct for g in plain.groups if g.key.role == REFINE for sample in g.samples)
    assert added and sum(len(group.samples) for group in added) >= right > 0
    assert more.metrics["collect/amortised"] == sum(len(group.samples) for group in added)
    assert more.metrics["collect/amortise_mentions"] == 0
