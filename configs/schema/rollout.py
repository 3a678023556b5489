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
        at_least("rollout.max_completion_length", self.max_completion_length, 1)
        at_least("rollout.max_concurrency", self.max_concurrency, 1)
        at_least("rollout.temperature", self.temperature, 0)
        choice("rollout.dtype", self.dtype, ("auto", "float32", "bfloat16"))
        if self.max_completion_length >= self.max_model_len:
            raise ValueError(
                f"rollout.max_completion_length is {self.max_completion_length}, but "
                f"rollout.max_model_len is {self.max_model_len}: no token is left for the prompt."
            )
