"""What a judging model cost and how often it agrees with the rules, from the verdicts to the report."""

import asyncio
import json
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from fakes import EvenIsCorrect, ScriptedPolicy, operator, problem, settings

from configs.thinking import ThinkingMarks
from rollout.evaluation.outcomes import Outcome, outcome_from_json, outcome_to_json, reduce
from rollout.evaluation.report import Report, compare, write_report
from rollout.grading import Attempt
from rollout.operators import run_operator
from rollout.records import Problem, Rollout
from rollout.verdicts import measures_of


@dataclass(frozen=True)
class Judged:
    """A verdict as ``rewards`` returns it for the kind ``judge``."""

    status: str
    answer: str | None
    is_correct: bool
    measures: dict[str, float] = field(default_factory=dict)


class Judging(EvenIsCorrect):
    """A grader whose judge answers with 7 tokens, and agrees with the rules on right answers only."""

    async def score(self, problem: Problem, completion: str, attempt: Attempt) -> Judged:
        scored = await super().score(problem, completion, attempt)
        spent = {
            "judge/requests": 1,
            "judge/prompt_tokens": 100,
            "judge/completion_tokens": 7,
            "judge/failed": 0,
        }
        agreement = {"judge/compared": 1.0, "judge/agreed": float(scored.is_correct)}
        measures = spent | (agreement if scored.answer is not None else {})
        return Judged(scored.status, scored.answer, scored.is_correct, measures)


def _made(grader: EvenIsCorrect) -> Rollout:
    work = run_operator(problem("a"), operator((4, 1)), settings(ScriptedPolicy()), grader, 0, 1)
    return asyncio.run(work)


def _report(outcomes: list[Outcome]) -> Report:
    work = compare(["pdr"], ["a"], outcomes, [], EvenIsCorrect().same, num_traces=1)
    return asyncio.run(work)


def test_an_outcome_sums_the_measures_of_all_its_verdicts_and_keeps_them_in_a_journal():
    rollout = _made(Judging())
    outcome = reduce(rollout, 0, ThinkingMarks())
    assert outcome.measures["judge/requests"] == len(rollout.verdicts) == 5
    assert outcome.measures["judge/completion_tokens"] == 35
    assert outcome.measures["judge/agreed"] == sum(each.is_correct for each in rollout.verdicts.values())
    stored = json.loads(json.dumps(outcome_to_json(outcome)))
    assert outcome_from_json(stored) == outcome
    del stored["measures"]  # as an earlier version wrote it
    assert outcome_from_json(stored).measures == {}


def test_the_report_states_what_the_judge_cost_and_its_agreement(tmp_path: Path):
    outcomes = [replace(reduce(_made(Judging()), 0, ThinkingMarks()), sample=sample) for sample in range(2)]
    text = write_report(tmp_path, _report(outcomes))
    measures = json.loads((tmp_path / "report.json").read_text())["run"]["measures"]
    assert (measures["judge/requests"], measures["judge/prompt_tokens"]) == (10, 1000)
    agreed, compared = int(measures["judge/agreed"]), int(measures["judge/compared"])
    assert 0 < agreed < compared
    assert (
        "The judging model: 10 requests, 1000 prompt tokens, 70 completion tokens; 0 answers got no" in text
    )
    share = f"{100 * agreed / compared:.1f}%"
    assert f"on {agreed} of {compared} answers on which both have a verdict ({share})" in text


@pytest.mark.parametrize("missing", ["judge/compared", "judge/requests"])
def test_without_a_comparison_or_a_judge_the_report_claims_none(tmp_path: Path, missing: str):
    outcome = reduce(_made(Judging()), 0, ThinkingMarks())
    left = {name: value for name, value in outcome.measures.items() if name != missing}
    text = write_report(tmp_path, _report([replace(outcome, measures=left)]))
    assert ("The judging model" in text) == (missing == "judge/compared")
    assert ("a verdict on none of these answers" in text) == (missing == "judge/compared")
    assert "agrees with the rules on" not in text


def test_a_verifier_without_cost_leaves_no_measures(tmp_path: Path):
    rollout = _made(EvenIsCorrect())
    assert measures_of(rollout.verdicts.values()) == {}
    text = write_report(tmp_path, _report([reduce(rollout, 0, ThinkingMarks())]))
    assert "judging model" not in text
    assert json.loads((tmp_path / "report.json").read_text())["run"]["measures"] == {}
