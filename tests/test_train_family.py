"""Trainings of the family on real vLLM workers and two ranks: each operator, teachers, drafts of others."""

import json
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean, stdev

import pytest
from conftest import REPO
from tiny import byte_tokenizer, schooled_model
from training_commands import run_to_end

from configs.schema import RolloutConfig
from rollout.engine import RolloutEngine
from train.explain import explain
from train.loss.advantages import STD_EPSILON
from train.trace import CallRecord, read_trace, trace_path

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

LIMIT_SECONDS = 600
STEPS = 3
COMMON = (
    "data=file",
    "data.num_held_out=2",
    "rollout=cpu",
    "rollout.max_completion_length=16",
    "rollout.max_model_len=768",
    "model.dtype=float32",
    "algo.problems_per_step=8",
    "algo.num_generations=6",
    "algo.learning_rate=1e-4",
    "operator.schedule=[3,1]",
    "operator.workspace_tokens=128",
    "operator.prompts.refine='{question} Workspace: {workspace}'",
    "operator.prompts.solve='{question}'",
    "operator.thinking.close='</think>'",
    f"train.max_steps={STEPS}",
    "train.trace_steps=1",
    "train.eval_at_start=false",
    "train.eval_at_end=false",
    "train.eval_operators=[trace]",
)


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy that says 7 to nearly everything, which answers half of the problems."""
    folder = tmp_path_factory.mktemp("schooled")
    schooled_model("\\boxed{7}").save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def endpoint(policy: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RolloutEngine]:
    """A worker that serves the same policy as a chat endpoint, and is not the run's."""
    config = RolloutConfig(
        max_completion_length=16, max_model_len=768, dtype="float32", kv_cache_gib=1, max_num_seqs=64
    )
    with RolloutEngine(config, str(policy), tmp_path_factory.mktemp("logs")) as engine:
        yield engine


def _train(policy: Path, folder: Path, *options: str, **environment: str) -> dict[int, list[CallRecord]]:
    """Runs three steps on two ranks; returns the traced calls by step."""
    problems = folder / "problems.jsonl"
    lines = [{"id": f"p{i}", "question": f"{i} =", "answer": str(7 + i % 2)} for i in range(40)]
    problems.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    file = REPO / "launch" / "accelerate" / "cpu_zero2.yaml"
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(file), "-m", "train"]
    command += [*COMMON, f"data.path={problems}", f"model.path={policy}", f"output_dir={folder}", *options]
    run_to_end(command, folder / "train.log", LIMIT_SECONDS, OMP_NUM_THREADS="1", **environment)
    return {step: read_trace(trace_path(folder, step)) for step in range(1, STEPS + 1)}


def _metrics(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_traces_learn_from_amortised_answers_and_from_the_policy_that_reads_a_workspace(
    policy: Path, tmp_path: Path
):
    steps = _train(
        policy,
        tmp_path,
        "collect.draft_source=reuse",
        "algo.amortise_coef=0.3",
        "algo.opd_coef=0.1",
        "rollout.roles.trace.temperature=1.6",
        "rollout.roles.refine.temperature=0.9",
    )
    for line in _metrics(tmp_path):
        assert line["updates"] == 1
        assert line["collect/amortised"] > 0
        assert line["trained_tokens/amortise"] > 0 < line["nll/amortise"]
        assert ("opd_kl/trace" in line) == (line["collect/taught"] > 0)
        # The trainer scores each role at the temperature that sampled it.
        assert max(line["mismatch_kl/trace"], line.get("mismatch_kl/refine", 0.0)) < 1e-4
    calls = steps[STEPS]
    retrained = [call for call in calls if call.role == "amortise"]
    assert retrained
    shown = explain(tmp_path, STEPS, problem=retrained[0].problem_id, characters=60)
    assert "imitated with algo.amortise_coef 0.3" in shown
    by_step = [call for step in steps.values() for call in step]
    taught = [c for c in by_step if c.credit and c.credit.update and c.credit.update.teacher_kl is not None]
    assert taught and {call.role for call in taught} == {"trace"}
    (step,) = [number for number, of_step in steps.items() if taught[-1] in of_step]
    shown = explain(tmp_path, step, call=taught[-1].call_id, characters=60)
    assert "teacher: the policy reading a workspace" in shown


def test_reference_drafts_stay_those_of_the_first_policy_while_the_policy_moves_on(
    policy: Path, tmp_path: Path
):
    steps = _train(
        policy,
        tmp_path,
        "collect.draft_source=reference",
        "rollout.num_draft_workers=1",
        "rollout.roles.draft.temperature=1.2",
        "collect.filter=pacore_stage2",
        "collect.balance=majority_wrong",
        "collect.max_refill=1",
    )
    for step, calls in steps.items():
        drafts = [call for call in calls if call.role == "draft"]
        assert {call.policy for call in drafts} == {"reference"}
        assert {span.version for call in drafts for span in call.versions} == {0}
        own = {span.version for c in calls if c.policy == "own" for span in c.versions}
        assert own == {step - 1}
    assert [line["policy_version"] for line in _metrics(tmp_path)] == [1.0, 2.0, 3.0]
    assert "staleness/draft" not in _metrics(tmp_path)[-1]


def test_an_endpoint_drafts_and_the_policy_learns_to_refine(
    policy: Path, endpoint: RolloutEngine, tmp_path: Path
):
    (worker,) = endpoint.pool.endpoints
    assert endpoint._fleet is not None
    steps = _train(
        policy,
        tmp_path,
        "operator=two_policy",
        "operator.schedule=[3,1]",
        f"rollout.draft_url={worker.url}/v1",
        "rollout.draft_model=policy",
        "algo.amortise_coef=0.3",
        OPENAI_API_KEY=endpoint._fleet.key,
    )
    for calls in steps.values():
        drafts = [call for call in calls if call.role == "draft"]
        assert {call.policy for call in drafts} == {"endpoint"}
        assert all(call.credit is None and call.completion_tokens == 0 for call in drafts)
        assert any("\\boxed" in call.text for call in drafts)
        refined = [call for call in calls if call.role == "refine"]
        assert any(call.credit and call.credit.update for call in refined)
        assert any("\\boxed" in call.prompt for call in refined)
    shown = explain(tmp_path, 1, problem=steps[1][-1].problem_id, characters=60)
    assert "by the policy endpoint" in shown or "trace" in shown
    key = endpoint._fleet.key
    assert not any(key in path.read_text(errors="replace") for path in tmp_path.rglob("*.yaml"))


def test_another_model_teaches_every_role_by_its_log_probs_of_the_samples(
    policy: Path, endpoint: RolloutEngine, tmp_path: Path
):
    (worker,) = endpoint.pool.endpoints
    assert endpoint._fleet is not None
    steps = _train(
        policy,
        tmp_path,
        "algo.opd_coef=0.2",
        "algo.credit=[refine,draft]",
        "rollout.max_model_len=700",  # the teacher takes more
        f"rollout.teacher_model_server_url={worker.url}",
        OPENAI_API_KEY=endpoint._fleet.key,
    )
    apart, taught = {}, {}
    for step, calls in steps.items():
        updated = [(call, call.credit.update) for call in calls if call.credit and call.credit.update]
        assert updated and all(update.teacher_kl is not None for _, update in updated)
        apart[step] = max(abs(update.teacher_kl or 0.0) for _, update in updated)
        taught = {call.role: call for call, _ in updated}
        assert set(taught) == {"trace", "draft", "refine"}
    # The teacher serves the policy's first weights: both agree before the first update, and not after two.
    assert apart[1] < 1e-4 and apart[STEPS] > 1e-3
    last = _metrics(tmp_path)[-1]
    assert last["collect/taught"] > 0 and all(f"opd_kl/{role}" in last for role in taught)
    shown = explain(tmp_path, STEPS, call=taught["refine"].call_id, characters=60)
    assert f"teacher: the model at {worker.url}; log policy - log teacher" in shown


PAIRS = "algo.num_workspaces=3 "
ALL_ROUNDS = PAIRS + "algo.credit=[refine,draft] algo.credit_rounds=all "
OPERATORS: dict[str, tuple[str, set[tuple[str, int]]]] = {
    "rsa": (
        ALL_ROUNDS + "operator.schedule=[4,4,4] operator.top_k=2",
        {("draft", 0), ("refine", 1), ("refine", 2)},
    ),
    "recursive_summary": (
        PAIRS + "algo.credit=[refine,draft,distil] algo.credit_rounds=all operator.schedule=[3,2,1]",
        {("draft", 0), ("refine", 1), ("distil", 1), ("refine", 2)},
    ),
    "trace": ("operator.schedule=[1]", set()),
    "sr": ("operator.schedule=[1,1,1]", {("refine", 2)}),
    "sr_error_analysis": ("operator.schedule=[1,1,1]", {("refine", 2)}),
    "pdr": ("algo.credit=[refine,draft]", {("draft", 0), ("refine", 1)}),
    "adaptive": ("algo.credit=[refine,draft]", {("draft", 0), ("refine", 1)}),
    "markovian_rsa": (
        ALL_ROUNDS + "operator.schedule=[4,4,4] operator.top_k=2 operator.tail_tokens=9",
        {("draft", 0), ("refine", 1), ("refine", 2)},
    ),
    "pacore": (ALL_ROUNDS + "operator.schedule=[4,2,1]", {("draft", 0), ("refine", 1), ("refine", 2)}),
    "reasoning_cache": (
        PAIRS + "algo.credit=[refine,distil] operator.schedule=[1,1,1]",
        {("distil", 1), ("refine", 2)},
    ),
    "solver_judge": ("algo.credit=[refine,draft]", {("draft", 0), ("refine", 1)}),
}
"""Options, and the roles and rounds that are credited. That of two_policy is a test of its own."""
FAST = ("rsa", "recursive_summary")


@pytest.mark.parametrize(
    "name", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in OPERATORS]
)
def test_three_steps_of_an_operator_credit_each_of_its_rounds_against_a_shared_context(
    name: str, policy: Path, tmp_path: Path
):
    options, expected = OPERATORS[name]
    steps = _train(policy, tmp_path, f"operator={name}", *options.split(), "rollout.temperature=1.6")
    assert [line["updates"] for line in _metrics(tmp_path)] == [1] * STEPS
    moved = set()
    for step, calls in steps.items():
        groups: dict[tuple[str, int, str, str], list[CallRecord]] = defaultdict(list)
        for call in calls:
            if call.credit is not None:
                groups[call.role, call.round, call.context, call.problem_id].append(call)
        for (role, round, _, problem), sharing in groups.items():
            rewards = [call.credit.reward or 0.0 for call in sharing if call.credit]
            advantages = [call.credit.advantage or 0.0 for call in sharing if call.credit]
            assert len(sharing) > 1  # none is alone, and so without a baseline
            centred = [reward - fmean(rewards) for reward in rewards]
            assert advantages == pytest.approx([c / (stdev(rewards) + STD_EPSILON) for c in centred])
            shown = explain(tmp_path, step, problem=problem, characters=60)
            assert f"-- round {round}, {role}: {len(sharing)} calls, " in shown
            assert f"group of {len(sharing)}: mean reward {fmean(rewards):.4g}" in shown
            moving = [call.credit for call in sharing if call.credit and call.credit.advantage]
            assert all(each.update and each.update.trained_tokens for each in moving)
            if moving:
                moved.add((role, round))
    assert moved - {("trace", 0)} == expected
    assert ("trace", 0) in moved
