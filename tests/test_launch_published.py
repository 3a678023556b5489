"""The plan's seconds against steps that others have published; docs/performance.md shows the same errors."""

from dataclasses import dataclass

import pytest
from conftest import REPO

from configs.compose import load
from launch.plan.planning import make_plan
from rollout.build import training_calls

COMMON = (
    "experiment=qwen3_8b_pdr",
    "data.path=x",
    "algo.operator_fraction=0",
    "algo.num_updates=1",
    "rollout.thinking_tokens=0",
    "train.tokens_per_micro_batch=8192",
    "plan.mean_question_tokens=150",
    "plan.max_question_tokens=1024",
)
LLAMA = (
    "model.path=deepseek-ai/DeepSeek-R1-Distill-Llama-8B",
    "nodes=2",
    "gpus=8",
    "algo.loss_type=grpo",
    "algo.beta=0.01",
    "algo.problems_per_step=64",
    "algo.num_generations=32",
    "rollout.max_completion_length=4096",
    "rollout.max_model_len=6144",
    f"plan.completion_share={1019 / 4096}",
    "rollout.max_num_seqs=256",
)
IN_TURNS = ("rollout.enable_sleep_mode=true", "rollout.gpu_memory_utilization=0.6")
QWEN = (
    "model.path=Qwen/Qwen3-8B",
    "hardware=h200",
    "gpus=8",
    "algo.problems_per_step=32",
    "algo.num_generations=8",
    "rollout.max_completion_length=16384",
    "rollout.max_model_len=20480",
    "plan.completion_share=0.5",
)


@dataclass(frozen=True, slots=True)
class Case:
    """One published figure, and the plan's error that docs/performance.md shows for it."""

    name: str
    options: tuple[str, ...]
    part: str
    published: float
    error: int
    """Per cent."""


CASES = (
    Case(
        "NeMo-RL, Llama-3.1-8B, 16 H100, synchronous: step",
        (*LLAMA, *IN_TURNS, "rollout.weight_transfer=gloo"),
        "total",
        92.8,
        -15,
    ),
    Case(
        "NeMo-RL, the same, one step ahead on 8 : 8: step",
        (*LLAMA, "collect.max_staleness=1", "rollout.weight_transfer=nccl"),
        "total",
        64.8,
        -3,
    ),
    Case("miles, Qwen3-8B, 8 H200, 256 x 8k: rollout", (*QWEN, *IN_TURNS), "decode", 307, -42),
    Case("miles, the same: update", (*QWEN, *IN_TURNS), "update", 415, -87),
    Case("miles, the same: sending weights", (*QWEN, *IN_TURNS), "publish", 2.5, 31),
)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_error_against_a_published_step_is_the_one_that_is_shown(case: Case):
    (split,) = make_plan(load("job", [*COMMON, *case.options]), training_calls).splits
    assert split.fits and split.seconds is not None
    planned = getattr(split.seconds, case.part)
    assert round(100 * (planned / case.published - 1)) == case.error, planned
    shown = (REPO / "docs" / "performance.md").read_text(encoding="utf-8")
    assert f"| {case.name} | {case.published:g} | {planned:.1f} | {case.error:+d}% |" in shown
