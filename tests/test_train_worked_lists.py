"""Worked solutions of lists: the claims of each way hold part by part, the same for a seed."""

import random
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import yaml

from configs.compose import load
from configs.schema import DataConfig, RewardsConfig
from configs.thinking import ThinkingMarks
from rewards.build import gold_checker
from rollout.problems.composed import named, part_questions
from rollout.problems.loading import load_train
from rollout.prompts import PromptTexts
from rollout.records import Problem
from rollout.thinking import OK, split
from train.coldstart import worked_lists as wl
from train.coldstart import worked_solutions as ws
from train.coldstart import writer

TEXTS = Path(__file__).parents[1] / "configs" / "operator" / "prompts" / "default.yaml"
PROMPTS = PromptTexts(**yaml.safe_load(TEXTS.read_text(encoding="utf-8")))
MIX = writer.Mix(solve=0.4, refine=0.4, glance=0.5, copy=0.5, solve_again=0.2, summary=0.2)
PARTS = 3


def problems() -> list[Problem]:
    options = {"min_terms": 3, "max_terms": 4, "min_digits": 1, "max_digits": 1}
    data = DataConfig(
        source="reasoning_gym",
        task="chain_sum",
        task_options=options,
        num_parts=PARTS,
        num_train=50,
        num_held_out=9,
    )
    return load_train(data, lambda gold, columns: None)


def examples(count: int = 1500, seed: int = 0) -> list[writer.WorkedExample]:
    return list(wl.worked_lists(problems(), PROMPTS, MIX, count=count, seed=seed))


GOLD = {problem.id: problem.answer for problem in problems()}


def boxed(text: str) -> str:
    (answer,) = re.findall(r"\\boxed\{([^}]*)\}", text)
    return answer


def drafts_of(example: writer.WorkedExample) -> list[wl.Answer]:
    shown = re.findall(r"Draft \d+:\nThe answer is \\boxed\{([^}]*)\}", example.prompt)
    return [tuple(int(pair.partition("=")[2]) for pair in draft.split(", ")) for draft in shown]


def test_running_totals_end_in_the_sum():
    assert wl.running_totals((4, 3, -8)) == "7 -1"
    assert wl.running_totals((4,)) == "4"


def test_the_terms_of_the_experiments_own_parts_sum_to_their_gold_answers():
    for problem in load_train(
        replace(load("training", ["experiment=compositional"]).data, num_train=50),
        gold_checker(RewardsConfig()),
    ):
        sums = [sum(ws.terms(question)) for question in part_questions(problem.question)]
        assert problem.answer == named(sums)


def test_is_correct_tells_whether_the_box_holds_the_whole_list():
    for example in examples():
        if example.form in (writer.SOLVE, writer.REFINE):
            assert example.is_correct == (boxed(example.completion) == GOLD[example.problem_id])


def test_a_careful_answer_holds_its_own_totals_and_slips_in_about_as_many_parts_as_it_should():
    questions = {problem.id: part_questions(problem.question) for problem in problems()}
    right: list[bool] = []
    for example in examples(4000):
        if example.way == writer.CAREFUL:
            shown = re.findall(r"^[abc]: (.*)$", example.completion, re.MULTILINE)
            assert boxed(example.completion) == named([totals.split(" ")[-1] for totals in shown])
            exact = [wl.running_totals(ws.terms(q)) for q in questions[example.problem_id]]
            right += [one == other for one, other in zip(shown, exact, strict=True)]
    assert abs(1 - sum(right) / len(right) - wl.SLIP) < 0.02


def test_check_takes_the_most_frequent_value_of_each_part():
    put_together = 0
    for example in examples(3000):
        drafts = drafts_of(example)
        if example.way != writer.CHECK or not drafts:
            continue
        expected = [max(values, key=values.count) for values in zip(*drafts, strict=True)]
        assert boxed(example.completion) == named(expected)
        put_together += example.is_correct and tuple(expected) not in drafts
    assert put_together > 5, "right lists that no draft holds"


def test_copy_takes_the_first_draft_whatever_it_holds():
    copies = [example for example in examples() if example.way == writer.COPY]
    assert copies
    for example in copies:
        assert boxed(example.completion) == named(drafts_of(example)[0])


def test_to_solve_again_is_to_work_on_every_part():
    again = [example for example in examples() if example.way == writer.AGAIN]
    assert again
    for example in again:
        totals = [
            line.split(" ")[-1] for line in re.findall(r"^[abc]: (.*)$", example.completion, re.MULTILINE)
        ]
        assert boxed(example.completion) == named(totals)


def test_recompute_compares_the_whole_list():
    for example in examples():
        if example.way == writer.RECOMPUTE:
            shown = re.findall(r"\\boxed\{([^}]+)\}\.", example.prompt)[0]
            assert boxed(example.completion) == ("yes" if shown == GOLD[example.problem_id] else "no")


def test_a_summary_names_the_most_frequent_values_and_the_parts_that_differ():
    summary = wl.list_summary([(3, 5), (3, 4), (3, 4)])
    assert summary == "Most drafts: a=3, b=4. They differ on: b. Next: answer."
    assert "differ on: nothing." in wl.list_summary([(3, 4)])


def test_errors_of_different_parts_are_independent():
    rng, gold = random.Random(0), (5, 5)
    sets = [wl.list_drafts(gold, rng) for _ in range(8000)]
    # Within a set the probability is shared; over sets it is uniform on [0.4, 0.95].
    both = sum(drafts[0] == gold for drafts in sets) / len(sets)
    assert abs(both - (0.95**3 - 0.4**3) / 3 / 0.55) < 0.02


def test_every_completion_but_a_summary_has_thinking_and_a_boxed_solution():
    for example in examples():
        parts = split(example.completion, finish="stop", marks=ThinkingMarks())
        assert parts.thinking and parts.solution
        assert (parts.label == OK) == (example.form != writer.DISTIL)


def test_every_form_and_way_appears_about_as_often_as_the_mix_tells():
    ways = Counter((example.form, example.way) for example in examples(4000))
    assert abs(ways[writer.SOLVE, writer.GLANCE] / 1600 - 0.5) < 0.06
    # Half of the refinements that read drafts copy; all that read a summary use it.
    assert abs(ways[writer.REFINE, writer.COPY] / 1600 - 0.4) < 0.05
    assert (
        abs((ways[writer.DISTIL, writer.SUMMARISE] + ways[writer.VERIFY, writer.RECOMPUTE]) / 4000 - 0.2)
        < 0.03
    )


def test_a_seed_fixes_the_examples():
    assert examples(200, seed=3) == examples(200, seed=3)
    assert examples(200, seed=3) != examples(200, seed=4)
