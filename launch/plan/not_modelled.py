"""Options that change a step's cost or memory in a way that a plan leaves out."""

from dataclasses import asdict
from typing import Any

from configs.schema import JobConfig

DRAWN = "drawn for each problem"
NEUTRAL: dict[str, tuple[Any, str]] = {
    "operator.drafts": ([], DRAWN),
    "operator.top_k_range": ([], DRAWN),
    "operator.distillers": ([], DRAWN),
    "operator.quorum": (1.0, "drafts beyond it are aborted"),
    "algo.entropy_coef": (0.0, "the entropy's gradient takes more memory and time"),
    "algo.critic_warmup_steps": (0, "its steps do not train the policy"),
    "algo.mask_truncated_completions": (False, "less is trained"),
    "algo.amortise_coef": (0.0, "right answers of the operator are trained once more"),
    "algo.opd_coef": (0.0, "the teacher's forward pass takes time"),
    "operator.draft_policy": ("own", "drafts are written elsewhere"),
    "collect.balance": ("none", "more is sampled"),
    "collect.filter": ("none", "less is trained"),
    "collect.draft_source": (("fresh", "reuse"), "drafts are not sampled by these workers"),
    "collect.drop_equal_rewards": (False, "less is trained"),
    "collect.max_pass_rate": (None, "less is trained"),
    "collect.draft_accuracy": ([0.0, 1.0], "less is trained"),
    "collect.max_refill": (0, "more is sampled"),
    "model.cast_lm_head_to_fp32": (False, "the head takes more memory and time"),
    "rollout.roles": ({}, "calls have limits of their own"),
    "rollout.urls": ([], "their GPUs are not these"),
    "rollout.enforce_eager": (("auto", "false"), "decoding is slower"),
    "rollout.pause_mode": (("keep", "keep_cache"), "requests in flight end before weights are published"),
    "rollout.tensor_parallel_size": (1, "a worker's GPUs exchange activations in every layer"),
    "rollout.vllm_args": ({}, "they may change the memory and the speed of workers"),
    "rollout.max_lora_rank": (0, "publishing takes less, decoding more"),
    "rollout.weight_transfer": ("directory", "plan.publish_gbps holds for every process group"),
    "train.eval_steps": (0, "evaluations take time"),
    "train.eval_at_start": (False, "the evaluation takes time"),
    "train.eval_at_end": (False, "the evaluation takes time"),
}
"""The value, or a tuple of values, at which an option costs nothing that is not modelled, and the effect of
any other value."""


def not_modelled(config: JobConfig) -> dict[str, str]:
    """Returns the effect of each option whose value costs or saves what the plan leaves out, by its name."""
    values = asdict(config)
    values["rollout"]["roles"] = config.rollout.roles.changed()
    effects: dict[str, str] = {}
    for option, (neutral, effect) in NEUTRAL.items():
        part, name = option.split(".")
        if values[part][name] not in (neutral if isinstance(neutral, tuple) else (neutral,)):
            effects[option] = effect
    return effects
