"""The objective, and the samples it is computed from."""

from dataclasses import dataclass, field

from configs.schema.checks import above, at_least, choice, share

LOSS_TYPES = ("cispo", "grpo", "bnpo", "dr_grpo", "dapo", "gspo", "reinforce", "ppo")
IMPORTANCE_SAMPLING_MODES = ("token_truncate", "token_mask", "sequence_truncate", "sequence_mask")
ADVANTAGE_ESTIMATORS = ("group_mean", "leave_one_out", "pass_at_k")
CREDITED = ("refine", "distil", "draft")
DRAFT_CREDITS = ("verdict", "pass_at_k", "contribution")
SFT_AVERAGES = ("sequences", "tokens")


@dataclass(kw_only=True)
class AlgoConfig:
    """The objective and its samples. Options have TRL's names where TRL has the option."""

    loss_type: str = "cispo"
    """Policy loss: cispo (the paper's), grpo, dapo (also called bnpo), dr_grpo, gspo, reinforce or ppo (with
    a critic)."""

    learning_rate: float = 1e-6
    """Peak learning rate of AdamW."""

    num_generations: int = 8
    """Samples per context (G): traces of a problem, or refinements of a workspace."""

    problems_per_step: int = 32
    """Groups per step, trace and operator. Each has its own problem, unless drafts are reused."""

    operator_fraction: float = 0.5
    """Share of the problems and of the loss for the operator: 0 is plain RL, 1 is operator only."""

    num_workspaces: int = 1
    """Workspaces of an operator rollout. Each is read by a group of num_generations / num_workspaces
    refinements."""

    credit: list[str] = field(default_factory=lambda: ["refine"])
    """Calls of the operator that are trained: refine (the answers, always required); distil, credited with
    the mean reward of the refinements that read its workspace; draft, credited according to draft_credit."""

    distil_coef: float = 1.0
    """Weight of the distil calls in the loss, relative to the refinements."""

    draft_coef: float = 1.0
    """Weight of the drafts in the loss, relative to the refinements."""

    draft_credit: str = "verdict"
    """Advantage of a draft: verdict (from its own verdict), pass_at_k (the best of pass_k drafts counts) or
    contribution (mean reward of the answers that read it minus that of those that did not)."""

    credit_rounds: str = "last"
    """With several rounds: credit only the answers (last), or with draft all earlier attempts as well (all).
    Calls of a middle round then share workspaces in groups as large as those of the answers."""

    sft_coef: float = 0.1
    """Weight of the length-normalised negative log-likelihood of positive samples (J_SFT)."""

    sft_average: str = "sequences"
    """Average of J_SFT: sequences (the paper's: each positive sample counts the same, so a token of a short
    one pulls harder) or tokens (each token of the positive samples counts the same)."""

    amortise_coef: float = 0.0
    """Weight of the length-normalised negative log-likelihood of the operator's right answers under the plain
    prompt (rejection-sampling distillation of the operator into the trace). 0: off."""

    amortise_max_per_problem: int = 0
    """Limit of such samples of one problem. 0: all."""

    opd_coef: float = 0.0
    """Weight of on-policy distillation: opd_coef * (teacher's log-prob - policy's) is added to the advantage
    of each token. The teacher is the model at rollout.teacher_model_server_url, which scores every sample;
    without it the policy reading a workspace, which scores traces and needs collect.draft_source=reuse. TRL's
    SDPO calls such a weight distillation_weight, tinker kl_penalty_coef. 0: off."""

    epsilon: float = 0.2
    """The ratio is clipped below at 1 - epsilon."""

    epsilon_high: float = 5.0
    """For cispo the largest ratio itself; for other losses the upper clip is 1 + epsilon_high. As in TRL."""

    advantage_estimator: str = "group_mean"
    """Baseline of a sample: mean of its group (group_mean), mean of the other samples (leave_one_out, RLOO),
    or the one that yields the gradient of the best of pass_k samples (pass_at_k)."""

    pass_k: int = 4
    """Number of samples of which the best counts, for advantage_estimator=pass_at_k. Below
    num_generations."""

    scale_rewards: str = "group"
    """Standard deviation of the reward that advantages are divided by: group, batch or none."""

    beta: float = 0.0
    """Weight of the KL divergence to the reference model (model.path, frozen; k3 estimate). 0: not loaded."""

    use_bias_correction_kl: bool = True
    """Multiply the KL term by the ratio, so that its gradient is that of the reverse KL (DeepSeek-V3.2)."""

    entropy_coef: float = 0.0
    """Weight of the entropy bonus, the mean entropy of the policy on its tokens in nats."""

    num_updates: int = 1
    """Optimizer steps per pass over a collected batch, each on a different part of the groups."""

    num_iterations: int = 1
    """Passes over a collected batch."""

    vllm_importance_sampling_correction: bool = False
    """Multiply token losses by exp(trainer's old log-prob - sampler's), limited by the next three options. If
    off, a single update per batch uses the sampler's log-probs in its ratio; several do not correct for
    it."""

    vllm_importance_sampling_mode: str = "sequence_mask"
    """token_truncate (TIS) or token_mask (IcePop); sequence_truncate or sequence_mask: one factor per
    sequence, the product over its tokens."""

    vllm_importance_sampling_clip_min: float | None = None
    """Lower limit of the factor; a smaller one is raised to the limit (truncate) or set to 0 (mask)."""

    vllm_importance_sampling_clip_max: float | None = 3.0
    """Upper limit of the factor; a larger one is lowered to the limit (truncate) or set to 0 (mask)."""

    critic: str = "own_backbone"
    """PPO's critic: own_backbone (initialised from the policy's) or policy_trunk (a head next to the LM
    head)."""

    critic_learning_rate: float = 1e-5
    """Peak learning rate of the critic, or of its head on the policy's trunk."""

    critic_warmup_steps: int = 0
    """Number of first steps in which only the critic is trained."""

    gamma: float = 1.0
    """Discount per token in GAE."""

    lam: float = 1.0
    """Lambda of GAE: 1 uses the whole return, 0 only the next value."""

    whiten_advantages: bool = True
    """Normalise the critic's advantages to mean 0 and standard deviation 1 over a batch, separately per
    role."""

    cliprange_value: float = 0.2
    """Clip of the value loss: a value gains nothing by moving further than this from its old value."""

    vf_coef: float = 0.1
    """Weight of the value loss relative to the policy loss, for critic=policy_trunk."""

    max_grad_norm: float = 1.0
    """Gradient clipping by the global norm of each model."""

    weight_decay: float = 0.0
    """Weight decay of AdamW."""

    adam_beta1: float = 0.9
    """Decay of AdamW's mean of the gradient."""

    adam_beta2: float = 0.999
    """Decay of AdamW's mean of the squared gradient."""

    warmup_steps: int = 0
    """Optimizer steps of linear warm-up."""

    lr_scheduler_type: str = "constant_with_warmup"
    """Name of a transformers scheduler."""

    mask_truncated_completions: bool = False
    """Drop samples that reached max_completion_length from the loss."""

    def __post_init__(self) -> None:
        choice("algo.loss_type", self.loss_type, LOSS_TYPES)
        choice("algo.advantage_estimator", self.advantage_estimator, ADVANTAGE_ESTIMATORS)
        choice("algo.sft_average", self.sft_average, SFT_AVERAGES)
        choice("algo.scale_rewards", self.scale_rewards, ("group", "batch", "none"))
        mode, modes = self.vllm_importance_sampling_mode, IMPORTANCE_SAMPLING_MODES
        choice("algo.vllm_importance_sampling_mode", mode, modes)
        self._check_importance_limits()
        share("algo.operator_fraction", self.operator_fraction)
        at_least("algo.problems_per_step", self.problems_per_step, 1)
        at_least("algo.num_updates", self.num_updates, 1)
        at_least("algo.num_iterations", self.num_iterations, 1)
        at_least("algo.beta", self.beta, 0)
        at_least("algo.entropy_coef", self.entropy_coef, 0)
        at_least("algo.pass_k", self.pass_k, 1)
        at_least("algo.amortise_coef", self.amortise_coef, 0)
        at_least("algo.opd_coef", self.opd_coef, 0)
        at_least("algo.amortise_max_per_problem", self.amortise_max_per_problem, 0)
        if self.amortise_coef and not self.operator_fraction:
            raise ValueError(
                f"algo.amortise_coef is {self.amortise_coef}, but algo.operator_fraction is 0: no operator "
                "writes answers to learn from."
            )
        self._check_critic()
        self._check_credit()
        if self.loss_type == "cispo" and self.epsilon_high < 1:
            raise ValueError(
                f"algo.epsilon_high is {self.epsilon_high}, but for algo.loss_type=cispo it is the largest "
                "ratio itself (as in TRL), so it must be at least 1; 5.0 is a usual value."
            )
        if self.num_generations < 2:
            raise ValueError(
                f"algo.num_generations must be at least 2, got {self.num_generations}: a group's mean is "
                "its own baseline, so a single sample always gets advantage 0."
            )
        if self.advantage_estimator == "pass_at_k" and self.pass_k >= self.num_generations:
            raise ValueError(
                f"algo.pass_k is {self.pass_k} and algo.num_generations {self.num_generations}: the baseline "
                "of pass_at_k needs more samples than pass_k, or every advantage is 0."
            )
        above("algo.learning_rate", self.learning_rate, 0)

    def _check_critic(self) -> None:
        choice("algo.critic", self.critic, ("own_backbone", "policy_trunk"))
        share("algo.gamma", self.gamma)
        share("algo.lam", self.lam)
        at_least("algo.critic_warmup_steps", self.critic_warmup_steps, 0)
        at_least("algo.vf_coef", self.vf_coef, 0)
        above("algo.critic_learning_rate", self.critic_learning_rate, 0)
        above("algo.cliprange_value", self.cliprange_value, 0)
        if self.critic_warmup_steps and not self.has_critic:
            raise ValueError(
                f"algo.critic_warmup_steps is {self.critic_warmup_steps}, but algo.loss_type is "
                f"{self.loss_type} and has no critic. Set it to 0, or algo.loss_type=ppo."
            )
        if self.critic_warmup_steps and self.weight_decay and self.critic == "policy_trunk":
            raise ValueError(
                f"algo.weight_decay is {self.weight_decay}, which would change the policy during the "
                f"{self.critic_warmup_steps} algo.critic_warmup_steps: with algo.critic=policy_trunk one "
                "optimizer serves both. Set one of the two to 0, or algo.critic=own_backbone."
            )

    def _check_credit(self) -> None:
        for role in self.credit:
            choice("algo.credit", role, CREDITED)
        choice("algo.draft_credit", self.draft_credit, DRAFT_CREDITS)
        choice("algo.credit_rounds", self.credit_rounds, ("last", "all"))
        above("algo.distil_coef", self.distil_coef, 0)
        above("algo.draft_coef", self.draft_coef, 0)
        at_least("algo.num_workspaces", self.num_workspaces, 1)
        if "refine" not in self.credit:
            raise ValueError(f"algo.credit must hold refine, the answers; got {self.credit}.")
        if self.num_generations % self.num_workspaces:
            raise ValueError(
                f"algo.num_generations is {self.num_generations} and algo.num_workspaces "
                f"{self.num_workspaces}: refinements share workspaces evenly, so it must divide their number."
            )
        if 1 < self.num_workspaces == self.num_generations:
            raise ValueError(
                f"algo.num_workspaces is {self.num_workspaces}, as many as refinements: each would be a "
                "group of its own without a baseline. Lower it, or raise algo.num_generations."
            )
        if self.credit_rounds == "all" and "draft" not in self.credit:
            raise ValueError(
                "algo.credit_rounds is all, which gives the attempts of earlier rounds the credit of drafts: "
                f"add draft to algo.credit, which is {self.credit}."
            )
        if "distil" in self.credit and self.num_workspaces == 1:
            raise ValueError(
                "algo.credit holds distil, but algo.num_workspaces is 1: a single distil call has nothing to "
                "be compared with. Raise algo.num_workspaces."
            )

    def _check_importance_limits(self) -> None:
        least, most = self.vllm_importance_sampling_clip_min, self.vllm_importance_sampling_clip_max
        if (least is not None and not 0 <= least <= 1) or (most is not None and most < 1):
            raise ValueError(
                f"algo.vllm_importance_sampling_clip_min and _clip_max are {least} and {most}; where trainer "
                "and sampler agree the factor is 1, so it must lie between them (null: no limit)."
            )

    @property
    def has_critic(self) -> bool:
        """True if a critic computes the advantages, token by token."""
        return self.loss_type == "ppo"

    @property
    def critic_is_head(self) -> bool:
        """True if the critic is a head on the policy's trunk."""
        return self.has_critic and self.critic == "policy_trunk"

    @property
    def middle_readers(self) -> int:
        """Calls of a middle round that share a workspace, and with it a baseline, at least; 1 if it has no
        credit."""
        return self.num_generations // self.num_workspaces if self.credit_rounds == "all" else 1

    @property
    def updates_per_batch(self) -> int:
        """Optimizer steps per collected batch."""
        return self.num_iterations * self.num_updates

    @property
    def sampler_is_old(self) -> bool:
        """True if ratios use the sampler's log-probs as old ones; False if the trainer's before the batch.

        As in TRL, they are the trainer's if a batch gets several updates, or if a separate factor corrects
        for the mismatch. Otherwise the two differ only by the mismatch, and the ratio corrects for it.
        """
        return self.updates_per_batch == 1 and not self.vllm_importance_sampling_correction
