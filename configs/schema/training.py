"""The config of a training run: its parts, and the checks of options of several parts against one another."""

from dataclasses import dataclass, field

from omegaconf import MISSING

from configs.schema.algo import AlgoConfig
from configs.schema.coldstart import ColdStartConfig
from configs.schema.collect import CollectConfig
from configs.schema.data import DataConfig
from configs.schema.model import ModelConfig
from configs.schema.operator import EVALUATION_ONLY, PDR_KINDS, SUMMARIES, OperatorConfig
from configs.schema.rewards import RewardsConfig
from configs.schema.rollout import RolloutConfig
from configs.schema.teaching import check_teacher
from configs.schema.train import TrainConfig


def check_draft_url(operator: OperatorConfig, rollout: RolloutConfig) -> None:
    """Checks that an operator whose drafts come from an endpoint has one.

    Raises:
        ValueError: If not.
    """
    if operator.draft_policy == "endpoint" and not rollout.draft_url:
        raise ValueError(
            f"The operator {operator.name} takes its drafts from another policy "
            "(operator.draft_policy=endpoint), but rollout.draft_url is not set. Set it, and "
            "rollout.draft_model, to a chat endpoint."
        )


@dataclass(kw_only=True)
class TrainingConfig:
    """``python -m train``"""

    output_dir: str = "outputs/train"
    """Folder of everything the run writes."""

    seed: int = 0
    """Seed of the run."""

    resume: str = "none"
    """``none``, ``auto`` (the newest checkpoint of output_dir, if any) or a checkpoint folder."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = MISSING
    operator: OperatorConfig = field(default_factory=OperatorConfig)
    rewards: RewardsConfig = field(default_factory=RewardsConfig)
    algo: AlgoConfig = field(default_factory=AlgoConfig)
    collect: CollectConfig = field(default_factory=CollectConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    coldstart: ColdStartConfig = field(default_factory=ColdStartConfig)

    def __post_init__(self) -> None:
        self.rollout.cast_lm_head_to_fp32 |= self.model.cast_lm_head_to_fp32
        self.data.check_training()
        if self.operator.kind in EVALUATION_ONLY:
            raise ValueError(
                f"operator.kind is {self.operator.kind}, which only selects among answers: there is nothing "
                "to train. Train trace, sr or pdr, and evaluate with it."
            )
        if "oracle" in (self.operator.distiller, *self.operator.distillers):
            raise ValueError(
                "operator.distiller (or distillers) is oracle, which knows the gold answers: "
                "it is for evaluation only."
            )
        self._check_credit()
        self._check_adapter()
        self._check_sampling()
        check_teacher(self.algo, self.operator, self.collect, self.rollout)
        self._check_draft_policy()
        if self.rollout.enable_sleep_mode and self.collect.max_staleness:
            raise ValueError(
                f"rollout.enable_sleep_mode is true and collect.max_staleness {self.collect.max_staleness}: "
                "workers that sleep while the trainer updates cannot collect ahead of it. Set one of them to "
                "its default."
            )
        if self.rollout.chats:
            raise ValueError(
                "rollout.chat_url is for evaluation only: a chat endpoint returns neither token ids nor "
                "log-probs, and accepts no weights."
            )

    def _check_draft_policy(self) -> None:
        """Checks that the policy that writes the drafts has a worker or an endpoint."""
        operator, collect, workers = self.operator, self.collect, self.rollout.num_draft_workers
        check_draft_url(operator, self.rollout)
        if operator.draft_policy != "own" and collect.draft_source != "fresh":
            raise ValueError(
                f"collect.draft_source is {collect.draft_source}, but operator.draft_policy is "
                f"{operator.draft_policy}: the drafts can have one source. Set one to its default."
            )
        if operator.draft_policy != "own" and "draft" in self.algo.credit:
            raise ValueError(
                f"algo.credit holds draft, but operator.draft_policy is {operator.draft_policy}: only drafts "
                "of the policy itself can be trained."
            )
        if (collect.draft_source == "reference") != (workers > 0):
            raise ValueError(
                f"collect.draft_source is {collect.draft_source} and rollout.num_draft_workers {workers}: "
                "drafts of the frozen initial policy need at least 1 such worker, and nothing else uses one."
            )

    def _check_sampling(self) -> None:
        """Checks that the log-probs of trained tokens are those of the distribution they are sampled from."""
        for role in ("trace", *self.algo.credit):
            name = f"roles.{role}." if role in self.rollout.roles.changed() else ""
            if self.rollout.temperature_of(role) == 0:
                raise ValueError(
                    f"rollout.{name}temperature must be above 0 in training: greedy samples are all equal."
                )
            if (top_p := self.rollout.top_p_of(role)) != 1.0:
                raise ValueError(
                    f"rollout.{name}top_p must be 1.0 in training, got {top_p}: a cut tail biases the ratio "
                    "between trainer and sampler."
                )

    def _check_adapter(self) -> None:
        rank, served = self.model.lora_r, self.rollout.max_lora_rank
        if served and not 0 < rank <= served:
            raise ValueError(
                f"rollout.max_lora_rank is {served}, so that workers serve a LoRA adapter, and model.lora_r "
                f"is {rank}: set it to 1 to {served}, or rollout.max_lora_rank to 0."
            )

    def _check_credit(self) -> None:
        """Checks that the operator makes the calls that are to be credited."""
        algo, operator = self.algo, self.operator
        used = operator.distillers or [operator.distiller]
        if "distil" in algo.credit and (operator.kind not in PDR_KINDS or not set(used) & set(SUMMARIES)):
            raise ValueError(
                f"algo.credit holds distil, but operator.kind is {operator.kind} with distiller "
                f"{', '.join(used)}: only pdr with {' or '.join(SUMMARIES)} writes its workspaces by a call."
            )
        fewest = operator.drafts[0] if operator.drafts else operator.schedule[0]
        if "draft" in algo.credit and fewest < 2:
            raise ValueError(
                f"algo.credit holds draft, but the operator starts with {fewest} draft, which has nothing to "
                "be compared with. Widen operator.schedule or operator.drafts."
            )
        if "draft" in algo.credit and algo.draft_credit == "pass_at_k" and algo.pass_k >= fewest:
            raise ValueError(
                f"algo.pass_k is {algo.pass_k}, but the operator may make only {fewest} drafts: the baseline "
                "of pass_at_k needs more drafts than pass_k."
            )
        if "draft" in algo.credit and algo.draft_credit == "contribution":
            self._check_contribution(used)
        if "draft" in algo.credit and self.collect.draft_source != "fresh":
            raise ValueError(
                f"algo.credit holds draft, but collect.draft_source is {self.collect.draft_source}: only "
                "fresh drafts are trained. (Reused traces are trained as traces.)"
            )
        if operator.kind not in PDR_KINDS and (
            operator.drafts or operator.distillers or operator.top_k_range
        ):
            raise ValueError(
                f"operator.drafts, top_k_range and distillers are for pdr, operator.kind is {operator.kind}."
            )
        if self.collect.draft_source == "reuse" and algo.operator_fraction > 0.5:
            raise ValueError(
                f"algo.operator_fraction is {algo.operator_fraction}, but with collect.draft_source=reuse "
                "each operator group needs a trace group of the same problem: it can be at most 0.5."
            )

    def _check_contribution(self, distillers: list[str]) -> None:
        """Checks that answers may read different drafts: else every contribution is 0."""
        if self.algo.num_workspaces == 1:
            raise ValueError(
                "algo.draft_credit is contribution, but algo.num_workspaces is 1: all answers read the same "
                "drafts, so that every contribution is 0. Raise algo.num_workspaces."
            )
        if set(distillers) <= {"all", *SUMMARIES}:
            raise ValueError(
                f"algo.draft_credit is contribution, but {', '.join(distillers)} reads every draft, so that "
                "every contribution is 0. Use a distiller that chooses drafts, such as random_k."
            )
