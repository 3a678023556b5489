"""What is optimised, and from which samples."""

from dataclasses import dataclass

from configs.schema.checks import at_least, choice, share

LOSS_TYPES = ("cispo", "grpo", "bnpo", "dr_grpo", "dapo", "gspo", "reinforce")
IMPORTANCE_SAMPLING_MODES = ("token_truncate", "token_mask", "sequence_truncate", "sequence_mask")
ADVANTAGE_ESTIMATORS = ("group_mean", "leave_one_out", "pass_at_k")


@dataclass(kw_only=True)
class AlgoConfig:
    """What is optimised, and from which samples. Names are TRL's where TRL has the option."""

    loss_type: str = "cispo"
    """Policy loss: cispo (the paper's), grpo, bnpo, dr_grpo, dapo, gspo or reinforce."""

    learning_rate: float = 1e-6
    """AdamW's peak learning rate."""

    num_generations: int = 8
    """Samples per context, G: traces of a problem, refinements of a workspace."""

    problems_per_step: int = 32
    """Problems drawn per step; operator_fraction of them go through the operator."""

    operator_fraction: float = 0.5
    """Share of problems and of the loss given to the operator: 0 is plain RL, 1 is operator only."""

    sft_coef: float = 0.1
    """Weight of the length-normalised NLL of the positive samples (J_SFT)."""

    epsilon: float = 0.2
    """Lower clip of the ratio: 1 - epsilon."""

    epsilon_high: float = 5.0
    """For cispo the largest ratio itself; for the others the upper clip is 1 + epsilon_high. As in TRL."""

    advantage_estimator: str = "group_mean"
    """Baseline of a sample: its group's mean, the mean of the others (leave_one_out, RLOO), or what makes the
    gradient that of the best of pass_k samples (pass_at_k)."""

    pass_k: int = 4
    """Samples of which the best counts, for advantage_estimator=pass_at_k. Below num_generations."""

    scale_rewards: str = "group"
    """Divide advantages by the standard deviation of the reward: group, batch or none."""

    beta: float = 0.0
    """Weight of the KL divergence to the reference model (model.path, frozen; k3 estimate). 0 loads none."""

    use_bias_correction_kl: bool = True
    """Multiply the KL term by the ratio, so that its gradient is that of the reverse KL (DeepSeek-V3.2)."""

    entropy_coef: float = 0.0
    """Weight of the entropy bonus: the mean entropy of the policy on its tokens, in nats."""

    num_updates: int = 1
    """Optimizer steps per pass over a collected batch, each on its own part of the groups."""

    num_iterations: int = 1
    """Passes over a collected batch."""

    vllm_importance_sampling_correction: bool = False
    """Multiply token losses by exp(trainer's old log-prob - sampler's), limited as the next three say. Off,
    one update a batch takes its ratio against the sampler's log-probs; several leave the difference alone."""

    vllm_importance_sampling_mode: str = "sequence_mask"
    """token_truncate (TIS), token_mask (IcePop); sequence_truncate, sequence_mask: one product a sequence."""

    vllm_importance_sampling_clip_min: float | None = None
    """Lower limit of that factor: below it, it is raised to the limit (truncate) or set to 0 (mask)."""

    vllm_importance_sampling_clip_max: float | None = 3.0
    """Upper limit: above it, the factor is cut to the limit (truncate) or set to 0 (mask)."""

    max_grad_norm: float = 1.0
    """Gradient clipping, global norm."""

    weight_decay: float = 0.0
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    warmup_steps: int = 0
    """Optimizer steps of linear warm-up."""

    lr_scheduler_type: str = "constant_with_warmup"
    """A transformers scheduler name."""

    mask_truncated_completions: bool = False
    """Leave samples that ran into max_completion_length out of the loss."""

    def __post_init__(self) -> None:
        choice("algo.loss_type", self.loss_type, LOSS_TYPES)
        choice("algo.advantage_estimator", self.advantage_estimator, ADVANTAGE_ESTIMATORS)
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
        if self.learning_rate <= 0:
            raise ValueError(f"algo.learning_rate must be above 0, got {self.learning_rate}.")

    def _check_importance_limits(self) -> None:
        least, most = self.vllm_importance_sampling_clip_min, self.vllm_importance_sampling_clip_max
        if (least is not None and not 0 <= least <= 1) or (most is not None and most < 1):
            raise ValueError(
                f"algo.vllm_importance_sampling_clip_min and _clip_max are {least} and {most}; where trainer "
                "and sampler agree the factor is 1, so it must lie between them (null: no limit)."
            )

    @property
    def updates_per_batch(self) -> int:
        """Optimizer steps per collected batch."""
        return self.num_iterations * self.num_updates

    @property
    def sampler_is_old(self) -> bool:
        """Whether ratios are against the sampler's log-probs, or the trainer's own of before the batch.

        As in TRL they are the trainer's where a batch gets several updates, or a factor of its own corrects
        for the mismatch. Otherwise the two differ by the mismatch alone, which the ratio then corrects for.
        """
        return self.updates_per_batch == 1 and not self.vllm_importance_sampling_correction
