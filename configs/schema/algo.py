"""What is optimised, and from which samples."""

from dataclasses import dataclass

from configs.schema.checks import at_least, choice, share

LOSS_TYPES = ("cispo", "grpo", "bnpo", "dr_grpo", "dapo", "gspo", "reinforce")
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

    @property
    def updates_per_batch(self) -> int:
        """Optimizer steps per collected batch."""
        return self.num_iterations * self.num_updates

    @property
    def sampler_is_old(self) -> bool:
        """Whether ratios are against the sampler's log-probs, or the trainer's own of before the batch.

        As in TRL they are the trainer's where a batch gets several updates. With one update the two differ
        only by the mismatch between trainer and sampler, which the ratio then corrects for.
        """
        return self.updates_per_batch == 1
