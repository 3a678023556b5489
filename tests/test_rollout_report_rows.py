"""Rows, transitions and differences: pure functions of outcomes."""

import asyncio
import itertools
import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
from evaluation_fakes import outcome
from fakes import EvenIsCorrect

from rollout.evaluation.outcomes import Outcome, Round, accuracy_by_problem, group_answers
from rollout.evaluation.report_rows import ReportRow, difference, operator_rows, pairwise


def _rows(outcomes: Sequence[Outcome], trace: dict[str, float] | None = None, **rest) -> list[ReportRow]:
    classes = asyncio.run(group_answers(outcomes, EvenIsCorrect().same))
    return operator_rows(outcomes, classes, trace=trace, **rest)


def _random_pdr(seed: int = 0, problems: int = 12, samples: int = 3) -> list[Outcome]:
    rng = random.Random(seed)

    def answers(width: int) -> list[str | None]:
        return [rng.choice([None, "1", "2", "02", "3", "4"]) for _ in range(width)]

    return [
        outcome(f"p{i}", answers(4), answers(2), answers(1), operator="pdr", sample=s)
        for i in range(problems)
        for s in range(samples)
    ]


def test_problems_count_alike_however_many_samples_they_have():
    outcomes = [outcome("a", ["2"]), outcome("b", ["1"]), outcome("b", ["1"], sample=1)]
    assert accuracy_by_problem(outcomes) == {"a": 1.0, "b": 0.0}


def test_a_row_is_the_mean_over_problems_and_samples():
    outcomes = [
        outcome(name, [answer], sample=sample, tokens=100 + 10 * sample)
        for name, answers in {"a": "22", "b": "21", "c": "11"}.items()
        for sample, answer in enumerate(answers)
    ]
    (row,) = _rows(outcomes, phase="before", failed=3)
    assert (row.operator, row.phase, row.problems, row.samples) == ("trace", "before", 3, 2)
    assert row.accuracy == pytest.approx(0.5)
    assert 0 <= row.ci_low < 0.5 < row.ci_high <= 1
    assert (row.b_seq, row.b_total, row.failed) == (105, 105, 3)
    assert (row.round, row.final, row.width, row.transition) == (0, True, 1, None)
    assert row.pass_at == {"1": pytest.approx(0.5), "2": pytest.approx(2 / 3)}


def test_an_operator_has_a_row_for_each_round_and_its_answer_last():
    rows = _rows(_random_pdr())
    assert [(r.round, r.width, r.final) for r in rows] == [(0, 4, False), (1, 2, False), (2, 1, True)]
    assert [(r.b_seq, r.b_total) for r in rows] == [(100, 400), (200, 600), (300, 700)]
    assert [r.whole is not None for r in rows] == [False, False, True]


def test_every_attempt_is_counted_once():
    outcomes = _random_pdr()
    for number, row in enumerate(_rows(outcomes)):
        attempts = [a for o in outcomes for a in o.rounds[number].attempts]
        right = sum(a.correct for a in attempts)
        assert row.accuracy == pytest.approx(right / len(attempts))
        assert row.labels == {
            label: pytest.approx(sum(a.label == label for a in attempts) / len(attempts))
            for label in row.labels
        }
        if row.transition is not None:
            given = row.transition.right_given_drafts
            assert (sum(g.attempts for g in given), sum(g.right for g in given)) == (len(attempts), right)
            strata = [row.transition.all_wrong, row.transition.some_right]
            assert sum(s.rollouts for s in strata if s) == len(outcomes)
            weighted = sum(s.rollouts * s.accuracy for s in strata if s)
            assert weighted == pytest.approx(len(outcomes) * row.accuracy)


def test_accuracies_of_rounds_differ_by_their_flips():
    rows = _rows(_random_pdr(seed=3))
    for before, row in itertools.pairwise(rows):
        assert row.transition is not None
        gained = row.transition.wrong_to_right - row.transition.right_to_wrong
        assert row.accuracy == pytest.approx(before.accuracy + gained)
        assert row.transition.drafts_pass_at_width == before.pass_at_width


def test_pass_at_1_and_maj_at_1_are_the_accuracy_and_pass_at_k_only_grows():
    for row in _rows(_random_pdr()):
        assert row.pass_at["1"] == pytest.approx(row.accuracy) == pytest.approx(row.maj_at["1"])
        grown = list(row.pass_at.values())
        assert grown == sorted(grown)
        assert all(row.maj_at[k] <= row.pass_at[k] + 1e-9 for k in row.pass_at)
    assert list(_rows(_random_pdr())[0].pass_at) == ["1", "2", "4", "8"]
    assert list(_rows(_random_pdr())[0].maj_at) == ["1", "2", "4", "8", "12"]


def test_votes_are_by_equivalence_not_by_spelling():
    written = {"2": ["2", "02", "002"], "3": ["3", "03"], "5": ["5"]}
    rng = random.Random(1)
    plain = [outcome(f"p{i}", [rng.choice("2335")], sample=s) for i in range(5) for s in range(8)]
    renamed = [
        outcome(o.problem_id, [rng.choice(written[str(o.final.answer)])], sample=o.sample) for o in plain
    ]
    (row,), (other,) = _rows(plain), _rows(renamed)
    assert row.maj_at == other.maj_at
    # By spelling, 2, 02 and 002 would lose against 3, 3.
    (row,) = _rows([outcome("a", [x], sample=s) for s, x in enumerate(["2", "02", "002", "3", "3"])])
    assert row.maj_at["5"] == 1.0


def test_a_problem_with_failed_rollouts_counts_where_it_has_enough_attempts():
    outcomes = [outcome("a", ["2"], sample=s) for s in range(4)] + [outcome("b", ["1"])]
    (row,) = _rows(outcomes)
    assert row.pass_at == {"1": 0.5, "2": 1.0, "4": 1.0}
    assert (row.samples, row.accuracy) == (4, 0.5)


def test_what_never_happened_is_absent():
    some_right = [
        outcome("a", ["2", "2"], ["2"], operator="pdr"),
        outcome("b", ["2", "3"], ["3"], operator="pdr"),
    ]
    step = _rows(some_right)[-1].transition
    assert step is not None
    assert step.all_wrong is None and step.some_right is not None
    assert [given.right_drafts for given in step.right_given_drafts] == [1, 2]
    assert step.copy_rate is None
    assert step.majority_follow_rate == 1.0  # b's drafts have no majority
    assert step.some_right.trace is None


def test_rates_are_shares_of_the_cases_where_they_mean_something():
    outcomes = [
        outcome("a", ["2", "2", "3"], ["2"], operator="pdr"),
        outcome("b", ["3", "3", "2"], ["2"], operator="pdr"),
        outcome("c", ["3", "1", "2"], ["2"], operator="pdr"),
    ]
    copied = []
    for item, flag in zip(outcomes, (True, False, None), strict=True):
        answer = replace(item.final, copied=flag)
        copied.append(replace(item, rounds=(item.rounds[0], Round(attempts=(answer,), b_total=1))))
    step = _rows(copied)[-1].transition
    assert step is not None
    assert (step.copy_rate, step.majority_follow_rate) == (0.5, 0.5)


def test_strata_compare_with_traces_on_the_same_problems():
    outcomes = [
        outcome("a", ["1", "1"], ["2"], operator="pdr"),
        outcome("a", ["1", "3"], ["3"], operator="pdr", sample=1),
        outcome("b", ["1", "1"], ["3"], operator="pdr"),
        outcome("b", ["2", "1"], ["2"], operator="pdr", sample=1),
    ]
    step = _rows(outcomes, {"a": 0.9, "b": 0.3})[-1].transition
    assert step is not None and step.all_wrong is not None and step.some_right is not None
    assert (step.all_wrong.rollouts, step.all_wrong.accuracy) == (3, pytest.approx(1 / 3))
    assert step.all_wrong.trace == pytest.approx((2 * 0.9 + 0.3) / 3)
    assert (step.some_right.rollouts, step.some_right.accuracy) == (1, 1.0)
    assert step.some_right.trace == pytest.approx(0.3)


def test_a_difference_is_paired_by_problem():
    hard = {f"p{i}": float(i % 2 == 0) for i in range(40)}  # a common difficulty
    better = {**hard, "p1": 1.0, "p3": 1.0, "p5": 1.0, "p7": 1.0}
    gain = difference("after", better, "before", hard)
    assert (gain.difference, gain.problems) == (pytest.approx(0.1), 40)
    assert 0 < gain.ci_low <= 0.1 <= gain.ci_high < 0.25
    loss = difference("before", hard, "after", better)
    assert (loss.difference, loss.ci_low) == (pytest.approx(-0.1), pytest.approx(-gain.ci_high, abs=0.03))


def test_a_difference_looks_only_at_problems_that_both_have():
    assert difference("x", {"a": 1.0, "b": 1.0}, "y", {"b": 1.0, "c": 0.0}).difference == 0.0
    with pytest.raises(ValueError, match="at least one problem"):
        difference("x", {"a": 1.0}, "y", {"b": 1.0})


def test_all_pairs_of_answers_are_compared_the_later_one_first():
    pdr = _rows([outcome("a", ["2", "1"], ["2"], operator="pdr")])
    (trace,) = _rows([outcome("a", ["1"])])
    (sr,) = _rows([outcome("b", ["1"], operator="sr")])
    found = pairwise([trace, *pdr, sr])
    assert [(d.a, d.b, d.difference) for d in found] == [("pdr", "trace", 1.0)]
