"""What a comparison says of each pair, by the rule that it states."""

from dataclasses import replace

import pytest
from evaluation_fakes import attempt, outcome

from rollout.evaluation.findings import Finding, findings
from rollout.evaluation.outcomes import Round
from rollout.evaluation.report_rows import Difference, ReportRow, Vote, base_name, operator_rows, pairwise


def _row(name: str, *, b_seq: float = 100, b_total: float = 100, vote: Vote | None = None) -> ReportRow:
    (row,) = operator_rows([outcome("p", ["2"], operator=name)], {"p": {"2": 0}})
    width = vote.votes if vote else 1
    return replace(row, b_seq=b_seq, b_total=b_total, vote=vote, width=width)


def _vote(votes: int, *matched_to: str, b_seq: float = 100) -> ReportRow:
    vote = Vote(votes=votes, matched_to=matched_to, traces=votes, drawn=0)
    name = f"majority@{votes} (matched to {', '.join(matched_to)})"
    return _row(name, b_seq=b_seq, b_total=100 * votes, vote=vote)


def _difference(a: str, b: str, low: float, high: float) -> Difference:
    return Difference(a=a, b=b, problems=9, difference=(low + high) / 2, ci_low=low, ci_high=high)


@pytest.mark.parametrize(
    ("low", "high", "sentence"),
    [
        (0.01, 0.2, "pdr is better than trace."),
        (-0.2, -0.001, "trace is better than pdr."),
        (-0.02, 0.02, "pdr and trace are equal within 2 points."),
        (0.0, 0.02, "pdr and trace are equal within 2 points."),
        (-0.021, 0.02, "pdr and trace were not measured finely enough to tell."),
        (0.0, 0.5, "pdr and trace were not measured finely enough to tell."),
    ],
)
def test_an_interval_decides_between_better_equal_and_not_measured(low: float, high: float, sentence: str):
    (found,) = findings([_row("trace"), _row("pdr")], [_difference("pdr", "trace", low, high)])
    assert found.sentence == sentence


def _found(rows: list[ReportRow]) -> dict[tuple[str, str], Finding]:
    return {(found.a, found.b): found for found in findings(rows, pairwise(rows))}


def test_operators_are_matched_in_the_budget_that_differs_by_a_quarter_at_most():
    rows = [_row("trace"), _row("near", b_seq=125, b_total=500), _row("far", b_seq=126, b_total=450)]
    found = _found(rows)
    assert {pair: (each.at_cost, each.at_latency) for pair, each in found.items()} == {
        ("near", "trace"): (False, True),
        ("far", "trace"): (False, False),
        ("far", "near"): (True, True),
    }
    assert found["near", "trace"].b_total_ratio == 5 and found["near", "trace"].b_seq_ratio == 1.25


def test_each_operator_meets_the_vote_of_its_cost_and_the_widest_vote_that_is_not_slower():
    rows = [_row("pdr", b_seq=300, b_total=590), _row("quick", b_seq=100, b_total=220)]
    rows += [_vote(2, "quick", b_seq=110), _vote(5, "pdr", b_seq=140)]
    found = _found(rows)
    assert ("majority@5", "majority@2") not in found
    matched = {pair: (each.at_cost, each.at_latency) for pair, each in found.items()}
    assert matched["majority@5", "pdr"] == (True, True)
    assert matched["majority@2", "pdr"] == (False, False)
    assert matched["majority@2", "quick"] == (True, True)
    assert matched["majority@5", "quick"] == (False, False)
    assert [pair for pair, each in found.items() if not each.is_main] == [
        ("majority@2", "pdr"),
        ("majority@5", "quick"),
    ]


def test_rollouts_that_stop_early_count_in_the_rounds_that_they_reached_and_in_the_answer():
    early = outcome("a", ["2", "2", "3"], ["2"], operator="adaptive")
    late = outcome("b", ["1", "2", "3"], ["4", "4"], ["1"], operator="adaptive")
    rows = operator_rows([early, late], {name: {c: int(c) for c in "1234"} for name in "ab"})
    assert [(row.round, row.final, row.problems, row.accuracy) for row in rows] == [
        (0, False, 2, pytest.approx(0.5)),
        (1, False, 1, 1.0),
        (2, True, 2, 0.5),
    ]
    step = rows[-1].transition
    assert step is not None and step.all_wrong is None and step.minority_right is None
    assert step.majority_right is not None and step.majority_right.rollouts == 2


def test_strata_divide_rollouts_by_the_share_of_right_drafts():
    drafts = {"a": ["1", "1", "3", "3"], "b": ["2", "2", "1", "1"], "c": ["2", "2", "2", "1"]}
    outcomes = [outcome(name, each, ["2"], operator="pdr") for name, each in drafts.items()]
    step = operator_rows(outcomes, {name: {c: int(c) for c in "123"} for name in "abc"})[-1].transition
    assert step is not None
    strata = (step.all_wrong, step.minority_right, step.majority_right)
    assert [each.rollouts for each in strata if each is not None] == [1, 1, 1]
    assert step.some_right is not None and step.some_right.rollouts == 2


def test_the_accuracy_of_a_population_is_its_mean():
    population = outcome("a", ["1", "1"], ["2"], operator="rsa")
    attempts = tuple(attempt(answer, b_seq=200 + i) for i, answer in enumerate(["2", "2", "1", "4"]))
    population = replace(population, rounds=(population.rounds[0], Round(attempts=attempts, b_total=600)))
    row = operator_rows([population], {"a": {"1": 0, "2": 1, "4": 2}})[-1]
    assert (row.accuracy, row.width, row.b_total, row.b_seq) == (0.75, 4, 600, 201.5)
    assert row.maj_at["4"] == 1.0


def test_a_variant_has_the_name_of_its_operator_at_its_start():
    assert base_name("majority(schedule=[16])") == "majority"
    assert base_name("trace") == "trace"
