"""Calls, tokens and FLOPs of a step."""

import math
from pathlib import Path

import pytest
import torch
from conftest import config_with
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, Qwen3Config

from configs.schema import RECOMPUTATIONS, JobConfig
from launch.plan.architecture import parse_architecture
from launch.plan.flops import training_flops
from launch.plan.workload import Workload, largest_micro_batches, longest_row, workload_of
from rollout.build import training_calls
from rollout.stages import Stage

BASE = [
    "model.path=x",
    "data.path=x",
    "algo.problems_per_step=6",
    "algo.num_generations=8",
    "rollout.max_completion_length=1000",
    "rollout.max_model_len=20000",
    "plan.completion_share=0.5",
    "plan.solution_share=0.2",
    "plan.mean_question_tokens=100",
    "plan.max_question_tokens=300",
]


def _config(*overrides: str) -> JobConfig:
    return config_with("job", BASE, overrides)


def _work(*overrides: str) -> Workload:
    return workload_of(_config(*overrides), training_calls)


def test_a_step_of_traces_and_pdr_has_the_calls_that_the_operator_makes():
    work = _work("operator.schedule=[4,1]", "operator.top_k=4")
    calls = {calls.role: calls for calls in work.calls}
    assert list(calls) == ["trace", "draft", "refine"]
    assert (calls["trace"].number, calls["draft"].number, calls["refine"].number) == (24, 12, 24)
    assert calls["refine"].prompt == 100 + 4 * 200
    assert work.decoded == 500 * (24 + 12 + 24)
    assert work.prefilled == 3 * 100 + 3 * 100 + 3 * 900
    assert work.trained_tokens == 500 * 48
    assert work.rounds == 2


def test_the_plan_counts_the_system_prompt_in_every_call_and_examples_where_they_are_read(
    tmp_path: Path,
):
    path = tmp_path / "examples.jsonl"
    path.write_text(
        '{"question": "1 + 1?", "answer": "2"}\n{"question": "2 + 2?", "answer": "4"}\n'
        '{"question": "1 + 1?", "answer": "2", "drafts": ["3", "2"]}\n'
    )
    texts = [f"operator.prompts.system={'s' * 41}", f"operator.prompts.examples={path}"]
    plain, told = _work("operator.top_k=2"), _work("operator.top_k=2", *texts)
    solve = len(_config().operator.prompts.solve)
    examples = math.ceil((2 * solve + len("1 + 1?2") + len("2 + 2?4")) / 4)
    texts_of = _config().operator.prompts
    refined = math.ceil((len(texts_of.refine) + len("1 + 1?2") + 2 * len(texts_of.draft) + 2) / 4)
    for before, calls in zip(plain.calls, told.calls, strict=True):
        more = 11 + {"trace": examples, "draft": examples, "refine": refined}.get(calls.role, 0)
        assert calls.prompt == before.prompt + more
        assert calls.longest_prompt == before.longest_prompt + more
    assert {calls.role for calls in told.calls} == {"trace", "draft", "verify", "refine"}


def test_ranking_drafts_takes_a_verification_of_each():
    work = _work("operator.schedule=[4,1]", "operator.top_k=2")
    verify = next(calls for calls in work.calls if calls.role == "verify")
    assert (verify.number, verify.prompt, verify.trained) == (12, 300, False)
    each = _work("operator.schedule=[4,1]", "operator.top_k=2", "algo.num_workspaces=4")
    assert next(calls for calls in each.calls if calls.role == "verify").number == 12 * 4
    refine = each.calls[-1]
    assert (refine.contexts, refine.per_context, refine.trained) == (12, 2, True)


def test_credit_adds_calls_to_what_is_trained_and_none_to_what_is_sampled():
    options = ("operator.distiller=global_summary", "algo.num_workspaces=2")
    plain, credited = _work(*options), _work(*options, "algo.credit=[refine,distil,draft]")
    assert credited.decoded == plain.decoded
    added = sum(calls.decoded for calls in plain.calls if calls.role in ("distil", "draft"))
    assert credited.trained_tokens == plain.trained_tokens + added


def test_a_summary_is_one_more_call_on_the_longest_path():
    work = _work("operator.distiller=global_summary")
    distil = next(calls for calls in work.calls if calls.role == "distil")
    assert (distil.number, distil.prompt) == (3, 100 + 4 * 200)
    assert work.rounds == 3


def test_the_workspace_bounds_the_prompt_of_a_refinement():
    work = _work("operator.workspace_tokens=64")
    assert work.calls[-1].prompt == 164
    assert work.calls[-1].longest_prompt == 364


def test_no_prompt_is_longer_than_workers_accept():
    work = _work("rollout.max_model_len=1200")
    assert all(calls.longest_prompt <= 200 and calls.prompt <= 200 for calls in work.calls)
    assert longest_row(work) == 1200


TRACES = ("trace", 3, 8, 100, 300, True)
RECORDED = {
    "operator.schedule=[4,1]": (
        2,
        [TRACES, ("draft", 3, 4, 100, 300, False), ("refine", 3, 8, 900, 8492, True)],
    ),
    "operator.schedule=[8,4,1] operator.top_k=2 algo.num_workspaces=2": (
        3,
        [
            TRACES,
            ("draft", 3, 8, 100, 300, False),
            ("verify", 24, 1, 300, 1300, False),
            ("refine", 3, 4, 500, 8492, False),
            ("verify", 24, 1, 300, 1300, False),
            ("refine", 6, 4, 500, 8492, True),
        ],
    ),
    "operator.distiller=per_sample_topk operator.schedule=[8,4,1] operator.top_k=2 algo.num_workspaces=2 "
    "algo.credit=[refine,draft] algo.credit_rounds=all": (
        3,
        [
            TRACES,
            ("draft", 3, 8, 100, 300, True),
            # The middle round is compared in groups of 8 / 2, as large as those of the answers.
            ("verify", 24, 1, 300, 1300, False),
            ("refine", 3, 4, 500, 8492, True),
            ("verify", 24, 1, 300, 1300, False),
            ("refine", 6, 4, 500, 8492, True),
        ],
    ),
    "operator.distiller=random_k operator.schedule=[2,3,2,1] operator.top_k=2 algo.num_workspaces=2 "
    "algo.credit=[refine,draft]": (
        4,
        [
            TRACES,
            ("draft", 3, 2, 100, 300, True),
            ("refine", 9, 1, 500, 8492, False),
            ("refine", 6, 1, 500, 8492, False),
            ("refine", 6, 4, 500, 8492, True),
        ],
    ),
    "operator.distiller=all operator.schedule=[8,4,1] operator.top_k=2": (
        3,
        [
            TRACES,
            ("draft", 3, 8, 100, 300, False),
            ("refine", 3, 4, 1700, 8492, False),
            ("refine", 3, 8, 900, 8492, True),
        ],
    ),
    "operator.distiller=global_summary operator.schedule=[8,4,1] algo.num_workspaces=2 "
    "algo.credit=[refine,distil]": (
        5,
        [
            TRACES,
            ("draft", 3, 8, 100, 300, False),
            ("distil", 3, 1, 1700, 8300, False),
            ("refine", 3, 4, 300, 8492, False),
            ("distil", 3, 2, 900, 4300, True),
            ("refine", 6, 4, 300, 8492, True),
        ],
    ),
    "operator.kind=trace operator.schedule=[1]": (1, [TRACES, TRACES]),
    "operator.kind=sr operator.schedule=[1,1,1]": (
        3,
        [
            TRACES,
            ("draft", 3, 1, 100, 300, False),
            ("refine", 3, 1, 300, 8492, False),
            ("refine", 3, 8, 300, 8492, True),
        ],
    ),
}
"""Calls that wait for one another; then role, contexts, samples of each, mean and longest prompt, trained."""


@pytest.mark.parametrize("options", RECORDED)
def test_the_work_of_a_step_is_what_was_recorded(options: str):
    work = _work(*options.split())
    rounds, calls = RECORDED[options]
    assert work.rounds == rounds
    assert [
        (each.role, each.contexts, each.per_context, each.prompt, each.longest_prompt, each.trained)
        for each in work.calls
    ] == calls


def test_error_analysis_is_one_more_call_a_round_and_is_read_with_the_solution():
    sr = ("operator.kind=sr", "operator.schedule=[1,1,1]")
    plain, analysed = _work(*sr), _work(*sr, "operator.error_analysis=true")
    analyses = [calls for calls in analysed.calls if calls.role == "analyse"]
    assert [(calls.number, calls.prompt, calls.trained) for calls in analyses] == [(3, 300, False)] * 2
    assert analysed.rounds == plain.rounds + 2
    assert [calls.prompt for calls in analysed.calls if calls.role == "refine"] == [500, 500]


def test_an_operator_is_asked_for_its_calls_only_where_operators_are_sampled():
    def unknown(config: JobConfig) -> list[Stage]:
        raise ValueError("not known")

    assert workload_of(_config("algo.operator_fraction=0"), unknown).rounds == 1
    with pytest.raises(ValueError, match="not known"):
        workload_of(_config(), unknown)


@pytest.mark.parametrize(("fraction", "roles"), [(0.0, {"trace"}), (1.0, {"draft", "refine"})])
def test_one_half_alone_has_only_its_calls(fraction: float, roles: set[str]):
    assert {calls.role for calls in _work(f"algo.operator_fraction={fraction}").calls} == roles


@pytest.mark.parametrize(
    ("source", "prompt"),
    # Two drafts: 200 tokens each on average as solutions, 500 as whole completions, the last 40 of these.
    [("solution", 100 + 400), ("full", 100 + 1000), ("tail", 100 + 80)],
)
def test_a_plan_counts_what_is_read_of_a_draft(source: str, prompt: int):
    work = _work(
        "operator.schedule=[4,1]",
        "operator.distiller=random_k",
        "operator.top_k=2",
        f"operator.source={source}",
        "operator.tail_tokens=40",
    )
    assert next(calls.prompt for calls in work.calls if calls.role == "refine") == prompt


def test_long_prompts_are_shared_and_short_ones_are_not():
    work = _work("plan.completion_share=1.0")
    trace, refine = work.trained
    assert not trace.shares_prompt
    assert trace.forwarded == 24 * (100 + 1000)
    assert refine.shares_prompt
    assert refine.forwarded == 3 * 900 + 24 * 1000


def test_padded_rows_share_no_prompt():
    trace, refine = _work("plan.completion_share=1.0", "train.packing=padded").trained
    assert not trace.shares_prompt and not refine.shares_prompt
    assert refine.forwarded == 24 * (900 + 1000)


def test_a_row_longer_than_the_bound_is_the_largest_micro_batch():
    config = _config("train.tokens_per_micro_batch=512", "plan.completion_share=1.0")
    trace, refine = largest_micro_batches(config, workload_of(config, training_calls))
    assert (trace.tokens, trace.repeated) == (1300, 0)
    assert refine.tokens > 512 and refine.repeated > 0


def test_rows_fill_the_bound_and_completions_that_share_repeat_their_prompt():
    config = _config("train.tokens_per_micro_batch=65536", "plan.completion_share=1.0")
    work = workload_of(config, training_calls)
    trace, refine = largest_micro_batches(config, work)
    assert (trace.tokens, trace.repeated) == (65536, 0)
    assert refine.repeated == 8 * work.trained[1].longest_prompt


def test_flops_are_those_that_torch_counts():
    sizes = {
        "vocab_size": 512,
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
    }
    work = _work(
        "algo.operator_fraction=0",
        "algo.problems_per_step=1",
        "algo.num_generations=2",
        "plan.mean_question_tokens=8",
        "plan.max_question_tokens=8",
        "rollout.max_completion_length=496",
    )
    assert work.forwarded == 2 * 256
    config = Qwen3Config(**sizes)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")

    def head(hidden: torch.Tensor) -> torch.Tensor:
        return model.lm_head(hidden).log_softmax(-1)

    with FlopCounterMode(display=False) as counter:
        hidden = model.base_model(input_ids=torch.zeros(2, 256, dtype=torch.long)).last_hidden_state
        checkpoint(head, hidden[:, 8:], use_reentrant=False).sum().backward()
    # The eager implementation also computes the half of the scores that the causal mask throws away.
    passes, products, rows, layers, width = 3, 2, 2, 3, 128
    thrown_away = passes * products * 2 * rows * layers * width * 256 * 256 / 2
    expected = training_flops(parse_architecture(config.to_dict(), "test"), work, recomputes="none")
    assert expected == pytest.approx(counter.get_total_flops() - thrown_away, rel=0.01)
    assert thrown_away > 0.1 * expected


def test_recomputing_costs_a_third_more_but_for_the_head():
    work = _work()
    model = parse_architecture(
        {
            "model_type": "qwen3",
            "vocab_size": 1,
            "hidden_size": 64,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
        },
        "test",
    )
    plain, attention, again = (training_flops(model, work, recomputes=value) for value in RECOMPUTATIONS)
    assert again / plain == pytest.approx(4 / 3, rel=0.01)
    # What is not recomputed then is the product with gate, up and down.
    assert again - attention == 2 * model.layers * 3 * 64 * 64 * work.forwarded
