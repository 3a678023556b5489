"""The report of a training run, from the evaluations on disk."""

import asyncio
import json
from dataclasses import replace
from pathlib import Path

from evaluation_fakes import IDENTITY, open_journal, outcome
from fakes import EvenIsCorrect, ScriptedPolicy, operator, problem, roll, settings
from training_fakes import make_config

from rollout.evaluation.outcomes import Failure
from rollout.sampler import CallFailed
from train.evaluation import HeldOutEvaluator, write_run_report
from train.phases import AFTER, BEFORE, is_complete, phase_of, phase_path

OPERATORS = ["trace", "pdr"]
DEMO_FIELDS = [
    "operator",
    "phase",
    "problems",
    "samples",
    "accuracy",
    "ci_low",
    "ci_high",
    "b_seq",
    "b_total",
]


def _config(tmp_path: Path):
    config = make_config(tmp_path, Path("model"), train={"eval_operators": OPERATORS, "max_steps": 8})
    assert config.train.eval_operators == OPERATORS
    return config


def _phase(config, phase: str, answers: dict[str, str], failed: int = 0) -> None:
    """A phase in which the answers of problem ``p0, p1, ...`` are the characters of each operator's text."""
    rollout = roll(ScriptedPolicy(), operator((1,), name="trace"))
    with open_journal(phase_path(config, phase)) as journal:
        for name, text in answers.items():
            for i, answer in enumerate(text):
                rounds = ([answer],) if name == "trace" else (["1", "2"], [answer])
                made = outcome(f"p{i}", *rounds, operator=name)
                journal.add(made, replace(rollout, operator=name))
        for i in range(failed):
            journal.add_failure(Failure(problem_id=f"p{i}", operator="pdr", sample=1, reason="too long"))


def test_a_run_reports_one_row_for_each_operator_and_phase_with_the_demos_fields(tmp_path: Path):
    config = _config(tmp_path)
    _phase(config, AFTER, {"trace": "2222", "pdr": "2222"}, failed=2)
    _phase(config, "step_000004", {"trace": "2211", "pdr": "2221"})
    _phase(config, BEFORE, {"pdr": "2111", "trace": "1111"})
    text = write_run_report(config)
    content = json.loads((tmp_path / "report.json").read_text())
    rows = content["rows"]
    assert [(row["operator"], row["phase"]) for row in rows] == [
        (name, phase) for phase in (BEFORE, "step_000004", AFTER) for name in OPERATORS
    ]
    assert [row["accuracy"] for row in rows] == [0, 0.25, 0.5, 0.75, 1, 1]
    assert all(list(row)[:9] == DEMO_FIELDS for row in rows)
    assert [row["failed"] for row in rows] == [0, 0, 0, 0, 0, 2]
    assert rows[1]["some_right"]["rollouts"] == 4
    assert rows[1]["drafts_pass_at_width"] == 1.0
    found = {f"{d['a']} - {d['b']}": d["difference"] for d in content["differences"]}
    assert found == {
        "trace after - trace before": 1.0,
        "pdr after - pdr before": 0.75,
        "pdr before - trace before": 0.25,
        "pdr step_000004 - trace step_000004": 0.25,
        "pdr after - trace after": 0.0,
    }
    assert "| pdr | after | 4 x 1 |" in text and "2 rollouts failed" in text and "too long" in text


def test_a_run_without_evaluations_has_an_empty_report(tmp_path: Path):
    write_run_report(_config(tmp_path))
    content = json.loads((tmp_path / "report.json").read_text())
    assert (content["rows"], content["differences"], content["run"]["rollouts"]) == ([], [], 0)


def test_phases_are_named_by_step(tmp_path: Path):
    config = _config(tmp_path)
    assert [phase_of(step, config) for step in (0, 4, 8)] == [BEFORE, "step_000004", AFTER]


class _Engine:
    """Runs on a loop of its own what an evaluator hands to the engine."""

    def run(self, work, timeout_seconds: float, *, what: str):
        return asyncio.run(work)


def _evaluator(config, policy: ScriptedPolicy) -> HeldOutEvaluator:
    problems = [problem(f"p{i}") for i in range(3)]
    operators = [operator((1,), name="trace"), operator((2, 1), name="pdr")]
    return HeldOutEvaluator(
        config,
        problems,
        operators,
        _Engine(),  # pyright: ignore[reportArgumentType]
        settings(policy),
        EvenIsCorrect(),
        lambda phase: IDENTITY,
    )


class _Failing(ScriptedPolicy):
    """Gets no answer for the questions of one problem."""

    async def generate(self, prompt, *arguments, **options):
        if "question p1" in prompt.text:
            raise CallFailed("nobody answered")
        return await super().generate(prompt, *arguments, **options)


def test_a_phase_is_complete_when_its_last_rollout_was_made_and_not_before(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("train.evaluation.write_run_report", lambda config: "")
    config = _config(tmp_path)
    assert not is_complete(config, AFTER)
    _evaluator(config, _Failing()).evaluate(config.train.max_steps)
    assert phase_path(config, AFTER).is_file()
    assert not is_complete(config, AFTER)
    again = ScriptedPolicy()
    _evaluator(config, again).evaluate(config.train.max_steps)
    assert is_complete(config, AFTER)
    assert again.requests and all("question p1" in request.prompt for request in again.requests)
    more = make_config(
        tmp_path, Path("model"), train={"eval_operators": OPERATORS, "max_steps": 8, "eval_samples": 2}
    )
    assert not is_complete(more, AFTER)


def test_a_resumed_run_forgets_what_was_measured_of_later_policies(tmp_path: Path):
    """After step 8 of 8 the run was resumed from step 4 with 12 steps to make: its old end is no end."""
    config = make_config(tmp_path, Path("model"), train={"eval_operators": OPERATORS, "max_steps": 12})
    for phase in (BEFORE, "step_000002", "step_000004", "step_000006", AFTER):
        _phase(config, phase, {"trace": "2"})
    _evaluator(config, ScriptedPolicy()).start(4)
    kept = sorted(path.name for path in (tmp_path / "evaluation").iterdir())
    assert kept == [BEFORE, "step_000002", "step_000004"]
    _evaluator(config, ScriptedPolicy()).start(12)
    assert sorted(path.name for path in (tmp_path / "evaluation").iterdir()) == kept


def test_the_report_of_a_run_without_any_evaluation_has_no_table(tmp_path: Path):
    text = write_run_report(_config(tmp_path))
    assert text == "No evaluation was made, so there is nothing to report."
    assert json.loads((tmp_path / "report.json").read_text())["rows"] == []
