"""From an advantage back to its problem: what groups/step_N.jsonl holds, and what explain prints of it."""

import asyncio
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from fakes import ScriptedPolicy
from test_rollout_collector import _collector
from test_train_learner import make_learner
from training_fakes import make_config, make_groups

from rollout.collection.collector import CollectedBatch
from rollout.collection.groups import DroppedGroup, GroupFilter
from rollout.records import DRAFT, REFINE, TRACE
from train.call_terms import CallTerms
from train.explain import Style, batch_deviations, explain, story
from train.loss.credit import credit
from train.trace import (
    CallRecord,
    GroupTrace,
    UpdateRecord,
    credit_records,
    read_trace,
    trace_path,
    traced_steps,
)


@pytest.fixture(scope="module")
def batch() -> CollectedBatch:
    return asyncio.run(_collector(ScriptedPolicy(), num_generations=4).collect(1))


def _written(
    folder: Path, batch: CollectedBatch, updates: dict[str, UpdateRecord] | None = None, step: int = 1
):
    config = make_config(folder, Path("model"))
    rows = credit(batch.groups, config.algo)
    (folder / "config.yaml").write_text(yaml.safe_dump(asdict(config)))
    trace = GroupTrace(folder, limit_mib=1, decode=lambda ids: " ".join(map(str, ids)))
    trace.write(step, batch, rows, updates or {})
    return rows, read_trace(trace_path(folder, step))


def test_every_call_of_a_step_has_a_line_and_ids_are_its_own(tmp_path: Path, batch: CollectedBatch):
    _, calls = _written(tmp_path, batch)
    assert len(calls) == sum(len(rollout.calls) for rollout in batch.rollouts)
    assert len({call.call_id for call in calls}) == len(calls)
    by_id = {call.call_id: call for call in calls}
    for call in calls:
        number, place = map(int, call.call_id.split("."))
        recorded = batch.rollouts[number].calls[place]
        assert (call.role, call.text) == (recorded.role, recorded.text)
        assert call.problem_id == batch.rollouts[number].problem.id
        assert all(by_id[parent].problem_id == call.problem_id for parent in call.parents)
    assert {call.role for call in calls if call.credit is None} == {DRAFT}
    assert {call.role for call in calls if call.credit is not None} == {TRACE, REFINE}


def test_a_row_leads_back_to_its_problem_and_its_calls(tmp_path: Path, batch: CollectedBatch):
    rows, calls = _written(tmp_path, batch)
    by_id = {call.call_id: call for call in calls}
    for row, group in zip(rows, batch.groups, strict=True):
        assert row.key == group.key
        for branch in row.branches:
            record = by_id[branch.call_id]
            assert record.problem_id == row.key.problem_id
            assert record.context == row.key.context
            assert record.completion_tokens == len(branch.completion_ids)
            assert record.credit is not None
            assert record.credit.reward == branch.reward
            assert record.credit.advantage == branch.advantages[0]


def test_calls_of_a_dropped_group_keep_their_reward_and_the_reason(tmp_path: Path):
    keep = GroupFilter(max_pass_rate=0.6)
    batch = asyncio.run(_collector(ScriptedPolicy(), num_generations=4, keep=keep).collect(1))
    assert batch.dropped and batch.groups
    _, calls = _written(tmp_path, batch)
    dropped = [call.credit for call in calls if call.credit is not None and call.credit.dropped]
    assert len(dropped) == sum(len(each.group.samples) for each in batch.dropped)
    assert {(credit.dropped, credit.advantage, credit.update) for credit in dropped} == {
        ("pass_rate", None, None)
    }
    assert batch.metrics["collect/dropped_pass_rate"] == len(batch.dropped)


@pytest.mark.component
@pytest.mark.parametrize("changes", [{}, {"num_updates": 2, "num_iterations": 2}, {"sft_coef": 0.1}])
def test_the_calls_parts_add_up_to_the_loss_of_the_first_pass(tmp_path, tiny_policy, changes):
    config = make_config(tmp_path, tiny_policy, algo={"loss_type": "grpo", **changes})
    groups = make_groups(0)
    calls = CallTerms()
    make_learner(config).learn(credit(groups, config.algo), 1, calls)
    records = calls.result()
    samples = {sample.call_id: sample for group in groups for sample in group.samples}
    assert set(records) <= set(samples)
    for name, record in records.items():
        assert record.trained_tokens == sum(samples[name].call.train_mask)
    # The rows of another learner with the same weights, in one pass: its metrics are the sums of the parts.
    alone = make_config(
        tmp_path / "b", tiny_policy, algo={"loss_type": "grpo", **changes, "num_iterations": 1}
    )
    metrics = make_learner(alone).learn(credit(groups, alone.algo), 1)
    imitated = sum(r.imitation_weight * -r.trainer_logprob for r in records.values())
    assert sum(record.loss for record in records.values()) - imitated == pytest.approx(
        metrics["loss"] * changes.get("num_updates", 1), rel=1e-5, abs=1e-7
    )


def test_a_resumed_run_drops_the_steps_it_makes_again(tmp_path: Path, batch: CollectedBatch):
    for step in (1, 2, 3):
        _written(tmp_path, batch, step=step)
    GroupTrace(tmp_path, limit_mib=1, decode=str).start(1)
    assert traced_steps(tmp_path) == [1]


def test_the_oldest_steps_go_when_the_folder_is_full(tmp_path: Path, batch: CollectedBatch):
    _written(tmp_path, batch)
    size = trace_path(tmp_path, 1).stat().st_size
    trace = GroupTrace(tmp_path, limit_mib=1, decode=str)
    trace._limit = int(2.5 * size)
    rows = credit(batch.groups, make_config(tmp_path, Path("model")).algo)
    for step in range(2, 6):
        trace.write(step, batch, rows, {})
    assert traced_steps(tmp_path) in ([4, 5], [5])
    trace._limit = 1
    trace.write(6, batch, rows, {})
    assert traced_steps(tmp_path) == [6]


def test_numbers_that_are_not_finite_are_read_back_as_none(tmp_path: Path, batch: CollectedBatch):
    name = batch.groups[0].samples[0].call_id
    update = UpdateRecord(
        trained_tokens=3,
        advantage=1.0,
        policy_weight=0.1,
        imitation_weight=0.0,
        trainer_logprob=float("-inf"),
        loss=float("nan"),
    )
    _, calls = _written(tmp_path, batch, {name: update})
    (record,) = [call for call in calls if call.call_id == name]
    assert record.credit is not None and record.credit.update is not None
    assert (record.credit.update.trainer_logprob, record.credit.update.loss) == (None, None)
    assert "loss not finite" in explain(tmp_path, 1, problem=record.problem_id, characters=0)


def test_a_damaged_line_is_named(tmp_path: Path, batch: CollectedBatch):
    _written(tmp_path, batch)
    path = trace_path(tmp_path, 1)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + lines[1][:20] + b"\n" + b"".join(lines[2:]))
    with pytest.raises(ValueError, match="line 2"):
        read_trace(path)


def _uneven(calls: list[CallRecord]) -> CallRecord:
    """A call whose group has different rewards."""
    return next(call for call in calls if call.credit and call.credit.advantage)


def test_a_story_names_every_call_and_its_advantage_follows_from_its_numbers(
    tmp_path: Path, batch: CollectedBatch
):
    _, calls = _written(tmp_path, batch)
    uneven = _uneven(calls)
    problem = uneven.problem_id
    text = explain(tmp_path, 1, problem=problem, characters=None)
    for call in (call for call in calls if call.problem_id == problem):
        assert f"call {call.call_id}:" in text
    group = [c.credit for c in calls if c.context == uneven.context and c.role == uneven.role and c.credit]
    rewards = np.array([credit.reward for credit in group])
    expected = (rewards - rewards.mean()) / (rewards.std(ddof=1) + 1e-4)
    assert [credit.advantage for credit in group] == pytest.approx(expected.tolist())
    assert "advantage = (reward - mean of the group) / (standard deviation of the group + 0.0001)" in text
    assert f"mean reward {rewards.mean():.4g}" in text
    assert problem in explain(tmp_path, 1, characters=None)


def test_explain_names_the_steps_problems_and_calls_there_are(tmp_path: Path, batch: CollectedBatch):
    with pytest.raises(FileNotFoundError, match="not the output_dir of a training run"):
        explain(tmp_path, 1, characters=None)
    _written(tmp_path, batch, step=3)
    with pytest.raises(FileNotFoundError, match="no trace of step 7; there is only step 3"):
        explain(tmp_path, 7, characters=None)
    with pytest.raises(ValueError, match="on problem 'nobody'"):
        explain(tmp_path, 3, problem="nobody", characters=None)
    with pytest.raises(ValueError, match=r"no call '0\.999'"):
        explain(tmp_path, 3, call="0.999", characters=None)
    trace_path(tmp_path, 3).unlink()
    with pytest.raises(FileNotFoundError, match="there are none"):
        explain(tmp_path, 3, characters=None)


def test_a_calls_story_is_that_of_its_rollout(tmp_path: Path, batch: CollectedBatch):
    _, calls = _written(tmp_path, batch)
    text = explain(tmp_path, 1, call=calls[0].call_id, characters=None)
    rollout = calls[0].call_id.split(".")[0]
    shown = {call.call_id for call in calls if f"call {call.call_id}:" in text}
    assert shown == {call.call_id for call in calls if call.call_id.split(".")[0] == rollout}


def test_a_refinement_of_an_empty_workspace_is_told_as_such(tmp_path: Path, batch: CollectedBatch):
    _, calls = _written(tmp_path, batch)
    draft = next(call for call in calls if call.role == DRAFT)
    refined = replace(
        next(call for call in calls if call.role == REFINE and draft.call_id in call.parents),
        context=draft.context,
    )
    algo = asdict(make_config(tmp_path, Path("model")).algo)
    style = Style(algo=algo, teacher="", batch_std={}, characters=0)
    text = story([draft, refined], style)
    assert f"reads the plain problem: no usable solution in calls {', '.join(refined.parents)}" in text


def test_a_call_that_is_alone_with_its_prompt_is_told_to_have_no_baseline(
    tmp_path: Path, batch: CollectedBatch
):
    _, calls = _written(tmp_path, batch)
    refined = [call for call in calls if call.role == REFINE and call.credit is not None]
    algo = asdict(make_config(tmp_path, Path("model")).algo)
    style = Style(algo=algo, teacher="", batch_std={}, characters=0)
    told = "no other call read this prompt: there is no baseline, so the advantage is 0"
    assert told in story(refined[:1], style)
    assert told not in story([call for call in refined if call.context == refined[0].context], style)


def test_the_batch_deviation_is_the_one_that_scaled_the_advantages(tmp_path: Path, batch: CollectedBatch):
    config = make_config(tmp_path, Path("model"), algo={"scale_rewards": "batch"})
    rows = credit(batch.groups, config.algo)
    trace = GroupTrace(tmp_path, limit_mib=1, decode=str)
    trace.write(1, batch, rows, {})
    calls = read_trace(trace_path(tmp_path, 1))
    call = _uneven(calls)
    assert call.credit is not None and call.credit.reward is not None
    group = [c.credit.reward for c in calls if c.context == call.context and c.role == call.role and c.credit]
    scaled = (call.credit.reward - np.mean(group)) / (batch_deviations(calls)[call.role] + 1e-4)
    assert scaled == pytest.approx(call.credit.advantage)


def test_stale_groups_are_dropped_with_that_reason(batch: CollectedBatch):
    config = make_config(Path("x"), Path("model"))
    first, *others = batch.groups
    stale = CollectedBatch(
        groups=tuple(others),
        rollouts=batch.rollouts,
        metrics={},
        dropped=(DroppedGroup(group=first, reason="stale"),),
    )
    records = credit_records(stale, credit(stale.groups, config.algo), {})
    assert {records[sample.call_id].dropped for sample in first.samples} == {"stale"}
