"""All options: type, default, unit, meaning, check. YAML files hold only differences from these defaults.

There is one module per part of a run's config. Checks run once, in ``OmegaConf.to_object``, on the final
values; they read no files and open no sockets.
"""

from configs.schema.algo import AlgoConfig
from configs.schema.coldstart import ColdStartConfig
from configs.schema.collect import FILTERS, CollectConfig
from configs.schema.commands import (
    SCHEMAS,
    EvaluationConfig,
    JobConfig,
    ProblemsConfig,
    WorkersConfig,
    register,
)
from configs.schema.data import DataConfig
from configs.schema.launch import HardwareConfig, LaunchConfig, PlanConfig
from configs.schema.model import RECOMPUTATIONS, ModelConfig
from configs.schema.operator import (
    OWN,
    OperatorConfig,
    PromptsConfig,
    ThinkingConfig,
    operator_name,
    operator_spec,
)
from configs.schema.rewards import RewardsConfig
from configs.schema.roles import RoleConfig, RolesConfig
from configs.schema.rollout import WITHOUT_EFFECT, RolloutConfig
from configs.schema.study import ArmConfig, StudyConfig
from configs.schema.train import HEAD_CHUNK_BYTES, SHARE_FROM, TrainConfig
from configs.schema.training import TrainingConfig, check_draft_url

__all__ = [
    "FILTERS",
    "HEAD_CHUNK_BYTES",
    "OWN",
    "RECOMPUTATIONS",
    "SCHEMAS",
    "SHARE_FROM",
    "WITHOUT_EFFECT",
    "AlgoConfig",
    "ArmConfig",
    "ColdStartConfig",
    "CollectConfig",
    "DataConfig",
    "EvaluationConfig",
    "HardwareConfig",
    "JobConfig",
    "LaunchConfig",
    "ModelConfig",
    "OperatorConfig",
    "PlanConfig",
    "ProblemsConfig",
    "PromptsConfig",
    "RewardsConfig",
    "RoleConfig",
    "RolesConfig",
    "RolloutConfig",
    "StudyConfig",
    "ThinkingConfig",
    "TrainConfig",
    "TrainingConfig",
    "WorkersConfig",
    "check_draft_url",
    "operator_name",
    "operator_spec",
    "register",
]
