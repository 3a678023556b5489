"""The verifier and the shaping of its verdicts."""

from dataclasses import dataclass, field

from configs.schema.checks import at_least, choice, share

ANSWER_FORMS = ("tag", "choice", "marker", "bare", "math", "number")


@dataclass(kw_only=True)
class WeightsConfig:
    """Weights of the reward terms; a term of weight 0 is not computed. docs/rewards.md describes them."""

    outcome: float = 1.0
    """1 for a correct answer, else wrong_reward."""
    overlong: float = 0.0
    """Falls from 0 to -1 over the last overlong_buffer tokens."""
    format: float = 0.0
    """-1 unless thinking is closed and not repeated, and the answer is in one box."""
    repetition: float = 0.0
    """Minus the share of repeated word sequences."""
    length: float = 0.0
    """From 0.5 (shortest) to -0.5 (longest) among the correct completions of a group."""
    copy: float = 0.0
    """-1 for a copy of one of the workspace's drafts."""
    leak: float = 0.0
    """-1 for a workspace summary that states an answer."""

    def __post_init__(self) -> None:
        if not any(vars(self).values()):
            raise ValueError("rewards.weights has no weight other than 0: every reward would be 0.")


@dataclass(kw_only=True)
class RewardsConfig:
    """The verifier and the shaping of its verdicts."""

    kind: str = "math"
    """``math`` (cheap exact tests, then math-verify) or ``custom`` (rewards.path)."""

    path: str | None = None
    """Custom reward function, ``package.module:function``; runs in the same killable processes."""

    num_workers: int = 2
    """Number of verifier processes."""

    limit_seconds: float = 3.0
    """Hard time limit of one answer; its process is then killed and replaced."""

    memory_limit_mb: int = 1024
    """Address space of one verifier process, MiB."""

    forms: list[str] = field(default_factory=list)
    """Accepted forms of an answer outside a box: tag, choice, marker, bare, math, number. []: box only."""

    ordered_lists: str = "auto"
    """Whether the order of a list without brackets counts: auto (words yes, numbers no), true or false."""

    max_failure_share: float = 0.02
    """Share of timeouts and errors above which an error is logged."""

    weights: WeightsConfig = field(default_factory=WeightsConfig)
    """Weights of the reward's terms, which are logged separately."""

    wrong_reward: float = -1.0
    """Outcome term of an answer that is not correct: -1 (the paper's) or 0."""

    overlong_buffer: int = 4096
    """Tokens before max_completion_length over which the overlong penalty grows to 1."""

    def __post_init__(self) -> None:
        choice("rewards.kind", self.kind, ("math", "custom"))
        if self.kind == "custom" and not all((self.path or "").partition(":")):
            raise ValueError(
                "rewards.path must name package.module:function when rewards.kind is 'custom', "
                f"got {self.path!r}."
            )
        self.ordered_lists = self.ordered_lists.lower()  # YAML's true arrives as "True"
        choice("rewards.ordered_lists", self.ordered_lists, ("auto", "true", "false"))
        for form in self.forms:
            choice("rewards.forms", form, ANSWER_FORMS)
        if self.wrong_reward >= 1:
            raise ValueError(
                "rewards.wrong_reward must be below 1, the reward of a correct answer, "
                f"got {self.wrong_reward}."
            )
        at_least("rewards.num_workers", self.num_workers, 1)
        at_least("rewards.limit_seconds", self.limit_seconds, 0.1)
        at_least("rewards.memory_limit_mb", self.memory_limit_mb, 256)
        at_least("rewards.overlong_buffer", self.overlong_buffer, 1)
        share("rewards.max_failure_share", self.max_failure_share)
