"""Sampling and the workers that do it."""

from dataclasses import dataclass, field

from configs.schema.checks import above, at_least, choice, share

WITHOUT_EFFECT = (
    "urls",
    "num_workers",
    "host",
    "port",
    "max_concurrency",
    "max_retries",
    "request_timeout_seconds",
    "start_timeout_seconds",
    "publish_timeout_seconds",
    "pause_mode",
    "weight_transfer",
    "max_num_seqs",
    "kv_cache_gib",
    "gpu_memory_utilization",
    "enable_sleep_mode",
    "num_threads",
)
"""Options that may differ when a run goes on: where and how fast it samples, not what."""


@dataclass(kw_only=True)
class RolloutConfig:
    """Sampling and the vLLM workers that do it."""

    urls: list[str] = field(default_factory=list)
    """vLLM servers to use, with VLLM_API_KEY of the environment as their key. Empty: start local workers."""

    num_workers: int = 1
    """Local workers to start when ``urls`` is empty; on CPU they share the cores, on GPU each has its own."""

    chat_url: str = ""
    """Evaluate on any OpenAI-compatible endpoint instead, e.g. https://api.openai.com/v1, with
    OPENAI_API_KEY of the environment. ``model.path`` then only names the tokenizer that counts."""

    chat_model: str = ""
    """What the endpoint at ``chat_url`` calls its model."""

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
    """The longest that one request may take, and that an endpoint may ask us to wait (Retry-After)."""

    max_retries: int = 5
    """Times that a request is sent again after a broken connection, a timeout, a 429 or a 5xx."""

    start_timeout_seconds: float = 300.0
    """The longest that a local worker may take to answer for the first time, and that one of ``urls`` which
    broke is waited for."""

    publish_timeout_seconds: float = 300.0
    """The longest that publishing weights to a worker may take."""

    weight_transfer: str = "directory"
    """How weights reach the workers: directory (one that all can read), nccl (between GPUs) or gloo (the
    same by way of host memory). The last two need no shared disk; the workers must reach the trainer."""

    pause_mode: str = "keep"
    """What publishing does with requests in flight: keep (they go on with the new weights) or wait (they end
    first, with the old ones)."""

    host: str = "127.0.0.1"
    """Address that local workers listen on. Others than this machine reach them only with VLLM_API_KEY."""

    port: int = 0
    """Port of the first local worker, the others follow; 0 picks free ones."""

    dtype: str = "auto"
    """Precision of the local worker: auto (the model's), float32 or bfloat16."""

    max_model_len: int = 4096
    """Prompt plus completion tokens that the local worker accepts."""

    max_num_seqs: int = 256
    """Sequences that the local worker decodes at once."""

    kv_cache_gib: int = 4
    """KV cache of each CPU worker, GiB (VLLM_CPU_KVCACHE_SPACE)."""

    num_threads: int = 0
    """Threads of each CPU worker's model; 0 shares the cores out, but for one each."""

    gpu_memory_utilization: float = 0.92
    """Share of its GPU's memory that a local worker takes."""

    enable_sleep_mode: bool = False
    """Trainer and workers share GPUs: workers give their memory back while the trainer updates, weights to
    the host, KV cache dropped. Leave room for the trainer's weights and optimizer: gpu_memory_utilization."""

    enforce_eager: bool = True
    """Skip compilation: starts sooner, decodes a little slower."""

    @property
    def call_tokens(self) -> int:
        """The most tokens that the policy may write in one call."""
        if self.thinking_tokens:
            return self.thinking_tokens + self.answer_tokens
        return self.max_completion_length

    @property
    def chats(self) -> bool:
        """Whether calls go to an endpoint that chats: text in, text out."""
        return bool(self.chat_url)

    def __post_init__(self) -> None:
        self._check_endpoints()
        at_least("rollout.max_completion_length", self.max_completion_length, 1)
        at_least("rollout.thinking_tokens", self.thinking_tokens, 0)
        at_least("rollout.answer_tokens", self.answer_tokens, 1)
        at_least("rollout.max_concurrency", self.max_concurrency, 1)
        at_least("rollout.num_workers", self.num_workers, 1)
        at_least("rollout.max_retries", self.max_retries, 0)
        at_least("rollout.port", self.port, 0)
        if self.port + self.num_workers > 2**16:
            raise ValueError(
                f"rollout.port is {self.port} with {self.num_workers} workers: ports end at {2**16 - 1}."
            )
        at_least("rollout.num_threads", self.num_threads, 0)
        at_least("rollout.kv_cache_gib", self.kv_cache_gib, 1)
        at_least("rollout.max_num_seqs", self.max_num_seqs, 1)
        share("rollout.gpu_memory_utilization", self.gpu_memory_utilization)
        above("rollout.gpu_memory_utilization", self.gpu_memory_utilization, 0)
        above("rollout.request_timeout_seconds", self.request_timeout_seconds, 0)
        above("rollout.start_timeout_seconds", self.start_timeout_seconds, 0)
        above("rollout.publish_timeout_seconds", self.publish_timeout_seconds, 0)
        at_least("rollout.temperature", self.temperature, 0)
        choice("rollout.weight_transfer", self.weight_transfer, ("directory", "nccl", "gloo"))
        choice("rollout.pause_mode", self.pause_mode, ("keep", "wait"))
        choice("rollout.dtype", self.dtype, ("auto", "float32", "bfloat16"))
        if self.call_tokens >= self.max_model_len:
            names = "thinking_tokens + answer_tokens" if self.thinking_tokens else "max_completion_length"
            raise ValueError(
                f"rollout.{names} is {self.call_tokens}, but rollout.max_model_len is {self.max_model_len}: "
                "no token is left for the prompt."
            )

    def _check_endpoints(self) -> None:
        for url in [*self.urls, *([self.chat_url] if self.chats else [])]:
            if not url.startswith(("http://", "https://")):
                raise ValueError(f"A rollout URL must start with http:// or https://, got '{url}'.")
        if self.chats and not self.chat_model:
            raise ValueError("rollout.chat_model must name the model to use at rollout.chat_url.")
        if self.chat_model and not self.chats:
            raise ValueError(f"rollout.chat_model is '{self.chat_model}', but rollout.chat_url is not set.")
        if self.chats and self.thinking_tokens:
            raise ValueError(
                f"rollout.thinking_tokens is {self.thinking_tokens}, but an endpoint that chats "
                "(rollout.chat_url) takes no half-written completion back. Set it to 0."
            )
        if self.chats and self.urls:
            raise ValueError("Set rollout.urls (vLLM servers) or rollout.chat_url (an endpoint that chats).")
        if self.num_workers > 1 and (self.urls or self.chats):
            raise ValueError(
                f"rollout.num_workers is {self.num_workers}, but with rollout.urls or rollout.chat_url no "
                "local worker is started."
            )
