"""The report of a comparison: matched votes, files, the picture."""

import asyncio
import json
import re
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from conftest import REPO
from evaluation_fakes import OPERATORS, comparison, outcome, run_comparison
from fakes import EvenIsCorrect, operator

from rollout.evaluation.alarms import alarms
from rollout.evaluation.findings import Finding
from rollout.evaluation.matched_votes import Match, matches, vote_row
from rollout.evaluation.outcomes import Failure, Outcome
from rollout.evaluation.pareto import RINGS, VOTES, draw_pareto, footnote
from rollout.evaluation.report import Report, Run, busy_seconds, compare, require_outcomes, write_report
from rollout.evaluation.report_rows import Difference, ReportRow, Vote, Whole
from rollout.evaluation.transitions import Transition
from rollout.result import Evaluation

DEMO_FIELDS = {
    "operator",
    "phase",
    "problems",
    "samples",
    "accuracy",
    "ci_low",
    "ci_high",
    "b_seq",
    "b_total",
}


def _compare(outcomes: list[Outcome], names: list[str], failures: list[Failure] | None = None) -> Report:
    ids = sorted({o.problem_id for o in outcomes})
    work = compare(names, ids, outcomes, failures or [], EvenIsCorrect().same, num_traces=2)
    return asyncio.run(work)


def _traces(name: str, answers: str) -> list[Outcome]:
    return [outcome(name, [x], sample=s, tokens=100 + s) for s, x in enumerate(answers)]


def test_an_operator_is_matched_to_the_traces_that_its_mean_cost_buys():
    outcomes = [
        *_traces("a", "22"),
        outcome("a", ["2", "3", "4", "5"], ["2"], operator="pdr"),
        outcome("a", ["2"], ["3"], ["3"], ["3"], ["3"], operator="sr"),
        outcome("a", ["2", "3"], ["2"], operator="best_of_n"),
        outcome("a", ["2", "3", "4", "5"], ["2"], operator="majority"),
    ]
    # A trace costs 100.5, so 500 buy four and 300 two; voting itself is not matched.
    found = matches(outcomes, 2)
    assert found == [Match(votes=2, operators=("best_of_n",)), Match(votes=4, operators=("pdr", "sr"))]


def test_traces_that_were_drawn_for_votes_do_not_change_the_match():
    cheap = [outcome("a", ["2"], sample=s, tokens=1) for s in range(2, 9)]
    outcomes = [*_traces("a", "22"), outcome("a", ["2", "3"], ["2"], operator="pdr")]
    assert matches(outcomes, 2) == matches(outcomes + cheap, 2) == [Match(votes=2, operators=("pdr",))]
    assert matches(outcomes[2:], 2) == []


def test_an_operator_that_costs_less_than_a_trace_is_matched_to_one():
    outcomes = [outcome("a", ["2"], tokens=100), outcome("a", ["2"], operator="short", tokens=10)]
    assert matches(outcomes, 1) == [Match(votes=1, operators=("short",))]


def _vote(votes: int, traces: list[Outcome], num_traces: int):
    classes = {o.problem_id: {} for o in traces}
    for o in traces:
        if o.final.answer is not None:
            classes[o.problem_id][o.final.answer] = int(o.final.answer)
    match = Match(votes=votes, operators=("pdr",))
    return vote_row(match, traces, classes, num_traces=num_traces, failed=0)


def test_a_matched_vote_has_the_longest_b_seq_and_the_summed_b_total_of_its_votes():
    traces = _traces("a", "223")
    row = _vote(3, traces, 2)
    assert row is not None and row.vote is not None
    assert row.operator == "majority@3 (matched to pdr)"
    assert (row.b_seq, row.b_total, row.accuracy) == (102, 303, 1.0)
    assert (row.vote.votes, row.vote.traces, row.vote.drawn, row.samples) == (3, 3, 1, 1)


def test_a_matched_vote_uses_all_traces_that_were_made_anyway():
    row = _vote(2, _traces("a", "2231"), 4)
    assert row is not None and row.vote is not None
    # Windows 22, 23, 31, 12: right, tie, wrong, tie.
    assert row.accuracy == pytest.approx((1 + 0.5 + 0 + 0.5) / 4)
    assert row.b_seq == pytest.approx((101 + 102 + 103 + 103) / 4)
    assert row.b_total == pytest.approx(2 * 101.5)
    assert (row.vote.traces, row.vote.drawn, row.samples) == (4, 0, 4)


def test_problems_with_too_few_traces_are_left_out_of_a_vote():
    row = _vote(3, [*_traces("a", "222"), *_traces("b", "33")], 2)
    assert row is not None and (row.problems, row.accuracy) == (1, 1.0)
    assert _vote(4, _traces("a", "222"), 2) is None


def test_a_comparison_has_rows_for_operators_rounds_and_votes_in_order(tmp_path: Path):
    report = run_comparison(comparison(8), tmp_path / "rollouts.jsonl")
    names = [(row.operator, row.round, row.final) for row in report.rows]
    expected = [("trace", 0, True), ("pdr", 0, False), ("pdr", 1, True), ("sr", 0, False), ("sr", 1, True)]
    assert names[:5] == expected
    votes = [row for row in report.rows if row.vote is not None]
    assert [row.operator for row in votes] == [name for name, _, _ in names[5:]]
    assert {name for row in votes for name in row.vote.matched_to} == {"pdr", "sr"}
    by_name = {row.operator: row for row in report.rows if row.final}
    price = by_name["trace"].b_total
    for row in votes:
        for name in row.vote.matched_to:
            assert row.vote.votes * price <= by_name[name].b_total < (row.vote.votes + 1) * price
        assert row.b_total == pytest.approx(row.vote.votes * price, rel=0.2)
    final = [row.operator for row in report.rows if row.final]
    assert len(report.differences) == len(final) * (len(final) - 1) // 2
    assert {d.problems for d in report.differences} == {8}


def test_an_operator_alone_is_compared_with_its_vote_too(tmp_path: Path):
    report = run_comparison(comparison(4, [operator((4, 1))]), tmp_path / "rollouts.jsonl")
    assert next(row.operator for row in report.rows if row.final) == "pdr"
    (vote,) = [row.vote for row in report.rows if row.vote is not None]
    assert vote.drawn == vote.traces - 1


def test_the_order_in_which_rollouts_ended_does_not_show():
    outcomes = [
        *_traces("b", "23"),
        *_traces("a", "32"),
        *(outcome(p, ["2", "3"], ["2"], operator="pdr", sample=s) for p in "ab" for s in range(2)),
    ]
    names = ["trace", "pdr"]
    assert _compare(outcomes, names) == _compare(outcomes[::-1], names)


def test_report_json_has_the_demos_fields_and_the_parts_beside_them(tmp_path: Path):
    report = run_comparison(comparison(6), tmp_path / "rollouts.jsonl")
    write_report(tmp_path, report)
    content = json.loads((tmp_path / "report.json").read_text())
    assert all(row.keys() >= DEMO_FIELDS for row in content["rows"])
    pdr = next(row for row in content["rows"] if row["operator"] == "pdr" and row["final"])
    assert pdr.keys() >= {"right_given_drafts", "copy_rate", "all_wrong", "seconds", "maj_at", "pass_at"}
    vote = next(row for row in content["rows"] if row["operator"].startswith("majority@"))
    assert vote.keys() >= {"votes", "matched_to", "traces", "drawn"}
    assert not {"by_problem", "transition", "whole", "vote"} & pdr.keys()
    assert fmean(vote["by_problem"].values()) == pytest.approx(vote["accuracy"])
    drawn = max(row.get("drawn", 0) for row in content["rows"])
    assert content["run"]["rollouts"] == 6 * 2 * len(OPERATORS) + 6 * drawn


def test_report_md_says_everything_in_words(tmp_path: Path):
    report = run_comparison(comparison(6), tmp_path / "rollouts.jsonl")
    text = write_report(tmp_path, report)
    assert (tmp_path / "report.md").read_text() == text + "\n"
    assert "- pdr round 1: 4 attempts" in text
    assert "| majority voting at matched cost |" in text and "made anyway" in text
    assert "right when all drafts were wrong %" in text
    assert "when at most half were right %" in text and "when more than half were right %" in text
    assert "| At matched cost (B_total): a - b |" in text and "| At matched latency (B_seq): a - b |" in text
    assert "Operators that read raw thoughts" not in text
    assert "| pdr - trace |" in text
    assert "nan" not in text and "None" not in text


def _spoiled(item: Outcome, **changes: Any) -> Outcome:
    """The outcome with its last attempt changed."""
    attempts = (replace(item.final, **changes),)
    return replace(item, rounds=(*item.rounds[:-1], replace(item.rounds[-1], attempts=attempts)))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda o: _spoiled(o, truncated=True), "of the attempts ran into the token limit"),
        (lambda o: _spoiled(o, answer=None), "of the attempts have no answer"),
        (lambda o: replace(o, status="unparsable"), "of the answers are unparsable"),
        (lambda o: replace(o, counts={"workspace/fallback": 3}), "of the rollouts had no usable draft"),
    ],
)
def test_a_report_begins_with_what_makes_its_numbers_mean_little(
    spoil: Callable[[Outcome], Outcome], said: str, tmp_path: Path
):
    sound = [replace(outcome(f"p{i}", ["2"]), counts={"workspace/fallback": 0}) for i in range(10)]
    # One of ten is 10%, which is not above the limit.
    few = write_report(tmp_path, _compare([spoil(sound[0]), *sound[1:]], ["trace"]))
    assert "Warning" not in few and json.loads((tmp_path / "report.json").read_text())["warnings"] == []
    many = _compare([*map(spoil, sound[:2]), *sound[2:]], ["trace"])
    text = write_report(tmp_path, many)
    assert text.startswith("**Warning: the numbers below mean little**")
    assert text.index(f"* trace: 20.0% {said}.") < text.index("| operator |")
    assert json.loads((tmp_path / "report.json").read_text())["warnings"] == [f"trace: 20.0% {said}."]
    assert str(Evaluation(report=many)) == text


def test_drafts_that_were_cut_off_are_named_with_their_round():
    made = [outcome(f"p{i}", ["2", None, "4", None], ["2"], operator="pdr") for i in range(3)]
    assert alarms(_compare(made, ["pdr"]).rows) == ["pdr, round 1: 50.0% of the attempts have no answer."]


def test_operators_without_workspaces_have_no_share_without_drafts():
    (row,) = _compare([outcome("a", ["2"])], ["trace"]).rows
    assert row.whole is not None and row.whole.no_draft is None


def test_the_numbers_of_a_custom_reward_are_in_the_report_beside_what_counts_as_right(tmp_path: Path):
    items = [_spoiled(item, value=v) for item, v in zip(_traces("a", "22"), (0.5, 0.25), strict=True)]
    report = _compare(items, ["trace"])
    assert report.rows[-1].mean_reward == 0.375
    assert _compare(_traces("a", "22"), ["trace"]).rows[-1].mean_reward is None
    text = write_report(tmp_path, report)
    assert "| mean reward |" in text and "| 0.375 |" in text
    assert json.loads((tmp_path / "report.json").read_text())["rows"][-1]["mean_reward"] == 0.375


def test_a_report_without_rows_has_no_table(tmp_path: Path):
    text = write_report(tmp_path, _compare([], []))
    assert text == "No evaluation was made, so there is nothing to report."


def test_nothing_to_report_on_is_an_error_with_the_most_frequent_reason():
    failures = [
        Failure(problem_id=f"p{i}", operator="trace", sample=0, reason="refused" if i else "timeout")
        for i in range(3)
    ]
    with pytest.raises(RuntimeError, match=r"Not one of 3 rollouts .* \(2 times\): refused"):
        require_outcomes([], {failure.key: failure for failure in failures})
    require_outcomes(_traces("a", "2"), {})


def test_busy_time_is_the_union_of_what_was_under_way():
    assert busy_seconds([]) == 0
    assert busy_seconds([(5, 9), (0, 2), (1, 3), (6, 7)]) == 3 + 4


def test_operators_that_read_thoughts_are_named_with_their_source(tmp_path: Path):
    plain, rsa = operator((4, 1)), operator((2, 2), "random_k", top_k=2)
    distil = replace(rsa.options.distil, source="full")
    rsa = type(rsa)(replace(rsa.options, name="rsa", outcome="mean", distil=distil))
    text = write_report(tmp_path, run_comparison(comparison(3, [plain, rsa]), tmp_path / "rollouts.jsonl"))
    line = "* rsa: operator.source is full, so its calls read thoughts of earlier ones. Workspaces cut"
    assert line in text and "* pdr: operator.source" not in text
    assert "| rsa | 3 x 2 |" in text


def test_the_footnote_of_a_pareto_picture_names_only_marks_that_are_there(tmp_path: Path):
    rows = run_comparison(comparison(6), tmp_path / "rollouts.jsonl").rows
    final = [row for row in rows if row.final and row.vote is None]
    assert RINGS not in footnote(final) and VOTES not in footnote(final)
    assert VOTES in footnote([*final, *(row for row in rows if row.vote)])
    assert RINGS in footnote([*final, replace(final[0], final=False, width=1)])


@pytest.mark.component
def test_a_pareto_picture_is_drawn_from_any_rows(tmp_path: Path):
    report = run_comparison(comparison(6), tmp_path / "rollouts.jsonl")
    draw_pareto(report.rows, tmp_path / "pareto.png")
    draw_pareto(report.rows[:1], tmp_path / "one.png")
    for name in ("pareto.png", "one.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_every_field_of_the_report_is_defined_in_the_docs():
    documented = set(re.findall(r"`(\w+)`", (REPO / "docs" / "metrics.md").read_text()))
    written = {
        f.name
        for record in (ReportRow, Transition, Whole, Vote, Run, Difference, Finding)
        for f in fields(record)
    }
    inner = {"by_problem", "transition", "whole", "vote", "is_main", "difference"}
    assert written - inner <= documented
