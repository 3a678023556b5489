"""The verifier and the shaping of its verdicts."""

from dataclasses import dataclass, field

from configs.schema.checks import at_least, choice, share


@dataclass(kw_only=True)
class RewardsConfig:
    """The verifier and the shaping of its verdicts."""

    kind: str = "math"
    """``math`` (math-verify behind cheap exact tests) or ``custom`` (rewards.path)."""

    path: str | None = None
    """A custom reward function, ``package.module:function``; runs in the same killable processes."""

    num_workers: int = 2
    """Verifier processes."""

    limit_seconds: float = 3.0
    """Hard limit for one answer; its process is killed and replaced after that."""

    memory_limit_mb: int = 1024
    """Address space of one verifier process, MiB."""

    forms: list[str] = field(default_factory=list)
    """Where an answer may stand outside a box: tag, choice, marker, bare, math, number. []: box only."""

    max_failure_share: float = 0.02
    """Above this share of timeouts and errors the run says so loudly."""

    weights: dict[str, float] = field(default_factory=lambda: {"outcome": 1.0})
    """Reward terms and their weights; logged apart (docs/rewards.md lists them)."""

    wrong_reward: float = -1.0
    """Outcome of an answer that is not correct: -1 (the paper's), or 0."""

    overlong_buffer: int = 4096
    """Tokens before max_completion_length over which the overlong penalty grows to 1."""

    def __post_init__(self) -> None:
        choice("rewards.kind", self.kind, ("math", "custom"))
        if self.kind == "custom" and not self.path:
            raise ValueError("rewards.path must name package.module:function when rewards.kind is 'custom'.")
        at_least("rewards.num_workers", self.num_workers, 1)
        at_least("rewards.limit_seconds", self.limit_seconds, 0.1)
        at_least("rewards.memory_limit_mb", self.memory_limit_mb, 256)
        at_least("rewards.overlong_buffer", self.overlong_buffer, 1)
        share("rewards.max_failure_share", self.max_failure_share)
