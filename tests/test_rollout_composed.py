"""Composed problems: one question for several results, right only if every one is, in its place."""

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.schema import DataConfig, RewardsConfig
from rewards.build import gold_checker
from rewards.gold import check_gold
from rewards.scorer import Scorer
from rollout.problems.composed import MAX_PARTS, compose, is_composed, named, part_questions
from rollout.problems.loading import load_eval, load_train

OPTIONS = {"min_terms": 3, "max_terms": 3, "min_digits": 1, "max_digits": 1}


def _data(num_parts: int, **changes: Any) -> DataConfig:
    return DataConfig(
        source="reasoning_gym",
        task="chain_sum",
        task_options=OPTIONS,
        num_parts=num_parts,
        **{"num_train": 40, "num_held_out": 20} | changes,
    )


def test_a_composed_problem_asks_for_every_part_and_its_gold_names_them_in_order():
    question, answer = compose([("1 + 2 =", "3"), ("4 - 5 =", "-1")])
    assert question.endswith("\n\na: 1 + 2 =\nb: 4 - 5 =") and "2 problems" in question
    assert answer == "a=3, b=-1"


@given(st.lists(st.integers(-99, 99), min_size=2, max_size=MAX_PARTS))
def test_parts_are_found_again(values: list[int]):
    questions = [f"{value} + 0 =" for value in values]
    assert part_questions(compose([(q, "0") for q in questions])[0]) == questions


@pytest.mark.parametrize("question", ["1 + 2 =", "Solve 2 problems.\n\na: 1 =\nb: 2 =", ""])
def test_another_question_is_not_taken_for_a_composed_one(question: str):
    assert not is_composed(question)
    with pytest.raises(ValueError, match=r"is not composed of parts.*data\.num_parts"):
        part_questions(question)


@pytest.mark.parametrize("part", [("q", "1, 2"), ("q", "x=3"), ("two\nlines", "1")])
def test_a_part_that_could_be_read_as_several_is_refused_by_name(part: tuple[str, str]):
    with pytest.raises(ValueError, match=re.escape(repr(part[0]))):
        compose([("1 =", "1"), part])


@pytest.mark.parametrize("num_parts", [2, 5, MAX_PARTS])
def test_the_verifier_accepts_exactly_the_list_in_its_order(num_parts: int):
    values = list(range(-2, num_parts - 2))
    gold = named(values)
    check_gold(gold)
    swapped, changed = values[::-1], [*values[:-1], values[-1] + 1]
    with Scorer(forms=()) as scorer:

        def is_right(answer: str) -> bool:
            verdict = scorer.score_sync(gold=gold, completion=f"</think>\\boxed{{{answer}}}")
            return verdict.status == "correct"

        assert is_right(gold) and is_right(", ".join(map(str, values)))
        for wrong in (swapped, changed, values[:-1], [*values, 1]):
            assert not is_right(named(wrong)[: -2 if len(wrong) > MAX_PARTS else None])


def test_generated_lists_are_made_of_the_tasks_own_problems_and_held_out_as_a_whole():
    check = gold_checker(RewardsConfig())
    train, held_out = load_train(_data(4), check), load_eval(_data(4), check)
    assert (len(train), len(held_out)) == (40, 20)
    assert not {p.question for p in train} & {p.question for p in held_out}
    for problem in (*train, *held_out):
        sums = [eval(q.rpartition(": ")[2].removesuffix("=")) for q in part_questions(problem.question)]
        assert problem.answer == named(sums) and problem.source == "chain_sum_x4"


def test_one_part_is_the_task_itself():
    assert all(
        not is_composed(p.question) and p.source == "chain_sum"
        for p in load_train(_data(1), gold_checker(RewardsConfig()))
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_parts": 0}, "num_parts"),
        ({"num_parts": MAX_PARTS + 1}, "named a to z"),
        ({"source": "file", "path": "x", "num_parts": 2}, "only generated problems"),
    ],
)
def test_numbers_of_parts_that_cannot_be_made_are_refused(changes: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        DataConfig(**{"source": "reasoning_gym", "task": "chain_sum"} | changes)
