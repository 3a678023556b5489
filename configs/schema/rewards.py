"""The verifier and the shaping of its verdicts."""

from dataclasses import dataclass, field

from configs.schema.checks import above, at_least, choice, has_user, share

ANSWER_FORMS = ("tag", "choice", "marker", "bare", "math", "number")
REWARD_KINDS = (
    "math", "choice", "exact", "ordered_text", "numeric", "code", "reasoning_gym", "judge", "custom",
)  # fmt: skip


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
    gain: float = 0.0
    """Of a refinement: 1 or 0 (correct or not) minus the share of its right drafts."""
    leak: float = 0.0
    """-1 for a workspace summary that states an answer."""

    def __post_init__(self) -> None:
        if not any(vars(self).values()):
            raise ValueError("rewards.weights has no weight other than 0: every reward would be 0.")


@dataclass(kw_only=True)
class JudgeConfig:
    """The language model that decides for rewards.kind 'judge'. Its key is read from JUDGE_API_KEY."""

    url: str | None = None
    """Base URL of an OpenAI-compatible endpoint, e.g. http://localhost:8000/v1. null: no judge."""
    model: str | None = None
    """Name of the model at the endpoint."""
    max_concurrency: int = 16
    """Requests in flight."""
    timeout_seconds: float = 120.0
    """Limit of one request."""
    max_tokens: int = 1024
    """Limit of one reply."""
    max_attempts: int = 4
    """Requests for one answer, unreadable replies included."""
    max_failures_in_row: int = 20
    """Answers in a row without a verdict after which the run ends with an error."""

    def __post_init__(self) -> None:
        if (self.url is None) != (self.model is None):
            raise ValueError(
                f"rewards.judge.url is {self.url!r} and rewards.judge.model is {self.model!r}; set both."
            )
        if self.url is not None and has_user(self.url):
            raise ValueError("rewards.judge.url holds a user name or a password; set JUDGE_API_KEY instead.")
        for name in ("max_concurrency", "max_tokens", "max_attempts", "max_failures_in_row"):
            at_least(f"rewards.judge.{name}", getattr(self, name), 1)
        above("rewards.judge.timeout_seconds", self.timeout_seconds, 0)


@dataclass(kw_only=True)
class RewardsConfig:
    """The verifier and the shaping of its verdicts."""

    kind: str = "math"
    """``math``, ``choice``, ``exact``, ``ordered_text``, ``numeric``, ``code`` (tests), ``reasoning_gym``
    (its own scorers), ``judge`` (rewards.judge) or ``custom`` (rewards.path)."""

    kind_column: str | None = None
    """Column of the data that names the kind of each problem; rewards.kind where a row has no such column."""

    relative_tolerance: float = 1e-6
    """Kind ``numeric``: allowed difference, as a share of the gold."""

    absolute_tolerance: float = 0.0
    """Kind ``numeric``: allowed difference; the larger of the two counts."""

    path: str | None = None
    """Custom reward function, ``package.module:function``; runs in the same killable processes."""

    judge: JudgeConfig = field(default_factory=JudgeConfig)
    """The language model of kind ``judge``."""

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
        choice("rewards.kind", self.kind, REWARD_KINDS)
        if self.kind == "judge" and self.judge.url is None:
            raise ValueError("rewards.kind is 'judge': set rewards.judge.url and rewards.judge.model.")
        at_least("rewards.relative_tolerance", self.relative_tolerance, 0)
        at_least("rewards.absolute_tolerance", self.absolute_tolerance, 0)
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
