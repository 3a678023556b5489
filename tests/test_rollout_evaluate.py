"""Operators over a data set: every rollout once, a bounded number at a time, failures kept apart."""

import asyncio
import json
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path

import pytest
from evaluation_fakes import OPERATORS, TRACE, Kept, comparison, outcome, run_comparison
from fakes import CODEC, EvenIsCorrect, SamplerOf, ScriptedPolicy, operator, problem, settings

from rollout.evaluation.evaluate import Comparison, PlannedRollout, evaluate, missing
from rollout.evaluation.journal import read_journal
from rollout.evaluation.outcomes import Key, Outcome
from rollout.evaluation.report import write_report
from rollout.records import Completion, Prompt, Sampling
from rollout.sampler import CallFailed, Sampler


def _run(
    made: Comparison, sampler: Sampler | None = None, *, seed: int = 0, done: Collection[Key] = ()
) -> Kept:
    sink = Kept()
    jobs = missing(made.planned(), done)
    asyncio.run(
        evaluate(
            jobs, settings(sampler or ScriptedPolicy()), EvenIsCorrect(), sink, seed=seed, max_in_flight=8
        )
    )
    return sink


def _content(outcomes: Sequence[Outcome]) -> dict:
    """Outcomes without their times."""
    return {o.key: (o.rounds, o.status, o.completion_tokens, o.counts) for o in outcomes}


class Failing:
    """A scripted policy that fails every call about some problems."""

    def __init__(self, *names: str) -> None:
        self.names = names
        self.policy = ScriptedPolicy()

    async def generate(
        self, prompt: Prompt, sampling: Sampling, n: int = 1, request_id: str | None = None
    ) -> Sequence[Completion]:
        text = CODEC.decode(prompt.ids)
        if any(f"question {name}\n" in text or f"question {name}<" in text for name in self.names):
            raise CallFailed("the endpoint said 500 four times")
        return await self.policy.generate(prompt, sampling, n, request_id)

    async def abort(self, request_ids: Collection[str]) -> None:
        raise AssertionError("nothing is aborted here")


def test_every_problem_operator_and_sample_is_evaluated_once():
    sink = _run(comparison(5, samples=3))
    expected = Counter((f"p{i}", each.name, s) for i in range(5) for each in OPERATORS for s in range(3))
    assert Counter(o.key for o in sink.outcomes) == expected
    assert sink.failures == []


def test_equal_seeds_give_equal_outcomes_and_samples_differ():
    assert _content(_run(comparison(5)).outcomes) == _content(_run(comparison(5)).outcomes)
    assert _content(_run(comparison(5)).outcomes) != _content(_run(comparison(5), seed=1).outcomes)
    pdr = [o for o in _run(comparison(1, samples=8)).outcomes if o.operator == "pdr"]
    assert len({o.rounds for o in pdr}) == 8


def test_an_interrupted_evaluation_asks_only_for_what_is_missing_and_gets_the_same():
    whole = _run(comparison(5)).outcomes
    done = {o.key for o in whole[::3]}
    rest = _run(comparison(5), done=done).outcomes
    assert _content(rest) == _content([o for o in whole if o.key not in done])


def test_rollouts_under_way_are_bounded_and_jobs_are_taken_as_they_start():
    taken: list[str] = []
    ended: list[str] = []
    most = 0

    def jobs():
        for i in range(40):
            taken.append(f"p{i}")
            yield PlannedRollout(problem=problem(f"p{i}"), operator=TRACE, sample=0)

    async def generate(prompt, sampling, n):
        nonlocal most
        most = max(most, len(taken) - len(ended))
        completions = await scripted.generate(prompt, sampling, n)
        ended.append(CODEC.decode(prompt.ids))
        return completions

    scripted = ScriptedPolicy(delay=lambda request: 0.001)
    sink = Kept()
    work = evaluate(jobs(), settings(SamplerOf(generate)), EvenIsCorrect(), sink, seed=0, max_in_flight=3)
    asyncio.run(work)
    assert len(sink.outcomes) == 40
    assert most == 3


def test_a_failed_problem_is_kept_with_its_reason_and_ends_nothing():
    sink = _run(comparison(4), Failing("p1", "p2"))
    assert {f.problem_id for f in sink.failures} == {"p1", "p2"}
    assert {f.reason for f in sink.failures} == {"the endpoint said 500 four times"}
    assert len(sink.failures) == len(sink.outcomes) == 2 * 2 * len(OPERATORS)


def test_an_error_that_is_no_failed_call_ends_the_evaluation():
    async def generate(prompt, sampling, n):
        raise ZeroDivisionError("a bug")

    with pytest.raises(ZeroDivisionError, match="a bug"):
        _run(comparison(4), SamplerOf(generate))


def test_votes_need_as_many_traces_as_the_dearest_operator_costs():
    made = comparison(2, samples=2)
    outcomes = [
        outcome("p0", ["2"]),
        outcome("p0", ["2", "3", "4"], ["2"], operator="pdr"),
        outcome("p0", ["2"], ["3"], operator="sr"),
    ]
    jobs = [job.key for job in made.planned_votes(outcomes)]
    assert jobs == [("p0", "trace", 2), ("p0", "trace", 3), ("p1", "trace", 2), ("p1", "trace", 3)]
    assert list(made.planned_votes(outcomes[:1] + outcomes[2:])) == []


def test_without_traces_in_the_comparison_one_a_problem_tells_their_price():
    pdr = operator((4, 1))
    made = Comparison(problems=[problem("a"), problem("b")], operators=[pdr], trace=TRACE, samples=2)
    assert [job.key for job in made.planned() if job.operator is TRACE] == [
        ("a", "trace", 0),
        ("b", "trace", 0),
    ]
    outcomes = [outcome("a", ["2"]), outcome("a", ["2", "3", "4"], ["2"], operator="pdr")]
    assert [job.sample for job in made.planned_votes(outcomes)] == [1, 2, 3, 1, 2, 3]


def test_a_vote_alone_needs_no_trace():
    vote = operator((4, 1), name="majority")
    made = Comparison(problems=[problem("a")], operators=[vote], trace=TRACE, samples=2)
    assert [job.key for job in made.planned()] == [("a", "majority", 0), ("a", "majority", 1)]
    assert list(made.planned_votes([outcome("a", ["2", "4"], ["2"], operator="majority")])) == []


def _report_text(folder: Path, report) -> tuple[str, dict]:
    """report.md and report.json without times."""
    folder.mkdir(exist_ok=True)
    text = write_report(folder, report)
    content = json.loads((folder / "report.json").read_text())
    for row in content["rows"]:
        row.pop("seconds", None), row.pop("tokens_per_second", None)
    for name in ("wall_seconds", "tokens_per_second"):
        content["run"].pop(name)
    return text.partition("\n\n")[2], content


def test_a_continued_evaluation_reports_what_an_uninterrupted_one_does(tmp_path: Path):
    made = comparison(6, samples=2)
    whole = run_comparison(made, tmp_path / "whole.jsonl")
    path = tmp_path / "parts.jsonl"

    def killed(jobs):
        for i, job in enumerate(jobs):
            if i == 15:
                raise KeyboardInterrupt
            yield job

    with pytest.raises(KeyboardInterrupt):
        run_comparison(made, path, keep=killed)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) - 100])  # as a kill leaves it: the last line is cut
    before, _ = read_journal(path)
    policy = ScriptedPolicy()
    continued = run_comparison(made, path, policy)
    _, content = _report_text(tmp_path / "a", whole)
    _, again = _report_text(tmp_path / "b", continued)
    assert before and content == again
    lines = [json.loads(line)["outcome"] for line in path.read_text().splitlines()[1:]]
    keys = [(o["problem_id"], o["operator"], o["sample"]) for o in lines]
    assert len(keys) == len(set(keys))
    # Nothing that was finished is asked for again.
    finished = {o.key for o in before}
    new = [line for line, key in zip(lines, keys, strict=True) if key not in finished]
    assert len(policy.ended) <= sum(len(r["attempts"]) for o in new for r in o["rounds"])


def test_failures_are_counted_reported_and_tried_again(tmp_path: Path):
    made, path = comparison(3, samples=2), tmp_path / "rollouts.jsonl"
    first = run_comparison(made, path, Failing("p1"))
    extra = sum(failure.sample >= 2 for failure in read_journal(path)[1].values())
    assert first.run.failed == 2 * len(OPERATORS) + extra
    assert {row.failed for row in first.rows if row.operator == "pdr"} == {2}
    assert {row.problems for row in first.rows} == {2}
    text = write_report(tmp_path, first)
    assert "rollouts failed" in text and "the endpoint said 500 four times" in text
    second = run_comparison(made, path)
    assert (second.run.failed, {row.problems for row in second.rows}) == (0, {3})
    assert "failed" not in write_report(tmp_path, second)
    _, content = _report_text(tmp_path / "a", second)
    _, whole = _report_text(tmp_path / "b", run_comparison(made, tmp_path / "whole.jsonl"))
    assert content["rows"] == whole["rows"]
