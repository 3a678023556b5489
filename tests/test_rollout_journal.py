"""rollouts.jsonl: what it keeps, and what a kill leaves of it."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from evaluation_fakes import IDENTITY, open_journal
from fakes import ScriptedPolicy, operator, problem, roll

from configs.thinking import ThinkingMarks
from rollout.budget import budget
from rollout.evaluation.identity import Identity
from rollout.evaluation.journal import Journal, check_journal, read_journal, rollout_to_json
from rollout.evaluation.outcomes import Failure, outcome_from_json, reduce

MARKS = ThinkingMarks()
NAMES = ("p0", "p1", "p2")


def _made(name: str):
    rollout = roll(ScriptedPolicy(), operator((4, 1)), name=name)
    return reduce(rollout, 0, MARKS, started=1.0, seconds=2.0), rollout


def test_a_journal_remembers_outcomes_and_forgets_a_line_that_a_kill_cut(tmp_path: Path):
    path = tmp_path / "rollouts.jsonl"
    made = [_made(f"p{i}") for i in range(3)]
    with open_journal(path, NAMES) as journal:
        for result, rollout in made[:2]:
            journal.add(result, rollout)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) - 40])
    assert read_journal(path) == ([made[0][0]], {})
    with open_journal(path, NAMES) as journal:
        assert journal.outcomes == [made[0][0]]
        assert journal.done == {made[0][0].key}
        journal.add(*made[2])
    assert read_journal(path) == ([made[0][0], made[2][0]], {})


def test_a_file_that_holds_nothing_but_a_cut_line_is_empty(tmp_path: Path):
    path = tmp_path / "rollouts.jsonl"
    path.write_text('{"outcome": {"problem_id"')
    with open_journal(path, NAMES) as journal:
        assert journal.outcomes == []
    assert read_journal(path) == ([], {})


def test_a_failure_is_not_done_and_a_later_success_replaces_it(tmp_path: Path):
    path = tmp_path / "rollouts.jsonl"
    result, rollout = _made("p0")
    failure = Failure(problem_id="p0", operator="pdr", sample=0, reason="refused: the prompt is too long")
    other = replace(failure, problem_id="p1")
    with open_journal(path, NAMES) as journal:
        journal.add_failure(failure)
        journal.add_failure(other)
        assert journal.done == set()
    with open_journal(path, NAMES) as journal:
        assert journal.failures == {failure.key: failure, other.key: other}
        journal.add(result, rollout)
        assert journal.failures == {other.key: other}
    assert read_journal(path) == ([result], {other.key: other})


def test_a_line_of_another_kind_is_named(tmp_path: Path):
    path = tmp_path / "rollouts.jsonl"
    with open_journal(path):
        first = path.read_text()
    for line in (
        '{"outcome": {"problem_id": "a"}, "problem": {"id": "", "question": "", "answer": ""}}',
        '{"failure": {"problem_id": "a"}}',
        "{}",
        "[1, 2]",
    ):
        path.write_text(f"{first}{line}\n")
        with pytest.raises(
            ValueError, match=r"rollouts\.jsonl line 2 is not a rollout as this version writes it"
        ):
            read_journal(path)


def test_a_line_that_was_torn_before_the_last_is_named_and_not_taken_for_a_rollout(tmp_path: Path):
    """A disk that lost the end of a write, and another write behind it: the first outcome is still whole."""
    path = tmp_path / "rollouts.jsonl"
    with open_journal(path, NAMES) as journal:
        for name in NAMES:
            journal.add(*_made(name))
    first, *lines = path.read_bytes().splitlines(keepends=True)
    for cut in (len(lines[0]) // 2, len(lines[0]) - 3, len(lines[0]) - 1):
        assert lines[0].index(b'"budgets"') < cut
        path.write_bytes(first + lines[0][:cut] + lines[1] + lines[2])
        with pytest.raises(ValueError, match=r"rollouts\.jsonl line 2 is torn: .* Remove that line"):
            read_journal(path)
        with pytest.raises(ValueError, match=r"line 2 is torn"), open_journal(path, NAMES):
            pass


def test_the_first_line_is_the_identity_and_a_file_without_one_is_refused(tmp_path: Path):
    path = tmp_path / "rollouts.jsonl"
    with open_journal(path, NAMES) as journal:
        journal.add(*_made("p0"))
    first, rest = path.read_text().split("\n", 1)
    assert json.loads(first) == {"identity": {"shared": IDENTITY.shared, "operators": IDENTITY.operators}}
    path.write_text(rest)
    with pytest.raises(ValueError, match=r"line 1 does not tell what .* an earlier version wrote the file"):
        read_journal(path)


def _changed(name: str, value: object) -> Identity:
    return replace(IDENTITY, shared={**IDENTITY.shared, name: value})


@pytest.mark.parametrize(
    ("identity", "message"),
    [
        (_changed("weights of model.path", "bb"), "weights of model.path was 'aa' and is 'bb'"),
        (_changed("seed", 1), "seed was 0 and is 1"),
        (_changed("rewards.forms", ["tag"]), r'rewards.forms was not set and is \["tag"\]'),
        (
            replace(IDENTITY, operators={"trace": {"schedule": [2]}, "pdr": {}}),
            r"operators\.trace\.schedule was \[1\] and is \[2\]",
        ),
    ],
)
def test_rollouts_of_another_identity_are_refused_by_name_with_both_values(
    tmp_path: Path, identity: Identity, message: str
):
    path = tmp_path / "out" / "rollouts.jsonl"
    with open_journal(path, NAMES) as journal:
        journal.add(*_made("p0"))
    before = path.read_bytes()
    problems = [problem(name) for name in NAMES]
    with pytest.raises(ValueError, match=f"{message}.* Set output_dir to a new folder, or delete .*out"):
        check_journal(path, identity, problems)
    with pytest.raises(ValueError, match=message), Journal(path, identity, problems):
        pass
    assert path.read_bytes() == before


def test_a_changed_question_or_gold_answer_is_refused_and_new_problems_and_operators_are_not(tmp_path: Path):
    path = tmp_path / "rollouts.jsonl"
    with open_journal(path, ["p0", "p1"]) as journal:
        for name in ("p0", "p1"):
            journal.add(*_made(name))
    whole = [problem(name) for name in NAMES]
    more = replace(IDENTITY, operators={**IDENTITY.operators, "sr": {"schedule": [1, 1]}})
    with Journal(path, more, whole) as journal:
        assert len(journal.outcomes) == 2
        journal.add(*_made("p2"))
    with open_journal(path, NAMES) as journal:  # sr is not compared this time
        assert len(journal.done) == 3
    other = replace(more, operators={"sr": {"schedule": [1, 1, 1]}})
    with pytest.raises(ValueError, match=r"operators\.sr\.schedule was \[1, 1\] and is \[1, 1, 1\]"):
        check_journal(path, other, whole)
    for change, message in (
        ({"question": "question p1?"}, "question of problem 'p1' was 'question p1' and is 'question p1\\?'"),
        ({"answer": "8"}, "answer of problem 'p1' was '7' and is '8'"),
    ):
        changed = [whole[0], replace(whole[1], **change), whole[2]]
        with pytest.raises(ValueError, match=message):
            check_journal(path, more, changed)
    with pytest.raises(ValueError, match="problem 'p2' is not in the data any more"):
        check_journal(path, more, whole[:2])


def test_a_file_without_a_finished_rollout_is_begun_anew_by_another_identity(tmp_path: Path):
    path = tmp_path / "rollouts.jsonl"
    with open_journal(path, NAMES) as journal:
        journal.add_failure(Failure(problem_id="p0", operator="pdr", sample=0, reason="nobody answered"))
    other = _changed("seed", 1)
    with Journal(path, other, [problem("p0")]) as journal:
        assert journal.failures == {}
        journal.add(*_made("p0"))
    check_journal(path, other, [problem("p0")])
    assert len(path.read_text().splitlines()) == 2


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
