"""The training loop."""

from dataclasses import dataclass, field

from configs.schema.checks import at_least, choice

SHARE_FROM = 0.1
"""A group shares its prompt if that saves at least this share of its tokens. Below it, the separate attention
of each completion costs more than sharing saves. Used by the trainer's packing and by ``launch.plan``."""

HEAD_CHUNK_BYTES = 512 * 2**20
"""Bytes of fp32 logits that go through the LM head at once. Used by the trainer and by ``launch.plan``."""


ALARMS = (
    "length_halved",
    "length_doubled",
    "entropy_rose",
    "entropy_vanished",
    "far_from_initial",
    "no_signal",
    "truncated",
    "unparsable",
    "accuracy_fell",
    "sampler_mismatch",
    "gradient_grew",
)
"""Names of the alarms on a run's metrics; ``train.health`` defines them, docs/metrics.md describes them."""

TRACKERS = ("wandb", "tensorboard", "trackio", "mlflow")
"""Names of the trackers; ``train.trackers`` knows how to use them."""


@dataclass(kw_only=True)
class TrainConfig:
    """The loop: length, evaluation, checkpoints, packing and logging."""

    max_steps: int = 100
    """Number of steps; each is one collected batch and its updates."""

    save_steps: int = 20
    """Save a checkpoint every this many steps, and at the end."""

    keep_last: int = 2
    """Number of checkpoints to keep."""

    keep_best: str = "none"
    """Metric, e.g. eval/pdr, whose best checkpoint is kept in addition, or none."""

    eval_steps: int = 0
    """Evaluate every this many steps. 0: only at start and end (eval_at_start, eval_at_end)."""

    eval_at_start: bool = True
    """Evaluate before the first step."""

    eval_at_end: bool = True
    """Evaluate after the last step."""

    eval_operators: list[str] = field(default_factory=lambda: ["trace", "pdr"])
    """Operators to evaluate, by the name of their file in configs/operator."""

    eval_samples: int = 1
    """Number of rollouts per held-out problem and operator."""

    tokens_per_micro_batch: int = 8192
    """Limit of padded tokens in one forward pass of one rank."""

    packing: str = "shared"
    """shared: a prompt runs once for all its completions, if that saves time and the model supports it.
    padded: each completion is a row with its own prompt; the results are the same, several times slower."""

    trace_steps: int = 1
    """Write groups/step_N.jsonl, which python -m train.explain reads, every this many steps; 0: never."""

    trace_limit_mib: int = 2048
    """Limit of the size of groups/, MiB; beyond it, the oldest steps are removed."""

    on_alarm: str = "warn"
    """Response to an alarm (docs/metrics.md). warn: print it. stop: end the run with status 1. rollback:
    return to the last checkpoint that a later step has shown to be healthy, and halve the learning rates;
    costs one more checkpoint on disk (two if save_steps <= collect.max_staleness)."""

    max_rollbacks: int = 2
    """Number of rollbacks of a run, resumes included; the next alarm after them stops it."""

    ignored_alarms: list[str] = field(default_factory=list)
    """Alarms that do not apply, e.g. [length_doubled] where answers are meant to grow."""

    report_to: list[str] = field(default_factory=list)
    """Trackers: any of wandb, tensorboard, trackio and mlflow. Each writes to output_dir unless its
    environment variables name a server; without an API key wandb runs offline, and it never prompts."""

    collective_timeout_seconds: float = 3600.0
    """Time limit of a collective between ranks, and of rank 0's wait for a batch or an evaluation. The other
    ranks wait for rank 0 as long as it takes, and end if it is gone."""

    num_threads: int = 1
    """Number of torch threads per rank on CPU."""

    def __post_init__(self) -> None:
        at_least("train.max_steps", self.max_steps, 1)
        at_least("train.save_steps", self.save_steps, 1)
        at_least("train.keep_last", self.keep_last, 1)
        if self.keep_best != "none":
            self._check_keep_best()
        at_least("train.eval_samples", self.eval_samples, 1)
        at_least("train.trace_steps", self.trace_steps, 0)
        at_least("train.trace_limit_mib", self.trace_limit_mib, 1)
        choice("train.packing", self.packing, ("shared", "padded"))
        choice("train.on_alarm", self.on_alarm, ("warn", "stop", "rollback"))
        at_least("train.max_rollbacks", self.max_rollbacks, 1)
        for alarm in self.ignored_alarms:
            choice("train.ignored_alarms", alarm, ALARMS)
        for tracker in self.report_to:
            choice("train.report_to", tracker, TRACKERS)

    def _check_keep_best(self) -> None:
        measured = [f"eval/{name}" for name in self.eval_operators]
        if self.keep_best not in measured:
            raise ValueError(
                f"train.keep_best is '{self.keep_best}'; choose one of none, {', '.join(measured)}."
            )
        if not self.eval_steps or self.save_steps % self.eval_steps:
            raise ValueError(
                f"train.keep_best is '{self.keep_best}', but checkpoints (every train.save_steps = "
                f"{self.save_steps}) are not all evaluated (every train.eval_steps = {self.eval_steps}): "
                "set train.eval_steps so that it divides train.save_steps, or train.keep_best=none."
            )
