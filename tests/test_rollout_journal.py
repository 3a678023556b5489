"""rollouts.jsonl: what it keeps, and what a kill leaves of it."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from fakes import ScriptedPolicy, operator, roll

from configs.thinking import ThinkingMarks
from rollout.budget import budget
from rollout.evaluation.journal import Journal, read_journal, rollout_to_json
from rollout.evaluation.outcomes import Failure, outcome_from_json, reduce

MARKS = ThinkingMarks()


def _made(name: str):
    rollout = roll(ScriptedPolicy(), operator((4, 1)), name=name)
    return reduce(rollout, 0, MARKS, started=1.0, seconds=2.0), rollout


def test_a_journal_remembers_outcomes_and_forgets_a_line_that_a_kill_cut(tmp_path: Path):
    path = tmp_path / "rollouts.jsonl"
    made = [_made(f"p{i}") for i in range(3)]
    with Journal(path) as journal:
        for result, rollout in made[:2]:
            journal.add(result, rollout)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) - 40])
    assert read_journal(path) == ([made[0][0]], {})
    with Journal(path) as journal:
        assert journal.outcomes == [made[0][0]]
        assert journal.done == {made[0][0].key}
        journal.add(*made[2])
    assert read_journal(path) == ([made[0][0], made[2][0]], {})


def test_a_file_that_holds_nothing_but_a_cut_line_is_empty(tmp_path: Path):
    path = tmp_path / "rollouts.jsonl"
    path.write_text('{"outcome": {"problem_id"')
    with Journal(path) as journal:
        assert journal.outcomes == []
    assert path.read_bytes() == b""


def test_a_failure_is_not_done_and_a_later_success_replaces_it(tmp_path: Path):
    path = tmp_path / "rollouts.jsonl"
    result, rollout = _made("p0")
    failure = Failure(problem_id="p0", operator="pdr", sample=0, reason="refused: the prompt is too long")
    other = replace(failure, problem_id="p1")
    with Journal(path) as journal:
        journal.add_failure(failure)
        journal.add_failure(other)
        assert journal.done == set()
    with Journal(path) as journal:
        assert journal.failures == {failure.key: failure, other.key: other}
        journal.add(result, rollout)
        assert journal.failures == {other.key: other}
    assert read_journal(path) == ([result], {other.key: other})


def test_a_line_of_another_kind_is_named(tmp_path: Path):
    path = tmp_path / "rollouts.jsonl"
    path.write_text('{"outcome": {"problem_id": "a", "correct": true}}\n')
    with pytest.raises(
        ValueError, match=r"rollouts\.jsonl line 1 is not a rollout as this version writes it"
    ):
        read_journal(path)
    path.write_text("[1, 2]\n")
    with pytest.raises(ValueError, match="line 1 is not a rollout"):
        read_journal(path)


def test_a_rollout_as_json_keeps_the_graph_the_exact_tokens_and_the_budgets():
    rollout = roll(ScriptedPolicy(), operator((4, 2, 1), "per_sample_topk", top_k=2))
    reduced = reduce(rollout, 5, MARKS)
    read = json.loads(json.dumps(rollout_to_json(reduced, rollout)))
    assert next(iter(read)) == "outcome"
    assert outcome_from_json(read["outcome"]) == reduced
    assert tuple(read["answers"]) == rollout.answers
    spent = budget(rollout, rollout.answers[0])
    assert read["budgets"] == {"b_seq": spent.b_seq, "b_total": spent.b_total}
    for stored, call in zip(read["calls"], rollout.calls, strict=True):
        assert (stored["role"], stored["round"], stored["label"]) == (call.role, call.round, call.label)
        assert tuple(stored["parents"]) == call.parents
        assert tuple(stored["prompt_ids"]) == call.prompt_ids
        assert tuple(stored["completion_ids"]) == call.completion_ids
        assert stored["text"] == call.text
        assert stored["usage"] == {
            "prompt_tokens": call.usage.prompt_tokens,
            "completion_tokens": call.usage.completion_tokens,
        }
        assert (stored["policy_version"], stored["forced"]) == (0, [])
    assert {int(place) for place in read["verdicts"]} == set(rollout.verdicts)


def test_forced_tokens_are_kept_as_spans():
    rollout = roll(ScriptedPolicy(), operator((1,), name="trace"))
    (call,) = rollout.calls
    mask = [not (3 <= i < 6 or i == 9) for i in range(len(call.completion_ids))]
    forced = replace(rollout, calls=(replace(call, train_mask=tuple(mask)),))
    (stored,) = rollout_to_json(reduce(forced, 0, MARKS), forced)["calls"]
    assert stored["forced"] == [(3, 6), (9, 10)]
