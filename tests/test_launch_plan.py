"""Plans: what fits, what is fastest, what would make it fit, and that every assumption is shown."""

import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
from conftest import REPO, config_with
from transformers import Qwen3Config, Qwen3ForCausalLM

from configs.compose import load
from configs.config_errors import ConfigError
from configs.schema import HardwareConfig, ModelConfig, PlanConfig
from launch.plan.architecture import parse_architecture
from launch.plan.planning import Plan, make_plan
from launch.plan.text import UNITS, plan_text
from launch.plan.timing import longest_of
from rollout.build import training_calls
from train.model.lora import add_adapters

REAL = ["experiment=qwen3_8b_pdr"]
OWN = """
from rollout.distiller import DistilContext, DistilCost, Distiller
from rollout.operators import Operator
from rollout.records import TRACE
from rollout.stages import Stage

async def undeclared(context):
    raise NotImplementedError

class Undeclared(Operator):
    async def answer(self, policy, rng, num_answers=1):
        raise NotImplementedError

class Verified(Undeclared):
    def calls(self, num_answers=1):
        verify = Stage(role="verify", solutions=1)
        return Stage(role=TRACE), verify, Stage(role=TRACE, per_context=num_answers)

class OneAnswer(Undeclared):
    def calls(self, num_answers=1):
        return (Stage(role=TRACE),)

class NoStages(Undeclared):
    def calls(self, num_answers=1):
        return Stage(role=TRACE)

judged = Distiller(
    undeclared,
    cost=lambda drafts, num, options: DistilCost(
        solutions=1, calls=(Stage(role="verify", contexts=drafts, solutions=2),)
    ),
)
"""
"""``own.py`` of a user."""
RECORDED_FLOPS = 9.085479000263885e17
RECORDED_SECONDS = [974.1874553365088, 975.4184339835698, 1295.8288236305095]


def _plan(*overrides: str) -> Plan:
    return make_plan(config_with("job", REAL, overrides), training_calls)


@pytest.fixture(scope="module")
def four_nodes() -> Plan:
    return _plan("nodes=4", "gpus=8")


def test_an_8b_run_fits_on_four_nodes_and_the_best_split_is_the_fastest(four_nodes: Plan):
    assert [(split.trainer, split.workers) for split in four_nodes.splits] == [(8, 24), (16, 16), (24, 8)]
    assert four_nodes.best.fits
    seconds = [split.seconds.total for split in four_nodes.splits if split.fits and split.seconds]
    assert four_nodes.best.seconds is not None
    assert four_nodes.best.seconds.total == min(seconds)
    assert four_nodes.fixes == ()


def test_a_critic_and_a_reference_take_memory_and_time(four_nodes: Plan):
    ppo = _plan("nodes=4", "gpus=8", "algo.loss_type=ppo", "algo.sft_coef=0")
    penalised = _plan("nodes=4", "gpus=8", "algo.beta=0.01")
    plain = four_nodes.splits[0].trainer_memory
    assert ppo.splits[0].trainer_memory.critic == plain.weights + plain.gradients + plain.optimizer
    assert penalised.splits[0].trainer_memory.reference == plain.weights
    assert ppo.flops == 2 * four_nodes.flops
    assert penalised.flops == pytest.approx(1.2 * four_nodes.flops)  # a sixth forward pass beside five
    assert "critic" in plan_text(ppo)
    assert "critic" not in plan_text(four_nodes)
    on_trunk = _plan("nodes=4", "gpus=8", "algo.loss_type=ppo", "algo.sft_coef=0", "algo.critic=policy_trunk")
    assert on_trunk.splits[0].trainer_memory.peak == plain.peak


def test_adapters_take_little_memory_and_two_thirds_of_the_products(four_nodes: Plan):
    lora = _plan("nodes=4", "gpus=8", "model.lora_r=16")
    whole, adapted = four_nodes.splits[0].trainer_memory, lora.splits[0].trainer_memory
    assert adapted.optimizer < 0.01 * whole.optimizer
    assert adapted.activations == whole.activations
    assert 0.66 < lora.flops / four_nodes.flops < 0.85
    assert "M in adapters" in plan_text(lora)
    some = _plan("nodes=4", "gpus=8", "model.lora_r=16", "model.lora_target_modules=[q_proj,v_proj]")
    assert some.splits[0].trainer_memory.optimizer < adapted.optimizer
    with pytest.raises(ValueError, match=r"names head; a plan knows q_proj"):
        _plan("gpus=8", "model.lora_r=16", "model.lora_target_modules=[head]")


def test_the_parameters_of_adapters_are_peft_s():
    config = Qwen3Config(
        vocab_size=300,
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=3,
        head_dim=16,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    model = Qwen3ForCausalLM(config)
    add_adapters(model, ModelConfig(path="x", lora_r=4))
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert parse_architecture(config.to_dict(), "test").adapters(4) == trained


def test_more_trainer_gpus_update_faster_and_hold_less(four_nodes: Plan):
    first, *_, last = four_nodes.splits
    assert first.seconds is not None and last.seconds is not None
    assert last.seconds.update < first.seconds.update
    assert last.seconds.decode > first.seconds.decode
    assert last.trainer_memory.peak < first.trainer_memory.peak


def test_one_machine_is_split_gpu_by_gpu():
    assert [split.trainer for split in _plan("gpus=4").splits] == [1, 2, 3]


def test_faster_memory_decodes_faster_and_nothing_else():
    slow, fast = (_plan("gpus=8", f"hardware.bandwidth_gbps={x}").splits[3].seconds for x in (1000, 4000))
    assert slow is not None and fast is not None
    assert fast.decode < slow.decode
    assert (fast.update, fast.publish) == (slow.update, slow.publish)


def test_decoding_takes_at_least_the_longest_path():
    few = _plan("gpus=8", "algo.problems_per_step=2", "algo.num_generations=2").splits[0].seconds
    assert few is not None
    assert few.bound == "longest path"
    many = _plan("gpus=8", "algo.problems_per_step=512").splits[0].seconds
    assert many is not None
    assert many.bound == "throughput"


@pytest.mark.parametrize(
    ("overrides", "fix"),
    [
        (["gpus=8", "model.gradient_checkpointing=none"], "model.gradient_checkpointing=full"),
        (["gpus=8", "train.tokens_per_micro_batch=300000"], "train.tokens_per_micro_batch=28672"),
        (["gpus=2"], "launch.accelerate=gpu_zero3_offload"),
        (["gpus=2"], "nodes=4"),
        (["gpus=8", "hardware.memory_gib=50", "launch.accelerate=gpu_zero2"], "launch.accelerate=auto"),
    ],
)
def test_what_does_not_fit_names_an_option_that_does(overrides: list[str], fix: str):
    plan = _plan(*overrides)
    assert not plan.best.fits
    assert fix in plan.fixes
    assert f"  {fix}" in plan_text(plan)


def test_every_fix_that_is_named_really_makes_it_fit():
    plan = _plan("gpus=8", "hardware.memory_gib=24")
    assert plan.fixes
    for fix in plan.fixes:
        assert _plan("gpus=8", "hardware.memory_gib=24", *fix.split()).best.fits, fix


def _recomputing(value: str, tokens: int) -> Plan:
    return _plan(
        "gpus=8",
        "rollout.thinking_tokens=0",
        "rollout.max_completion_length=2048",
        "operator.workspace_tokens=1024",
        "plan.max_question_tokens=256",
        f"train.tokens_per_micro_batch={tokens}",
        f"model.gradient_checkpointing={value}",
    )


def test_a_run_that_recomputes_more_than_it_must_is_told_what_is_faster_and_fits():
    plan, faster = _recomputing("full", 2048), _recomputing("none", 2048)
    assert plan.cheaper is not None and plan.best.seconds is not None and faster.best.seconds is not None
    assert (plan.cheaper.recomputes, plan.cheaper.split) == ("none", faster.best)
    assert faster.best.seconds.total < plan.best.seconds.total
    assert "  model.gradient_checkpointing=none" in plan_text(plan).splitlines()
    assert faster.cheaper is None


def test_less_recomputation_that_leaves_only_slower_splits_is_not_advised():
    full, attention = _recomputing("full", 8192), _recomputing("attention", 8192)
    assert full.best.fits and attention.best.fits
    assert full.best.seconds is not None and attention.best.seconds is not None
    assert attention.best.seconds.total > full.best.seconds.total
    assert full.cheaper is None


def test_of_recomputations_only_the_cheapest_that_fits_is_named_as_a_fix():
    fixes = _recomputing("none", 8192).fixes
    assert "model.gradient_checkpointing=attention" in fixes
    assert "model.gradient_checkpointing=full" not in fixes


def test_drafts_that_are_taken_from_traces_are_not_sampled():
    fresh, reused = _plan("gpus=8"), _plan("gpus=8", "collect.draft_source=reuse")
    roles = [[calls.role for calls in plan.work.calls] for plan in (fresh, reused)]
    assert roles == [["trace", "draft", "refine"], ["trace", "refine"]]
    assert reused.work.trained == fresh.work.trained
    assert reused.work.rounds == fresh.work.rounds  # a refinement waits for its drafts all the same


def test_a_plan_without_gpus_says_so_and_shows_no_assumption_about_them():
    text = plan_text(_plan())
    assert "without a GPU (gpus=N plans for GPUs): 2 ranks train, 1 worker samples" in text
    assert "plan.completion_share=" in text
    assert "bandwidth" not in text and "gathered by ZeRO-3" not in text


def test_a_run_of_less_than_an_hour_is_told_in_minutes():
    plan = _plan("gpus=8", "train.max_steps=1")
    hours = plan.run.hours
    assert hours is not None and hours < 1
    (line,) = (line for line in plan_text(plan).splitlines() if line.startswith("  wall time"))
    assert line.endswith(f"{60 * hours:,.1f} minutes")


def test_a_worker_without_room_for_one_sequence_does_not_fit():
    plan = _plan("gpus=8", "plan.worker_activation_gib=70")
    assert not any(split.workers_fit for split in plan.splits)
    assert "workers out of memory" in plan_text(plan)


def test_one_gpu_cannot_do_both():
    with pytest.raises(ValueError, match=r"gpus is 1: trainer and workers need a GPU each"):
        _plan("gpus=1")


def test_one_gpu_does_both_in_turn_if_the_trainer_leaves_the_worker_room():
    small = ["gpus=1", "rollout.enable_sleep_mode=true", "launch.accelerate=gpu_zero3_offload"]
    (split,) = _plan(*small, "rollout.gpu_memory_utilization=0.5").splits
    assert (split.trainer, split.workers) == (1, 1)
    assert split.fits
    assert split.trainer_memory.static <= split.room_beside_worker < split.trainer_limit
    crowded = _plan(*small, "rollout.gpu_memory_utilization=0.99")
    assert not crowded.best.fits
    assert "rollout.gpu_memory_utilization=0.6" in crowded.fixes
    lines = {line.strip().split("  ")[0]: line for line in plan_text(crowded).splitlines()}
    assert "DOES NOT FIT" in lines["held while the worker samples"]
    assert "DOES NOT FIT" not in lines["peak"]


def test_the_text_shows_every_part_and_every_assumption_with_its_unit(four_nodes: Plan):
    text = plan_text(four_nodes)
    for part in ("weights", "gradients", "optimizer", "activations", "logits", "KV cache", "PFLOP"):
        assert part in text
    names = [f"plan.{item.name}" for item in fields(PlanConfig) if item.name != "calibration"]
    names += [f"hardware.{item.name}" for item in fields(HardwareConfig) if item.name != "name"]
    for name in names:
        line = next(line for line in text.splitlines() if f"  {name}=" in line)
        assert line.endswith(UNITS[name.split(".")[1]])
    assert "<- best" in text and "It fits." in text


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("plan.train_mfu=1.5", r"plan\.train_mfu must lie between 0 and 1, got 1\.5\."),
        ("plan.prefill_mfu=0", r"plan\.prefill_mfu must be above 0\."),
        ("plan.completion_share=0", r"plan\.completion_share must be above 0\."),
        ("plan.solution_share=2", r"plan\.solution_share must lie between 0 and 1"),
        ("plan.decode_bandwidth_share=-1", r"plan\.decode_bandwidth_share must lie between"),
        ("rollout.gpu_memory_utilization=0", r"rollout\.gpu_memory_utilization must be above 0"),
        ("rollout.gpu_memory_utilization=1.1", r"rollout\.gpu_memory_utilization must lie between 0 and 1"),
        ("plan.worker_activation_gib=-1", r"plan\.worker_activation_gib must be at least 0"),
        ("plan.runtime_gib=-1", r"plan\.runtime_gib must be at least 0"),
        ("plan.publish_gbps=0", r"plan\.publish_gbps must be above 0, got 0"),
        ("plan.mean_question_tokens=0", r"plan\.mean_question_tokens must be at least 1"),
        ("plan.max_question_tokens=8", r"plan\.max_question_tokens is 8, which is below"),
        ("hardware.memory_gib=0", r"hardware\.memory_gib must be above 0"),
        ("hardware.bf16_tflops=0", r"hardware\.bf16_tflops must be above 0"),
        ("hardware.bandwidth_gbps=-1", r"hardware\.bandwidth_gbps must be above 0"),
        ("nodes=0", r"nodes must be at least 1, got 0\."),
        ("gpus=-1", r"gpus must be at least 0, got -1\."),
    ],
)
def test_an_assumption_that_makes_no_sense_is_refused(override: str, message: str):
    with pytest.raises(ConfigError, match=message):
        config_with("job", REAL, [override])


@pytest.mark.parametrize("name", ["a100", "h100", "h200"])
def test_every_hardware_file_composes(name: str):
    assert load("job", [*REAL, f"hardware={name}"]).hardware.name == name


def _command(*arguments: str, folder: Path = REPO) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "launch.plan", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(REPO)},
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.component
def test_the_command_prints_a_plan_without_importing_torch():
    done = _command("experiment=llama31_8b_pdr", "nodes=4", "gpus=8", "hardware=h200")
    assert done.returncode == 0, done.stderr
    assert "4 x 8 h200" in done.stdout and "It fits." in done.stdout
    code = (
        "import runpy, sys\n"
        "sys.argv = ['launch.plan', 'experiment=llama31_8b_pdr', 'gpus=8']\n"
        "runpy.run_module('launch.plan', run_name='__main__')\n"
        "print(sorted({'torch', 'transformers', 'numpy'} & set(sys.modules)))"
    )
    checked = subprocess.run(
        [sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, timeout=60
    )
    assert checked.stdout.splitlines()[-1] == "[]", checked.stderr


def test_the_plan_of_an_8b_run_is_what_was_recorded(four_nodes: Plan):
    assert four_nodes.flops == pytest.approx(RECORDED_FLOPS, rel=1e-12)
    seconds = [split.seconds.total for split in four_nodes.splits if split.seconds]
    assert seconds == pytest.approx(RECORDED_SECONDS, rel=1e-12)


def test_what_is_drawn_for_each_problem_is_named_as_not_modelled(four_nodes: Plan):
    drawn = _plan("gpus=8", "operator.distillers=[all,random_k]", "operator.drafts=[2,6]")
    for option in ("operator.drafts", "operator.distillers"):
        assert f"  {option}: drawn for each problem" in plan_text(drawn).splitlines()
    assert "not modelled" not in plan_text(four_nodes)


@pytest.mark.component
def test_what_cannot_be_planned_ends_the_command_with_one_line():
    done = _command("experiment=qwen3_8b_pdr", "model.path=owner/unknown", "gpus=8")
    assert done.returncode == 1
    assert done.stderr.startswith("launch.plan: model.path is 'owner/unknown'")
    assert "Traceback" not in done.stderr


@pytest.fixture
def own_folder(tmp_path: Path) -> Path:
    (tmp_path / "own.py").write_text(OWN)
    (tmp_path / "mine" / "operator").mkdir(parents=True)
    (tmp_path / "mine" / "operator" / "verified.yaml").write_text(
        "defaults: [prompts: default, thinking: think, _self_]\n"
        "name: verified\nkind: own:Verified\nschedule: [2]\n"
    )
    return tmp_path


def _calls(text: str) -> list[list[str]]:
    """Role, number and prompt of the work's lines, beside the traces of the other half."""
    block = text.partition("work of a step")[2].partition("  read by workers")[0]
    return [line.split(",")[0].split() for line in block.splitlines()[2:]]


@pytest.mark.component
def test_the_command_plans_a_distiller_of_ones_own_by_what_it_declares(own_folder: Path):
    done = _command("experiment=qwen3_8b_pdr", "gpus=8", "operator.distiller=own:judged", folder=own_folder)
    assert done.returncode == 0, done.stderr
    # 16 problems; a question of 256 tokens, a solution of 819.
    assert _calls(done.stdout) == [
        ["draft", "64", "256+9216"],
        ["verify", "64", "1894+9216"],
        ["refine", "512", "1075+9216"],
    ]


@pytest.mark.component
def test_the_command_plans_an_operator_of_ones_own_by_what_it_declares(own_folder: Path):
    done = _command(
        "experiment=qwen3_8b_pdr", "gpus=8", "operator=verified", "--config-dir", "mine", folder=own_folder
    )
    assert done.returncode == 0, done.stderr
    assert _calls(done.stdout) == [
        ["trace", "16", "256+9216"],
        ["verify", "16", "1075+9216"],
        ["trace", "512", "256+9216"],
    ]


@pytest.mark.component
def test_what_declares_nothing_is_not_planned(own_folder: Path):
    done = _command(
        "experiment=qwen3_8b_pdr", "gpus=8", "operator.distiller=own:undeclared", folder=own_folder
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("launch.plan: operator.distiller is 'own:undeclared', which declares no")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("own:Undeclared", r"The operator own:Undeclared declares no calls"),
        ("own:NoStages", r"operator\.kind own:NoStages must return a tuple of Stage, got Stage\("),
        (
            "own:OneAnswer",
            r"own:OneAnswer returns has 1 calls\. .* training asks for 32 answers \(algo\.num_gen",
        ),
    ],
)
def test_an_operator_whose_answers_are_not_known_is_not_planned(
    own_folder: Path, monkeypatch: pytest.MonkeyPatch, kind: str, message: str
):
    monkeypatch.syspath_prepend(own_folder)
    monkeypatch.delitem(sys.modules, "own", raising=False)
    with pytest.raises(ValueError, match=message):
        _plan("gpus=8", f"operator.kind={kind}", "operator.schedule=[2]")


def test_gpus_shared_in_turns_are_offered_beside_the_splits_with_the_options_that_share_them():
    plan = _plan("gpus=8")
    assert plan.shared is not None and plan.shared.split.fits
    split = plan.shared.split
    assert (split.trainer, split.workers) == (8, 8)
    share = f"rollout.gpu_memory_utilization={plan.shared.gpu_memory_utilization:g}"
    assert f"    rollout.enable_sleep_mode=true {share}" in plan_text(plan).splitlines()
    taken = _plan("gpus=8", "rollout.enable_sleep_mode=true", share)
    assert taken.splits == (split,) and taken.shared is None
    assert _plan("nodes=4", "gpus=8").shared is None


def test_the_longest_of_many_calls_is_waited_for_and_that_of_one_is_the_mean():
    assert longest_of(1, 100, 1000, 0.8) == longest_of(50, 100, 1000, 0.0) == 100
    lengths = [longest_of(number, 100, 1000, 0.8) for number in (2, 8, 64)]
    assert lengths == sorted(lengths) and lengths[0] > 100 and lengths[-1] < 1000
    assert longest_of(10**6, 100, 1000, 0.8) == 1000  # the limit of a call
    even, uneven = (_plan(f"plan.length_sigma={sigma}", "gpus=8").best.seconds for sigma in (0, 0.8))
    assert even is not None and uneven is not None
    assert even.stragglers == 0 and uneven.decode == pytest.approx(uneven.throughput + uneven.stragglers)


def test_a_folder_on_several_machines_is_written_once_and_read_by_each_machine_of_workers():
    one, many = _plan("gpus=8").best.seconds, _plan("nodes=4", "gpus=8").splits
    weights = many[0].worker_memory.weights / 1e9
    for split in many:
        assert split.seconds is not None
        machines = split.workers / 8
        assert split.seconds.publish == pytest.approx(weights / 1.0 + machines * weights / 5.0)
        assert 19 < split.seconds.publish < 50
    assert one is not None and one.publish == pytest.approx(weights / 5.0)
    sent = _plan("nodes=4", "gpus=8", "rollout.weight_transfer=nccl").best.seconds
    assert sent is not None and sent.publish == pytest.approx(weights / 5.0)
