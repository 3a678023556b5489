"""What a whole run takes: hours, GPU-hours and the disk of its checkpoints."""

from dataclasses import dataclass

from configs.schema import JobConfig
from launch.plan.architecture import Architecture
from launch.plan.workload import adapters_of, companions_of

HOUR = 3600
BYTES = {"float32": 4, "bfloat16": 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class WholeRun:
    """A run of ``train.max_steps`` steps, without evaluations and start-up."""

    hours: float | None
    """Wall time; None if a step's seconds are not known."""
    gpu_hours: float | None
    checkpoint: float
    """Bytes of one checkpoint."""
    checkpoints: int
    """Largest number of checkpoints on disk at once, the one that is being written included."""

    @property
    def disk(self) -> float:
        """Bytes of all checkpoints."""
        return self.checkpoints * self.checkpoint


def whole_run(config: JobConfig, model: Architecture, step_seconds: float | None) -> WholeRun:
    """Returns what the run takes if each step takes ``step_seconds`` (None: not known)."""
    train = config.train
    hours = None if step_seconds is None else train.max_steps * step_seconds / HOUR
    rolls_back = train.on_alarm == "rollback"
    saved = -(-train.max_steps // train.save_steps)  # the last step is always saved
    return WholeRun(
        hours=hours,
        gpu_hours=None if hours is None else hours * config.nodes * config.gpus,
        checkpoint=checkpoint_bytes(config, model),
        # An old checkpoint is removed only after the new one is whole. To roll back, a run also keeps the
        # initial one and the last that was seen to be healthy.
        checkpoints=min(
            saved + rolls_back, train.keep_last + 1 + (train.keep_best != "none") + 2 * rolls_back
        ),
    )


def checkpoint_bytes(config: JobConfig, model: Architecture) -> float:
    """Returns the bytes of a checkpoint, by the rule of ``train.checkpoint``.

    Weights of the policy are stored twice (once as a plain model), those of a critic once. A trained
    parameter adds an fp32 copy and two fp32 moments.
    """
    size, adapters = BYTES[config.model.dtype], adapters_of(config, model)
    trained = adapters or model.parameters
    policy = 2 * size * (model.parameters + adapters) + 3 * 4 * trained
    critic = (size + 3 * 4) * model.parameters if companions_of(config).critic else 0
    return policy + critic
