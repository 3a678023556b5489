"""The config of each command, composed of the parts."""

from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

from configs.schema.checks import at_least
from configs.schema.data import DataConfig
from configs.schema.launch import HardwareConfig, LaunchConfig, PlanConfig
from configs.schema.model import ModelConfig
from configs.schema.operator import OperatorConfig, operator_name
from configs.schema.rewards import RewardsConfig
from configs.schema.rollout import RolloutConfig
from configs.schema.study import StudyConfig
from configs.schema.training import TrainingConfig, check_draft_url


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
