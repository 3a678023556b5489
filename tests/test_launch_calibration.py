"""A plan with assumptions that were measured on a GPU: what it takes, for which models, and what it shows."""

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import config_with
from transformers import Qwen2Config

from launch.plan.planning import Plan, make_plan
from launch.plan.text import plan_text
from rollout.build import training_calls

REAL = ["experiment=qwen3_8b_pdr"]
FIGURES: dict[str, list[tuple[str, Any]]] = {
    "machine": [
        ("card", "NVIDIA H100 80GB HBM3"),
        ("memory", 79.2),
        ("plain product, 8192^3 in bfloat16", 743),
    ],
    "update": [
        ("8b, mix, shared_prompt: pass", 3.31),
        ("8b, mix, shared_prompt: share of a plain product", 0.37),
        ("8b, mix, shared_prompt, liger: share of a plain product", 0.51),
        ("0.6b, mix, shared_prompt: share of a plain product", 0.2),
    ],
    "publishing": [("8b ipc on cuda", 0.8), ("0.6b ipc on cuda", 0.1)],
    "sampling": [("parameters of the model", 494), ("traces, graphs: memory read by decoding", 335.0)],
}
"""What one H100 showed, in the form of results_gpu.json; the last two parts are made up."""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "results_gpu.json"
    about = {"card": "H100", "commit": "c1924b1"}
    parts = {
        part: {**about, "figures": [{"part": part, "name": name, "value": value} for name, value in figures]}
        for part, figures in FIGURES.items()
    }
    path.write_text(json.dumps(parts))
    return path


def _plan(*overrides: str) -> Plan:
    return make_plan(config_with("job", REAL, overrides), training_calls)


def _used(plan: Plan) -> dict[str, float]:
    return {item.option: item.value for item in plan.measured}


def test_the_update_of_an_8b_model_takes_the_best_measured_share_with_what_is_recomputed(file: Path):
    plan, assumed = _plan("gpus=8", f"plan.calibration={file}"), _plan("gpus=8")
    mfu = 0.51 * 743 * 4 / 3 / 989
    assert _used(plan) == pytest.approx({"plan.train_mfu": mfu, "hardware.memory_gib": 79.2})
    now, before = plan.splits[3].seconds, assumed.splits[3].seconds
    assert now is not None and before is not None
    assert now.update == pytest.approx(before.update * 0.35 / mfu)
    assert now.decode == pytest.approx(before.decode, rel=0.01)  # a little less memory for the cache


def test_each_measured_assumption_is_shown_with_its_figure_card_and_commit(file: Path):
    lines = plan_text(_plan("gpus=8", f"plan.calibration={file}")).splitlines()
    at = next(i for i, line in enumerate(lines) if "plan.train_mfu=0.51" in line)
    figure = "8b, mix, shared_prompt, liger: share of a plain product"
    assert lines[at + 1] == f"    measured: update, {figure} (H100, c1924b1)"
    assert sum("measured:" in line for line in lines) == 2


def test_publishing_is_calibrated_by_the_way_that_the_run_publishes(file: Path):
    shared = ("gpus=8", "rollout.enable_sleep_mode=true", "rollout.weight_transfer=ipc")
    used = _used(_plan(*shared, f"plan.calibration={file}"))
    assert used["plan.publish_gbps"] == pytest.approx(2 * 8.19 / 0.8)


def test_a_small_model_takes_the_figures_of_small_models(file: Path, tmp_path: Path):
    sizes = {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24}
    heads = {"num_attention_heads": 14, "num_key_value_heads": 2, "tie_word_embeddings": True}
    Qwen2Config(vocab_size=151_936, **sizes, **heads).save_pretrained(tmp_path / "policy")
    used = _used(_plan("gpus=8", f"model.path={tmp_path / 'policy'}", f"plan.calibration={file}"))
    assert used["plan.decode_bandwidth_share"] == pytest.approx(0.1)
    assert used["plan.train_mfu"] == pytest.approx(0.2 * 743 * 4 / 3 / 989)


def test_a_value_that_the_user_chose_stays(file: Path):
    plan = _plan("gpus=8", "plan.train_mfu=0.2", "hardware.memory_gib=60", f"plan.calibration={file}")
    assert _used(plan) == {} and plan.config.plan.train_mfu == 0.2
    assert f"{file} holds no figure" in plan_text(plan)


def test_the_run_itself_is_not_changed(file: Path):
    config = config_with("job", REAL, ["gpus=8", f"plan.calibration={file}"])
    make_plan(config, training_calls)
    assert config.plan.train_mfu == 0.35


@pytest.mark.parametrize("text", [None, "{", "[1]", '{"update": {"figures": 3}}', '{"update": 1}'])
def test_a_file_of_another_form_is_named(text: str | None, tmp_path: Path):
    path = tmp_path / "other.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ValueError, match=r"plan\.calibration is '.*other\.json'.*python tests/gpu writes"):
        _plan("gpus=8", f"plan.calibration={path}")
