"""Sampling and the workers that do it."""

from dataclasses import dataclass, field

from configs.schema.checks import at_least, choice


@dataclass(kw_only=True)
class RolloutConfig:
    """Sampling and the vLLM workers that do it."""

    urls: list[str] = field(default_factory=list)
    """vLLM servers to use. Empty: start one local worker."""

    temperature: float = 1.0
    top_p: float = 1.0
    """Other than 1, the sampler's log-probs no longer describe the trained distribution."""

    max_completion_length: int = 2048
    """The most tokens that one call may write, thinking included. Not used with thinking_tokens."""

    thinking_tokens: int = 0
    """Thinking that is still open after so many tokens is closed by force. 0: no limit of its own."""

    answer_tokens: int = 2048
    """With thinking_tokens: tokens that a call may write after its thinking."""

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

    @property
    def call_tokens(self) -> int:
        """The most tokens that the policy may write in one call."""
        if self.thinking_tokens:
            return self.thinking_tokens + self.answer_tokens
        return self.max_completion_length

    def __post_init__(self) -> None:
        at_least("rollout.max_completion_length", self.max_completion_length, 1)
        at_least("rollout.thinking_tokens", self.thinking_tokens, 0)
        at_least("rollout.answer_tokens", self.answer_tokens, 1)
        at_least("rollout.max_concurrency", self.max_concurrency, 1)
        at_least("rollout.temperature", self.temperature, 0)
        choice("rollout.dtype", self.dtype, ("auto", "float32", "bfloat16"))
        if self.call_tokens >= self.max_model_len:
            names = "thinking_tokens + answer_tokens" if self.thinking_tokens else "max_completion_length"
            raise ValueError(
                f"rollout.{names} is {self.call_tokens}, but rollout.max_model_len is {self.max_model_len}: "
                "no token is left for the prompt."
            )
