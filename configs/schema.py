"""Every option: type, default, unit, meaning, check. YAML files hold only differences from here.

Checks run once, at ``OmegaConf.to_object``, on the final values; they read no file and open no socket.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

DISTILLERS = ("global_summary", "shared_topk", "per_sample_topk", "random_k")
LOSS_TYPES = ("cispo", "grpo", "dapo")
OPERATORS = ("trace", "sr", "pdr")


def _choice(option: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"{option} is '{value}'; choose one of {', '.join(choices)}.")


def _at_least(option: str, value: float, least: float) -> None:
    if value < least:
        raise ValueError(f"{option} must be at least {least}, got {value}.")


def _share(option: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{option} must lie between 0 and 1, got {value}.")


@dataclass(kw_only=True)
class ModelConfig:
    """The policy that a run starts from."""

    path: str = MISSING
    """An HF folder, or the name of a model on the hub."""

    dtype: str = "bfloat16"
    """Precision of the trainer's weights: float32 or bfloat16."""

    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""

    trust_remote_code: bool = False
    """Run Python code that ships with the model. Leave it off for models you did not write."""

    def __post_init__(self) -> None:
        _choice("model.dtype", self.dtype, ("float32", "bfloat16"))


@dataclass(kw_only=True)
class DataConfig:
    """Where problems come from. Each has a question and a gold answer that must parse."""

    source: str = "jsonl"
    """``jsonl`` (data.path), ``hf`` (data.name) or ``reasoning_gym`` (data.task)."""

    path: str | None = None
    """JSONL file with the fields id, question, answer, source (id and source may be missing)."""

    eval_path: str | None = None
    """JSONL file of held-out problems, for evaluation during training."""

    name: str | None = None
    """Data set on the HF hub, or a local data set folder."""

    split: str = "train"
    """Split of data.name that holds the training (or evaluated) problems."""

    eval_split: str | None = None
    """Split of data.name that holds the held-out problems."""

    question_field: str = "question"
    """Field (column) that holds the question."""

    answer_field: str = "answer"
    """Field (column) that holds the gold answer."""

    task: str | None = None
    """Name of a reasoning-gym task with verifiable numeric answers."""

    task_options: dict[str, Any] = field(default_factory=dict)
    """Options of that task, e.g. {min_terms: 4, max_terms: 4}."""

    task_seed: int = 0
    """Seed of the task's generator; independent of the run's seed, so that all seeds share problems."""

    num_train: int = 10000
    """Training problems to generate (reasoning_gym)."""

    num_eval: int = 500
    """Held-out problems: how many to generate, or the most to read from eval_path or eval_split."""

    on_bad_gold: str = "refuse"
    """What to do with a gold answer that does not parse: ``refuse`` the data, or ``drop`` and count."""

    def __post_init__(self) -> None:
        _choice("data.source", self.source, ("jsonl", "hf", "reasoning_gym"))
        _choice("data.on_bad_gold", self.on_bad_gold, ("refuse", "drop"))
        needed = {"jsonl": "path", "hf": "name", "reasoning_gym": "task"}[self.source]
        if getattr(self, needed) is None:
            raise ValueError(f"data.{needed} must be set when data.source is '{self.source}'.")
        _at_least("data.num_train", self.num_train, 1)
        _at_least("data.num_eval", self.num_eval, 1)


@dataclass(kw_only=True)
class PromptsConfig:
    """The texts of the five kinds of call. The paper's own are not public; these are ours."""

    solve: str = MISSING
    """Placeholder: {question}."""
    draft: str = MISSING
    """One draft inside a workspace. Placeholders: {number}, {solution}."""
    refine: str = MISSING
    """Placeholders: {question}, {workspace}."""
    distil: str = MISSING
    """Placeholders: {question}, {drafts}, {kappa}."""
    verify: str = MISSING
    """Placeholders: {question}, {solution}."""


@dataclass(kw_only=True)
class OperatorConfig:
    """The improvement operator: how drafts become a workspace, and a workspace an answer."""

    name: str = "pdr"
    """``trace`` (one chain of thought), ``sr`` (sequential refinement) or ``pdr``."""

    schedule: list[int] = field(default_factory=lambda: [4, 1])
    """Calls in each round, e.g. [8,4,1]. The last width is 1: the answer. trace is [1], sr is [1,1,...]."""

    distiller: str = "shared_topk"
    """How drafts become a workspace: global_summary, shared_topk, per_sample_topk or random_k."""

    top_k: int = 4
    """Drafts that a top-k or random-k distiller keeps (k)."""

    workspace_tokens: int = 8192
    """The bound kappa on a workspace, in tokens of the policy's tokenizer."""

    think_open: str = "<think>"
    """Opens the thinking part of a completion."""

    think_close: str = "</think>"
    """Closes it. What follows is the solution, the only part that may enter a workspace."""

    prompts: PromptsConfig = field(default_factory=PromptsConfig)

    def __post_init__(self) -> None:
        _choice("operator.name", self.name, OPERATORS)
        _choice("operator.distiller", self.distiller, DISTILLERS)
        _at_least("operator.top_k", self.top_k, 1)
        _at_least("operator.workspace_tokens", self.workspace_tokens, 16)
        if not self.schedule or min(self.schedule) < 1:
            raise ValueError(f"operator.schedule must list widths of at least 1, got {self.schedule}.")
        if self.schedule[-1] != 1:
            raise ValueError(
                f"operator.schedule must end in 1, the call that gives the answer; got {self.schedule}. "
                f"Did you mean {[*self.schedule, 1]}?"
            )
        if self.name == "trace" and self.schedule != [1]:
            raise ValueError(f"operator.schedule of trace must be [1], got {self.schedule}.")
        if self.name == "sr" and (set(self.schedule) != {1} or len(self.schedule) < 2):
            raise ValueError(f"operator.schedule of sr must be [1,1,...], got {self.schedule}.")
        if self.name == "pdr" and len(self.schedule) < 2:
            raise ValueError(f"operator.schedule of pdr needs two rounds or more, got {self.schedule}.")


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
        _choice("rewards.kind", self.kind, ("math", "custom"))
        if self.kind == "custom" and not self.path:
            raise ValueError("rewards.path must name package.module:function when rewards.kind is 'custom'.")
        _at_least("rewards.num_workers", self.num_workers, 1)
        _at_least("rewards.limit_seconds", self.limit_seconds, 0.1)
        _at_least("rewards.memory_limit_mb", self.memory_limit_mb, 256)
        _at_least("rewards.overlong_buffer", self.overlong_buffer, 1)
        _share("rewards.max_failure_share", self.max_failure_share)


@dataclass(kw_only=True)
class AlgoConfig:
    """What is optimised, and from which samples. Names are TRL's where TRL has the option."""

    loss_type: str = "cispo"
    """Policy loss: cispo (the paper's), grpo or dapo."""

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
    """For cispo the largest ratio itself; for grpo and dapo the upper clip is 1 + epsilon_high. As in TRL."""

    scale_rewards: str = "group"
    """Divide advantages by the standard deviation of the reward: group, batch or none."""

    num_updates: int = 1
    """Optimizer steps per collected batch, each on its own part of the groups."""

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
        _choice("algo.loss_type", self.loss_type, LOSS_TYPES)
        _choice("algo.scale_rewards", self.scale_rewards, ("group", "batch", "none"))
        _share("algo.operator_fraction", self.operator_fraction)
        _at_least("algo.problems_per_step", self.problems_per_step, 1)
        _at_least("algo.num_updates", self.num_updates, 1)
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
        if self.learning_rate <= 0:
            raise ValueError(f"algo.learning_rate must be above 0, got {self.learning_rate}.")


@dataclass(kw_only=True)
class RolloutConfig:
    """Sampling and the vLLM workers that do it."""

    urls: list[str] = field(default_factory=list)
    """vLLM servers to use. Empty: start one local worker."""

    temperature: float = 1.0
    top_p: float = 1.0
    """Other than 1, the sampler's log-probs no longer describe the trained distribution."""

    max_completion_length: int = 2048
    """The most tokens that one call may write, thinking included."""

    max_concurrency: int = 256
    """Requests in flight at once, over all workers."""

    request_timeout_seconds: float = 600.0
    """The longest that one request may take."""

    max_retries: int = 3
    """Times that a request is sent again after a connection error or a 5xx."""

    start_timeout_seconds: float = 300.0
    """The longest that a local worker may take to answer for the first time."""

    publish_timeout_seconds: float = 300.0
    """The longest that publishing weights to a worker may take."""

    port: int = 0
    """Port of the local worker; 0 picks a free one."""

    dtype: str = "auto"
    """Precision of the local worker: auto (the model's), float32 or bfloat16."""

    max_model_len: int = 4096
    """Prompt plus completion tokens that the local worker accepts."""

    max_num_seqs: int = 256
    """Sequences that the local worker decodes at once."""

    kv_cache_gib: int = 4
    """KV cache of a CPU worker, GiB (VLLM_CPU_KVCACHE_SPACE)."""

    num_threads: int = 0
    """Threads of a CPU worker; 0 lets vLLM take every core."""

    enforce_eager: bool = True
    """Skip compilation: starts sooner, decodes a little slower."""

    def __post_init__(self) -> None:
        _at_least("rollout.max_completion_length", self.max_completion_length, 1)
        _at_least("rollout.max_concurrency", self.max_concurrency, 1)
        _at_least("rollout.temperature", self.temperature, 0)
        _choice("rollout.dtype", self.dtype, ("auto", "float32", "bfloat16"))
        if self.max_completion_length >= self.max_model_len:
            raise ValueError(
                f"rollout.max_completion_length is {self.max_completion_length}, but "
                f"rollout.max_model_len is {self.max_model_len}: no token is left for the prompt."
            )


@dataclass(kw_only=True)
class TrainConfig:
    """The loop: how long, how it is watched, what is kept."""

    max_steps: int = 100
    """Steps: one collected batch and its updates each."""

    save_steps: int = 20
    """Checkpoint every this many steps, and at the end."""

    keep_last: int = 2
    """Checkpoints kept."""

    eval_steps: int = 0
    """Evaluate every this many steps; 0: only as eval_at_start and eval_at_end say."""

    eval_at_start: bool = True
    eval_at_end: bool = True

    eval_operators: list[str] = field(default_factory=lambda: ["trace", "pdr"])
    """Operators to evaluate, by the name of their file in configs/operator."""

    eval_samples: int = 1
    """Rollouts per held-out problem and operator."""

    tokens_per_micro_batch: int = 8192
    """Padded tokens in one forward pass of one rank."""

    report_to: list[str] = field(default_factory=list)
    """Trackers: [] or [wandb]. Without a key wandb runs offline; it never asks."""

    collective_timeout_seconds: float = 3600.0
    """The longest that a rank waits for the others (rollouts and evaluation included)."""

    num_threads: int = 1
    """Torch threads per rank on CPU."""

    def __post_init__(self) -> None:
        _at_least("train.max_steps", self.max_steps, 1)
        _at_least("train.save_steps", self.save_steps, 1)
        _at_least("train.keep_last", self.keep_last, 1)
        _at_least("train.eval_samples", self.eval_samples, 1)
        for tracker in self.report_to:
            _choice("train.report_to", tracker, ("wandb",))


@dataclass(kw_only=True)
class ColdStartConfig:
    """``python -m train.coldstart``: the tiny policy of the demo and how it is made."""

    hidden_size: int = 128
    num_hidden_layers: int = 4
    num_attention_heads: int = 4
    """Heads of size 32."""
    num_key_value_heads: int = 2
    intermediate_size: int = 384
    rope_theta: float = 10000.0
    initializer_range: float = 0.04
    """Standard deviation of the first weights; 0.02 suits wider models and learns slower here."""
    vocab_size: int = 1024
    """Most tokens of the tokenizer; it stops earlier when no frequent pair is left."""

    solve_share: float = 0.42
    """Share of examples that answer the plain problem."""
    refine_share: float = 0.52
    """Share that answers from a workspace; what is left is half summaries, half verifications."""
    glance_share: float = 0.5
    """Of the solve examples: answers without work. The policy starts out doing this as often."""
    copy_share: float = 0.5
    """Of the refine examples: the workspace's first answer, unchecked."""
    summary_share: float = 0.06
    """Of the refine examples: the workspace is a summary instead of drafts."""

    max_steps: int = 1200
    per_device_train_batch_size: int = 32
    learning_rate: float = 3e-3
    warmup_steps: int = 40
    adam_beta2: float = 0.95
    max_grad_norm: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("solve_share", "refine_share", "glance_share", "copy_share", "summary_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"coldstart.{name} must lie between 0 and 1, got {getattr(self, name)}.")
        if self.solve_share + self.refine_share > 1:
            raise ValueError(
                f"coldstart.solve_share and coldstart.refine_share are {self.solve_share} and "
                f"{self.refine_share}; together they must not exceed 1."
            )
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"coldstart.num_key_value_heads is {self.num_key_value_heads}; it must divide "
                f"coldstart.num_attention_heads, which is {self.num_attention_heads}."
            )
        least = 5 + 256
        if self.vocab_size < least:
            raise ValueError(
                f"coldstart.vocab_size must be at least {least} (every byte and the special tokens), "
                f"got {self.vocab_size}."
            )


@dataclass(kw_only=True)
class TrainingConfig:
    """``python -m train``"""

    output_dir: str = "outputs/train"
    """Where everything the run writes goes."""

    seed: int = 0
    resume: str = "none"
    """``none``, ``auto`` (the newest checkpoint of output_dir, if any) or a checkpoint folder."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = MISSING
    operator: OperatorConfig = field(default_factory=OperatorConfig)
    rewards: RewardsConfig = field(default_factory=RewardsConfig)
    algo: AlgoConfig = field(default_factory=AlgoConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    coldstart: ColdStartConfig = field(default_factory=ColdStartConfig)

    def __post_init__(self) -> None:
        if self.rollout.temperature == 0:
            raise ValueError("rollout.temperature must be above 0 in training: greedy samples are all equal.")
        if self.rollout.top_p != 1.0:
            raise ValueError(
                f"rollout.top_p must be 1.0 in training, got {self.rollout.top_p}: a cut tail biases the "
                "ratio between trainer and sampler."
            )


@dataclass(kw_only=True)
class EvaluationConfig:
    """``python -m rollout``"""

    output_dir: str = "outputs/evaluation"
    seed: int = 0
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = MISSING
    operator: OperatorConfig = field(default_factory=OperatorConfig)
    operators: list[str] = field(default_factory=list)
    """Compare these, by the name of their file in configs/operator. Empty: only ``operator``."""
    samples: int = 1
    """Rollouts per problem and operator."""
    rewards: RewardsConfig = field(default_factory=RewardsConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)

    def __post_init__(self) -> None:
        _at_least("samples", self.samples, 1)


def register() -> None:
    """Makes the schemas known to Hydra; safe to call more than once."""
    store = ConfigStore.instance()
    store.store(group="schema", name="training", node=TrainingConfig)
    store.store(group="schema", name="evaluation", node=EvaluationConfig)
