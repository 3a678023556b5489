"""Worked solutions: right where they claim to be, wrong where they are meant to be, the same for a seed."""

import random
import re
from collections import Counter
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from configs.schema import DataConfig
from configs.thinking import ThinkingMarks
from rollout.problems.loading import load_train
from rollout.prompts import PromptTexts
from rollout.records import Problem
from rollout.thinking import OK, split
from train.coldstart import worked_solutions as ws
from train.coldstart import writer

TEXTS = Path(__file__).parents[1] / "configs" / "operator" / "prompts" / "default.yaml"
PROMPTS = PromptTexts(**yaml.safe_load(TEXTS.read_text(encoding="utf-8")))
MIX = writer.Mix(solve=0.4, refine=0.4, glance=0.5, copy=0.5, solve_again=0.2, summary=0.2)


def problems(count: int = 50) -> list[Problem]:
    options = {"min_terms": 4, "max_terms": 5, "min_digits": 1, "max_digits": 1}
    data = DataConfig(
        source="reasoning_gym", task="chain_sum", task_options=options, num_train=count, num_held_out=20
    )
    return load_train(data, lambda gold, columns: None)


def examples(count: int = 1500, seed: int = 0) -> list[writer.WorkedExample]:
    return list(ws.worked_examples(problems(), PROMPTS, MIX, count=count, seed=seed))


def boxed(completion: str) -> str:
    (answer,) = re.findall(r"\\boxed\{([^}]*)\}", completion)
    return answer


@given(st.lists(st.integers(-99, 99), min_size=1, max_size=6))
def test_every_careful_step_holds_and_the_last_total_is_the_sum(values: list[int]) -> None:
    first, *steps = ws.careful_steps(values).split("\n")
    total = int(first)
    for step in steps:
        sign, term, equals, result = step.split(" ")
        total += int(sign + term)
        assert (equals, int(result)) == ("=", total)
    assert total == sum(values) and len(steps) == len(values) - 1


def test_terms_of_every_generated_question_sum_to_its_gold_answer() -> None:
    for problem in problems():
        assert sum(ws.terms(problem.question)) == int(problem.answer)


@pytest.mark.parametrize("question", ["Answer: 42 - 25 =", "Calculate 42 - 25."])
def test_both_spellings_of_a_sum_have_the_same_terms(question: str) -> None:
    assert ws.terms(question) == (42, -25)


@pytest.mark.parametrize("question", ["What is 3 * 4 =", "How many apples?", "1 + 2 = 3", "Calculate 3 * 4."])
def test_a_question_that_is_no_chain_sum_is_refused_by_name(question: str) -> None:
    with pytest.raises(ValueError, match=re.escape(repr(question))):
        ws.terms(question)


def test_is_correct_says_what_the_box_holds() -> None:
    gold = {problem.id: problem.answer for problem in problems()}
    for example in examples():
        if example.form in (writer.SOLVE, writer.REFINE):
            assert example.is_correct == (boxed(example.completion) == gold[example.problem_id])


def test_careful_and_recompute_are_always_right() -> None:
    gold = {problem.id: problem.answer for problem in problems()}
    for example in examples():
        if example.way == writer.CAREFUL:
            assert boxed(example.completion) == gold[example.problem_id]
        if example.way == writer.RECOMPUTE:
            shown = re.findall(r"\\boxed\{(-?\d+)\}", example.prompt)[0]
            right = shown == gold[example.problem_id]
            assert boxed(example.completion) == ("yes" if right else "no")


def test_glance_and_copy_are_often_wrong_and_check_is_right_more_often_than_copy() -> None:
    counts: Counter[tuple[str, bool]] = Counter((e.way, e.is_correct) for e in examples(4000))

    def share(way: str) -> float:
        return counts[way, True] / (counts[way, True] + counts[way, False])

    assert share(writer.GLANCE) < 0.12
    assert 0.3 < share(writer.COPY) < 0.75
    assert share(writer.CHECK) > share(writer.COPY) + 0.1


def test_check_is_right_where_every_draft_is_wrong_and_none_agree() -> None:
    gold = {problem.id: problem.answer for problem in problems()}
    seen = 0
    for example in examples(4000):
        drafts = re.findall(r"Draft \d+:\nThe answer is \\boxed\{(-?\d+)\}", example.prompt)
        if example.way != writer.CHECK or not drafts or gold[example.problem_id] in drafts:
            continue
        if ws.majority([int(draft) for draft in drafts]) is None:
            seen += 1
            assert boxed(example.completion) == gold[example.problem_id]
    assert seen > 20


def test_copy_gives_the_first_draft_whatever_it_says() -> None:
    for example in examples():
        drafts = re.findall(r"Draft \d+:\nThe answer is \\boxed\{(-?\d+)\}", example.prompt)
        if example.way == writer.COPY and drafts:
            assert boxed(example.completion) == drafts[0]


def test_to_solve_again_is_to_answer_as_without_a_workspace() -> None:
    careful = {e.problem_id: e.completion for e in examples(4000) if e.way == writer.CAREFUL}
    again = [e for e in examples(4000) if e.way == writer.AGAIN and e.problem_id in careful]
    assert len(again) > 20
    assert all(e.completion == careful[e.problem_id] for e in again)


@pytest.mark.parametrize(
    ("answers", "expected"),
    [([5], None), ([5, 5], 5), ([5, 6], None), ([5, 5, 6, 6], None), ([6, 5, 5, 7], 5), ([1, 2, 3, 4], None)],
)
def test_a_majority_needs_two_and_no_tie(answers: list[int], expected: int | None) -> None:
    assert ws.majority(answers) == expected


def test_a_plausible_error_is_never_the_gold_answer() -> None:
    rng = random.Random(0)
    assert all(ws.plausible_error(gold, rng) != gold for gold in range(-200, 200) for _ in range(20))


def test_every_completion_but_a_summary_has_thinking_and_a_boxed_solution() -> None:
    for example in examples():
        parts = split(example.completion, finish="stop", marks=ThinkingMarks())
        assert parts.thinking and parts.solution
        assert (parts.label == OK) == (example.form != writer.DISTIL)


def test_a_summary_names_the_agreed_answer_and_every_other() -> None:
    assert ws.summary_text([7, 5, 7]) == "Agreed: 7. Contradicted by: 5. Next: answer."
    assert ws.summary_text([7, 7]) == "Agreed: 7. No contradiction. Next: answer."
    assert ws.summary_text([7, 5]) == "Nothing agreed; proposed: 7, 5. Next: work it out anew."


def test_every_form_and_way_appears_about_as_often_as_the_mix_says() -> None:
    made = examples(4000)
    forms = Counter(example.form for example in made)
    ways = Counter(example.way for example in made)
    assert abs(forms[writer.SOLVE] / 4000 - 0.4) < 0.03
    assert abs(forms[writer.REFINE] / 4000 - 0.4) < 0.03
    assert abs(forms[writer.DISTIL] / 4000 - 0.1) < 0.02
    assert abs(ways[writer.GLANCE] / forms[writer.SOLVE] - 0.5) < 0.05
    assert abs(ways[writer.COPY] / forms[writer.REFINE] - 0.5) < 0.05
    assert abs(ways[writer.AGAIN] / forms[writer.REFINE] - 0.2) < 0.05


def test_a_seed_fixes_the_examples() -> None:
    assert examples(200, seed=3) == examples(200, seed=3)
    assert examples(200, seed=3) != examples(200, seed=4)
