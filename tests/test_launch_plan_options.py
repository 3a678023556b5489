"""Every option that changes a step's cost or memory changes the plan, or is named as not modelled."""

from collections.abc import Iterator
from dataclasses import fields, is_dataclass

import pytest
from conftest import config_with
from torch import nn
from transformers import AutoModelForCausalLM

from configs.schema import JobConfig
from launch.plan.architecture import architecture_of
from launch.plan.not_modelled import NEUTRAL, not_modelled
from launch.plan.planning import Plan, make_plan
from launch.plan.text import plan_text
from launch.plan.whole_run import checkpoint_bytes, whole_run
from rollout.build import training_calls
from train.checkpoint import checkpoint_bytes as trainer_checkpoint_bytes
from train.sharding import Unsharded

REAL = ["experiment=qwen3_8b_pdr"]
PARTS = ("model", "operator", "algo", "collect", "rollout", "train")
PPO = "algo.loss_type=ppo algo.sft_coef=0"
MODELLED = {
    "model.path": "model.path=deepseek-ai/DeepSeek-R1-Distill-Llama-8B",
    "model.dtype": "model.dtype=float32",
    "model.gradient_checkpointing": "model.gradient_checkpointing=none",
    "model.lora_r": "model.lora_r=8",
    "model.lora_target_modules": "model.lora_r=8 model.lora_target_modules=[q_proj]",
    "operator.kind": "operator.kind=trace operator.schedule=[1]",
    "operator.schedule": "operator.schedule=[8,1]",
    "operator.error_analysis": "operator.kind=sr operator.schedule=[1,1] operator.error_analysis=true",
    "operator.distiller": "operator.distiller=global_summary",
    "operator.top_k": "operator.top_k=2",
    "operator.workspace_tokens": "operator.workspace_tokens=1024",
    "operator.source": "operator.source=full",
    "operator.tail_tokens": "operator.source=tail operator.tail_tokens=64",
    "algo.loss_type": PPO,
    "algo.critic": f"{PPO} algo.critic=policy_trunk",
    "algo.num_generations": "algo.num_generations=16",
    "algo.problems_per_step": "algo.problems_per_step=64",
    "algo.operator_fraction": "algo.operator_fraction=0.25",
    "algo.num_workspaces": "algo.num_workspaces=4",
    "algo.credit": "algo.credit=[refine,draft]",
    "algo.credit_rounds": "operator.schedule=[4,4,1] algo.credit=[refine,draft] algo.credit_rounds=all",
    "algo.beta": "algo.beta=0.1",
    "algo.num_updates": "algo.num_updates=1",
    "algo.num_iterations": "algo.num_iterations=2",
    "collect.draft_source": "collect.draft_source=reuse",
    "collect.max_staleness": "collect.max_staleness=1",
    "rollout.num_workers": "rollout.num_workers=2",
    "rollout.max_completion_length": "rollout.thinking_tokens=0 rollout.max_completion_length=512",
    "rollout.thinking_tokens": "rollout.thinking_tokens=4096",
    "rollout.answer_tokens": "rollout.answer_tokens=1024",
    "rollout.max_concurrency": "rollout.max_concurrency=64",
    "rollout.dtype": "rollout.dtype=float32",
    "rollout.max_model_len": "rollout.max_model_len=30000",
    "rollout.max_num_seqs": "rollout.max_num_seqs=16",
    "rollout.kv_cache_gib": "rollout.kv_cache_gib=9",
    "rollout.gpu_memory_utilization": "rollout.gpu_memory_utilization=0.8",
    "rollout.enable_sleep_mode": "rollout.enable_sleep_mode=true",
    "rollout.tensor_parallel_size": "rollout.tensor_parallel_size=2",
    "train.max_steps": "train.max_steps=10",
    "train.save_steps": "train.save_steps=400",
    "train.keep_last": "train.keep_last=9",
    "train.on_alarm": "train.on_alarm=rollback",
    "train.keep_best": "train.keep_best=eval/pdr train.eval_steps=20",
    "train.tokens_per_micro_batch": "train.tokens_per_micro_batch=60000",
    "train.packing": "train.packing=padded",
}
"""An override of each modelled option; what it needs besides is a change of its own, made before."""
BASES = {
    "model.lora_target_modules": "model.lora_r=8",
    "operator.error_analysis": "operator.kind=sr operator.schedule=[1,1]",
    "operator.tail_tokens": "operator.source=tail",
    "algo.critic": PPO,
    "algo.credit_rounds": "operator.schedule=[4,4,1] algo.credit=[refine,draft]",
    "rollout.max_completion_length": "rollout.thinking_tokens=0",
    "train.keep_best": "train.eval_steps=20",
}
DRAFTS = "rollout.draft_url=http://a rollout.draft_model=m"
ON_CPU = {"rollout.num_workers", "rollout.kv_cache_gib"}
NAMED = {
    "operator.drafts": "operator.drafts=[2,6]",
    "operator.top_k_range": "operator.top_k_range=[1,4]",
    "operator.distillers": "operator.distillers=[all,random_k]",
    "operator.quorum": "operator.quorum=0.5",
    "algo.entropy_coef": "algo.entropy_coef=0.1",
    "algo.critic_warmup_steps": f"{PPO} algo.critic_warmup_steps=3",
    "algo.mask_truncated_completions": "algo.mask_truncated_completions=true",
    "algo.amortise_coef": "algo.amortise_coef=0.1",
    "algo.opd_coef": "algo.opd_coef=0.1 collect.draft_source=reuse",
    "operator.draft_policy": f"operator.draft_policy=endpoint {DRAFTS}",
    "collect.balance": "collect.balance=majority_wrong collect.max_refill=1",
    "collect.filter": "collect.filter=pacore_stage2",
    "rollout.roles": "rollout.roles.draft.thinking_tokens=100",
    "collect.draft_source": "collect.draft_source=cached collect.draft_cache=drafts.jsonl",
    "collect.drop_equal_rewards": "collect.drop_equal_rewards=true",
    "collect.max_pass_rate": "collect.max_pass_rate=0.9",
    "collect.draft_accuracy": "collect.draft_accuracy=[0.1,0.9]",
    "collect.max_refill": "collect.max_refill=2",
    "model.cast_lm_head_to_fp32": "model.cast_lm_head_to_fp32=true",
    "rollout.urls": "rollout.urls=[http://a:1]",
    "rollout.enforce_eager": "rollout.enforce_eager=true",
    "rollout.pause_mode": "rollout.pause_mode=wait",
    "rollout.tensor_parallel_size": "rollout.tensor_parallel_size=2",
    "rollout.vllm_args": "rollout.vllm_args.kv_cache_dtype=fp8",
    "rollout.max_lora_rank": "rollout.max_lora_rank=8 model.lora_r=8",
    "rollout.weight_transfer": "rollout.weight_transfer=nccl",
    "train.eval_steps": "train.eval_steps=20",
    "train.eval_at_start": "train.eval_at_start=true",
    "train.eval_at_end": "train.eval_at_end=true",
}
FREE = {
    *("model.lora_alpha", "model.trust_remote_code", "model.attention", "model.use_liger_kernel"),
    "rollout.cast_lm_head_to_fp32",
    *("operator.name", "operator.oracle", "operator.thinking", "operator.prompts"),
    # Of evaluations only: training widens the last round, and never stops early.
    *("operator.outcome", "operator.match_size", "operator.votes"),
    *("operator.agree_share", "operator.agree_min", "operator.max_drafts"),
    *(f"algo.{name}" for name in ("learning_rate", "distil_coef", "draft_coef", "draft_credit")),
    *(f"algo.{name}" for name in ("sft_coef", "sft_average")),
    *(
        f"algo.{name}"
        for name in ("epsilon", "epsilon_high", "advantage_estimator", "pass_k", "gamma", "lam")
    ),
    *(f"algo.{name}" for name in ("scale_rewards", "use_bias_correction_kl", "critic_learning_rate")),
    *(f"algo.vllm_importance_sampling_{n}" for n in ("correction", "mode", "clip_min", "clip_max")),
    *(f"algo.{name}" for name in ("lam", "whiten_advantages", "cliprange_value", "vf_coef", "max_grad_norm")),
    *(f"algo.{name}" for name in ("weight_decay", "adam_beta1", "adam_beta2", "warmup_steps")),
    *("algo.lr_scheduler_type", "model.chat_template_kwargs"),
    *(
        "collect.draft_cache",
        "collect.max_refused_share",
        "collect.max_history_pass_rate",
        "collect.curriculum",
    ),
    *(f"rollout.{name}" for name in ("chat_url", "chat_model", "temperature", "top_p", "host", "port")),
    *(f"rollout.{name}_timeout_seconds" for name in ("request", "start", "publish")),
    *("algo.amortise_max_per_problem", "collect.balance_share", "rollout.draft_url", "rollout.draft_model"),
    "rollout.teacher_model_server_url",  # its effect is that of algo.opd_coef
    "rollout.num_draft_workers",  # refused where a plan divides GPUs
    *("rollout.max_retries", "rollout.num_threads", "rollout.samples_per_request"),
    *(f"train.{name}" for name in ("eval_operators", "eval_samples", "trace_steps", "trace_limit_mib")),
    *(
        "train.ignored_alarms",
        "train.max_rollbacks",
        "train.report_to",
        "train.collective_timeout_seconds",
        "train.num_threads",
    ),
}
"""Options of how, not of how much (and ``num_threads``, as no seconds are estimated on a CPU)."""


def _config(overrides: str, *, on_cpu: bool = False) -> JobConfig:
    machines = ["gpus=0"] if on_cpu else ["nodes=4", "gpus=8"]
    return config_with("job", REAL, [*machines, *overrides.split()])


def _plan(overrides: str = "", *, on_cpu: bool = False) -> Plan:
    return make_plan(_config(overrides, on_cpu=on_cpu), training_calls)


def _options() -> Iterator[str]:
    config = _config("")
    for part in PARTS:
        group = getattr(config, part)
        assert is_dataclass(group)
        yield from (f"{part}.{item.name}" for item in fields(group))


def test_every_option_is_modelled_named_or_free():
    assert set(_options()) == MODELLED.keys() | NAMED.keys() | FREE
    # The memory of tensor parallelism, but no exchange; drafts from traces, but not those from elsewhere.
    assert MODELLED.keys() & NAMED.keys() == {"rollout.tensor_parallel_size", "collect.draft_source"}
    assert NAMED.keys() == NEUTRAL.keys()
    assert not MODELLED.keys() & FREE


@pytest.mark.parametrize("option", MODELLED)
def test_an_option_that_is_modelled_changes_the_plan(option: str):
    on_cpu = option in ON_CPU
    before, after = (_plan(text, on_cpu=on_cpu) for text in (BASES.get(option, ""), MODELLED[option]))

    assert (before.work, before.flops, before.run, before.splits) != (
        after.work,
        after.flops,
        after.run,
        after.splits,
    )


@pytest.mark.parametrize("option", NAMED)
def test_an_option_that_is_not_modelled_is_named_with_its_effect(option: str):
    config = _config(NAMED[option])
    assert option in not_modelled(config)
    assert f"  {option}: {NEUTRAL[option][1]}" in plan_text(make_plan(config, training_calls)).splitlines()
    assert option not in not_modelled(_config(""))


def test_graphs_cost_nothing_that_a_plan_leaves_out():
    assert "rollout.enforce_eager" not in not_modelled(_config("rollout.enforce_eager=false"))


def test_a_worker_of_several_gpus_holds_a_part_of_weights_and_caches_on_each():
    one, two = _plan(), _plan("rollout.tensor_parallel_size=2")
    before, after = one.best.worker_memory, two.best.worker_memory
    assert after.weights == before.weights / 2
    assert after.cache_per_token == before.cache_per_token / 2
    split = next(split for split in two.splits if split.workers == 8)
    whole = next(split for split in one.splits if split.workers == 8)
    assert split.seconds and whole.seconds
    assert split.seconds.publish == whole.seconds.publish
    assert split.seconds.prefill == whole.seconds.prefill
    wide = _plan("rollout.tensor_parallel_size=8").best.worker_memory
    assert wide.cache_per_token == before.cache_per_token / 8


def test_workers_of_several_gpus_must_fill_their_machines():
    with pytest.raises(ValueError, match=r"tensor_parallel_size is 3, which does not divide gpus=8\."):
        _plan("rollout.tensor_parallel_size=3")
    alone = config_with("job", REAL, ["gpus=2", "rollout.tensor_parallel_size=2"])
    with pytest.raises(ValueError, match=r"gpus is 2: .* need one GPU and 2 .* at least 3"):
        make_plan(alone, training_calls)
    odd = config_with("job", REAL, ["gpus=8", "rollout.tensor_parallel_size=3"])
    assert [(s.trainer, s.workers) for s in make_plan(odd, training_calls).splits] == [(2, 6), (5, 3)]


def test_more_sequences_than_the_cache_has_room_for_are_named():
    said = "rollout.max_num_seqs=128 lets more begin, of which some are cut off and read again"
    assert said in plan_text(_plan("rollout.max_num_seqs=128"))
    assert "of more, some are cut" not in plan_text(_plan("rollout.max_num_seqs=16"))


def test_a_step_that_runs_ahead_takes_as_long_as_its_slowest_side():
    plain, one, four = (_plan(f"collect.max_staleness={ahead}") for ahead in (0, 1, 4))
    for before, ahead, far in zip(plain.splits, one.splits, four.splits, strict=True):
        first, second, last = before.seconds, ahead.seconds, far.seconds
        assert first and second and last
        assert first.total == first.prefill + first.decode + first.update + first.publish
        busiest = max(second.prefill + second.throughput, second.update) + second.publish
        chain = (second.prefill + second.decode + second.update) / 2 + second.publish
        assert second.total == pytest.approx(max(busiest, chain))
        assert first.total / 2 < second.total < first.total
        assert last.total <= second.total
    waits = "Collection runs ahead (collect.max_staleness={}): a step waits for {}"
    assert waits.format(1, "the stages, one after another") in plan_text(one)
    assert waits.format(4, "the trainer") in plan_text(four)
    assert "Stages follow one another." in plan_text(plain)


def test_further_passes_over_a_batch_cost_an_update_each_and_old_log_probs_a_forward_pass():
    single, double, split = (
        _plan(f"algo.num_updates={updates} algo.num_iterations={passes}").flops
        for updates, passes in ((1, 1), (1, 2), (4, 1))
    )
    assert split == pytest.approx(1.25 * single)  # four passes with recomputation, and one forward
    assert double == pytest.approx(2.25 * single)


def test_the_whole_run_is_its_steps_and_its_checkpoints():
    plan = _plan("train.max_steps=400")
    run = plan.run
    assert plan.best.seconds is not None
    assert run.hours == pytest.approx(400 * plan.best.seconds.total / 3600)
    assert run.gpu_hours == pytest.approx(run.hours * 32)
    text = plan_text(plan)
    assert f"{run.hours:,.1f} h" in text and f"{run.gpu_hours:,.1f} GPU-hours" in text
    assert f"{run.disk / 2**30:,.1f} GiB (4 at once of" in text
    assert _plan("gpus=2 nodes=1").run.hours is None  # it does not fit


@pytest.mark.parametrize(
    ("train", "number"),
    [
        ("train.max_steps=400 train.save_steps=20 train.keep_last=3", 4),
        ("train.max_steps=60 train.save_steps=30 train.keep_last=3", 2),
        ("train.max_steps=61 train.save_steps=30 train.keep_last=3", 3),
        ("train.keep_last=1 train.keep_best=eval/pdr train.eval_steps=20", 3),
    ],
)
def test_old_checkpoints_and_the_one_being_written_are_on_disk_together(train: str, number: int):
    config = _config(train)
    assert whole_run(config, architecture_of(config.model.path), None).checkpoints == number


def test_the_bytes_of_a_checkpoint_are_those_that_the_trainer_expects(tiny_policy):
    policy = AutoModelForCausalLM.from_pretrained(tiny_policy)
    # A critic of its own has the policy's parameters, its head being a vector.
    critic: nn.Module = AutoModelForCausalLM.from_pretrained(tiny_policy)
    model = architecture_of(str(tiny_policy))
    for overrides, second in (("", None), (PPO, critic)):
        config = _config(f"model.path={tiny_policy} model.dtype=float32 {overrides}")
        assert checkpoint_bytes(config, model) == trainer_checkpoint_bytes(Unsharded(), policy, second)
