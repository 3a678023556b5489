"""Operators over a data set: outcomes, rows, differences, files."""

import asyncio
import json
from collections.abc import Container
from pathlib import Path

import pytest
from fakes import CODEC, EvenIsCorrect, SamplerOf, ScriptedPolicy, operator, problem, roll, settings

from rollout.budget import budget
from rollout.evaluate import (
    Key,
    Outcome,
    accuracy_by_problem,
    difference,
    evaluate,
    outcome,
    read_outcomes,
    rollout_to_json,
    rows,
)
from rollout.journal import Journal

OPERATORS = [operator((1,), name="trace"), operator((4, 1)), operator((1, 1), name="sr")]


def _outcome(name: str, correct: bool, *, operator: str = "trace", sample: int = 0) -> Outcome:
    status = "correct" if correct else "wrong"
    return Outcome(
        problem_id=name,
        operator=operator,
        sample=sample,
        correct=correct,
        status=status,
        b_seq=100 + 10 * sample,
        b_total=200,
    )


def _evaluate(samples: int, seed: int = 0, done: Container[Key] = ()) -> list[Outcome]:
    work = evaluate(
        [problem(f"p{i}") for i in range(5)],
        OPERATORS,
        settings(ScriptedPolicy()),
        EvenIsCorrect(),
        samples=samples,
        seed=seed,
        on_rollout=lambda outcome, rollout: None,
        done=done,
    )
    return asyncio.run(work)


def test_every_problem_operator_and_sample_is_evaluated_once_and_reported_as_it_ends():
    ended: list[tuple[str, str, int]] = []
    work = evaluate(
        [problem(f"p{i}") for i in range(5)],
        OPERATORS,
        settings(ScriptedPolicy()),
        EvenIsCorrect(),
        samples=3,
        seed=0,
        on_rollout=lambda o, rollout: ended.append((rollout.problem.id, o.operator, o.sample)),
    )
    outcomes = asyncio.run(work)
    expected = {(f"p{i}", o.name, s) for i in range(5) for o in OPERATORS for s in range(3)}
    assert set(ended) == expected and len(ended) == len(expected)
    assert [(o.problem_id, o.operator, o.sample) for o in outcomes] == [
        (f"p{i}", o.name, s) for i in range(5) for s in range(3) for o in OPERATORS
    ]


def test_equal_seeds_give_equal_outcomes_and_samples_differ():
    assert _evaluate(2) == _evaluate(2)
    assert _evaluate(2) != _evaluate(2, seed=1)
    assert len({(o.b_total, o.correct) for o in _evaluate(8) if o.operator == "pdr"}) > 1


def test_an_outcome_has_the_budget_and_verdict_of_the_answer():
    rollout = roll(ScriptedPolicy(), operator((4, 1)))
    (answer,) = rollout.answers
    result = outcome(rollout, 3)
    spent = budget(rollout, answer)
    assert (result.b_seq, result.b_total) == (spent.b_seq, spent.b_total)
    assert (result.correct, result.status) == (
        rollout.verdicts[answer].is_correct,
        rollout.verdicts[answer].status,
    )
    assert (result.problem_id, result.operator, result.sample) == ("p", "pdr", 3)


def test_problems_count_alike_however_many_samples_they_have():
    outcomes = [_outcome("a", True), _outcome("b", False), _outcome("b", False, sample=1)]
    assert accuracy_by_problem(outcomes) == {"a": 1.0, "b": 0.0}


def test_a_row_is_the_mean_over_problems_and_samples():
    outcomes = [
        _outcome(name, correct, sample=sample)
        for name, marks in {"a": (True, True), "b": (True, False), "c": (False, False)}.items()
        for sample, correct in enumerate(marks)
    ]
    (row,) = rows(outcomes, "before")
    assert (row.operator, row.phase, row.problems, row.samples) == ("trace", "before", 3, 2)
    assert row.accuracy == pytest.approx(0.5)
    assert 0 <= row.ci_low < 0.5 < row.ci_high <= 1
    assert (row.b_seq, row.b_total) == (105, 200)


def test_rows_stand_in_order_of_appearance():
    outcomes = [_outcome("a", True, operator=name) for name in ("pdr", "trace", "sr")]
    assert [row.operator for row in rows(outcomes, "")] == ["pdr", "trace", "sr"]


def test_a_difference_is_paired_by_problem():
    hard = [i % 2 == 0 for i in range(40)]  # common difficulty, which a paired interval does not feel
    before = [_outcome(f"p{i}", hard[i]) for i in range(40)]
    after = [_outcome(f"p{i}", hard[i] or i in (1, 3, 5, 7)) for i in range(40)]
    gain = difference("after", after, "before", before)
    assert gain.difference == pytest.approx(0.1)
    assert 0 < gain.ci_low <= 0.1 <= gain.ci_high < 0.25
    loss = difference("before", before, "after", after)
    assert (loss.difference, loss.ci_low) == (pytest.approx(-0.1), pytest.approx(-gain.ci_high))


def test_a_difference_looks_only_at_problems_that_both_have():
    first = [_outcome("a", True), _outcome("b", True)]
    second = [_outcome("b", True), _outcome("c", False)]
    assert difference("x", first, "y", second).difference == 0.0
    with pytest.raises(ValueError, match="at least one problem"):
        difference("x", first[:1], "y", second)


def test_an_interrupted_evaluation_asks_only_for_what_is_missing_and_gets_the_same():
    whole = _evaluate(2)
    done = {(o.problem_id, o.operator, o.sample) for o in whole[::3]}
    rest = _evaluate(2, done=done)
    assert rest == [o for o in whole if (o.problem_id, o.operator, o.sample) not in done]


def test_rollouts_under_way_are_bounded():
    started: set[str] = set()
    ended: set[str] = set()
    most = 0
    scripted = ScriptedPolicy(delay=lambda request: 0.001)

    async def generate(prompt, sampling, n):
        nonlocal most
        started.add(CODEC.decode(prompt.ids))
        most = max(most, len(started - ended))
        completions = await scripted.generate(prompt, sampling, n)
        ended.add(CODEC.decode(prompt.ids))
        return completions

    work = evaluate(
        [problem(f"p{i}") for i in range(12)],
        OPERATORS[:1],
        settings(SamplerOf(generate)),
        EvenIsCorrect(),
        samples=1,
        seed=0,
        on_rollout=lambda outcome, rollout: None,
        max_in_flight=3,
    )
    assert len(asyncio.run(work)) == 12
    assert most == 3


def test_a_journal_remembers_outcomes_and_forgets_a_line_that_a_kill_cut(tmp_path: Path):
    path = tmp_path / "rollouts.jsonl"
    made = [roll(ScriptedPolicy(), operator((4, 1)), name=f"p{i}") for i in range(3)]
    outcomes = [outcome(rollout, 0) for rollout in made]
    with Journal(path) as journal:
        for result, rollout in zip(outcomes[:2], made, strict=False):
            journal.add(result, rollout)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) - 40])
    assert read_outcomes(path) == outcomes[:1]
    with Journal(path) as journal:
        assert journal.outcomes == outcomes[:1]
        journal.add(outcomes[2], made[2])
    assert read_outcomes(path) == [outcomes[0], outcomes[2]]


def test_a_rollout_as_json_keeps_the_graph_and_the_exact_tokens():
    rollout = roll(ScriptedPolicy(), operator((4, 2, 1), "per_sample_topk", top_k=2))
    reduced = outcome(rollout, 5)
    read = json.loads(json.dumps(rollout_to_json(reduced, rollout)))
    assert Outcome(**read["outcome"]) == reduced
    assert tuple(read["answers"]) == rollout.answers
    for stored, call in zip(read["calls"], rollout.calls, strict=True):
        assert tuple(stored["parents"]) == call.parents
        assert tuple(stored["prompt_ids"]) == call.prompt_ids
        assert tuple(stored["completion_ids"]) == call.completion_ids
        assert stored["text"] == call.text
    assert {int(place) for place in read["verdicts"]} == set(rollout.verdicts)
