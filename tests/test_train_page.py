"""The run page of training: what it takes from metrics, trace, evaluations and rollbacks; its command."""

import asyncio
import json
import re
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from fakes import ScriptedPolicy
from page_fakes import report, rollout, write_evaluation, write_journal
from test_rollout_collector import _collector
from training_fakes import make_config

from rewards.verdict import Verdict
from rollout.collection.collector import CollectedBatch
from train.health.rollbacks import Rollback, record_rollback
from train.last_words import last_words
from train.loss.credit import credit
from train.page import STEPS, training_view
from train.report_page import main, views
from train.trace import GroupTrace

RIGHT, WRONG = True, False


@pytest.fixture(scope="module")
def batch() -> CollectedBatch:
    return asyncio.run(_collector(ScriptedPolicy(), num_generations=4).collect(1))


def _run(folder: Path, batch: CollectedBatch, steps: int = 3) -> Path:
    """A run of ``steps`` steps, with trace and evaluations, whose gradient grew in the last step."""
    folder.mkdir(parents=True)
    config = make_config(folder, Path("model"))
    (folder / "config.yaml").write_text(yaml.safe_dump(asdict(config)))
    trace = GroupTrace(folder, limit_mib=64, decode=lambda ids: " ".join(map(str, ids)))
    for step in range(1, steps + 1):
        trace.write(step, batch, credit(batch.groups, config.algo), {})
    lines = [{"step": step, "reward/trace": 0.1 * step, "kl/trace": 1.0} for step in range(1, steps + 1)]
    lines[-1]["mismatch_kl/trace"] = 0.5
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "report.json").write_text(json.dumps(report([("before", 0.25), ("after", 0.5)])))
    for phase in ("before", "after"):
        write_journal(
            folder / "evaluation" / phase / "rollouts.jsonl", [rollout("p", [("a", WRONG)], ("b", RIGHT))]
        )
    return folder


def test_a_page_holds_every_call_of_the_trace_with_reward_and_advantage(tmp_path, batch):
    run = training_view(_run(tmp_path / "run", batch, 1), 10**8)
    traced = [each for each in run.rollouts if each.source == "step 1"]
    assert [each.problem for each in traced] == [each.problem.id for each in batch.rollouts]
    for shown, recorded in zip(traced, batch.rollouts, strict=True):
        assert [call.role for call in shown.calls] == [call.role for call in recorded.calls]
        assert [call.parents for call in shown.calls] == [call.parents for call in recorded.calls]
        assert [call.verdict for call in shown.calls] == [
            verdict.status if (verdict := recorded.verdicts.get(place)) else None
            for place in range(len(recorded.calls))
        ]
    credits = [call.credit for each in traced for call in each.calls if call.credit is not None]
    rewards = [sample.reward for group in batch.groups for sample in group.samples]
    assert sorted(credit.reward for credit in credits) == sorted(rewards)
    assert any(credit.advantage for credit in credits)


def test_a_trace_keeps_how_an_answer_was_found(tmp_path, batch):
    first = batch.rollouts[0]
    verdicts = {place: Verdict(status="wrong", answer="1", found_by="box") for place in first.verdicts}
    changed = replace(batch, rollouts=(replace(first, verdicts=verdicts), *batch.rollouts[1:]))
    run = training_view(_run(tmp_path / "run", changed, 1), 10**8)
    assert {call.found_by for call in run.rollouts[0].calls if call.verdict} == {"box"}
    assert {call.found_by for call in run.rollouts[1].calls} == {""}


def test_a_page_holds_curves_alarms_rollbacks_and_the_evaluations(tmp_path, batch):
    folder = _run(tmp_path / "run", batch)
    made = Rollback(from_step=3, to_step=2, policy_version=4, alarms=("bad",), metrics="m")
    record_rollback(folder, made)
    run = training_view(folder, 10**8)
    assert run.curves.steps == (1, 2, 3)
    assert run.curves.values["reward/trace"] == (0.1, 0.2, 0.3)
    assert {(mark.step, mark.kind) for mark in run.marks} == {(3, "alarm"), (2, "rollback")}
    assert any("sampler_mismatch" in line for line in run.alarms)
    sources = [source.source for source in run.sources]
    assert sources == ["step 1", "step 2", "step 3", "evaluation before", "evaluation after"]
    assert [(row.phase, row.accuracy) for row in run.rows] == [("before", 0.25), ("after", 0.5)]
    assert run.facts["steps"].startswith("3 of ")


def test_of_many_steps_some_are_read_and_the_page_tells(tmp_path, batch):
    run = training_view(_run(tmp_path / "run", batch, STEPS + 8), 10**8)
    steps = [int(source.source.split()[1]) for source in run.sources if source.source.startswith("step")]
    assert len(steps) == STEPS and steps[0] == 1 and steps[-1] == STEPS + 8
    assert any(f"{STEPS} of {STEPS + 8} traced steps" in note for note in run.notes)


def test_the_command_lays_several_folders_over_one_another_under_names_that_differ(tmp_path, batch, capsys):
    first, second = _run(tmp_path / "a" / "run", batch), _run(tmp_path / "b" / "run", batch)
    evaluation = write_evaluation(tmp_path / "ev", [rollout("p", [("a", WRONG)], ("b", RIGHT))])
    out = tmp_path / "both.html"
    main([str(first), str(second), str(evaluation), "--out", str(out)])
    assert re.fullmatch(rf"{out}: \d\.\d MB\n", capsys.readouterr().out)
    assert [run.name for run in views([first, second])] == ["a/run", "b/run"]
    assert [run.kind for run in views([first, evaluation])] == ["training", "evaluation"]


def test_a_folder_that_is_neither_is_refused_by_name(tmp_path):
    with pytest.raises(SystemExit, match=rf"{tmp_path} holds neither metrics\.jsonl .* nor rollouts\.jsonl"):
        main([str(tmp_path)])


def test_a_trace_of_another_version_is_refused_with_its_line(tmp_path, batch):
    folder = _run(tmp_path / "run", batch, 1)
    (folder / "groups" / "step_000001.jsonl").write_text('{"call_id":1}\n')
    with pytest.raises(SystemExit, match="line 1: not a call"):
        main([str(folder)])


def test_a_run_ends_with_its_page_and_does_not_end_for_it(tmp_path, batch, monkeypatch):
    folder = _run(tmp_path / "run", batch)
    monkeypatch.setattr("train.last_words.run_report", lambda config: SimpleNamespace(rows=[]))
    monkeypatch.setattr("train.last_words.write_report", lambda folder, report: "the report")
    said = last_words(make_config(folder, Path("model"))).splitlines()
    assert said[0] == "the report" and f"Run page: {folder / 'page.html'}" in said
    (folder / "groups" / "step_000001.jsonl").write_text("{}\n")
    said = last_words(make_config(folder, Path("model"))).splitlines()
    (line,) = [line for line in said if "was not written" in line]
    assert said[0] == "the report" and "was not written: ValueError" in line and "page" in line
