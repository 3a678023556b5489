"""The config of each command, composed of the parts."""

from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

from configs.schema.algo import AlgoConfig
from configs.schema.checks import at_least
from configs.schema.coldstart import ColdStartConfig
from configs.schema.collect import CollectConfig
from configs.schema.data import DataConfig
from configs.schema.launch import HardwareConfig, LaunchConfig, PlanConfig
from configs.schema.model import ModelConfig
from configs.schema.operator import EVALUATION_ONLY, PDR_KINDS, SUMMARIES, OperatorConfig, operator_name
from configs.schema.rewards import RewardsConfig
from configs.schema.rollout import RolloutConfig
from configs.schema.study import StudyConfig
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


@dataclass(kw_only=True)
class EvaluationConfig:
    """``python -m rollout``"""

    output_dir: str = "outputs/evaluation"
    """Folder of rollouts and report. If it holds part of the same evaluation, that is resumed; one with
    another model, operator, verifier or other problems of the same ids is refused."""

    seed: int = 0
    """Base seed that the seed of each rollout derives from."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = MISSING
    operator: OperatorConfig = field(default_factory=OperatorConfig)
    operators: list[Any] = field(default_factory=list)
    """Operators to compare, by the name of their file in configs/operator, or with options of their own:
    [trace,{pdr:{schedule:[8,4,1]}}]. ``operator.*`` sets the run's own operator, and for the others only what
    their files leave open. Empty: only ``operator``. Majority votes over as many traces as each of them costs
    are always added to the comparison."""

    samples: int = 1
    """Number of rollouts per problem and operator."""

    rewards: RewardsConfig = field(default_factory=RewardsConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)

    def __post_init__(self) -> None:
        self.rollout.cast_lm_head_to_fp32 |= self.model.cast_lm_head_to_fp32
        at_least("samples", self.samples, 1)
        self.data.check_evaluation()
        check_draft_url(self.operator, self.rollout)
        if self.rollout.num_draft_workers:
            raise ValueError(
                f"rollout.num_draft_workers is {self.rollout.num_draft_workers}, which is for training with "
                "collect.draft_source=reference. To evaluate with drafts of another policy, serve it and set "
                "operator=two_policy with rollout.draft_url."
            )
        if self.rollout.teacher_model_server_url:
            raise ValueError("rollout.teacher_model_server_url is for training: leave it out here.")
        if self.rollout.chats and self.operator.quorum < 1:
            raise ValueError(
                f"operator.quorum is {self.operator.quorum}, but a chat endpoint (rollout.chat_url) "
                "cannot return part of a draft. Set it to 1."
            )
        if self.rollout.chats and self.model.chat_template_kwargs:
            raise ValueError(
                f"model.chat_template_kwargs is {self.model.chat_template_kwargs}, but a chat endpoint "
                "(rollout.chat_url) applies its own template. Set them there (vllm serve "
                "--default-chat-template-kwargs)."
            )
        names = [operator_name(each) for each in self.operators]
        if len(set(names)) < len(names):
            raise ValueError(
                f"operators names one twice: {', '.join(names)}. Variants of one operator need options that "
                "differ, e.g. operators=[pdr,{pdr:{schedule:[8,4,1]}}]."
            )


@dataclass(kw_only=True)
class WorkersConfig:
    """``python -m launch.workers``"""

    output_dir: str = "outputs/workers"
    """Folder whose ``logs`` holds the logs of the workers."""

    model: ModelConfig = field(default_factory=ModelConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)

    def __post_init__(self) -> None:
        self.rollout.cast_lm_head_to_fp32 |= self.model.cast_lm_head_to_fp32
        if self.rollout.urls or self.rollout.chats:
            raise ValueError(
                "rollout.urls and rollout.chat_url are for clients of workers, not for workers: unset both."
            )
        at_least("rollout.port of launch.workers", self.rollout.port, 1)


@dataclass(kw_only=True)
class JobConfig(TrainingConfig):
    """``python -m launch``, ``launch.plan`` and ``launch.slurm``: a run and its machines."""

    nodes: int = 1
    """Number of machines."""

    gpus: int = 0
    """GPUs of each machine; 0: run on the CPU."""

    launch: LaunchConfig = field(default_factory=LaunchConfig)
    plan: PlanConfig = field(default_factory=PlanConfig)
    hardware: HardwareConfig = field(default_factory=HardwareConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("nodes", self.nodes, 1)
        at_least("gpus", self.gpus, 0)
        if self.gpus and self.rollout.num_draft_workers:
            raise ValueError(
                f"rollout.num_draft_workers is {self.rollout.num_draft_workers}, but python -m launch "
                "divides its GPUs between workers and trainer only. Start workers and trainer one by one, "
                "or serve the initial policy and set operator=two_policy with rollout.draft_url."
            )


@dataclass(kw_only=True)
class ProblemsConfig:
    """``python -m rollout.problems``"""

    model: ModelConfig = field(default_factory=ModelConfig)
    """With an empty path the first problem is shown as plain text."""

    shown: int = 3
    """Number of examples of each finding that are printed."""

    data: DataConfig = MISSING
    operator: OperatorConfig = field(default_factory=OperatorConfig)
    rewards: RewardsConfig = field(default_factory=RewardsConfig)

    def __post_init__(self) -> None:
        at_least("shown", self.shown, 1)


SCHEMAS: dict[str, type] = {
    "training": TrainingConfig,
    "evaluation": EvaluationConfig,
    "job": JobConfig,
    "workers": WorkersConfig,
    "problems": ProblemsConfig,
    "study": StudyConfig,
}
"""Schema of each root config, by the name of its file in ``configs``."""


def register() -> None:
    """Registers the schemas with Hydra; may be called more than once."""
    for name, schema in SCHEMAS.items():
        ConfigStore.instance().store(group="schema", name=name, node=schema)
